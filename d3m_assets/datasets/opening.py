"""Which source a ``dataset`` setting stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.exclusion import read_exclusion
from d3m_assets.datasets.image_folder import ImageFolder, ZippedImageFolder
from d3m_assets.datasets.image_table import TEXT_SUFFIXES, ImageManifest, ImageTable, holds_images
from d3m_assets.datasets.listed_source import ListedSource
from d3m_assets.datasets.settings import ImageSettings
from d3m_assets.datasets.source import DatasetSource
from d3m_assets.datasets.web_dataset import WebDataset

_SAVED = ("dataset_dict.json", "state.json")
"""What `datasets` writes beside what `save_to_disk` saves."""


def open_dataset(
    dataset: str,
    *,
    home: Path,
    validation_fraction: float,
    images: ImageSettings | None = None,
    exclude: Sequence[str] = (),
) -> DatasetSource:
    """The dataset that a setting names.

    Args:
        dataset: ``"digits"``, which is written below ``home`` on first use, or local path or fsspec URL of an image folder, of
            a zip file of one, of a Hugging Face dataset, of WebDataset shards, or of a table of paths and labels.
        home: Folder for the digits, for the index of what was scanned, and for copies of images from a network.
        validation_fraction: Part of train that is set aside, chosen by the hash of the image.
        images: How they are found and read; None: as by default.
        exclude: Images and folders that are left out: see :func:`~d3m_assets.datasets.exclusion.read_exclusion`.

    Raises:
        DatasetError: The digits cannot be written, or a table cannot be read. Whether another dataset exists is found by
            ``scan``.
        SettingsError: ``exclude`` names a list that cannot be read, or has a pattern that is none.
    """
    url = str(ensure_digits(home / "digits")) if dataset == "digits" else dataset
    return _kind(url)(
        url,
        validation_fraction=validation_fraction,
        settings=images,
        exclude=read_exclusion(exclude),
        cache=home / "cache" / "datasets",
    )


def _kind(url: str) -> type[ListedSource]:
    """The class of source that a path or URL stands for, by its suffix, or by what lies in the folder."""
    lower = url.lower().rstrip("/")
    if (found := _of_suffix(url, lower)) is not None:
        return found
    try:
        fs, root = fsspec.url_to_fs(url)
        entries: list[dict[str, Any]] = fs.ls(root, detail=True) if fs.isdir(root) else []
        names = {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] for entry in entries}
        inside = {"data": fs.ls(f"{root.rstrip('/')}/data", detail=False)} if names.get("data") == "directory" else {}
    except Exception:  # scanning it says what is wrong
        return ImageFolder
    if any(name in names for name in _SAVED):
        return ImageTable
    if url.startswith("hf://") and not any(name.lower().endswith(".tar") for name in names):
        return ImageTable  # its tables may lie in a folder of any name
    files = [name for name, kind in names.items() if kind == "file"]
    files += [path.rpartition("/")[2] for paths in inside.values() for path in paths]
    if any(name.lower().endswith(".parquet") for name in files):
        return ImageTable
    if any(name.lower().endswith(".tar") for name in files):
        return WebDataset
    return ImageFolder


def _of_suffix(url: str, lower: str) -> type[ListedSource] | None:
    pattern = re.search(r"[*?{]", url) is not None
    if not pattern and "://" not in url and Path(url).is_dir():  # a folder may be called anything
        return None
    if lower.endswith(".zip"):
        return ZippedImageFolder
    if lower.endswith((".tar", ".tar.gz", ".tgz")):
        return WebDataset
    if lower.endswith(TEXT_SUFFIXES):
        return ImageManifest
    if lower.endswith(".parquet"):
        return ImageTable if pattern or holds_images(url, {}) else ImageManifest
    return ImageTable if lower.endswith(".arrow") else None
