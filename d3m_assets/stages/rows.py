"""Rows of the table of students: what each trains on, what it is charged, and which networks measure it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.ledger import Budget, distilled_class_bytes, equal_bytes_images, soft_label_bytes
from d3m_assets.pipeline import Pipeline

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.settings import LabelKind, StudentSettings


@dataclass(frozen=True)
class Row:
    """One row of the table, for all networks it is measured with.

    Attributes:
        method: Its name.
        labels: How its training sets are labelled.
        training_sets: Gives the training set of a seed.
        distillations: Seed to the distillation that its training set is of.
        settings: How its students are trained: one network, or several.
        bytes_per_class: What is charged; NaN where there is no such figure.
        budget: Where a stage without budgets has a row that belongs to one.
    """

    method: str
    labels: LabelKind
    training_sets: Callable[[int], LabelledImages]
    settings: tuple[StudentSettings, ...]
    distillations: Mapping[int, int]
    bytes_per_class: float = float("nan")
    budget: str = ""


def rows_of(
    pipeline: Pipeline, method: str, training_sets: Callable[[LabelKind], Callable[[int], LabelledImages]],
    bytes_per_class: Callable[[LabelKind], float] = lambda kind: float("nan"), *, distilled: bool = False,
    variant: bool = False,
) -> list[Row]:  # fmt: skip
    """A method with every kind of labels and every network.

    Args:
        pipeline: Says which labels, networks and seeds there are.
        method: Name of the rows.
        training_sets: From a kind of labels and then a seed to the training set.
        bytes_per_class: What is charged with a kind of labels.
        distilled: Whether the seeds take the distillations in turn.
        variant: Whether the method is measured with the first network only.
    """
    chosen, students = pipeline.settings.evaluation, pipeline.settings.students
    networks = [students.of(a) for a in dict.fromkeys([students.architecture, *chosen.architectures])]
    spread = {seed: distillation_of(pipeline, seed) if distilled else 0 for seed in students.seeds}
    return [
        Row(
            method,
            kind,
            training_sets(kind),
            tuple(networks[:1] if variant else networks),
            spread,
            bytes_per_class(kind),
        )
        for kind in chosen.labels
    ]


def unaugmented(rows: Sequence[Row]) -> list[Row]:
    """The same rows with hard labels and the first network, but without augmentation; none where they have none anyway."""
    return [
        replace(row, settings=(row.settings[0].model_copy(update={"augmentation": "none", "cutmix": 0.0}),))
        for row in rows
        if row.labels == "hard" and row.settings[0].augmentation != "none"
    ]


def at_equal_ipc(
    pipeline: Pipeline, method: str, budget: str, pools: Callable[[LabelKind], Sequence[LabelledImages]],
    payload: float = float("nan"),
) -> list[Row]:  # fmt: skip
    """A method that draws images, trained on as many of them as there are random real images at a budget.

    None where a budget holds no real image, or where fewer images are drawn than it holds.
    """
    if not pipeline.holds_a_real_image(budget):
        return []

    def few(kind: LabelKind) -> Callable[[int], LabelledImages]:
        counts = np.minimum(real_images_allowed(pipeline, budget, kind), pipeline.catalog()["n_train"].to_numpy())
        return of_distillations(pipeline, [first_images(pool, counts) for pool in pools(kind)])

    def charged(kind: LabelKind) -> float:
        images = real_images_allowed(pipeline, budget, kind)
        return distilled_class_bytes(payload, images, label_bytes=stored_label_bytes(pipeline, kind))

    rows = rows_of(pipeline, method, few, charged, distilled=True, variant=True)
    drawn = pipeline.settings.generation.images_per_class
    return [replace(row, budget=budget) for row in rows if real_images_allowed(pipeline, budget, row.labels) <= drawn]


def of_distillations(pipeline: Pipeline, sets: Sequence[LabelledImages]) -> Callable[[int], LabelledImages]:
    """From a student's seed to the set of its distillation."""
    return partial(_of_its_distillation, pipeline, sets)


def _of_its_distillation(pipeline: Pipeline, sets: Sequence[LabelledImages], seed: int) -> LabelledImages:
    return sets[distillation_of(pipeline, seed)]


def first_images(pool: LabelledImages, counts: np.ndarray) -> LabelledImages:
    """The first images of every class.

    Args:
        pool: Labels are positions 0 to K-1.
        counts: Most images of each class, integer ``[K]``.
    """
    position = np.zeros(len(pool), np.int64)
    for label in np.unique(pool.labels):
        own = np.flatnonzero(pool.labels == label)
        position[own] = np.arange(len(own))
    return pool.subset(position < counts[pool.labels])


def distillation_of(pipeline: Pipeline, seed: int) -> int:
    """Which of the distillations a student's seed is trained on: they take turns."""
    return pipeline.settings.students.seeds.index(seed) % pipeline.settings.distillations


def stored_label_bytes(pipeline: Pipeline, kind: LabelKind = "soft stored") -> int:
    """Bytes that the label of one sample is charged; hard labels and those of a teacher are free."""
    return soft_label_bytes(len(pipeline.catalog()), pipeline.stored_classes) if kind == "soft stored" else 0


def real_images_allowed(pipeline: Pipeline, budget: str, kind: LabelKind = "hard") -> int:
    """Real images of a class that take no more bytes than the distilled class does at a budget."""
    return equal_bytes_images(
        Budget.parse(budget),
        pipeline.image_shape,
        pool_images=pipeline.settings.generation.images_per_class,
        label_bytes=stored_label_bytes(pipeline, kind),
    )


def training_set(images: Sequence[np.ndarray]) -> LabelledImages:
    """A training set of drawn images, one array a class."""
    from d3m_assets.datasets.labelled_images import LabelledImages

    labels = np.repeat(np.arange(len(images)), [len(i) for i in images])
    return LabelledImages(np.concatenate(images), labels, "synthetic")
