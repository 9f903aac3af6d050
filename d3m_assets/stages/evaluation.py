"""Stages that measure: students trained on synthetic and on real images."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.errors import D3MError, StageError
from d3m_assets.ledger import distilled_class_bytes, real_class_bytes
from d3m_assets.pipeline import METRIC_ASSETS, Pipeline
from d3m_assets.progress import Progress
from d3m_assets.stages.artefacts import Made, read_table, required, share_out, to_json, to_parquet
from d3m_assets.stages.dataset import image_table, labelled_images, test_images
from d3m_assets.stages.distillation import (
    distillation_seed,
    drawing_item,
    drawing_work,
    pool_images,
    pool_table,
    stored_prompts,
)
from d3m_assets.stages.pool_labels import pool_of, stored_labels, with_soft_labels
from d3m_assets.stages.real_sets import RealSets
from d3m_assets.stages.rows import (
    Row,
    at_equal_ipc,
    of_distillations,
    real_images_allowed,
    rows_of,
    stored_label_bytes,
    training_set,
    unaugmented,
)
from d3m_assets.stages.teacher import TeacherFiles, loaded_teacher, stored_teacher
from d3m_assets.stages.variants import variant_rows
from d3m_assets.store import ArtefactKey
from d3m_assets.workers import own_device

TEACHER_FILE = "teacher.json"
"""In ``whole_dataset_metrics``, where a row asks the teacher: its accuracy on the test split."""

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.labels import Labelling
    from d3m_assets.evaluation.settings import Baseline, EvaluationSettings, LabelKind, StudentSettings
    from d3m_assets.evaluation.statistics import Part


def _student_work(item: tuple[Any, ...], progress: Progress) -> pd.DataFrame:
    from d3m_assets.evaluation.metrics import student_metrics

    (method, budget, charged, distillations), sets, test, settings, classes, device, kind, teacher, chosen = item
    device = own_device() or device
    return student_metrics(
        method, sets.__getitem__, test, settings, budget=budget, bytes_per_class=charged, n_classes=classes,
        labelling=_labelling(kind, teacher, chosen, device), distillation=distillations.__getitem__, device=device,
        progress=progress,
    )  # fmt: skip


def _labelling(kind: LabelKind, teacher: TeacherFiles | None, chosen: EvaluationSettings, device: str) -> Labelling:
    from d3m_assets.evaluation.labels import HARD, Labelling

    if kind == "hard" or teacher is None:
        return HARD
    return Labelling(
        kind, loaded_teacher(teacher, device), teacher.fingerprint, chosen.temperature, chosen.stored_classes
    )


def _teacher_accuracy(pipeline: Pipeline, files: TeacherFiles, test: LabelledImages) -> dict[str, float]:
    """How often the teacher is right on the test split: what soft labels know, and no row of the table."""
    from d3m_assets.evaluation.teacher import agreement

    _, judged = agreement(loaded_teacher(files, pipeline.device), test.images, test.labels)
    return {"accuracy": float((judged == test.labels).mean()), "images": len(test)}


def metrics(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Train the students of all rows of all keys; a key is done when its last student is."""
    from d3m_assets.evaluation.statistics import parts as parts_of

    makers: dict[str, Callable[[Pipeline, ArtefactKey], tuple[list[Row], dict[str, bytes]]]] = {
        "reference_metrics": partial(_reference_rows, RealSets(pipeline)), "whole_dataset_metrics": _whole_dataset_rows,
        "foundation_metrics": _foundation_rows, "student_metrics": _student_rows,
    }  # fmt: skip
    every, classes = pipeline.settings.students.seeds, len(pipeline.catalog())
    shares = [(seed,) for seed in every] if pipeline.on_cpu else [every]
    chosen = pipeline.settings.evaluation.model_copy(update={"stored_classes": pipeline.stored_classes})
    items, owner, names, files = [], [], [], {}
    tested: dict[ArtefactKey, int] = {}
    for key in keys:
        try:
            rows, files[key] = makers[key.asset](pipeline, key)
            test = test_images(pipeline, reader=str(key))
            tested[key] = len(test)
            teacher = stored_teacher(pipeline) if any(row.labels != "hard" for row in rows) else None
            if teacher is not None and key.asset == "whole_dataset_metrics":
                files[key][TEACHER_FILE] = to_json(_teacher_accuracy(pipeline, teacher, test))
            # All training sets of a key before any of its students: one that fails must not leave a table with fewer rows.
            made = [(row, {seed: row.training_sets(seed) for seed in every}) for row in rows]
        except D3MError as error:
            yield Made(key, error=error)
            continue
        for row, sets in made:
            budget = row.budget or key.budget or ""
            told = (row.method, budget, row.bytes_per_class, row.distillations)
            for settings, seeds in product(row.settings, shares):
                own = settings.model_copy(update={"seeds": seeds})
                of_seeds = {seed: sets[seed] for seed in seeds}
                items.append((told, of_seeds, test, own, classes, pipeline.device, row.labels, teacher, chosen))
                owner.append(key)
                soft = "" if row.labels == "hard" else row.labels
                network = settings.architecture if len(row.settings) > 1 else ""
                names.append(" ".join(p for p in (row.method, soft, network, budget) if p))
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
            _metric_name(str(method), "" if key.budget else str(budget), part, pipeline.settings.students): float(
                students["accuracy"].mean()
            )
            for part in parts_of(metrics)
            for (method, budget), students in part.of(metrics).groupby(["method", "budget"])
        }
        counts = {"students": len(metrics), "test images": tested[key]}
        yield Made(key, {"metrics.parquet": to_parquet(metrics), **files[key]}, {**accuracy, **counts})


def _metric_name(method: str, budget: str, part: Part, students: StudentSettings) -> str:
    """What Dagster plots the accuracy of a method under, over all runs; so other rows of a table do not change it."""
    told = [f"accuracy {method}", *([budget] if budget else [])]
    told += [] if part.labels == "hard" else [part.labels]
    told += [] if part.architecture == students.architecture else [part.architecture]
    told += [] if part.augmentation == students.augmentation else ["no augmentation"]
    return ", ".join(told)


def _reference_rows(real: RealSets, pipeline: Pipeline, key: ArtefactKey) -> tuple[list[Row], dict[str, bytes]]:
    from d3m_assets.evaluation.methods import BASELINES

    budget, chosen = required(key.budget), pipeline.settings.evaluation
    sizes = real.table.groupby("class_id").size()
    rows = []

    # Labels that are stored with the pool weigh on the distilled class beyond its budget; real images may weigh as much,
    # labels included.
    def charged(kind: LabelKind) -> float:
        count = real_images_allowed(pipeline, budget, kind)
        label_bytes = stored_label_bytes(pipeline, kind)
        return real_class_bytes(list(sizes), count, pipeline.image_shape, label_bytes=label_bytes)

    for baseline in chosen.baselines:

        def chosen_images(kind: LabelKind, baseline: Baseline = baseline) -> Callable[[int], LabelledImages]:
            return partial(real.training_set, baseline, real_images_allowed(pipeline, budget, kind))

        rows += rows_of(pipeline, BASELINES[baseline], chosen_images, charged)
    if "unaugmented" in chosen.variants:
        rows += unaugmented([row for row in rows if row.method == BASELINES["random"]])
    return rows, {}


def _whole_dataset_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[Row], dict[str, bytes]]:
    from d3m_assets.evaluation.methods import WHOLE_TRAIN

    train = labelled_images(pipeline, image_table(pipeline, "train"), "train")
    return rows_of(pipeline, WHOLE_TRAIN, lambda kind: lambda seed: train), {}


def _foundation_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[Row], dict[str, bytes]]:
    from d3m_assets.evaluation.methods import CLASS_NAMES, CLASS_NAMES_EQUAL_IPC, RENDERED

    prompts = [stored_prompts(pipeline, c) for c in pipeline.catalog()["class_key"]]
    repeats = range(pipeline.settings.distillations)
    items = [drawing_item(pipeline, p, seed=distillation_seed(pipeline, r)) for r in repeats for p in prompts]
    drawn: list[Any] = [None] * len(items)
    names = [p.by_name() for _ in repeats for p in prompts]
    for index, result in share_out(pipeline, f"{key.asset}: pool", drawing_work, items, names):
        if isinstance(result, D3MError):
            raise result
        drawn[index] = result
    own = [drawn[r * len(prompts) : (r + 1) * len(prompts)] for r in repeats]
    pools = [training_set([images for images, _ in of_classes]) for of_classes in own]
    rows = rows_of(pipeline, CLASS_NAMES, lambda kind: of_distillations(pipeline, pools), distilled=True)
    if "equal-ipc" in pipeline.settings.evaluation.variants:
        for budget in pipeline.settings.budgets:
            rows += at_equal_ipc(pipeline, CLASS_NAMES_EQUAL_IPC, budget, lambda kind: pools)
    names = [p.display_name for p in prompts]
    if pipeline.foundation_name == "embedded" and all(drawable(name) for name in names):
        rows += rows_of(pipeline, RENDERED, lambda kind: partial(rendered_characters, pipeline, names))
    tables = [pool_table(p, i, s) for p, (i, s) in zip(prompts, own[0], strict=True)]
    return rows, {"pool.parquet": to_parquet(pd.concat(tables, ignore_index=True))}


def drawable(name: str) -> bool:
    """Whether the renderer that trained the embedded model can draw a class of this name."""
    return len(name) == 1 and name in string.digits + string.ascii_letters


def rendered_characters(pipeline: Pipeline, names: Sequence[str], seed: int) -> LabelledImages:
    """As many drawn characters of each class as a pool has images, without the diffusion model."""
    from d3m_assets.foundation.embedded.characters import render

    count = pipeline.settings.generation.images_per_class
    drawn = render(count * len(names), 9_000_000 + seed, characters="".join(names)).images[..., None]
    if pipeline.scan().channels == 3:
        drawn = drawn.repeat(3, axis=-1)
    return training_set([drawn[k :: len(names)] for k in range(len(names))])


def _student_rows(pipeline: Pipeline, key: ArtefactKey) -> tuple[list[Row], dict[str, bytes]]:
    from d3m_assets.evaluation.methods import D3M

    budget, chosen = required(key.budget), pipeline.settings.evaluation
    plans = [pipeline.embedding_plan(class_key, budget) for class_key in pipeline.catalog()["class_key"]]
    payload, count = float(np.mean([plan.payload for plan in plans])), pipeline.settings.generation.images_per_class
    hard = [synthetic_images(pipeline, budget, r) for r in range(pipeline.settings.distillations)]
    pools: dict[LabelKind, Sequence[LabelledImages]] = {kind: hard for kind in chosen.labels}
    if "soft stored" in chosen.labels:
        told = [stored_labels(pipeline, budget, r) for r in range(len(hard))]
        pools["soft stored"] = [with_soft_labels(pipeline, *both) for both in zip(hard, told, strict=True)]
    rows = rows_of(
        pipeline, D3M, lambda kind: of_distillations(pipeline, pools[kind]),
        lambda kind: distilled_class_bytes(payload, count, label_bytes=stored_label_bytes(pipeline, kind)),
        distilled=True,
    )  # fmt: skip
    return rows + variant_rows(pipeline, budget, pools, payload, rows), {}


def synthetic_images(pipeline: Pipeline, budget: str, distillation: int = 0) -> LabelledImages:
    """The synthetic pool of all classes at a budget, as a training set; of one of several distillations."""
    keys = pipeline.catalog()["class_key"]
    return training_set([pool_images(pool_of(pipeline, key, budget, distillation)) for key in keys])


def all_metrics(pipeline: Pipeline) -> pd.DataFrame:
    """Every trained student that is stored, one row each."""
    keys = [k for asset in METRIC_ASSETS for k in pipeline.keys(asset) if pipeline.store.manifest(k)]
    if not keys:
        raise StageError(f"no student has been measured in {pipeline.store.url} yet; run `d3m distill`")
    return pd.concat([read_table(pipeline, k, "metrics.parquet") for k in keys], ignore_index=True)
