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
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import contact_sheet, decode_png, encode_png, load_images
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
from d3m_assets.distillation.generation import Sample, generate
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass, remove_old_states
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.errors import D3MError, StageError
from d3m_assets.foundation.loading import Foundation, FoundationFiles, load_foundation
from d3m_assets.pipeline import Pipeline, Problem
from d3m_assets.progress import Progress, ProgressEvent
from d3m_assets.store import ArtefactKey
from d3m_assets.workers import Work

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
    """Make artefacts of one asset; each is yielded as it finishes."""
    batches: dict[str, Callable[[Pipeline, Sequence[ArtefactKey]], Iterator[Made]]] = {
        "inverted_embeddings": _inverted_embeddings, "synthetic_pool": _synthetic_pool, "reference_metrics": _metrics,
        "whole_dataset_metrics": _metrics, "foundation_metrics": _metrics, "student_metrics": _metrics,
    }  # fmt: skip
    if asset in batches:
        yield from batches[asset](pipeline, keys)
        return
    makers: dict[str, Callable[[Pipeline, ArtefactKey], Made]] = {
        "class_catalog": _class_catalog, "raw_dataset": _raw_dataset, "foundation_model": _foundation_model,
        "class_prompts": _class_prompts, "distilled_bundle": _distilled_bundle,
        "distillation_report": _distillation_report,
    }  # fmt: skip
    for done, key in enumerate(keys):
        pipeline.progress(ProgressEvent(asset, done, len(keys), _where(key)))
        try:
            made = makers[asset](pipeline, key)
        except D3MError as error:
            made = Made(key, error=error)
        yield made


def _where(key: ArtefactKey) -> str:
    return " ".join(p for p in (key.budget, f"class {key.class_key}" if key.class_key else "") if p)


def _share_out(
    pipeline: Pipeline, stage: str, work: Work, items: Sequence[Any], names: Sequence[str]
) -> Iterator[tuple[int, Any]]:
    """Have the workers do ``work`` on every item, and tell how far all of it is."""
    shares = [0.0] * len(items)

    def report(index: int, event: ProgressEvent) -> None:
        shares[index] = event.done / event.total if event.total else shares[index]
        detail = f"{names[index]} step {event.done}/{event.total} {event.detail}".rstrip()
        pipeline.progress(ProgressEvent(stage, round(1000 * sum(shares)), 1000 * len(items), detail))

    pipeline.progress(ProgressEvent(stage, 0, 1000 * len(items), "starting"))
    for index, result in pipeline.workers.run(work, items, report):
        shares[index] = 1.0
        pipeline.progress(ProgressEvent(stage, round(1000 * sum(shares)), 1000 * len(items), names[index]))
        yield index, result


@cache
def _loaded(files: FoundationFiles, device: str) -> Foundation:
    """The foundation model, loaded once in each process."""
    return load_foundation(files, device)


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


def _class_catalog(pipeline: Pipeline, key: ArtefactKey) -> Made:
    table = pipeline.full_catalog()
    active = table[table["active"]]
    metrics = {"classes": len(active), "retired": len(table) - len(active), "images": int(active["n_train"].sum())}
    return Made(key, {"catalog.parquet": _parquet(table)}, metrics)


def _raw_dataset(pipeline: Pipeline, key: ArtefactKey) -> Made:
    prompts = pipeline.prompts(_required(key.class_key))
    rows = pipeline.scan().classes[prompts.class_name].table(prompts.class_id)
    counts = {split: int((rows["split"] == split).sum()) for split in ("train", "validation", "test")}
    return Made(key, {"images.parquet": _parquet(rows)}, {**counts, "bytes": int(rows["bytes"].sum())})


def image_table(pipeline: Pipeline, split: str, class_key: str | None = None) -> pd.DataFrame:
    """Rows of ``raw_dataset`` of one split, of one class or of all, by class id."""
    keys = [ArtefactKey("raw_dataset", class_key)] if class_key else pipeline.keys("raw_dataset")
    rows = pd.concat([read_table(pipeline, k, "images.parquet") for k in keys], ignore_index=True)
    # Where an image is may change (a moved clone, another machine) while what it is does not: the scan knows the place.
    rows = rows[rows["split"] == split].reset_index(drop=True)
    found = zip(rows["relative_path"], rows["uri"], strict=True)
    return rows.assign(uri=[pipeline.place(path) or uri for path, uri in found])


def labelled_images(pipeline: Pipeline, rows: pd.DataFrame, split: Any) -> LabelledImages:
    """Images of some rows of ``raw_dataset``, at their stored size, labelled by position in the catalog."""
    from d3m_assets.evaluation.students import LabelledImages

    scan = pipeline.scan()
    images = load_images(list(rows["uri"]), size=(scan.image_height, scan.image_width), channels=scan.channels)
    position = {class_id: i for i, class_id in enumerate(pipeline.catalog()["class_id"])}
    return LabelledImages(images, rows["class_id"].map(position).to_numpy(np.int64), split)


# The method


def _foundation_model(pipeline: Pipeline, key: ArtefactKey) -> Made:
    files = pipeline.foundation_files
    facts = {
        "name": files.name, "path": str(files.path), "fingerprint": files.fingerprint, "text_width": files.text_width,
        "text_length": files.text_length, "image_size": files.image_size, "bytes": _weight_bytes(files.path),
    }  # fmt: skip
    return Made(key, {"foundation.json": _json(facts)}, facts)


def _weight_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.glob("*/*.safetensors"))


def _class_prompts(pipeline: Pipeline, key: ArtefactKey) -> Made:
    prompts = pipeline.prompts(_required(key.class_key))
    metrics = {"prompt": prompts.learned(0), "class-name prompt": prompts.by_name(), "initializer": prompts.initializer}
    return Made(key, {"prompts.json": _json(prompts.to_json())}, metrics)


def _stored_prompts(pipeline: Pipeline, class_key: str) -> ClassPrompts:
    stored = pipeline.store.read(ArtefactKey("class_prompts", class_key), "prompts.json")
    return ClassPrompts.from_json(json.loads(stored))


def _inversion_work(item: tuple[Any, ...], progress: Progress) -> list[tuple[int, InvertedClass | D3MError]]:
    files, device, tasks, settings, seed, cache, states = item
    foundation = _loaded(files, device)
    return list(invert(foundation, tasks, settings, seed, progress, classes_per_batch=len(tasks), cache=cache,
                       states=states))  # fmt: skip


def _inverted_embeddings(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    settings, home = pipeline.settings, pipeline.settings.home.absolute()
    tasks: dict[ArtefactKey, InversionTask] = {}
    for key in keys:
        try:
            tasks[key] = _inversion_task(pipeline, key)
        except D3MError as error:
            yield Made(key, error=error)
    # The longest first, so that no worker is left with a long one at the end.
    ordered = sorted(tasks, key=lambda k: -tasks[k].plan.prompts)
    cache = LatentCache(home / "cache" / "latents", int(settings.latent_cache_gib * 2**30))
    cache.trim()
    states = home / "cache" / "inversion"
    remove_old_states(states)
    for key, result in _inverted(pipeline, {k: tasks[k] for k in ordered}, cache, states):
        if isinstance(result, D3MError):
            yield Made(key, error=result)
            continue
        yield _embeddings(key, tasks[key], result)
        # By now it is stored, unless the store refused.
        stored = pipeline.store.manifest(key)
        if result.state and stored and stored.fingerprint == pipeline.spec(key).fingerprint:
            result.state.unlink(missing_ok=True)


def _inverted(
    pipeline: Pipeline, tasks: Mapping[ArtefactKey, InversionTask], cache: LatentCache, states: Path
) -> Iterator[tuple[ArtefactKey, InvertedClass | D3MError]]:
    """Invert classes: on a processor few at a time in every worker, on a GPU in one batch that is kept full."""
    settings, files, keys = pipeline.settings.inversion, pipeline.foundation_files, list(tasks)
    device, seed = pipeline.settings.device, pipeline.settings.seed
    if not pipeline.on_cpu:

        def report(event: ProgressEvent) -> None:
            pipeline.progress(ProgressEvent("inverted_embeddings", event.done, event.total, event.detail))

        report(ProgressEvent("", 0, len(tasks) * settings.steps, "loading the foundation model"))
        left = dict(enumerate(keys))
        try:
            for position, result in invert(
                _loaded(files, device), list(tasks.values()), settings, seed, report, cache=cache, states=states,
                classes_per_batch=settings.classes_per_batch or 32,
            ):  # fmt: skip
                yield left.pop(position), result
        except D3MError as error:  # of the model, not of a class
            yield from ((key, error) for key in left.values())
        return
    # On a processor one class fills a core already, and its result must not depend, to the last bit, on which classes it
    # shares a batch with: a killed run finishes the rest and ends with the same bytes.
    size = settings.classes_per_batch or 1
    groups = [keys[i : i + size] for i in range(0, len(keys), size)]
    items = [(files, device, [tasks[k] for k in group], settings, seed, cache, states) for group in groups]
    names = [", ".join(_where(k) for k in group[:5]) for group in groups]
    for index, found in _share_out(pipeline, "inverted_embeddings", _inversion_work, items, names):
        if isinstance(found, D3MError):
            yield from ((key, found) for key in groups[index])
        else:
            yield from ((groups[index][position], result) for position, result in found)


def _embeddings(key: ArtefactKey, task: InversionTask, learned: InvertedClass) -> Made:
    from safetensors.numpy import save

    plan = task.plan
    tensors = {placeholder_token(task.prompts.class_id, p): v for p, v in enumerate(learned.vectors)}
    record = {
        "plan": asdict(plan), "steps": learned.losses[-1][0], "best_step": learned.best_step,
        "stop_reason": learned.stop_reason, "losses": learned.losses, "cluster_sizes": learned.cluster_sizes,
        "prompts": [task.prompts.learned(p) for p in range(plan.prompts)],
    }  # fmt: skip
    metrics = {
        "payload_bytes": plan.payload, "prompts": plan.prompts, "vectors": plan.vectors,
        "loss_begin": learned.losses[0][1], "loss_best": min(loss for _, loss in learned.losses),
        "stop_reason": learned.stop_reason,
    }  # fmt: skip
    return Made(key, {"embeddings.safetensors": save(tensors), "training.json": _json(record)}, metrics)


def _plan_of(pipeline: Pipeline, key: ArtefactKey) -> EmbeddingPlan:
    return pipeline.embedding_plan(_required(key.class_key), _required(key.budget))


def _inversion_task(pipeline: Pipeline, key: ArtefactKey) -> InversionTask:
    class_key = _required(key.class_key)
    rows = image_table(pipeline, "train", class_key)
    files = ImageFiles(
        tuple(rows["uri"]), tuple(rows["sha256"]), pipeline.scan().channels, pipeline.settings.inversion.flip
    )
    return InversionTask(_stored_prompts(pipeline, class_key), files, _plan_of(pipeline, key))


def read_vectors(pipeline: Pipeline, key: ArtefactKey) -> np.ndarray:
    """Stored vectors ``[prompts, vectors, D]`` of one class and budget."""
    from safetensors.numpy import load

    tensors = load(pipeline.store.read(key, "embeddings.safetensors"))
    return np.stack([tensors[name] for name in sorted(tensors)])


def _drawing_work(item: tuple[Any, ...], progress: Progress) -> tuple[np.ndarray, list[Sample]]:
    files, device, prompts, settings, seed, channels, vectors, plan = item
    return generate(
        _loaded(files, device), prompts, settings, seed, count=settings.images_per_class, vectors=vectors, plan=plan,
        channels=channels, progress=progress,
    )  # fmt: skip


def _drawing(
    pipeline: Pipeline, prompts: ClassPrompts, vectors: np.ndarray | None = None, plan: EmbeddingPlan | None = None
) -> tuple[Any, ...]:
    s = pipeline.settings
    return (pipeline.foundation_files, s.device, prompts, s.generation, s.seed, pipeline.scan().channels, vectors, plan)


def _synthetic_pool(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    items, ready = [], []
    for key in keys:
        class_key, budget = _required(key.class_key), _required(key.budget)
        source = ArtefactKey("inverted_embeddings", class_key, budget)
        try:
            vectors = read_vectors(pipeline, source)
            plan = pipeline.embedding_plan(class_key, budget)
            items.append(_drawing(pipeline, _stored_prompts(pipeline, class_key), vectors, plan))
            ready.append((key, source))
        except D3MError as error:
            yield Made(key, error=error)
    names = [_where(key) for key, _ in ready]
    for index, result in _share_out(pipeline, "synthetic_pool", _drawing_work, items, names):
        key, source = ready[index]
        if isinstance(result, D3MError):
            yield Made(key, error=result)
            continue
        images, samples = result
        table = _pool_table(items[index][2], images, samples).assign(
            embeddings_fingerprint=pipeline.spec(source).fingerprint,
            raw_dataset_fingerprint=pipeline.spec(ArtefactKey("raw_dataset", key.class_key)).fingerprint,
            foundation_fingerprint=pipeline.foundation_files.fingerprint,
        )
        yield Made(key, {"pool.parquet": _parquet(table)}, {"images": len(table), "size": images.shape[1]})


def _pool_table(prompts: ClassPrompts, images: np.ndarray, samples: Sequence[Sample]) -> pd.DataFrame:
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


def _distilled_bundle(pipeline: Pipeline, key: ArtefactKey) -> Made:
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


def _student_work(item: tuple[Any, ...], progress: Progress) -> pd.DataFrame:
    from d3m_assets.evaluation.metrics import student_metrics

    method, train, test, settings, budget, charged, classes, device = item
    return student_metrics(
        method, lambda seed: train, test, settings, budget=budget, bytes_per_class=charged, n_classes=classes,
        device=device, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """One row of the table: a training set for each seed."""

    method: str
    training_sets: Callable[[int], LabelledImages]
    bytes_per_class: float = float("nan")


def _metrics(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Train the students of all rows of all keys; a key is done when its last student is."""
    from d3m_assets.evaluation.metrics import test_split

    rows_of: dict[str, Callable[[Pipeline, ArtefactKey], tuple[list[_Row], dict[str, bytes]]]] = {
        "reference_metrics": _reference_rows, "whole_dataset_metrics": _whole_dataset_rows,
        "foundation_metrics": _foundation_rows, "student_metrics": _student_rows,
    }  # fmt: skip
    settings, classes = pipeline.settings.students, len(pipeline.catalog())
    items, owner, names, files = [], [], [], {}
    for key in keys:
        try:
            rows, files[key] = rows_of[key.asset](pipeline, key)
            test = test_split(lambda: labelled_images(pipeline, image_table(pipeline, "test"), "test"), reader=str(key))
            for row in rows:
                for seed in settings.seeds:
                    alone = settings.model_copy(update={"seeds": (seed,)})
                    items.append((row.method, row.training_sets(seed), test, alone, key.budget or "", row.bytes_per_class,
                                  classes, pipeline.device))  # fmt: skip
                    owner.append(key)
                    names.append(" ".join(p for p in (row.method, key.budget, f"seed {seed}") if p))
        except D3MError as error:
            yield Made(key, error=error)
    found: dict[ArtefactKey, dict[int, Any]] = {key: {} for key in owner}
    stage = keys[0].asset if keys else ""
    for index, result in _share_out(pipeline, stage, _student_work, items, names):
        key = owner[index]
        found[key][index] = result
        if len(found[key]) < owner.count(key):
            continue
        parts = [found[key][i] for i in sorted(found[key])]
        if errors := [p for p in parts if isinstance(p, D3MError)]:
            yield Made(key, error=errors[0])
            continue
        metrics = pd.concat(parts, ignore_index=True)
        accuracy = {f"accuracy {m}": float(g.mean()) for m, g in metrics.groupby("method")["accuracy"]}
        yield Made(key, {"metrics.parquet": _parquet(metrics), **files[key]}, {**accuracy, "students": len(metrics)})


def _reference_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.baselines import affordable_images, random_real
    from d3m_assets.evaluation.metrics import RANDOM_REAL

    scan = pipeline.scan()
    shape = (scan.image_height, scan.image_width, scan.channels)
    count = affordable_images(pipeline.budget_bytes(_required(key.budget)), *shape)
    rows = image_table(pipeline, "train")
    return [
        _Row(
            RANDOM_REAL, lambda seed: labelled_images(pipeline, random_real(rows, count, seed), "train"),
            count * int(np.prod(shape)),
        )
    ], {}  # fmt: skip


def _whole_dataset_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.metrics import WHOLE_TRAIN

    train = labelled_images(pipeline, image_table(pipeline, "train"), "train")
    return [_Row(WHOLE_TRAIN, lambda seed: train)], {}


def _foundation_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.metrics import CLASS_NAMES, RENDERED

    prompts = [_stored_prompts(pipeline, c) for c in pipeline.catalog()["class_key"]]
    drawn: list[Any] = [None] * len(prompts)
    items = [_drawing(pipeline, p) for p in prompts]
    for index, result in _share_out(
        pipeline, f"{key.asset}: pool", _drawing_work, items, [p.by_name() for p in prompts]
    ):
        if isinstance(result, D3MError):
            raise result
        drawn[index] = result
    pool = _training_set([images for images, _ in drawn])
    rows = [_Row(CLASS_NAMES, lambda seed: pool)]
    names = [p.display_name for p in prompts]
    if pipeline.foundation_name == "embedded" and all(drawable(name) for name in names):
        rows.append(_Row(RENDERED, lambda seed: rendered_characters(pipeline, names, seed)))
    tables = [_pool_table(p, i, s) for p, (i, s) in zip(prompts, drawn, strict=True)]
    return rows, {"pool.parquet": _parquet(pd.concat(tables, ignore_index=True))}


def drawable(name: str) -> bool:
    """Whether the renderer that trained the embedded model can draw a class of this name."""
    return len(name) == 1 and name in string.digits + string.ascii_letters


def rendered_characters(pipeline: Pipeline, names: Sequence[str], seed: int) -> LabelledImages:
    """As many drawn characters of each class as a pool has images, without the diffusion model."""
    from d3m_assets.foundation.characters import render

    count = pipeline.settings.generation.images_per_class
    drawn = render(count * len(names), 9_000_000 + seed, characters="".join(names)).images[..., None]
    if pipeline.scan().channels == 3:
        drawn = drawn.repeat(3, axis=-1)
    return _training_set([drawn[k :: len(names)] for k in range(len(names))])


def _student_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.metrics import D3M

    budget = _required(key.budget)
    plans = [pipeline.embedding_plan(class_key, budget) for class_key in pipeline.catalog()["class_key"]]
    pool = synthetic_images(pipeline, budget)
    return [_Row(D3M, lambda seed: pool, float(np.mean([plan.payload for plan in plans])))], {}


def synthetic_images(pipeline: Pipeline, budget: str) -> LabelledImages:
    """The synthetic pool of all classes at a budget, as a training set."""
    images = [
        pool_images(read_table(pipeline, ArtefactKey("synthetic_pool", class_key, budget), "pool.parquet"))
        for class_key in pipeline.catalog()["class_key"]
    ]
    return _training_set(images)


def _training_set(images: Sequence[np.ndarray]) -> LabelledImages:
    """A training set of drawn images, one array a class."""
    from d3m_assets.evaluation.students import LabelledImages

    labels = np.repeat(np.arange(len(images)), [len(i) for i in images])
    return LabelledImages(np.concatenate(images), labels, "synthetic")


METRIC_ASSETS = ("student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics")


def all_metrics(pipeline: Pipeline) -> pd.DataFrame:
    """Every trained student that is stored, one row each."""
    keys = [k for asset in METRIC_ASSETS for k in pipeline.keys(asset) if pipeline.store.manifest(k)]
    if not keys:
        raise StageError(f"no student has been measured in {pipeline.store.url} yet; run `d3m distill`")
    return pd.concat([read_table(pipeline, k, "metrics.parquet") for k in keys], ignore_index=True)


def _distillation_report(pipeline: Pipeline, key: ArtefactKey) -> Made:
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
