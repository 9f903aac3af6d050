"""Which source a ``dataset`` setting stands for."""

from __future__ import annotations

from pathlib import Path

from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.datasets.source import DatasetSource


def open_dataset(dataset: str, *, home: Path, validation_fraction: float) -> DatasetSource:
    """The dataset that a setting names.

    Args:
        dataset: ``"digits"``, which is written below ``home`` on first use, or path or fsspec URL of an image folder.
        home: Folder for the digits and for the index of what was scanned.
        validation_fraction: Part of train that is set aside, chosen by the hash of the image.

    Raises:
        DatasetError: The digits cannot be written. Whether another dataset exists is found by ``scan``.
    """
    return ImageFolder(
        ensure_digits(home / "digits") if dataset == "digits" else dataset,
        validation_fraction=validation_fraction,
        cache=home / "cache" / "datasets",
    )
