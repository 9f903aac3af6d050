"""Rows of the table of students: what each trains on, what it is charged, and which networks measure it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from d3m_assets.assets.context import Context
from d3m_assets.assets.pool_labels import stored_classes
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.evaluation.settings import LabelKind, StudentSettings
from d3m_assets.ledger import (
    Budget,
    distilled_class_bytes,
    equal_bytes_images,
    holds_real_image,
    soft_label_bytes,
)

TrainingSets: TypeAlias = Callable[[int], LabelledImages]
"""From a student's seed to the training set it is trained on."""


@dataclass(frozen=True)
class Row:
    """One row of the table, for all networks it is measured with.

    Attributes:
        method: Its name.
        labels: How its training sets are labelled.
        training_sets: Gives the training set of a seed.
        replicates: Seed to the replicate that its training set is of.
        settings: How its students are trained: one network, or several.
        bytes_per_class: What is charged; NaN where there is no such figure.
        budget: Where an asset without budgets has a row that belongs to one.
        detail: What was chosen for the row, in words.
    """

    method: str
    labels: LabelKind
    training_sets: TrainingSets
    settings: tuple[StudentSettings, ...]
    replicates: Mapping[int, int]
    bytes_per_class: float = float("nan")
    budget: str = ""
    detail: str = ""


def rows_of(
    context: Context,
    method: str,
    training_sets: Callable[[LabelKind], TrainingSets],
    bytes_per_class: Callable[[LabelKind], float] = lambda kind: float("nan"),
    *,
    distilled: bool = False,
    variant: bool = False,
    seeds: Sequence[int] | None = None,
) -> list[Row]:
    """A method with every kind of labels and every network.

    Args:
        context: Says which labels, networks and seeds there are.
        method: Name of the rows.
        training_sets: From a kind of labels and then a seed to the training set.
        bytes_per_class: What is charged with a kind of labels.
        distilled: Whether the seeds take the replicates in turn.
        variant: Whether the method is measured with the first network only.
        seeds: Of its students; None: those of the settings.
    """
    evaluation, students = context.settings.evaluation, context.settings.students
    networks = [students.of(a) for a in dict.fromkeys([students.architecture, *evaluation.architectures])]
    replicates = {seed: replicate_of(context, seed) if distilled else 0 for seed in seeds or students.seeds}
    settings = tuple(networks[:1] if variant else networks)
    return [
        Row(method, kind, training_sets(kind), settings, replicates, bytes_per_class(kind))
        for kind in evaluation.labels
    ]


def unaugmented(rows: Sequence[Row]) -> list[Row]:
    """The same rows with hard labels and the first network, but without augmentation; none where they have none anyway."""
    return [
        replace(row, settings=(row.settings[0].model_copy(update={"augmentation": "none", "cutmix": 0.0}),))
        for row in rows
        if row.labels == "hard" and row.settings[0].augmentation != "none"
    ]


def at_equal_ipc(
    context: Context,
    method: str,
    budget: Budget,
    pools: Callable[[LabelKind], Sequence[LabelledImages]],
    payload: float = float("nan"),
) -> list[Row]:
    """A method that generates images, trained on as many of them as there are random real images at a budget.

    None where a budget holds no real image, or where fewer images are generated than it holds.
    """
    if not holds_real_image(budget, context.dataset.shape):
        return []

    def few(kind: LabelKind) -> TrainingSets:
        class_sizes = np.array([c.n_train for c in context.dataset.classes])
        counts = np.minimum(real_images_allowed(context, budget, kind), class_sizes)
        return of_replicates(context, [first_images(pool, counts) for pool in pools(kind)])

    def charged(kind: LabelKind) -> float:
        images = real_images_allowed(context, budget, kind)
        return distilled_class_bytes(payload, images, label_bytes=label_bytes(context, kind))

    rows = rows_of(context, method, few, charged, distilled=True, variant=True)
    generated = kept_images(context)
    allowed = [row for row in rows if real_images_allowed(context, budget, row.labels) <= generated]
    return [replace(row, budget=budget.name) for row in allowed]


def of_replicates(context: Context, sets: Sequence[LabelledImages]) -> TrainingSets:
    """From a student's seed to the set of its replicate."""
    return partial(_of_its_replicate, context, sets)


def _of_its_replicate(context: Context, sets: Sequence[LabelledImages], seed: int) -> LabelledImages:
    return sets[replicate_of(context, seed)]


def first_images(pool: LabelledImages, counts: np.ndarray) -> LabelledImages:
    """The first images of every class.

    Args:
        pool: Labels are positions 0 to K-1.
        counts: Most images of each class, integer ``[K]``.
    """
    position = np.zeros(len(pool), np.int64)
    for label in np.unique(pool.labels):
        of_class = np.flatnonzero(pool.labels == label)
        position[of_class] = np.arange(len(of_class))
    return pool.subset(position < counts[pool.labels])


def replicate_of(context: Context, seed: int) -> int:
    """Which of the replicates a student's seed is trained on: they take turns."""
    return context.settings.students.seeds.index(seed) % context.settings.distillations


def baseline_seeds(context: Context, budget: Budget, *, drawn: bool) -> tuple[int, ...]:
    """Seeds of the students of real images at a budget: more than a distilled row has, but only where there is one beside them.

    Args:
        context: Says which budgets are distilled at.
        budget: Of the row.
        drawn: Whether the images are drawn at random, rather than chosen.
    """
    shape = context.dataset.shape
    if budget.bytes(shape) not in {distilled.bytes(shape) for distilled in context.budgets}:
        return context.settings.students.seeds
    return context.settings.baseline_seeds(drawn=drawn)


def label_bytes(context: Context, kind: LabelKind = "soft stored") -> int:
    """Bytes that the label of one sample is charged; hard labels and those of a teacher are free."""
    if kind != "soft stored":
        return 0
    return soft_label_bytes(len(context.dataset.classes), stored_classes(context))


def real_images_allowed(context: Context, budget: Budget, kind: LabelKind = "hard") -> int:
    """Real images of a class that take no more bytes than the distilled class does at a budget."""
    return equal_bytes_images(
        budget,
        context.dataset.shape,
        pool_images=kept_images(context),
        label_bytes=label_bytes(context, kind),
    )


def kept_images(context: Context) -> int:
    """Most images of a class that a distilled training set has, with a selection and without."""
    return context.settings.selection.kept or context.settings.generation.images_per_class


def training_set(images: Sequence[np.ndarray]) -> LabelledImages:
    """A training set of generated images, one array a class."""
    labels = np.repeat(np.arange(len(images)), [len(i) for i in images])
    return LabelledImages(np.concatenate(images), labels, "synthetic")


def labels_fingerprint(context: Context) -> dict[str, object]:
    """What decides about the rows with soft labels; nothing while there are none."""
    from d3m_assets.evaluation.labels import CODE_VERSION

    evaluation = context.settings.evaluation
    if not evaluation.has_soft_labels:
        return {}
    described: dict[str, object] = {
        "labels": list(evaluation.labels),
        "temperature": evaluation.temperature,
        "label_code_version": CODE_VERSION,
    }
    if "soft stored" in evaluation.labels:
        described["stored_classes"] = stored_classes(context)
    return described


def images_allowed_fingerprint(context: Context, budgets: Sequence[Budget]) -> dict[str, object]:
    """What decides about how many images a row at equal IPC has."""
    return {
        "images allowed": {budget.name: budget.bytes(context.dataset.shape) for budget in budgets},
        "images generated": kept_images(context),
    }
