"""What each stage makes: from keys of the graph to calls of the library and files for the store.

No algorithm lives here, and nothing of Dagster: a stage reads what it is made from, calls the room that knows how, and
names the files.
"""

from __future__ import annotations

import json
import platform
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import contact_sheet, decode_png, encode_png, load_images
from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.errors import D3MError, StageError
from d3m_assets.pipeline import Pipeline, Problem
from d3m_assets.progress import Progress, ProgressEvent
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    from d3m_assets.evaluation.students import LabelledImages

SAMPLES_SHOWN = 30
"""Images on a contact sheet."""


@dataclass(frozen=True)
class Made:
    """One artefact, ready for the store; or why there is none."""

    key: ArtefactKey
    files: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: D3MError | None = None


def make(pipeline: Pipeline, asset: str, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Make artefacts of one asset, one after another or, where that is faster, several together."""
    if asset == "inverted_embeddings":
        yield from _inverted_embeddings(pipeline, keys)
        return
    makers: dict[str, Callable[[Pipeline, ArtefactKey, Progress], Made]] = {
        "class_catalog": _class_catalog, "raw_dataset": _raw_dataset, "foundation_model": _foundation_model,
        "class_prompts": _class_prompts, "synthetic_pool": _synthetic_pool, "distilled_bundle": _distilled_bundle,
        "reference_metrics": _reference_metrics, "whole_dataset_metrics": _whole_dataset_metrics,
        "foundation_metrics": _foundation_metrics, "student_metrics": _student_metrics,
        "distillation_report": _distillation_report,
    }  # fmt: skip
    for position, key in enumerate(keys):
        part = _part(pipeline.progress, asset, key, position, len(keys))
        part(ProgressEvent(asset, 0, 1))
        try:
            made = makers[asset](pipeline, key, part)
        except D3MError as error:
            made = Made(key, error=error)
        yield made


def _part(progress: Progress, stage: str, key: ArtefactKey, position: int, of: int) -> Progress:
    """Progress of one key as a part of its stage: every key counts 1000."""

    def report(event: ProgressEvent) -> None:
        share = event.done / event.total if event.total else 0
        where = " ".join(p for p in (key.budget, f"class {key.class_key}" if key.class_key else "") if p)
        detail = " ".join(p for p in (where, event.detail) if p)
        progress(ProgressEvent(stage, round(1000 * (position + share)), 1000 * of, detail))

    return report


def _parquet(frame: pd.DataFrame) -> bytes:
    out = BytesIO()
    frame.to_parquet(out, index=False)
    return out.getvalue()


def read_table(pipeline: Pipeline, key: ArtefactKey, name: str) -> pd.DataFrame:
    """A stored parquet table."""
    return pd.read_parquet(BytesIO(pipeline.store.read(key, name)))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _required(value: str | None) -> str:
    if value is None:
        raise StageError("this asset is partitioned; give a class or budget")
    return value


# Real data


def _class_catalog(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    table = pipeline.full_catalog()
    active = table[table["active"]]
    metrics = {"classes": len(active), "retired": len(table) - len(active), "images": int(active["n_train"].sum())}
    return Made(key, {"catalog.parquet": _parquet(table)}, metrics)


def _raw_dataset(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    prompts = pipeline.prompts(_required(key.class_key))
    rows = pipeline.scan().classes[prompts.class_name].table(prompts.class_id)
    counts = {split: int((rows["split"] == split).sum()) for split in ("train", "validation", "test")}
    return Made(key, {"images.parquet": _parquet(rows)}, {**counts, "bytes": int(rows["bytes"].sum())})


def image_table(pipeline: Pipeline, split: str, class_key: str | None = None) -> pd.DataFrame:
    """Rows of ``raw_dataset`` of one split, of one class or of all, by class id."""
    keys = [ArtefactKey("raw_dataset", class_key)] if class_key else pipeline.keys("raw_dataset")
    rows = pd.concat([read_table(pipeline, k, "images.parquet") for k in keys], ignore_index=True)
    return rows[rows["split"] == split].reset_index(drop=True)


def labelled_images(pipeline: Pipeline, rows: pd.DataFrame, split: Any) -> LabelledImages:
    """Images of some rows of ``raw_dataset``, at their stored size, labelled by position in the catalog."""
    from d3m_assets.evaluation.students import LabelledImages

    scan = pipeline.scan()
    images = load_images(list(rows["uri"]), size=(scan.image_height, scan.image_width), channels=scan.channels)
    position = {class_id: i for i, class_id in enumerate(pipeline.catalog()["class_id"])}
    return LabelledImages(images, rows["class_id"].map(position).to_numpy(np.int64), split)


# The method


def _foundation_model(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    files = pipeline.foundation_files
    facts = {
        "name": files.name, "path": str(files.path), "fingerprint": files.fingerprint, "text_width": files.text_width,
        "text_length": files.text_length, "image_size": files.image_size, "bytes": _weight_bytes(files.path),
    }  # fmt: skip
    return Made(key, {"foundation.json": _json(facts)}, facts)


def _weight_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.glob("*/*.safetensors"))


def _class_prompts(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    prompts = pipeline.prompts(_required(key.class_key))
    metrics = {"prompt": prompts.learned(0), "class-name prompt": prompts.by_name(), "initializer": prompts.initializer}
    return Made(key, {"prompts.json": _json(prompts.to_json())}, metrics)


def _stored_prompts(pipeline: Pipeline, class_key: str) -> ClassPrompts:
    stored = pipeline.store.read(ArtefactKey("class_prompts", class_key), "prompts.json")
    return ClassPrompts.from_json(json.loads(stored))


def _inverted_embeddings(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    from safetensors.numpy import save

    from d3m_assets.distillation.inversion import InversionTask, invert

    settings = pipeline.settings
    pipeline.progress(ProgressEvent("inverted_embeddings", 0, len(keys), "loading the foundation model"))
    foundation = pipeline.foundation()
    # On a processor one class fills the machine already, and its result must not depend, to the last bit, on which
    # classes it shares a batch with: a killed run finishes the rest and ends with the same bytes.
    group = settings.inversion.classes_per_batch or (1 if foundation.device.type == "cpu" else 32)
    begin = 0
    while begin < len(keys):
        batch = [k for k in keys[begin : begin + group] if k.budget == keys[begin].budget]
        names = ", ".join(_required(k.class_key) for k in batch[:5])
        key = batch[0] if len(batch) == 1 else ArtefactKey(batch[0].asset, None, batch[0].budget)

        def report(event: ProgressEvent, begin: int = begin, n: int = len(batch), key: ArtefactKey = key,
                   names: str = names) -> None:  # fmt: skip
            share = n * event.done / event.total
            where = f"{key.budget} class {names} step {event.done}/{event.total} {event.detail}"
            pipeline.progress(
                ProgressEvent(key.asset, round(1000 * (begin + share)), 1000 * len(keys), where)
            )

        begin += len(batch)
        try:
            tasks = []
            for k in batch:
                class_key, budget = _required(k.class_key), _required(k.budget)
                rows = image_table(pipeline, "train", class_key)
                images = load_images(list(rows["uri"]), size=foundation.files.image_size, channels=pipeline.scan().channels)
                tasks.append(
                    InversionTask(_stored_prompts(pipeline, class_key), images, pipeline.embedding_plan(class_key, budget))
                )
            learned = invert(foundation, tasks, settings.inversion, settings.seed, report)
        except D3MError as error:
            yield from (Made(k, error=error) for k in batch)
            continue
        for k, task, result in zip(batch, tasks, learned, strict=True):
            tensors = {placeholder_token(task.prompts.class_id, p): v for p, v in enumerate(result.vectors)}
            record = {
                "plan": asdict(task.plan), "steps": settings.inversion.steps, "stop_reason": "step limit",
                "losses": result.losses, "cluster_sizes": result.cluster_sizes, "norm": foundation.norm,
                "prompts": [task.prompts.learned(p) for p in range(task.plan.prompts)],
            }  # fmt: skip
            metrics = {
                "payload_bytes": task.plan.payload, "prompts": task.plan.prompts, "vectors": task.plan.vectors,
                "loss_begin": result.losses[0][1], "loss_end": result.losses[-1][1],
            }  # fmt: skip
            yield Made(k, {"embeddings.safetensors": save(tensors), "training.json": _json(record)}, metrics)


def read_vectors(pipeline: Pipeline, key: ArtefactKey) -> np.ndarray:
    """Stored vectors ``[prompts, vectors, D]`` of one class and budget."""
    from safetensors.numpy import load

    tensors = load(pipeline.store.read(key, "embeddings.safetensors"))
    return np.stack([tensors[name] for name in sorted(tensors)])


def _synthetic_pool(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    from d3m_assets.distillation.generation import generate

    settings, class_key, budget = pipeline.settings, _required(key.class_key), _required(key.budget)
    source = ArtefactKey("inverted_embeddings", class_key, budget)
    prompts = _stored_prompts(pipeline, class_key)
    images, samples = generate(
        pipeline.foundation(), prompts, settings.generation, settings.seed,
        count=settings.generation.images_per_class, vectors=read_vectors(pipeline, source),
        plan=pipeline.embedding_plan(class_key, budget), channels=pipeline.scan().channels,
    )  # fmt: skip
    table = _pool_table(prompts, images, samples).assign(
        embeddings_fingerprint=pipeline.spec(source).fingerprint,
        raw_dataset_fingerprint=pipeline.spec(ArtefactKey("raw_dataset", class_key)).fingerprint,
        foundation_fingerprint=pipeline.foundation_files.fingerprint,
    )
    return Made(key, {"pool.parquet": _parquet(table)}, {"images": len(table), "size": images.shape[1]})


def _pool_table(prompts: ClassPrompts, images: np.ndarray, samples: Sequence[Any]) -> pd.DataFrame:
    """One row an image; ``image`` is laid out as the Hugging Face ``Image`` feature is."""
    rows = [
        {"image": {"bytes": encode_png(image), "path": f"{prompts.class_name}/{s.index:05d}.png"},
         "class_id": prompts.class_id, "class_name": prompts.class_name, "index": s.index, "seed": s.seed,
         "prompt_index": s.prompt_index, "prompt": s.prompt}
        for image, s in zip(images, samples, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def pool_images(table: pd.DataFrame) -> np.ndarray:
    """Decoded images of a pool, uint8 ``[N, H, W, C]``."""
    return np.stack([decode_png(image["bytes"]) for image in table["image"]])


def _distilled_bundle(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    budget, settings, scan = _required(key.budget), pipeline.settings, pipeline.scan()
    files = pipeline.foundation_files
    classes = []
    for class_key in pipeline.catalog()["class_key"]:
        vectors = read_vectors(pipeline, ArtefactKey("inverted_embeddings", class_key, budget))
        plan = pipeline.embedding_plan(class_key, budget)
        classes.append(DistilledClass(_stored_prompts(pipeline, class_key), plan, vectors))
    noise = files.config("scheduler")
    recipe = Recipe(
        budget=budget, bytes_per_class=pipeline.budget_bytes(budget), dataset=pipeline.dataset_name,
        image_height=scan.image_height, image_width=scan.image_width, channels=scan.channels,
        foundation=pipeline.foundation_name, foundation_fingerprint=files.fingerprint,
        foundation_bytes=_weight_bytes(files.path), generation=settings.generation.model_dump(mode="json"),
        scheduler=f"{noise.get('beta_schedule')} {noise.get('prediction_type')}", seed=settings.seed,
        templates=settings.prompts.templates, keep_class_name=settings.prompts.keep_class_name,
    )  # fmt: skip
    bundle = Bundle(recipe, tuple(classes))
    data = bundle.to_bytes()
    return Made(key, {"bundle.safetensors": data}, {"payload_bytes": bundle.payload, "bundle_bytes": len(data)})


# Evaluation


def _test_images(pipeline: Pipeline, key: ArtefactKey) -> LabelledImages:
    from d3m_assets.evaluation.metrics import test_split

    return test_split(lambda: labelled_images(pipeline, image_table(pipeline, "test"), "test"), reader=str(key))


def _metrics(
    pipeline: Pipeline, key: ArtefactKey, method: str, sets: Callable[[int], LabelledImages], progress: Progress,
    bytes_per_class: float = float("nan"),
) -> pd.DataFrame:  # fmt: skip
    from d3m_assets.evaluation.metrics import student_metrics

    return student_metrics(
        method, sets, _test_images(pipeline, key), pipeline.settings.students, budget=key.budget or "",
        bytes_per_class=bytes_per_class, n_classes=len(pipeline.catalog()), progress=progress,
    )  # fmt: skip


def _measured(key: ArtefactKey, metrics: pd.DataFrame, files: Mapping[str, bytes] | None = None) -> Made:
    accuracy = {f"accuracy {m}": float(g.mean()) for m, g in metrics.groupby("method")["accuracy"]}
    return Made(key, {"metrics.parquet": _parquet(metrics), **(files or {})}, {**accuracy, "students": len(metrics)})


def _reference_metrics(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    from d3m_assets.evaluation.baselines import affordable_images, random_real
    from d3m_assets.evaluation.metrics import RANDOM_REAL

    scan = pipeline.scan()
    shape = (scan.image_height, scan.image_width, scan.channels)
    count = affordable_images(pipeline.budget_bytes(_required(key.budget)), *shape)
    rows = image_table(pipeline, "train")
    charged = count * int(np.prod(shape))
    metrics = _metrics(
        pipeline, key, RANDOM_REAL, lambda seed: labelled_images(pipeline, random_real(rows, count, seed), "train"), progress,
        charged,
    )  # fmt: skip
    return _measured(key, metrics)


def _whole_dataset_metrics(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    from d3m_assets.evaluation.metrics import WHOLE_TRAIN

    train = labelled_images(pipeline, image_table(pipeline, "train"), "train")
    return _measured(key, _metrics(pipeline, key, WHOLE_TRAIN, lambda seed: train, progress))


def _foundation_metrics(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    from d3m_assets.distillation.generation import generate
    from d3m_assets.evaluation.metrics import CLASS_NAMES, RENDERED
    from d3m_assets.evaluation.students import LabelledImages

    settings, tables, images = pipeline.settings, [], []
    prompts = [_stored_prompts(pipeline, c) for c in pipeline.catalog()["class_key"]]
    for n, p in enumerate(prompts):
        progress(ProgressEvent(key.asset, n, 2 * len(prompts), f"drawing {p.by_name()!r}"))
        drawn, samples = generate(
            pipeline.foundation(), p, settings.generation, settings.seed,
            count=settings.generation.images_per_class, channels=pipeline.scan().channels,
        )  # fmt: skip
        tables.append(_pool_table(p, drawn, samples))
        images.append(drawn)
    labels = np.repeat(np.arange(len(images)), settings.generation.images_per_class)
    pool = LabelledImages(np.concatenate(images), labels, "synthetic")

    def later(event: ProgressEvent) -> None:
        progress(ProgressEvent(event.stage, event.total + event.done, 2 * event.total, event.detail))

    metrics = [_metrics(pipeline, key, CLASS_NAMES, lambda seed: pool, later)]
    names = [p.display_name for p in prompts]
    if pipeline.foundation_name == "embedded" and all(drawable(name) for name in names):
        metrics.append(_metrics(pipeline, key, RENDERED, lambda seed: rendered_characters(pipeline, names, seed), later))
    return _measured(key, pd.concat(metrics, ignore_index=True), {"pool.parquet": _parquet(pd.concat(tables))})


def drawable(name: str) -> bool:
    """Whether the renderer that trained the embedded model can draw a class of this name."""
    return len(name) == 1 and name in string.digits + string.ascii_letters


def rendered_characters(pipeline: Pipeline, names: Sequence[str], seed: int) -> LabelledImages:
    """As many drawn characters of each class as a pool has images, without the diffusion model."""
    from d3m_assets.evaluation.students import LabelledImages
    from d3m_assets.foundation.characters import render

    count = pipeline.settings.generation.images_per_class
    drawn = render(count * len(names), 9_000_000 + seed, characters="".join(names)).images[..., None]
    if pipeline.scan().channels == 3:
        drawn = drawn.repeat(3, axis=-1)
    return LabelledImages(drawn, np.tile(np.arange(len(names)), count), "synthetic")


def _student_metrics(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    from d3m_assets.evaluation.metrics import D3M
    from d3m_assets.evaluation.students import LabelledImages

    budget = _required(key.budget)
    images, labels, charged = [], [], 0
    for position, class_key in enumerate(pipeline.catalog()["class_key"]):
        pool = pool_images(read_table(pipeline, ArtefactKey("synthetic_pool", class_key, budget), "pool.parquet"))
        images.append(pool)
        labels.append(np.full(len(pool), position))
        charged += pipeline.embedding_plan(class_key, budget).payload
    train = LabelledImages(np.concatenate(images), np.concatenate(labels), "synthetic")
    return _measured(key, _metrics(pipeline, key, D3M, lambda seed: train, progress, charged / len(images)))


METRIC_ASSETS = ("student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics")


def all_metrics(pipeline: Pipeline) -> pd.DataFrame:
    """Every trained student that is stored, one row each."""
    keys = [k for asset in METRIC_ASSETS for k in pipeline.keys(asset) if pipeline.store.manifest(k)]
    if not keys:
        raise StageError(f"no student has been measured in {pipeline.store.url} yet; run `d3m distill`")
    return pd.concat([read_table(pipeline, k, "metrics.parquet") for k in keys], ignore_index=True)


def _distillation_report(pipeline: Pipeline, key: ArtefactKey, progress: Progress) -> Made:
    from d3m_assets.evaluation.report import render_report

    metrics = all_metrics(pipeline)
    catalog, budgets = pipeline.catalog(), pipeline.settings.budgets
    page = render_report(
        metrics, _ledger(pipeline), sample_grids(pipeline), _provenance(pipeline),
        class_names=list(catalog["class_name"]), dataset=pipeline.dataset_name,
    )  # fmt: skip
    facts = {"classes": len(catalog), "budgets": len(budgets), "students": len(metrics)}
    return Made(key, {"report.html": page.encode(), "metrics.parquet": _parquet(metrics)}, facts)


def _ledger(pipeline: Pipeline) -> pd.DataFrame:
    parts, weights, pixels = [], 0, 0
    for key in pipeline.keys("distilled_bundle"):
        bundle = Bundle.from_bytes(pipeline.store.read(key, "bundle.safetensors"), str(key))
        table = bundle.ledger().assign(budget=key.budget)
        weights = bundle.recipe.foundation_bytes
        parts.append(table[table["item"] != "foundation model"])
        pool = sum(_bytes(pipeline, k) for k in pipeline.keys("synthetic_pool") if k.budget == key.budget)
        row = {"budget": key.budget, "item": "synthetic pool", "scope": "class", "kind": "regenerable", "bytes": pool}
        parts.append(pd.DataFrame([row]))
    scan, catalog = pipeline.scan(), pipeline.catalog()
    pixels = int(catalog["n_train"].sum()) * scan.image_height * scan.image_width * scan.channels
    shared = [
        {"budget": "", "item": "foundation model", "scope": "shared", "kind": "stored", "bytes": weights},
        {"budget": "", "item": "whole train split, one byte a channel", "scope": "class", "kind": "reference",
         "bytes": pixels},
    ]  # fmt: skip
    return pd.concat([*parts, pd.DataFrame(shared)], ignore_index=True)[["budget", "item", "scope", "kind", "bytes"]]


def _bytes(pipeline: Pipeline, key: ArtefactKey) -> int:
    manifest = pipeline.store.manifest(key)
    return sum(f.bytes for f in manifest.files.values()) if manifest else 0


def sample_grids(pipeline: Pipeline) -> dict[str, dict[str, np.ndarray]]:
    """First images of every class: real, drawn from the class name, and distilled at every budget."""
    from d3m_assets.evaluation.report import IMAGES_PER_SAMPLE, MAX_CLASSES

    catalog = pipeline.catalog().head(MAX_CLASSES)
    scan, grids = pipeline.scan(), {}
    real, named = {}, {}
    drawn = read_table(pipeline, ArtefactKey("foundation_metrics"), "pool.parquet")
    for key, name, class_id in zip(catalog["class_key"], catalog["class_name"], catalog["class_id"], strict=True):
        rows = image_table(pipeline, "train", key).sort_values("sha256").head(IMAGES_PER_SAMPLE)
        size = (scan.image_height, scan.image_width)
        real[name] = load_images(list(rows["uri"]), size=size, channels=scan.channels)
        named[name] = pool_images(drawn[drawn["class_id"] == class_id].head(IMAGES_PER_SAMPLE))
    grids["real"], grids["class-name prompt"] = real, named
    for budget in pipeline.settings.budgets:
        grids[f"D3M {budget}"] = {
            name: pool_images(
                read_table(pipeline, ArtefactKey("synthetic_pool", key, budget), "pool.parquet").head(IMAGES_PER_SAMPLE)
            )
            for key, name in zip(catalog["class_key"], catalog["class_name"], strict=True)
        }
    return grids


def _provenance(pipeline: Pipeline) -> dict[str, Any]:
    s = pipeline.settings
    packages = ("d3m-assets", "torch", "diffusers", "transformers", "dagster", "numpy", "pandas")
    return {
        "dataset": s.dataset, "dataset fingerprint": pipeline.scan().fingerprint,
        "foundation model": s.foundation, "foundation fingerprint": pipeline.foundation_files.fingerprint,
        "seed": s.seed, "validation fraction": s.validation_fraction,
        "prompts": s.prompts.model_dump(mode="json"), "inversion": s.inversion.model_dump(mode="json"),
        "generation": s.generation.model_dump(mode="json"), "students": s.students.model_dump(mode="json"),
        "versions": {p: _version(p) for p in packages} | {"Python": platform.python_version()},
        "hardware": f"{platform.machine()} {platform.system()}, device {s.device}",
        "command": "d3m distill",
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed as a package"


# Looking at what is stored


def describe(pipeline: Pipeline, key: ArtefactKey) -> dict[str, Any]:
    """What is worth showing of a stored artefact: see :meth:`Pipeline.describe`."""
    manifest = pipeline.store.manifest(key)
    if manifest is None:
        return {}
    shown: dict[str, Any] = {k: v for k, v in manifest.metrics.items() if v is not None}
    if key.asset == "class_catalog":
        table = read_table(pipeline, key, "catalog.parquet")
        shown |= {"rows": len(table), "classes_table": table.drop(columns="fingerprint")}
    elif key.asset == "raw_dataset":
        rows = image_table(pipeline, "train", key.class_key)
        scan = pipeline.scan()
        uris = list(rows.sort_values("sha256")["uri"].head(SAMPLES_SHOWN))
        size = _shown_size(scan.image_height, scan.image_width)
        shown |= {"rows": sum(int(manifest.metrics[s]) for s in ("train", "validation", "test"))}
        shown["real_images_png"] = contact_sheet(load_images(uris, size=size, channels=scan.channels), 10, 4)
    elif key.asset == "inverted_embeddings":
        record = json.loads(pipeline.store.read(key, "training.json"))
        shown |= {"loss_curve_png": _curve(record["losses"]), "prompt": record["prompts"][0],
                  "cluster sizes": str(record["cluster_sizes"]), "fixed-input loss": pd.DataFrame(
                      record["losses"], columns=["step", "loss"])}  # fmt: skip
    elif key.asset == "synthetic_pool":
        table = read_table(pipeline, key, "pool.parquet")
        images = pool_images(table.head(SAMPLES_SHOWN))
        shown |= {"rows": len(table), "synthetic_images_png": contact_sheet(images, 10, 2),
                  "lineage": table.drop(columns="image").head(5)}  # fmt: skip
    elif key.asset in METRIC_ASSETS:
        from d3m_assets.evaluation.statistics import summarise

        summary = summarise(read_table(pipeline, key, "metrics.parquet"))
        shown |= {"rows": len(summary), "summary": summary[["method", "mean", "half_width", "n", "n_train_images"]]}
    elif key.asset == "distilled_bundle":
        bundle = Bundle.from_bytes(pipeline.store.read(key, "bundle.safetensors"), str(key))
        shown |= {"ledger": bundle.ledger(), "file": pipeline.store.uri(key, "bundle.safetensors")}
    elif key.asset == "distillation_report":
        from d3m_assets.evaluation.statistics import compare_all, headline, summarise

        metrics = read_table(pipeline, key, "metrics.parquet")
        shown |= {"verdict": headline(compare_all(metrics)), "file": pipeline.store.uri(key, "report.html"),
                  "summary": summarise(metrics)[["method", "budget", "mean", "half_width"]]}  # fmt: skip
    return shown


def _shown_size(height: int, width: int, longest: int = 64) -> tuple[int, int]:
    factor = min(1.0, longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _curve(losses: Sequence[Sequence[float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2.2), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in losses], [loss for _, loss in losses])
    axes.set_xlabel("step")
    axes.set_ylabel("loss on fixed inputs")
    out = BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def verify(pipeline: Pipeline, asset: str) -> list[Problem]:
    """Read what is stored of an asset: see :meth:`Pipeline.verify`."""
    inspectors = {"inverted_embeddings": _verify_embeddings, "synthetic_pool": _verify_pool}
    if asset not in inspectors:
        raise StageError(f"{asset} cannot be verified; only {' and '.join(inspectors)} can")
    problems = []
    for key in pipeline.keys(asset):
        try:
            if pipeline.store.manifest(key) is None:
                problems.append(Problem(key, f"{key} is missing; `d3m distill` makes it", "warning"))
                continue
            problems += [Problem(key, f"{key}: {text}") for text in inspectors[asset](pipeline, key)]
        except (D3MError, OSError, ValueError, KeyError) as error:
            problems.append(Problem(key, f"{key} cannot be read: {error}"))
    return problems


def _verify_embeddings(pipeline: Pipeline, key: ArtefactKey) -> list[str]:
    vectors = read_vectors(pipeline, key)
    allowed = pipeline.budget_bytes(_required(key.budget))
    found = []
    if not np.isfinite(vectors.astype(np.float32)).all() or not np.any(vectors, axis=-1).all():
        found.append("a vector is zero or not finite")
    if vectors.nbytes > allowed:
        found.append(f"{vectors.nbytes} bytes of vectors, but the budget allows {allowed}")
    return found


def _verify_pool(pipeline: Pipeline, key: ArtefactKey) -> list[str]:
    table = read_table(pipeline, key, "pool.parquet")
    prompts = pipeline.prompts(_required(key.class_key))
    wanted, found = pipeline.settings.generation.images_per_class, []
    if list(table["index"]) != list(range(wanted)):
        found.append(f"{len(table)} images, not samples 0 to {wanted - 1}")
    if set(table["class_id"]) != {prompts.class_id} or set(table["class_name"]) != {prompts.class_name}:
        found.append(f"images of class {sorted(set(table['class_name']))}, not of {prompts.class_name}")
    return found
