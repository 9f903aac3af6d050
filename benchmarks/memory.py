"""Does memory stay flat as classes grow? Peak memory of the pipeline up to the learned vectors, few classes and many.

    python benchmarks/memory.py --classes 10 1000

Writes a folder of tiny images for each number of classes, runs the stages from the catalog to ``inverted_embeddings`` in a
process of its own (few steps: memory does not depend on them), and compares the peak resident memory of that process and
its workers, as Linux counts it (``VmHWM``). Prints a table and writes a dated JSON file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("class_catalog", "raw_dataset", "foundation_model", "class_prompts", "inverted_embeddings")
ALLOWED_GROWTH = 1.10
"""Share of the smallest run's peak that the largest may reach."""


def write_images(folder: Path, classes: int, per_class: int = 4) -> Path:
    """Write grey 8x8 PNG of noise, ``<folder>/{train,test}/class-NNNN/N.png``, one of each class for test.

    Args:
        folder: Where to.
        classes: How many.
        per_class: Images of a class in train.
    """
    from d3m_assets.datasets.images import encode_png

    random = np.random.default_rng(0)
    for k in range(classes):
        for i in range(per_class + 1):
            file = folder / ("train" if i < per_class else "test") / f"class-{k:04d}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_png(random.integers(0, 256, (8, 8), np.uint8)))
    return folder


def _peak(pid: str) -> int:
    """Highest resident memory a process ever had, in bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _children(pid: str) -> list[str]:
    own = [c for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]
    return own + [c for child in own for c in _children(child)]


def run_stages(folder: Path, classes: int, workers: int, steps: int) -> dict[str, Any]:
    """Run the stages in this process and say what memory they took.

    Args:
        folder: Images and everything that is made are put here.
        classes: How many.
        workers: Processes that share the work.
        steps: Inversion steps of a class.

    Returns:
        ``classes``, ``seconds`` and peak bytes: ``parent``, ``workers`` (all of them and their helpers) and ``total``;
        ``parent_after`` is the parent's peak after each stage.

    Raises:
        D3MError: A stage failed.
    """
    from d3m_assets.pipeline import Pipeline
    from d3m_assets.settings import load_settings

    write_images(folder / "images", classes)
    settings = load_settings(**{
        "dataset": str(folder / "images"), "home": folder / "home", "budgets": ("ipc-1",), "device": "cpu",
        "workers": workers, "validation_fraction": 0.0, "inversion.steps": steps, "inversion.samples_per_step": 4,
    })  # fmt: skip
    pipeline, begun, after = Pipeline(settings), time.monotonic(), {}
    for stage in STAGES:
        keys = pipeline.keys(stage)
        shown = time.monotonic()
        for done, outcome in enumerate(pipeline.materialize(stage, keys), 1):
            if outcome.error is not None:
                raise outcome.error
            if time.monotonic() - shown > 5:
                print(f"{classes} classes, {stage}: {done} of {len(keys)}", file=sys.stderr, flush=True)
                shown = time.monotonic()
        after[stage] = _peak("self")
    helpers = sum(_peak(child) for child in _children(str(os.getpid())))
    pipeline.context.close()
    return {"classes": classes, "seconds": time.monotonic() - begun, "parent": after[STAGES[-1]], "workers": helpers,
            "total": after[STAGES[-1]] + helpers, "parent_after": after}  # fmt: skip


def compare(counts: list[int], workers: int, steps: int) -> list[dict[str, Any]]:
    """:func:`run_stages` for each number of classes, each in a fresh process."""
    found = []
    for classes in counts:
        with tempfile.TemporaryDirectory(prefix="d3m-memory-") as folder:
            command = [sys.executable, __file__, "--run", folder, "--classes", str(classes), "--workers", str(workers),
                       "--steps", str(steps)]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Peaks as lines of text, in MB."""
    lines = ["classes    parent   workers     total   of first   seconds"]
    for run in found:
        mb = (f"{run[name] / 1e6:9.0f}" for name in ("parent", "workers", "total"))
        lines.append(
            f"{run['classes']:7} {' '.join(mb)} {run['total'] / found[0]['total']:10.3f} {run['seconds']:9.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--workers", type=int, default=2, help="processes that share the work")
    parser.add_argument("--steps", type=int, default=1, help="inversion steps of a class")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/memory-DATE.json")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("peaks are read from /proc, which this system has not; run it on Linux")
    if given.run:
        print(json.dumps(run_stages(given.run, given.classes[0], given.workers, given.steps)))
        return
    from benchmarks.record import surroundings, write_result

    found = compare(given.classes, given.workers, given.steps)
    print(table(found))
    flat = found[-1]["total"] <= ALLOWED_GROWTH * found[0]["total"]
    print(f"flat within {ALLOWED_GROWTH - 1:.0%}: {'yes' if flat else 'NO'}")
    print(write_result("memory", {**surroundings("cpu"), "runs": found, "flat": flat}, given.output))


if __name__ == "__main__":
    main()
