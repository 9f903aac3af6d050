"""A dataset known by its numbers only: to plan for images that are not on this machine, or do not exist yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from d3m_assets.datasets.dataset import Dataset
from d3m_assets.datasets.source import ClassImages, ImageRecord, Scan
from d3m_assets.errors import DatasetError, SettingsError
from d3m_assets.progress import Progress, silent

MOST_CLASSES, MOST_IMAGES = 1_000_000, 10**10


class CountedClass(ClassImages):
    """A class whose images are counted and not listed."""

    def __init__(self, class_name: str, train: int, validation: int, test: int) -> None:
        super().__init__(class_name, ())
        counts = {"train": range(train), "validation": range(validation), "test": range(test)}
        object.__setattr__(self, "_counts", counts)

    def of(self, split: str) -> tuple[ImageRecord, ...]:  # type: ignore[override]
        """As many as there are images of a split; only their number means anything."""
        return cast("tuple[ImageRecord, ...]", self.__dict__["_counts"][split])


@dataclass(frozen=True)
class DatasetDescription:
    """The numbers of a dataset that decide about the cost of distilling it.

    Attributes:
        classes: Number of classes.
        train: Training images of all classes, evenly spread.
        test: Test images of all classes.
        height: Median height of the training images, in pixels.
        width: Median width.
        channels: 1 where all are grey.
    """

    classes: int
    train: int
    test: int
    height: int
    width: int
    channels: Literal[1, 3]

    @classmethod
    def parse(cls, text: str) -> DatasetDescription:
        """Read ``CLASSES,TRAIN,TEST,WIDTHxHEIGHTxCHANNELS``, such as ``1000,1281167,50000,500x375x3``.

        Raises:
            SettingsError: It is written otherwise, or impossible.
        """
        pattern = r"\s*(\d{1,12})\s*,\s*(\d{1,12})\s*,\s*(\d{1,12})\s*,\s*(\d{1,5})x(\d{1,5})x([13])\s*"
        if (match := re.fullmatch(pattern, text)) is None:
            raise SettingsError(
                f'--describe "{text}": write CLASSES,TRAIN,TEST,WIDTHxHEIGHTxCHANNELS, for example '
                "1000,1281167,50000,500x375x3 for ImageNet-1K; channels are 1 for grey images and 3 for others"
            )
        classes, train, test, width, height, channels = map(int, match.groups())
        if not 2 <= classes <= MOST_CLASSES or not classes <= train <= MOST_IMAGES or not 1 <= test <= MOST_IMAGES:
            raise SettingsError(
                f'--describe "{text}": give 2 to {MOST_CLASSES:,} classes, at least one training image for each, and a test '
                "image; the numbers of images are those of all classes together"
            )
        if not width or not height:
            raise SettingsError(f'--describe "{text}": images are at least 1x1 pixels')
        return cls(classes, train, test, height, width, 1 if channels == 1 else 3)

    def dataset(self, name: str, validation_fraction: float) -> Dataset:
        """As a dataset to plan with: its classes have numbers for names, and none of its images can be read.

        Args:
            name: What it is called.
            validation_fraction: Part of ``train`` that is set aside, as it is of a real dataset.
        """
        return Dataset(lambda: _Described(self, validation_fraction), name, lambda scan: None)


@dataclass
class _Described:
    """The source of a described dataset."""

    description: DatasetDescription
    validation_fraction: float
    url: str = "a description"

    def scan(self, progress: Progress = silent) -> Scan:
        """The classes with their numbers of images."""
        of = self.description
        learned = max(of.classes, round(of.train * (1 - self.validation_fraction)))

        def share(total: int, k: int) -> int:
            return total // of.classes + (k < total % of.classes)

        names = [str(k) for k in range(of.classes)]
        held_out = of.train - learned
        classes: dict[str, ClassImages] = {
            name: CountedClass(name, share(learned, k), share(held_out, k), share(of.test, k))
            for k, name in enumerate(names)
        }
        return Scan(self.url, classes, of.height, of.width, of.channels)

    def read(self, image: ImageRecord) -> bytes:
        """There is nothing to read.

        Raises:
            DatasetError: Always.
        """
        raise DatasetError("a dataset that is only described has no images; name the real one with --dataset")
