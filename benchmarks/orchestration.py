"""Cost of orchestration: planner, store and Dagster's recording, with makers that cost nothing.

    python -m benchmarks.orchestration                       # 10, 100 and 1,000 classes x 4 budgets
    python -m benchmarks.orchestration --classes 10 --parts remote     # only requests

The graph is the real one, with its keys, settings and fingerprints. Makers are replaced by ones that read a file of
every input, as the real ones do, and write two small files; previews return a picture of 10 kB. Each size runs in fresh
processes: on a local store with the SQLite instance of our ``dagster.yaml``, and on a store in memory that counts the
requests that S3 would be sent. The growth law is the exponent of a figure over artefacts, by
least squares on logarithms: 1 is linear.

Compute of a dataset is counted as ``--compute`` seconds of one GPU for one class and budget (inversion and generation;
students come on top and are left out), times classes times budgets; the share of orchestration is the time of the
whole run outside the makers over that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BUDGETS = ("ipc-1", "ipc-2", "ipc-5", "ipc-10")
PICTURE = bytes(10_000)
FILES = {"first.bin": bytes(256), "second.bin": bytes(256)}
COMPUTE_SECONDS = 10.0
"""Seconds of one GPU that a class and budget take; an estimate that leaves most of it out, see docs/explanation/scale.md."""
UI_QUERIES = {
    "asset graph": "{assetNodes{assetKey{path} dependencyKeys{path} partitionStats{numPartitions numMaterialized}}}",
    "partition page": (
        '{assetNodeOrError(assetKey:{path:["synthetic_pool"]}){... on AssetNode{'
        "partitionKeysByDimension{name partitionKeys} assetPartitionStatuses{"
        "... on MultiPartitionStatuses{primaryDimensionName ranges{primaryDimStartKey primaryDimEndKey "
        "secondaryDim{... on DefaultPartitionStatuses{materializedPartitions}}}}}}}}"
    ),
    "one partition": (
        '{assetOrError(assetKey:{path:["synthetic_pool"]}){... on Asset{'
        'assetMaterializations(limit:1,partitions:["ipc-1|class-0000"]){metadataEntries{label __typename}}}}}'
    ),
    "stale status of all assets": "{assetNodes{assetKey{path} staleStatus}}",
}


def free_graph() -> Any:
    """The real graph with makers that only read and write.

    ``class_catalog`` stays as it is, because the next scan reads it for the ids of the classes.
    """
    from d3m_assets.assets.graph import GRAPH
    from d3m_assets.planning.asset import Graph

    graph = Graph(*(type(asset) for asset in GRAPH))
    for asset in graph:
        if asset.name != "class_catalog":
            free(asset)
    return graph


def free(asset: Any) -> None:
    """Replace what an asset does by reading a file of every input and writing two small files."""
    from d3m_assets.planning.asset import Made

    def make(context: Any, items: Sequence[Any]) -> Iterator[Made]:
        for item in items:
            narrow = {p: v for p in ("class_key", "budget") if (v := getattr(item.key, p)) is not None}
            for dep in asset.inputs(context, item):
                parts = {p: v for p, v in narrow.items() if p.removesuffix("_key") in dep.partitions}
                for key in context.inputs.keys(dep, **parts):
                    context.inputs.read(key, "catalog.parquet" if key.asset == "class_catalog" else "first.bin")
            yield Made(item.key, FILES, {"number": 1.0, "loss": 0.5})

    def preview(context: Any, item: Any) -> dict[str, Any]:
        context.inputs.read(item.key, "first.bin")
        return {"picture_png": PICTURE}

    def verify(context: Any, item: Any) -> Iterator[Any]:
        context.inputs.read(item.key, "first.bin")
        return iter(())

    asset.make, asset.preview, asset.verify = make, preview, verify


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Result of ``work``, with the seconds and processor seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def settings_of(folder: Path, **changes: Any) -> Any:
    """Settings of a run in a folder with images."""
    from d3m_assets.settings import load_settings

    return load_settings(dataset=str(folder / "images"), home=folder / "home", budgets=BUDGETS, device="cpu",
                         validation_fraction=0.0, **changes)  # fmt: skip


def open_free(settings: Any, **options: Any) -> Any:
    """The pipeline with free makers."""
    from d3m_assets.pipeline import Pipeline

    return Pipeline(settings, graph=free_graph(), **options)


def run_local(folder: Path) -> dict[str, Any]:
    """Distill for nothing in a Dagster instance with a local store; time, memory, and what a tick and a plan take."""
    import dagster as dg

    from d3m_assets.orchestration.jobs import build_distill
    from d3m_assets.orchestration.launch import open_instance, run_pending
    from d3m_assets.orchestration.resources import PipelineResource
    from d3m_assets.orchestration.sensors import build_sensor

    settings, result = settings_of(folder), {}
    pipeline = open_free(settings)
    _, result["scan"] = timed(lambda: pipeline.context.dataset.classes)
    _, result["plan of nothing stored"] = timed(pipeline.plan)
    with open_instance(settings) as instance:
        launched, result["distill"] = timed(lambda: run_pending(settings, instance, pipeline))
        launched.raise_for_failures()
        result["artefacts"] = len(launched.done.made)
        again, result["distill again"] = timed(lambda: run_pending(settings, instance, open_free(settings)))
        assert again.run_id is None, "the second run found something to do"
        sensor = build_sensor(build_distill(settings), settings)

        def tick() -> Any:
            return sensor(dg.build_sensor_context(instance=instance), pipelines=PipelineResource(settings, open_free))

        _, result["tick, up to date"] = timed(tick)
        catalog = pipeline.keys("raw_dataset")
        for key in catalog:
            pipeline.store.delete(key)
        _, result["tick, raw data missing"] = timed(tick)
        events = instance.fetch_materializations(dg.AssetKey("synthetic_pool"), limit=20).records
        result["bytes an event"] = max(len(dg.serialize_value(e.event_log_entry)) for e in events)
    databases = [f for f in (folder / "home" / "dagster").rglob("*") if f.is_file() and ".db" in f.name]
    result["event log bytes"] = sum(f.stat().st_size for f in databases)
    opened = open_free(settings)
    _, result["plan"] = timed(opened.plan)
    _, result["second plan"] = timed(opened.plan)
    result["peak bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result


def run_remote(folder: Path) -> dict[str, Any]:
    """Requests that an object store would be sent: for everything, and for plans of what is stored."""
    from benchmarks import counting
    from d3m_assets.orchestration.launch import open_instance, run_pending

    settings, result = settings_of(folder, storage="counting://store"), {}
    pipeline = open_free(settings)
    with open_instance(settings) as instance:
        launched = run_pending(settings, instance, pipeline)
    launched.raise_for_failures()
    result["artefacts"] = len(launched.done.made)
    result["distill"] = dict(counting.counted())
    opened = open_free(settings)
    for name in ("plan", "second plan"):
        counting.reset()
        opened.plan()
        result[name] = dict(counting.counted())
    counting.reset()
    open_free(settings).plan()
    result["plan of another process"] = dict(counting.counted())
    return result


def environment_of(folder: Path) -> dict[str, str]:
    """Environment in which the front doors find the settings of :func:`settings_of`."""
    from d3m_assets.settings import ENVIRONMENT_PREFIX

    given = {"DATASET": str(folder / "images"), "HOME": str(folder / "home"), "BUDGETS": json.dumps(BUDGETS),
             "VALIDATION_FRACTION": "0", "DEVICE": "cpu"}  # fmt: skip
    return os.environ | {f"{ENVIRONMENT_PREFIX}{name}": value for name, value in given.items()}


def run_front_doors(folder: Path) -> dict[str, float]:
    """Seconds of ``d3m status`` and of loading the definitions, each in a process of its own."""
    found, status = {}, "from d3m_assets.cli import app; app(['status'])"
    for name, code in {"d3m status": status, "load definitions": "import d3m_assets.definitions"}.items():
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment_of(folder), check=True, stdout=subprocess.DEVNULL)
        found[name] = time.perf_counter() - begun
    return found


def run_ui(folder: Path) -> dict[str, float]:
    """Seconds of the queries behind the UI's pages, in a webserver within this process; the second of two calls."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import ModuleTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from starlette.testclient import TestClient

    from d3m_assets.orchestration.launch import open_instance

    os.environ.update(environment_of(folder))
    found = {}
    target = ModuleTarget("d3m_assets.definitions", None, None, "d3m")
    with open_instance(settings_of(folder)) as instance, WorkspaceProcessContext(instance, target) as workspace:
        client = TestClient(create_app_from_workspace_process_context(workspace))
        for name, query in UI_QUERIES.items():
            for _ in range(2):
                answer, cost = timed(lambda query=query: client.post("/graphql", json={"query": query}).json())
                if "errors" in answer:
                    raise SystemExit(f"{name}: {answer['errors']}")
            found[name] = cost["seconds"]
            found[f"{name}, bytes"] = len(json.dumps(answer))
    return found


PARTS = {"local": run_local, "remote": run_remote, "ui": run_ui}


def measure(classes: int, folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Everything for one number of classes, each part in a fresh process."""
    from benchmarks.memory import write_images

    found: dict[str, Any] = {"classes": classes}
    for part in parts:
        home = folder / ("remote" if part == "remote" else "local")
        if not home.exists():
            write_images(home / "images", classes)
        if part == "front-doors":
            found[part] = run_front_doors(home)
            continue
        command = [sys.executable, "-m", "benchmarks.orchestration", "--run", part, str(home)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        # Dagster's code server may print behind the result.
        found[part] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Exponent of a power law through points, by least squares on logarithms; 1 is linear."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum((x - x0) ** 2 for x in xs)


def summary(found: Sequence[dict[str, Any]], compute: float) -> dict[str, dict[str, float]]:
    """The figures that are compared, by number of classes."""
    table = {}
    for run in found:
        row: dict[str, float] = {}
        if local := run.get("local"):
            made, seconds = local["artefacts"], local["distill"]["seconds"]
            row["artefacts"] = made
            row["ms an artefact"] = 1000 * seconds / made
            row["% of compute"] = 100 * seconds / (compute * run["classes"] * len(BUDGETS))
            for name in ("scan", "plan", "second plan", "tick, up to date", "tick, raw data missing"):
                row[f"{name}, s"] = local[name]["seconds"]
            row["CPU of a plan, s"] = local["plan"]["cpu_seconds"]
            row["peak MB"] = local["peak bytes"] / 1e6
            row["event log MB"] = local["event log bytes"] / 1e6
            row["bytes an event"] = local["bytes an event"]
        if remote := run.get("remote"):
            made = row["artefacts"] = remote["artefacts"]
            row["requests an artefact"] = sum(remote["distill"].values()) / made
            for name in ("plan", "second plan", "plan of another process"):
                row[f"requests of a {name}"] = sum(remote[name].values())
        for part in ("front-doors", "ui"):
            row |= {(name if name.endswith("bytes") else f"{name}, s"): v for name, v in run.get(part, {}).items()}
        table[str(run["classes"])] = row
    return table


def growth(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """Exponent of every figure over artefacts."""
    rows = list(table.values())
    return {} if len(rows) < 2 else {
        name: round(exponent([(row["artefacts"], row[name]) for row in rows]), 2)
        for name in rows[0] if name != "artefacts" and all(row.get(name, 0) > 0 for row in rows)
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--compute", type=float, default=COMPUTE_SECONDS, help="GPU seconds of one class and budget")
    parser.add_argument("--parts", nargs="+", choices=["local", "front-doors", "ui", "remote"],
                        default=["local", "front-doors", "ui", "remote"], help="front-doors and ui need local")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/orchestration-DATE.json")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(PARTS[given.run[0]](Path(given.run[1]))))
        return
    from benchmarks.record import surroundings, write_result

    found = []
    for classes in given.classes:
        with tempfile.TemporaryDirectory(prefix="d3m-orchestration-") as folder:
            found.append(measure(classes, Path(folder), given.parts))
        print(json.dumps(summary(found[-1:], given.compute), indent=1), file=sys.stderr, flush=True)
    table = summary(found, given.compute)
    laws = growth(table)
    for name in table[str(given.classes[-1])]:
        values = " ".join(f"{row[name]:12.5g}" for row in table.values())
        print(f"{name:36} {values}   {laws.get(name, '')}")
    result = {**surroundings("cpu"), "budgets": BUDGETS, "compute seconds": given.compute, "summary": table,
              "growth": laws, "runs": found}  # fmt: skip
    print(write_result("orchestration", result, given.output))


if __name__ == "__main__":
    main()
