"""``student_metrics``: what the distilled data teaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from d3m_assets.assets.class_prompts import ClassPrompts
from d3m_assets.assets.codec_choice import CodecChoice
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.distilled_bundle import payload_sentence
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.image_codes import ImageCodes, read_stored_code
from d3m_assets.assets.inverted_embeddings import (
    InvertedEmbeddings,
    class_selection_plan,
    embedding_plan,
    vectors_key,
)
from d3m_assets.assets.measuring import MeasuredAsset
from d3m_assets.assets.payload_choice import PayloadChoice, chosen_parts, read_distilled
from d3m_assets.assets.pool_labels import PoolLabels, read_labels, with_soft_labels, without_off_class
from d3m_assets.assets.raw_dataset import RawDataset
from d3m_assets.assets.rows import (
    Row,
    TrainingSets,
    at_equal_ipc,
    images_allowed_fingerprint,
    kept_images,
    label_bytes,
    of_replicates,
    rows_of,
    training_set,
    unaugmented,
)
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.synthetic_pool import (
    GenerationJob,
    SyntheticPool,
    generate_images,
    generation_fingerprint,
    generation_job,
    pool_images,
)
from d3m_assets.assets.teacher_model import TeacherModel
from d3m_assets.datasets.labelled_images import LabelledImages, resize_to_square
from d3m_assets.distillation.settings import CODES, PROMPTS
from d3m_assets.errors import D3MError
from d3m_assets.evaluation.methods import D3M, D3M_EQUAL_IPC, D3M_FRESH, D3M_REJECTION
from d3m_assets.evaluation.settings import LabelKind
from d3m_assets.ledger import distilled_class_bytes, largest_budget
from d3m_assets.planning.asset import Asset
from d3m_assets.progress import Progress


class StudentMetrics(MeasuredAsset):
    """Students trained on the selected samples of a budget and tested on real images."""

    partitions = ("budget",)
    deps = (
        SyntheticPool,
        SampleSelection,
        PayloadChoice,
        ImageCodes,
        CodecChoice,
        PoolLabels,
        RawDataset,
        TeacherModel,
        InvertedEmbeddings,
        ClassPrompts,
        FoundationModel,
    )
    variants = ("equal-ipc", "rejection", "unaugmented", "fresh")

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """Pools, what is selected of them and real images; teacher, its labels and the vectors only where a row needs them."""
        evaluation = context.settings.evaluation
        used: list[type[Asset]] = [SyntheticPool, SampleSelection, PayloadChoice, ImageCodes, CodecChoice, RawDataset]
        if "soft stored" in evaluation.labels or "rejection" in evaluation.variants:
            used.append(PoolLabels)
        if evaluation.has_soft_labels or "rejection" in evaluation.variants:
            used.append(TeacherModel)
        if "fresh" in self.chosen_variants(context, item):
            used += [InvertedEmbeddings, ClassPrompts, FoundationModel]
        return used

    def replicates(self, context: Context, dep: type[Asset]) -> Sequence[int]:
        """All of them: students take them in turn."""
        return context.values("replicate")

    def chosen_variants(self, context: Context, item: Item) -> list[str]:
        """Fresh samples only at the largest budget, since a student sees thousands of them.

        Codes have no fresh samples, and as many as they have: both are left out where they may be of the payload.
        """
        if context.settings.payload != PROMPTS:
            return [v for v in super().chosen_variants(context, item) if v not in ("fresh", "equal-ipc")]
        largest = largest_budget(context.budgets, context.dataset.shape)
        return [v for v in super().chosen_variants(context, item) if v != "fresh" or item.budget == largest]

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How fresh images are generated and how many images equal IPC has, beside how students are trained."""
        described, variants = super().settings(context, item), self.chosen_variants(context, item)
        if "equal-ipc" in variants:
            described |= images_allowed_fingerprint(context, [item.budget])
        if "fresh" in variants:
            generation = generation_fingerprint(context, context.settings.seed)
            described["fresh"] = {"generation": generation["generation"], "seed": generation["seed"]}
        return described

    def rows(self, context: Context, item: Item) -> tuple[list[Row], Mapping[str, bytes]]:
        """The distilled data with every kind of labels, and its variants."""
        labels = context.settings.evaluation.labels
        replicates = context.values("replicate")
        hard = [synthetic_images(context, item.budget.name, r) for r in replicates]
        pools: dict[LabelKind, Sequence[LabelledImages]] = {kind: hard for kind in labels}
        if "soft stored" in labels:
            tables = [read_labels(context, item.budget.name, r) for r in replicates]
            pools["soft stored"] = [with_soft_labels(context, *pair) for pair in zip(hard, tables, strict=True)]
        payload, count = _mean_payload(context, item), kept_images(context)

        def charged(kind: LabelKind) -> float:
            return distilled_class_bytes(payload, count, label_bytes=label_bytes(context, kind))

        rows = rows_of(context, D3M, lambda kind: of_replicates(context, pools[kind]), charged, distilled=True)
        if sentence := payload_sentence(context, item.budget):
            rows = [replace(row, detail=sentence) for row in rows]
        return rows + self._variant_rows(context, item, pools, payload, rows), {}

    def _variant_rows(
        self,
        context: Context,
        item: Item,
        pools: Mapping[LabelKind, Sequence[LabelledImages]],
        payload: float,
        rows: Sequence[Row],
    ) -> list[Row]:
        """Rows that change one thing about the distilled one: how many images, which, and whether any is seen twice."""
        variants, found = self.chosen_variants(context, item), []
        if "equal-ipc" in variants:
            found += at_equal_ipc(context, D3M_EQUAL_IPC, item.budget, pools.__getitem__, payload)
        if "rejection" in variants:
            # What is charged stays: which images are rejected follows from the teacher, or would have to be stored as well.
            charges = {row.labels: row.bytes_per_class for row in rows}
            found += rows_of(
                context,
                D3M_REJECTION,
                _accepted(context, item, pools),
                charges.__getitem__,
                distilled=True,
                variant=True,
            )
        # Stored soft labels would have to be stored for all those images.
        kinds = [kind for kind in context.settings.evaluation.labels if kind != "soft stored"]
        if "fresh" in variants and kinds:
            sets = [fresh_images(context, item, r) for r in context.values("replicate")]
            fresh = of_replicates(context, sets)
            generated = rows_of(
                context, D3M_FRESH, lambda kind: fresh, lambda kind: payload, distilled=True, variant=True
            )
            found += [row for row in generated if row.labels in kinds]
        if "unaugmented" in variants:
            found += unaugmented(rows)
        return found


def _mean_payload(context: Context, item: Item) -> float:
    """Mean bytes of the vectors and the selection of a class, and of its image codes."""
    parts, payload = chosen_parts(context, item.budget.name), 0.0
    if CODES in parts:
        codes = context.inputs.keys(ImageCodes, budget=item.budget.name)
        payload += float(np.mean([len(read_stored_code(context, key)) for key in codes]))
    if PROMPTS in parts:
        keys = context.inputs.keys(SyntheticPool, budget=item.budget.name, replicate=0)
        plans = [(embedding_plan(context, of), class_selection_plan(context, of)) for of in map(context.item, keys)]
        payload += float(np.mean([vectors.payload + selection.bytes for vectors, selection in plans]))
    return payload


def _accepted(
    context: Context, item: Item, pools: Mapping[LabelKind, Sequence[LabelledImages]]
) -> Callable[[LabelKind], TrainingSets]:
    """The pools without the images that the teacher gives another class."""
    tables = [read_labels(context, item.budget.name, r) for r in context.values("replicate")]

    def kept(kind: LabelKind) -> TrainingSets:
        return of_replicates(context, [without_off_class(*pair) for pair in zip(pools[kind], tables, strict=True)])

    return kept


def synthetic_images(context: Context, budget: str, replicate: int = 0) -> LabelledImages:
    """The selected samples and the coded images of all classes at a budget, as a training set."""
    classes = context.dataset.classes
    return training_set([pool_images(read_distilled(context, c.key, budget, replicate)) for c in classes])


@dataclass(frozen=True)
class FreshJob:
    """Images of a class that a student sees only once.

    Attributes:
        generation: The job that generates them.
        side: They are kept no larger than students see them, in px: there are thousands.
    """

    generation: GenerationJob
    side: int


def fresh_images(context: Context, item: Item, replicate: int) -> LabelledImages:
    """As many images as a student sees in all its steps, at its size: samples as they come, none selected."""
    from d3m_assets.evaluation.students import student_image_size

    students, shape = context.settings.students, context.dataset.shape
    count = math.ceil(students.steps * students.batch_size / len(context.dataset.classes))
    side = student_image_size(students, shape.height, shape.width)
    sources = [vectors_key(context, c.key, item.budget.name, replicate) for c in context.dataset.classes]
    jobs = [FreshJob(generation_job(context, source, count), side) for source in sources]
    labels = [context.item(source).label for source in sources]
    images: list[Any] = [None] * len(jobs)
    for index, result in context.map_in_workers(f"{StudentMetrics.name}: fresh samples", _fresh, jobs, labels):
        if isinstance(result, D3MError):
            raise result
        images[index] = result
    return training_set(images)


def _fresh(job: FreshJob, progress: Progress) -> np.ndarray:
    return resize_to_square(generate_images(job.generation, progress)[0], job.side, job.generation.channels)
