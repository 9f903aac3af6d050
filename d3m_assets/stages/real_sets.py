"""Training sets of equal bytes made of real images: drawn, chosen with the teacher, or composed anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import load_images
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.evaluation.baselines import random_real
from d3m_assets.evaluation.selection import CHOICES, Described, collages, crops, el2n, latent_means, select_real
from d3m_assets.evaluation.settings import Baseline
from d3m_assets.pipeline import Pipeline
from d3m_assets.stages.artefacts import loaded_foundation, model_of
from d3m_assets.stages.dataset import image_table, labelled_images
from d3m_assets.stages.teacher import loaded_teacher, stored_teacher

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.teacher import Teacher


class RealSets:
    """Makes the training sets of the baselines; what several budgets need is computed once."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._crop_losses: dict[tuple[int, int], np.ndarray] = {}

    def training_set(self, baseline: Baseline, count: int, seed: int) -> LabelledImages:
        """``count`` images of each class, at the dataset's stored size; a class that has fewer gives all it has.

        Args:
            baseline: Which of ``evaluation.baselines``.
            count: Images of each class.
            seed: Of the student that is trained on them.
        """
        if baseline == "collages":
            return self._composed(lambda class_id: self._collages(class_id, count, seed))
        if baseline == "latent-means":
            return self._composed(lambda class_id: self._latent_means(class_id, count, seed))
        if baseline in CHOICES:
            chosen = select_real(self.table, count, seed, baseline, self._described)
        else:
            chosen = random_real(self.table, count, seed)
        return labelled_images(self._pipeline, chosen, "train")

    @cached_property
    def table(self) -> pd.DataFrame:
        """The training images, by class and hash."""
        return image_table(self._pipeline, "train").sort_values(["class_id", "sha256"], ignore_index=True)

    @cached_property
    def _teacher(self) -> Teacher:
        return loaded_teacher(stored_teacher(self._pipeline), self._pipeline.device)

    def _images(self, class_id: int) -> np.ndarray:
        scan, rows = self._pipeline.scan(), self.table[self.table["class_id"] == class_id]
        return load_images(list(rows["uri"]), size=(scan.image_height, scan.image_width), channels=scan.channels)

    @cached_property
    def _described(self) -> dict[int, Described]:
        from d3m_assets.evaluation.teacher import features, probabilities

        found = {}
        for position, class_id in enumerate(self._pipeline.catalog()["class_id"]):
            images = self._images(class_id)
            soft = probabilities(self._teacher, images)
            errors = el2n(soft, np.full(len(images), position))
            found[int(class_id)] = Described(features(self._teacher, images), errors)
        return found

    def _collages(self, class_id: int, count: int, seed: int) -> np.ndarray:
        from d3m_assets.evaluation.teacher import probabilities

        images = self._images(class_id)
        if (class_id, seed) not in self._crop_losses:
            judged = crops(images, seed)
            soft = probabilities(self._teacher, judged.reshape(-1, *images.shape[1:]))
            position = list(self._pipeline.catalog()["class_id"]).index(class_id)
            losses = -np.log(np.maximum(soft[:, position], 1e-12)).reshape(judged.shape[:2])
            self._crop_losses[class_id, seed] = losses
        return collages(images, self._crop_losses[class_id, seed], min(count, len(images)), seed)

    def _latent_means(self, class_id: int, count: int, seed: int) -> np.ndarray:
        import torch
        from PIL import Image

        pipeline, scan = self._pipeline, self._pipeline.scan()
        foundation = loaded_foundation(*model_of(pipeline))
        folder = pipeline.settings.home.absolute() / "cache" / "latents"
        cache = LatentCache(folder, int(pipeline.settings.latent_cache_gib * 2**30))
        rows = self.table[self.table["class_id"] == class_id]
        latents = cache.get(foundation, ImageFiles(tuple(rows["uri"]), tuple(rows["sha256"]), scan.channels))
        means = torch.from_numpy(latent_means(latents, count, seed)).to(foundation.device)
        with torch.inference_mode():
            decoded = torch.cat([foundation.decode_latents(part).cpu() for part in means.split(50)])
        mode, size = ("L", "RGB")[scan.channels == 3], (scan.image_width, scan.image_height)
        # A set that weighs as much as real images has to be stored as they are: at their size and with their channels.
        stored = np.empty((len(decoded), scan.image_height, scan.image_width, scan.channels), np.uint8)
        for row, image in zip(stored, decoded.permute(0, 2, 3, 1).numpy(), strict=True):
            picture = Image.fromarray(image).convert(mode).resize(size, Image.Resampling.BICUBIC)
            row[:] = np.asarray(picture).reshape(row.shape)
        return stored

    def _composed(self, made: Callable[[int], np.ndarray]) -> LabelledImages:
        from d3m_assets.datasets.labelled_images import LabelledImages

        images = [made(int(class_id)) for class_id in self._pipeline.catalog()["class_id"]]
        labels = np.repeat(np.arange(len(images)), [len(i) for i in images])
        return LabelledImages(np.concatenate(images), labels, "synthetic")
