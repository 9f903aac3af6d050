"""A dataset as it is now: its scan, its catalog of classes, and its images by split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from d3m_assets.datasets.source import DatasetSource, Scan
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
        self._source, self._previous, self._progress = source, previous_catalog, progress

    @cached_property
    def scan(self) -> Scan:
        """The dataset as it is.

        Raises:
            DatasetError: It cannot be used; the message says why.
        """
        return self._source().scan(self._progress)

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
    def _uris(self) -> dict[str, str]:
        return {i.relative_path: i.uri for c in self.scan.classes.values() for i in c.images}

    def uri(self, relative_path: str) -> str | None:
        """Where an image is now, by its path below the dataset; a clone may have moved since it was recorded."""
        return self._uris.get(relative_path)
