"""Stages that measure: students trained on synthetic and on real images."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.errors import D3MError, StageError
from d3m_assets.pipeline import METRIC_ASSETS, Pipeline
from d3m_assets.progress import Progress
from d3m_assets.stages.artefacts import Made, read_table, required, share_out, to_parquet
from d3m_assets.stages.dataset import image_table, labelled_images
from d3m_assets.stages.distillation import drawing_item, drawing_work, pool_images, pool_table, stored_prompts
from d3m_assets.stages.real_sets import RealSets
from d3m_assets.stages.teacher import TeacherFiles, loaded_teacher, stored_teacher
from d3m_assets.store import ArtefactKey
from d3m_assets.workers import own_device

if TYPE_CHECKING:
    from d3m_assets.evaluation.labels import Labelling
    from d3m_assets.evaluation.students import LabelledImages
    from d3m_assets.settings import EvaluationSettings, LabelKind


def _student_work(item: tuple[Any, ...], progress: Progress) -> pd.DataFrame:
    from d3m_assets.evaluation.metrics import student_metrics

    method, train, test, settings, budget, charged, classes, device, kind, teacher, chosen = item
    device = own_device() or device
    return student_metrics(
        method, lambda seed: train, test, settings, budget=budget, bytes_per_class=charged, n_classes=classes,
        labelling=_labelling(kind, teacher, chosen, device), device=device, progress=progress,
    )  # fmt: skip


def _labelling(kind: LabelKind, teacher: TeacherFiles | None, chosen: EvaluationSettings, device: str) -> Labelling:
    from d3m_assets.evaluation.labels import HARD, Labelling

    if kind == "hard" or teacher is None:
        return HARD
    return Labelling(
        kind, loaded_teacher(teacher, device), teacher.fingerprint, chosen.temperature, chosen.stored_classes
    )


@dataclass(frozen=True)
class _Row:
    """One row of the table: a training set for each seed, and how it is labelled."""

    method: str
    labels: LabelKind
    training_sets: Callable[[int], LabelledImages]
    bytes_per_class: float = float("nan")


def _all_labels(pipeline: Pipeline, method: str, training_sets: Callable[[int], LabelledImages]) -> list[_Row]:
    """Rows of a training set that has no budget, one for each kind of labels."""
    return [_Row(method, kind, training_sets) for kind in pipeline.settings.evaluation.labels]


def stored_label_bytes(pipeline: Pipeline, kind: LabelKind = "soft stored") -> int:
    """Bytes that the label of one sample is charged; hard labels and those of a teacher are free."""
    from d3m_assets.evaluation.labels import label_bytes

    return label_bytes(len(pipeline.catalog()), pipeline.stored_classes) if kind == "soft stored" else 0


def metrics(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Train the students of all rows of all keys; a key is done when its last student is."""
    from d3m_assets.evaluation.metrics import test_split

    rows_of: dict[str, Callable[[Pipeline, ArtefactKey], tuple[list[_Row], dict[str, bytes]]]] = {
        "reference_metrics": partial(_reference_rows, RealSets(pipeline)), "whole_dataset_metrics": _whole_dataset_rows,
        "foundation_metrics": _foundation_rows, "student_metrics": _student_rows,
    }  # fmt: skip
    settings, classes = pipeline.settings.students, len(pipeline.catalog())
    chosen = pipeline.settings.evaluation.model_copy(update={"stored_classes": pipeline.stored_classes})
    items, owner, names, files = [], [], [], {}
    for key in keys:
        try:
            rows, files[key] = rows_of[key.asset](pipeline, key)
            test = test_split(lambda: labelled_images(pipeline, image_table(pipeline, "test"), "test"), reader=str(key))
            teacher = stored_teacher(pipeline) if any(row.labels != "hard" for row in rows) else None
            # All training sets of a key before any of its students: one that fails must not leave a table with fewer rows.
            sets = [(row, seed, row.training_sets(seed)) for row in rows for seed in settings.seeds]
        except D3MError as error:
            yield Made(key, error=error)
            continue
        for row, seed, train in sets:
            alone = settings.model_copy(update={"seeds": (seed,)})
            items.append((row.method, train, test, alone, key.budget or "", row.bytes_per_class, classes, pipeline.device,
                          row.labels, teacher, chosen))  # fmt: skip
            owner.append(key)
            soft = "" if row.labels == "hard" else row.labels
            names.append(" ".join(p for p in (row.method, soft, key.budget, f"seed {seed}") if p))
    found: dict[ArtefactKey, dict[int, Any]] = {key: {} for key in owner}
    stage = keys[0].asset if keys else ""
    for index, result in share_out(pipeline, stage, _student_work, items, names):
        key = owner[index]
        found[key][index] = result
        if len(found[key]) < owner.count(key):
            continue
        parts = [found[key][i] for i in sorted(found[key])]
        if errors := [p for p in parts if isinstance(p, D3MError)]:
            yield Made(key, error=errors[0])
            continue
        metrics = pd.concat(parts, ignore_index=True)
        accuracy = {
            f"accuracy {method}" + ("" if kind == "hard" else f", {kind}"): float(students.mean())
            for (method, kind), students in metrics.groupby(["method", "labels"])["accuracy"]
        }
        yield Made(key, {"metrics.parquet": to_parquet(metrics), **files[key]}, {**accuracy, "students": len(metrics)})


def _reference_rows(real: RealSets, pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.baselines import affordable_images
    from d3m_assets.evaluation.metrics import BASELINES

    scan, chosen = pipeline.scan(), pipeline.settings.evaluation
    shape = (scan.image_height, scan.image_width, scan.channels)
    budget, sizes = pipeline.budget_bytes(required(key.budget)), real.table.groupby("class_id").size()
    rows = []
    for kind in chosen.labels:
        # Labels that are stored with the pool weigh on the distilled class beyond its budget; real images may weigh as
        # much, labels included.
        label = stored_label_bytes(pipeline, kind)
        allowed = budget + label * pipeline.settings.generation.images_per_class
        count = affordable_images(allowed, *shape, label_bytes=label)
        charged = float(np.minimum(count, sizes).mean()) * (int(np.prod(shape)) + label)
        for baseline in chosen.baselines:
            made = partial(real.training_set, baseline, count)
            rows.append(_Row(BASELINES[baseline], kind, made, charged))
    return rows, {}


def _whole_dataset_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.metrics import WHOLE_TRAIN

    train = labelled_images(pipeline, image_table(pipeline, "train"), "train")
    return _all_labels(pipeline, WHOLE_TRAIN, lambda seed: train), {}


def _foundation_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[_Row], dict[str, bytes]]:
    from d3m_assets.evaluation.metrics import CLASS_NAMES, RENDERED

    prompts = [stored_prompts(pipeline, c) for c in pipeline.catalog()["class_key"]]
    drawn: list[Any] = [None] * len(prompts)
    items = [drawing_item(pipeline, p) for p in prompts]
    for index, result in share_out(pipeline, f"{key.asset}: pool", drawing_work, items, [p.by_name() for p in prompts]):
        if isinstance(result, D3MError):
            raise result
        drawn[index] = result
    pool = _training_set([images for images, _ in drawn])
    rows = _all_labels(pipeline, CLASS_NAMES, lambda seed: pool)
    names = [p.display_name for p in prompts]
    if pipeline.foundation_name == "embedded" and all(drawable(name) for name in names):
        rows += _all_labels(pipeline, RENDERED, lambda seed: rendered_characters(pipeline, names, seed))
    tables = [pool_table(p, i, s) for p, (i, s) in zip(prompts, drawn, strict=True)]
    return rows, {"pool.parquet": to_parquet(pd.concat(tables, ignore_index=True))}


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

    budget = required(key.budget)
    plans = [pipeline.embedding_plan(class_key, budget) for class_key in pipeline.catalog()["class_key"]]
    pool, payload = synthetic_images(pipeline, budget), float(np.mean([plan.payload for plan in plans]))
    count = pipeline.settings.generation.images_per_class
    return [
        _Row(D3M, kind, lambda seed: pool, payload + count * stored_label_bytes(pipeline, kind))
        for kind in pipeline.settings.evaluation.labels
    ], {}


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


def all_metrics(pipeline: Pipeline) -> pd.DataFrame:
    """Every trained student that is stored, one row each."""
    keys = [k for asset in METRIC_ASSETS for k in pipeline.keys(asset) if pipeline.store.manifest(k)]
    if not keys:
        raise StageError(f"no student has been measured in {pipeline.store.url} yet; run `d3m distill`")
    return pd.concat([read_table(pipeline, k, "metrics.parquet") for k in keys], ignore_index=True)
