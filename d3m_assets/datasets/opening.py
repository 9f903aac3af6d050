"""Which source a ``dataset`` setting stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import fsspec

from d3m_assets.datasets.data_files import without_query
from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.exclusion import read_exclusion
from d3m_assets.datasets.image_folder import SPLIT_FOLDERS, ImageFolder, ZippedImageFolder
from d3m_assets.datasets.image_manifest import TEXT_SUFFIXES, ImageManifest
from d3m_assets.datasets.image_table import ImageTable, holds_images
from d3m_assets.datasets.listed_source import SUFFIXES, ListedSource
from d3m_assets.datasets.settings import ImageSettings
from d3m_assets.datasets.source import DatasetSource
from d3m_assets.datasets.web_dataset import WebDataset

_SAVED = ("dataset_dict.json", "state.json")
"""What `datasets` writes beside what `save_to_disk` saves."""
_LOOKED_INTO = {"data", *SPLIT_FOLDERS}
"""Folders whose content says what a dataset is."""


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
    if (found := _of_suffix(url)) is not None:
        return found
    try:
        fs, root = fsspec.url_to_fs(url)
        return _of_content(fs, root, url)
    except Exception:  # scanning it says what is wrong
        return ImageFolder


def _of_content(fs: fsspec.AbstractFileSystem, root: str, url: str) -> type[ListedSource]:
    if not fs.isdir(root):
        return ImageFolder
    entries = _entries(fs, root)
    if any(name in entries for name in _SAVED):
        return ImageTable
    folders = [name for name, is_folder in entries.items() if is_folder and not name.startswith(".")]
    inside = {name: _entries(fs, f"{root.rstrip('/')}/{name}") for name in folders if name.lower() in _LOOKED_INTO}
    if any(any(inside[name].values()) for name in inside if name.lower() != "data"):
        return ImageFolder  # folders of classes in a folder of a split, whatever lies beside them
    files = [
        name.lower() for place in (entries, *inside.values()) for name, is_folder in place.items() if not is_folder
    ]
    # A folder of another name, with an image in it, is a class.
    for name in [name for name in folders if name not in inside][:1]:
        if any(path.lower().endswith(tuple(SUFFIXES)) for path in _entries(fs, f"{root.rstrip('/')}/{name}")):
            return ImageFolder
    if any(name.endswith(".parquet") for name in files):
        return ImageTable
    if any(name.endswith(".tar") for name in files):
        return WebDataset
    # On the hub tables may lie in a folder of any name.
    return ImageTable if url.startswith("hf://") else ImageFolder


def _entries(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, bool]:
    """Names in a folder, and which of them are folders."""
    return {e["name"].rstrip("/").rpartition("/")[2]: e["type"] == "directory" for e in fs.ls(folder, detail=True)}


def _of_suffix(url: str) -> type[ListedSource] | None:
    plain = without_query(url)
    lower = plain.lower().rstrip("/")
    pattern = re.search(r"[*?{]", plain) is not None
    if not pattern and "://" not in url and Path(url).expanduser().is_dir():  # a folder may be called anything
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
