"""``reference_metrics``: what real images of equal bytes teach, which is what distillation must beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.encoded_images import EncodableImages, encoded_baselines, encoded_rows
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.inverted_embeddings import latent_cache
from d3m_assets.assets.measuring import TABLE_CODE_VERSION, MeasuredAsset
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, real_images
from d3m_assets.assets.rows import (
    Row,
    baseline_seeds,
    kept_images,
    label_bytes,
    real_images_allowed,
    rows_of,
    unaugmented,
)
from d3m_assets.assets.teacher_model import TeacherModel, loaded_teacher, read_teacher
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.distillation import latents
from d3m_assets.distillation.latents import ImageFiles
from d3m_assets.errors import StageError
from d3m_assets.evaluation import baselines, codec_choice, codecs
from d3m_assets.evaluation.baselines import BASELINES, Baseline, EncodedBaseline
from d3m_assets.evaluation.baselines.el2n import el2n
from d3m_assets.evaluation.baselines.random_real import RANDOM_REAL
from d3m_assets.evaluation.settings import LabelKind
from d3m_assets.ledger import Budget, holds_real_image, real_class_bytes
from d3m_assets.planning.asset import Asset, Made

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.evaluation.teacher import Teacher


_AT_HAND = "budgets of reference_metrics at hand"


class ReferenceMetrics(MeasuredAsset):
    """Students trained on random, chosen, recomposed or encoded real images of equal bytes: what distillation must beat."""

    partitions: ClassVar[tuple[str, ...]] = ("budget",)
    deps = (RawDataset, FoundationModel, TeacherModel)
    variants: ClassVar[tuple[str, ...]] = ("unaugmented",)
    code_version = f"{TABLE_CODE_VERSION}.{baselines.CODE_VERSION}"

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Train the students; what models say of the training images is computed once for all budgets."""
        context.once(_AT_HAND, lambda: tuple(b for item in items for b in self.budgets(context, item)))
        try:
            yield from super().make(context, items)
        finally:
            context.forget(_AT_HAND)
            context.forget(TrainingImages)
            context.forget(EncodableImages)

    def skip_reason(self, context: Context, item: Item) -> str:
        """It is not required where a budget holds no real image and none is to be encoded."""
        if encoded_baselines(context) or holds_real_image(item.budget, context.dataset.shape):
            return ""
        return f"the budget {item.budget} holds no real image, so there is nothing real of equal bytes"

    def budgets(self, context: Context, item: Item) -> list[Budget]:
        """Budgets of the rows of an item."""
        return [item.budget]

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """Real images; teacher and foundation model only where a baseline asks them."""
        chosen: list[Baseline | EncodedBaseline] = [*_chosen(context), *encoded_baselines(context)]
        used: list[type[Asset]] = [RawDataset]
        if any(baseline.needs_foundation for baseline in chosen):
            used.append(FoundationModel)
        if context.settings.evaluation.has_soft_labels or any(baseline.needs_teacher for baseline in chosen):
            used.append(TeacherModel)
        return used

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Which baselines there are, beside how students are trained."""
        described = super().settings(context, item)
        if "soft stored" in context.settings.evaluation.labels:
            # Real images may take the bytes that the pool's labels take.
            described["pool_labels"] = kept_images(context)
        names = list(context.settings.evaluation.baselines)
        if names != [RANDOM_REAL.name]:
            described |= {"baselines": names, "latents_code_version": latents.CODE_VERSION}
        seeds = {context.settings.students.seeds}
        for budget in self.budgets(context, item):
            seeds |= {baseline_seeds(context, budget, drawn=drawn) for drawn in (True, False)}
        if len(seeds) > 1:
            described["baseline_seeds"] = sorted(seeds, key=len)
        if encoded_baselines(context):
            described["codecs"] = {"codecs": codecs.CODE_VERSION, "choice": codec_choice.CODE_VERSION}
            described["codecs"]["formats"] = codecs.pictures.available_formats()
        return described

    def rows(self, context: Context, item: Item) -> tuple[list[Row], Mapping[str, bytes]]:
        """Every baseline with every kind of labels."""
        real = context.once(TrainingImages, lambda: TrainingImages(context))
        budgets = self.budgets(context, item)
        rows = [row for budget in budgets for row in raw_rows(context, real, budget)]
        rows += encoded_rows(context, real, budgets, ahead=context.once(_AT_HAND, tuple))
        if not rows:
            names = ", ".join(budget.name for budget in budgets)
            raise StageError(f"no real image of every class fits into {names}, not even a coded one; give more bytes")
        if "unaugmented" in self.chosen_variants(context, item):
            rows += unaugmented([row for row in rows if row.method == RANDOM_REAL.method])
        return rows, {}


def raw_rows(context: Context, real: TrainingImages, budget: Budget) -> list[Row]:
    """Every baseline of one byte a channel with every kind of labels; none where the budget holds no image."""
    shape = context.dataset.shape
    if not holds_real_image(budget, shape):
        return []
    class_sizes = [len(rows) for rows in real.by_class.values()]

    def charged(kind: LabelKind) -> float:
        count = real_images_allowed(context, budget, kind)
        return real_class_bytes(class_sizes, count, shape, label_bytes=label_bytes(context, kind))

    def training_sets(baseline: Baseline, kind: LabelKind) -> partial[LabelledImages]:
        return partial(real.training_set, baseline, real_images_allowed(context, budget, kind))

    rows = []
    for baseline in _chosen(context):
        seeds = baseline_seeds(context, budget, drawn=baseline is RANDOM_REAL)
        rows += rows_of(context, baseline.method, partial(training_sets, baseline), charged, seeds=seeds)
    return [replace(row, budget=budget.name) for row in rows]


def _chosen(context: Context) -> list[Baseline]:
    return [BASELINES[name] for name in context.settings.evaluation.baselines if name in BASELINES]


class TrainingImages:
    """The training images that baselines choose from (:class:`~d3m_assets.evaluation.baselines.RealImages`).

    What a model says of them is computed once, also for several budgets.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        rows = image_rows(context, "train").sort_values(["class_id", "sha256"], ignore_index=True)
        self.by_class: dict[int, pd.DataFrame] = {
            c.class_id: rows[rows["class_id"] == c.class_id] for c in context.dataset.classes
        }
        self._kept: dict[tuple[str, int], np.ndarray] = {}

    def training_set(self, baseline: Baseline, count: int, seed: int) -> LabelledImages:
        """``count`` images of each class, at the dataset's stored size; a class that has fewer gives all it has."""
        images = [baseline.images(self, c.class_id, count, seed) for c in self._context.dataset.classes]
        labels = np.repeat(np.arange(len(images)), [len(of_class) for of_class in images])
        return LabelledImages(np.concatenate(images), labels, baseline.split)

    def images(self, class_id: int) -> np.ndarray:
        """Images of a class at the dataset's stored size, uint8 ``[N, H, W, C]``."""

        def load() -> np.ndarray:
            return real_images(self._context, self.by_class[class_id])

        return self._once("images", class_id, load)

    def features(self, class_id: int) -> np.ndarray:
        """Features that the teacher sees in the images of a class, float ``[N, F]``."""
        from d3m_assets.evaluation.teacher import features

        return self._once("features", class_id, lambda: features(self._teacher, self.images(class_id)))

    def class_probabilities(self, class_id: int, images: np.ndarray) -> np.ndarray:
        """How likely the teacher takes images for a class, float ``[N]``."""
        from d3m_assets.evaluation.teacher import probabilities

        return probabilities(self._teacher, images)[:, self._positions[class_id]]

    def el2n_errors(self, class_id: int) -> np.ndarray:
        """Norm of the teacher's error on the images of a class, float ``[N]``."""
        from d3m_assets.evaluation.teacher import probabilities

        def errors() -> np.ndarray:
            soft = probabilities(self._teacher, self.images(class_id))
            return el2n(soft, np.full(len(soft), self._positions[class_id]))

        return self._once("errors", class_id, errors)

    def latents(self, class_id: int) -> np.ndarray:
        """Latents of the images of a class, float16 ``[N, C, h, w]``."""
        rows, channels = self.by_class[class_id], self._context.dataset.scan.channels
        dataset = self._context.dataset
        files = ImageFiles(dataset.source, tuple(dataset.records(rows)), channels)
        return latent_cache(self._context).get(self._context.model.reference.load(), files)

    def decoded(self, latents: np.ndarray) -> np.ndarray:
        """Latents as images, uint8 ``[N, H, W, C]``.

        A set that takes as many bytes as real images has to be stored as they are: at their size and with their channels.
        """
        import torch
        from PIL import Image

        foundation, shape = self._context.model.reference.load(), self._context.dataset.shape
        means = torch.from_numpy(latents).to(foundation.device)
        with torch.inference_mode():
            images = torch.cat([foundation.decode_latents(part).cpu() for part in means.split(50)])
        mode, size = ("L", "RGB")[shape.channels == 3], (shape.width, shape.height)
        stored = np.empty((len(images), shape.height, shape.width, shape.channels), np.uint8)
        for row, image in zip(stored, images.permute(0, 2, 3, 1).numpy(), strict=True):
            picture = Image.fromarray(image).convert(mode).resize(size, Image.Resampling.BICUBIC)
            row[:] = np.asarray(picture).reshape(row.shape)
        return stored

    @cached_property
    def _teacher(self) -> Teacher:
        return loaded_teacher(read_teacher(self._context), self._context.device)

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {c.class_id: c.position for c in self._context.dataset.classes}

    def _once(self, name: str, class_id: int, make: Any) -> np.ndarray:
        if (name, class_id) not in self._kept:
            self._kept[name, class_id] = make()
        return self._kept[name, class_id]
