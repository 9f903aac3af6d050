"""Which source a ``dataset`` setting stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.exclusion import read_exclusion
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.datasets.source import DatasetSource


def open_dataset(dataset: str, *, home: Path, validation_fraction: float, exclude: Sequence[str] = ()) -> DatasetSource:
    """The dataset that a setting names.

    Args:
        dataset: ``"digits"``, which is written below ``home`` on first use, or path or fsspec URL of an image folder.
        home: Folder for the digits and for the index of what was scanned.
        validation_fraction: Part of train that is set aside, chosen by the hash of the image.
        exclude: Images and folders that are left out: see :func:`~d3m_assets.datasets.exclusion.read_exclusion`.

    Raises:
        DatasetError: The digits cannot be written. Whether another dataset exists is found by ``scan``.
        SettingsError: ``exclude`` names a list that cannot be read, or has a pattern that is none.
    """
    return ImageFolder(
        ensure_digits(home / "digits") if dataset == "digits" else dataset,
        validation_fraction=validation_fraction,
        exclude=read_exclusion(exclude),
        cache=home / "cache" / "datasets",
    )
