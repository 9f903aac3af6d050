"""Rows of real images that are encoded: by workers, each training set within the bytes of a budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from d3m_assets.assets.context import Context
from d3m_assets.assets.raw_dataset import image_rows, labelled_images
from d3m_assets.assets.rows import Row, baseline_seeds, kept_images, label_bytes, rows_of
from d3m_assets.compute.devices import own_device
from d3m_assets.compute.shared import Shared
from d3m_assets.datasets.labelled_images import LabelledImages, Split
from d3m_assets.errors import D3MError
from d3m_assets.evaluation.baselines import ENCODED, EncodedBaseline, RealImages
from d3m_assets.evaluation.baselines.encoded import EncodableClass, EncodedSet, encoded_sets, packed_sets, set_words
from d3m_assets.evaluation.settings import LabelKind, StudentSettings
from d3m_assets.ledger import Budget
from d3m_assets.progress import Progress


@dataclass(frozen=True)
class EncodableImages:
    """What is encoded, on its way to workers, which get it once; and the sets that were made of it.

    Attributes:
        classes: Training images of every class, by position.
        validation: What codecs are chosen by; training images where no image is set aside.
        encoded: A set for every student and what was chosen in words, by job; None where a class cannot hold an image.
    """

    classes: Shared[tuple[EncodableClass, ...]]
    validation: Shared[LabelledImages]
    encoded: dict[tuple[str, int, int], tuple[list[EncodedSet], str] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, real: RealImages) -> EncodableImages:
        """The training and validation images of a dataset."""
        classes = tuple(
            EncodableClass(real.images(c.class_id), real.features(c.class_id)) for c in context.dataset.classes
        )
        split: Split = "train" if image_rows(context, "validation").empty else "validation"
        return cls(Shared(classes), Shared(labelled_images(context, image_rows(context, split), split)))


@dataclass(frozen=True)
class EncodingJob:
    """Real images that a worker encodes within a number of bytes.

    Attributes:
        baseline: Packed or coded.
        allowed: Bytes of a class.
        label_bytes: Bytes stored with each image for its soft label.
        images: Of which classes, and what codecs are chosen by.
        students: Recipe of the students that choose, and the seeds of the sets.
        device: Torch device, where the worker was not given one of its own.
    """

    baseline: str
    allowed: int
    label_bytes: int
    classes: Shared[tuple[EncodableClass, ...]]
    validation: Shared[LabelledImages]
    students: StudentSettings
    device: str

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from other jobs of the same images."""
        return self.baseline, self.allowed, self.label_bytes


def encoded_baselines(context: Context) -> list[EncodedBaseline]:
    """The encoded baselines that the settings ask for."""
    return [ENCODED[name] for name in context.settings.evaluation.baselines if name in ENCODED]


def encoded_rows(
    context: Context, real: RealImages, budgets: Sequence[Budget], *, ahead: Sequence[Budget] = ()
) -> list[Row]:
    """Packed and coded real images within some budgets, with every kind of labels; none where a class cannot hold one.

    Args:
        context: Says which baselines, labels and seeds there are.
        real: The training images.
        budgets: Of the rows.
        ahead: Budgets whose rows are asked for next: their images are encoded at the same time.
    """
    evaluation = context.settings.evaluation
    asked = list(itertools.product(encoded_baselines(context), budgets, evaluation.labels))
    if not asked:
        return []
    images = context.once(EncodableImages, lambda: EncodableImages.of(context, real))
    jobs = [_job(context, images, *of_row) for of_row in asked]
    next_ones = itertools.product(encoded_baselines(context), ahead, evaluation.labels)
    every = [*jobs, *(_job(context, images, *of_row) for of_row in next_ones)]
    unknown = {job.key: job for job in every if job.key not in images.encoded}
    labels = [f"{name} {allowed} bytes" for name, allowed, _ in unknown]
    for index, result in context.map_in_workers("encoded images", _encode, list(unknown.values()), labels):
        if isinstance(result, D3MError):
            raise result
        images.encoded[list(unknown)[index]] = result
    rows = []
    for (baseline, budget, kind), job in zip(asked, jobs, strict=True):
        found = images.encoded[job.key]
        if found is not None:
            seeds = job.students.seeds
            sets = {seed: encoded.labelled() for seed, encoded in zip(seeds, found[0], strict=True)}
            charged = float(np.mean([s.bytes_per_class + job.label_bytes * s.images_per_class for s in found[0]]))
            of_all_kinds = rows_of(context, baseline.method, lambda kind, sets=sets: sets.__getitem__, seeds=seeds)  # type: ignore[misc]
            made = [row for row in of_all_kinds if row.labels == kind]
            rows += [replace(row, budget=budget.name, detail=found[1], bytes_per_class=charged) for row in made]
    return rows


def _job(
    context: Context, images: EncodableImages, baseline: EncodedBaseline, budget: Budget, kind: LabelKind
) -> EncodingJob:
    each, allowed = label_bytes(context, kind), budget.bytes(context.dataset.shape)
    if each:  # the pool's stored labels are charged beyond the budget; real images may take as many bytes
        allowed += kept_images(context) * each
    seeds = baseline_seeds(context, budget, drawn=False)
    students = context.settings.students.model_copy(update={"seeds": seeds})
    return EncodingJob(baseline.name, allowed, each, images.classes, images.validation, students, context.device)


def _encode(job: EncodingJob, progress: Progress) -> tuple[list[EncodedSet], str] | None:
    """A set for every seed, and what was chosen in words; None where a class cannot hold an image."""
    from d3m_assets.evaluation.codec_choice import choice_words, choose_codec

    classes, seeds = job.classes.value, job.students.seeds
    if ENCODED[job.baseline].lossless:
        packed = packed_sets(classes, job.allowed, seeds, label_bytes=job.label_bytes)
        return None if packed is None else (packed, set_words(packed))
    candidates = choose_codec(
        classes,
        job.validation.value,
        job.allowed,
        job.students,
        label_bytes=job.label_bytes,
        device=own_device() or job.device,
        progress=progress,
    )
    for candidate in candidates:
        sets = encoded_sets(classes, candidate.codec, job.allowed, seeds, label_bytes=job.label_bytes)
        if sets is not None:
            return sets, f"{set_words(sets)}; {choice_words(candidates)}"
    return None
