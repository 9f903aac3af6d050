"""Rows that change one thing about the distilled one: how many images, which images, and whether any is seen twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.errors import D3MError
from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import Progress
from d3m_assets.stages.artefacts import share_out, where
from d3m_assets.stages.distillation import distillation_seed, drawing_item, drawing_work, stored_prompts, stored_vectors
from d3m_assets.stages.pool_labels import stored_labels, without_off_class
from d3m_assets.stages.rows import Row, at_equal_ipc, of_distillations, rows_of, training_set, unaugmented
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.settings import LabelKind


def variant_rows(
    pipeline: Pipeline, budget: str, pools: Mapping[LabelKind, Sequence[LabelledImages]], payload: float,
    rows: Sequence[Row],
) -> list[Row]:  # fmt: skip
    """The rows of a budget that ``evaluation.variants`` asks for.

    Args:
        pipeline: Gives settings, teacher and vectors.
        budget: Which.
        pools: Kind of labels to the synthetic pool of every distillation.
        payload: Mean bytes of the vectors of a class.
        rows: The rows of the distilled data itself.
    """
    from d3m_assets.evaluation.methods import D3M_EQUAL_IPC, D3M_FRESH, D3M_REJECTION

    chosen, found = pipeline.settings.evaluation.variants, []
    if "equal-ipc" in chosen:
        found += at_equal_ipc(pipeline, D3M_EQUAL_IPC, budget, pools.__getitem__, payload)
    distillations = range(pipeline.settings.distillations)
    if "rejection" in chosen:
        told = [stored_labels(pipeline, budget, r) for r in distillations]

        def kept(kind: LabelKind) -> Callable[[int], LabelledImages]:
            accepted = [without_off_class(*both) for both in zip(pools[kind], told, strict=True)]
            return of_distillations(pipeline, accepted)

        # What is charged stays: which images are rejected follows from the teacher, or would have to be stored as well.
        charges = {row.labels: row.bytes_per_class for row in rows}
        found += rows_of(pipeline, D3M_REJECTION, kept, charges.__getitem__, distilled=True, variant=True)
    # Stored soft labels would have to be stored for all those images.
    kinds = [kind for kind in pipeline.settings.evaluation.labels if kind != "soft stored"]
    if "fresh" in chosen and kinds and budget == pipeline.largest_budget:
        fresh = of_distillations(pipeline, [fresh_images(pipeline, budget, r) for r in distillations])
        drawn = rows_of(pipeline, D3M_FRESH, lambda kind: fresh, lambda kind: payload, distilled=True, variant=True)
        found += [row for row in drawn if row.labels in kinds]
    if "unaugmented" in chosen:
        found += unaugmented(rows)
    return found


def fresh_images(pipeline: Pipeline, budget: str, distillation: int) -> LabelledImages:
    """As many images as a student sees in all its steps, at its size: the pool's own and those that would follow them."""
    from d3m_assets.evaluation.students import student_image_size

    students, keys, scan = pipeline.settings.students, list(pipeline.catalog()["class_key"]), pipeline.scan()
    count = math.ceil(students.steps * students.batch_size / len(keys))
    side = student_image_size(students, scan.image_height, scan.image_width)
    items, seed = [], distillation_seed(pipeline, distillation)
    for class_key in keys:
        vectors = stored_vectors(pipeline, class_key, budget, distillation)
        prompts, plan = stored_prompts(pipeline, class_key), pipeline.embedding_plan(class_key, budget)
        items.append((drawing_item(pipeline, prompts, vectors, plan, seed=seed, count=count), side, scan.channels))
    names = [where(ArtefactKey("synthetic_pool", class_key, budget)) for class_key in keys]
    drawn: list[Any] = [None] * len(keys)
    for index, result in share_out(pipeline, "student_metrics: fresh samples", _fresh_work, items, names):
        if isinstance(result, D3MError):
            raise result
        drawn[index] = result
    return training_set(drawn)


def _fresh_work(item: tuple[Any, ...], progress: Progress) -> np.ndarray:
    """Images of a class, no larger than students see them: there are thousands."""
    from d3m_assets.datasets.labelled_images import resize_to_square

    drawing, side, channels = item
    return resize_to_square(drawing_work(drawing, progress)[0], side, channels)
