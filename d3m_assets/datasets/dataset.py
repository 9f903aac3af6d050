"""A dataset as it is now: its scan, its catalog of classes, and its images by split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from d3m_assets.datasets.source import DatasetSource, ImageRecord, Scan
from d3m_assets.ledger import ImageShape
from d3m_assets.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DatasetClass:
    """One class of the dataset.

    Attributes:
        class_id: Permanent id.
        key: Partition key.
        name: Its name in the dataset.
        position: Its place among the classes that exist now, by id: what students call it.
        n_train: Training images.
    """

    class_id: int
    key: str
    name: str
    position: int
    n_train: int


class Dataset:
    """A dataset that is read once for the life of this object.

    Args:
        source: Where the images are.
        name: What it is called.
        previous_catalog: Reads the catalog of earlier scans, which gave the classes their ids; called once, with the scan.
        progress: Told how far the scan is.
    """

    def __init__(
        self,
        source: Callable[[], DatasetSource],
        name: str,
        previous_catalog: Callable[[Scan], pd.DataFrame | None],
        progress: Progress = silent,
    ) -> None:
        self.name = name
        self._open, self._previous, self._progress = source, previous_catalog, progress

    @cached_property
    def source(self) -> DatasetSource:
        """Where the images are.

        Raises:
            DatasetError: It cannot be opened.
            SettingsError: What is to be left out of it cannot be read.
        """
        return self._open()

    @cached_property
    def scan(self) -> Scan:
        """The dataset as it is.

        Raises:
            DatasetError: It cannot be used; the message says why.
        """
        return self.source.scan(self._progress)

    @property
    def shape(self) -> ImageShape:
        """Shape of its images as they are stored."""
        return ImageShape(self.scan.image_height, self.scan.image_width, self.scan.channels)

    @cached_property
    def full_catalog(self) -> pd.DataFrame:
        """Catalog of all classes ever seen; ids are never given twice, so the stored catalog is looked at first.

        Raises:
            DatasetError: The dataset cannot be used.
            StoreError: The stored catalog cannot be read, or is of another dataset.
        """
        from d3m_assets.datasets.catalog import class_catalog

        return class_catalog(self.scan, self._previous(self.scan))

    @cached_property
    def catalog(self) -> pd.DataFrame:
        """Catalog of the classes that exist now, by class id."""
        table = self.full_catalog
        return table[table["active"]].reset_index(drop=True)

    @cached_property
    def classes(self) -> tuple[DatasetClass, ...]:
        """The classes that exist now, by class id."""
        rows = self.catalog[["class_id", "class_key", "class_name", "n_train"]].itertuples(index=False)
        return tuple(
            DatasetClass(int(class_id), str(key), str(name), position, int(n_train))
            for position, (class_id, key, name, n_train) in enumerate(rows)
        )

    @cached_property
    def class_by_key(self) -> dict[str, DatasetClass]:
        """The classes that exist now, by partition key."""
        return {c.key: c for c in self.classes}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by position."""
        return tuple(c.name for c in self.classes)

    @cached_property
    def _records(self) -> dict[str, ImageRecord]:
        return {i.relative_path: i for c in self.scan.classes.values() for i in c.images}

    def record(self, relative_path: str) -> ImageRecord | None:
        """An image as it is now, by its path below the dataset; None: it is not there any more."""
        return self._records.get(relative_path)

    def records(self, rows: pd.DataFrame) -> list[ImageRecord]:
        """Images that were recorded as rows of a table, to be read where they are now.

        Where an image is may change (a moved clone, another machine) while what it is does not: the scan knows the place.

        Args:
            rows: With the attributes of :class:`~d3m_assets.datasets.source.ImageRecord` as columns.
        """
        columns = [rows[name].tolist() for name in ImageRecord.__slots__]
        recorded = (ImageRecord(*values) for values in zip(*columns, strict=True))
        return [
            replace(image, uri=now.uri) if (now := self._records.get(image.relative_path)) else image
            for image in recorded
        ]
