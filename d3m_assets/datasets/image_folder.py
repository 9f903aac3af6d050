"""Image folders on local disk, on any fsspec URL, or in a zip file.

``train/<class>/*`` and ``test/<class>/*``, with ``val/<class>/*`` or without; or ``<class>/*`` alone.
"""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from d3m_assets.datasets.images import read_bytes, too_large
from d3m_assets.datasets.listed_source import SUFFIXES, ListedFolder, ListedImage, ListedSource, ListedSplit, Listing
from d3m_assets.errors import DatasetError

LAYOUT = "Expected train/<class>/<image> and test/<class>/<image> (val/<class>/<image> may be there too), or <class>/<image> alone."

SPLIT_FOLDERS: Mapping[str, ListedSplit] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}
"""What a folder of this name is taken for, where it holds folders of classes."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that has the suffix of an image.

    Attributes:
        path: Below the dataset, with ``/``.
        uri: Where it is.
        bytes: Its size.
        stamp: Changes when it does; empty where nothing tells.
        problem: Why it is not to be read; empty: nothing is known against it.
    """

    path: str
    uri: str
    bytes: int
    stamp: str
    problem: str = ""


class ImageFolder(ListedSource):
    """A folder of images by class. Hidden files and folders and files of other kinds are passed over."""

    def _list(self) -> Listing:
        fs, root = self._open()
        try:
            if isinstance(fs, LocalFileSystem):
                files, folders = _local_files(root)
            else:
                files, folders = _remote_files(fs, root)
        except Exception as error:  # each service raises its own
            raise DatasetError(f"cannot list {self.url}: {error}. Make it readable.") from error
        return arranged(files, folders)

    def _fetch(self, uri: str) -> bytes:
        return read_bytes(uri, self._options, self.settings.max_bytes)

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            fs, root = fsspec.url_to_fs(self.url, **self._options)
            fs.invalidate_cache(root)
            kind = fs.info(root)["type"] if fs.exists(root) else ""
        except Exception as error:  # each service raises its own
            raise DatasetError(f"cannot open the dataset {self.url}: {error}. Check `dataset`.") from error
        if not kind:
            here = f" (looked in {Path.cwd()})" if "://" not in self.url else ""
            raise DatasetError(f"the dataset {self.url} does not exist{here}. Set `dataset` to a folder. {LAYOUT}")
        if kind == "file":
            raise DatasetError(
                f"the dataset {self.url} is a file. Set `dataset` to a folder, or to a .zip, .tar, .parquet, .arrow, .csv "
                f"or .jsonl file. {LAYOUT}"
            )
        return fs, root.rstrip("/")


class ZippedImageFolder(ListedSource):
    """An image folder in a zip file, on local disk or any fsspec URL. One folder around everything is looked through."""

    def _list(self) -> Listing:
        _ARCHIVES.clear()  # the file may be another one by now
        try:
            with self._archive() as archive:
                members = archive.infolist()
        except Exception as error:  # each service raises its own
            raise DatasetError(f"the dataset {self.url} cannot be read as a zip file: {error}") from error
        paths = [PurePosixPath(member.filename) for member in members]
        skip = 0
        while _only_folder(paths, skip):
            skip += 1
        files, folders = [], set()
        for member, path in zip(members, paths, strict=True):
            parts = path.parts[skip:]
            if not parts or any(part.startswith((".", "__MACOSX")) or part == ".." for part in path.parts):
                continue
            folders |= {parts[:depth] for depth in range(1, len(parts) + member.is_dir())}
            if not member.is_dir() and _is_image(parts[-1]):
                problem = "is encrypted" if member.flag_bits & 1 else ""
                if member.file_size > self.settings.max_bytes:
                    problem = too_large(member.file_size, self.settings.max_bytes)
                stamp = f"crc={member.CRC:08x}"
                uri = f"{self.url}#{member.filename}"
                files.append(FoundFile("/".join(parts), uri, member.file_size, stamp, problem))
        return arranged(files, folders)

    def _fetch(self, uri: str) -> bytes:
        name = uri[len(self.url) + 1 :] if uri.startswith(f"{self.url}#") else uri.rpartition("#")[2]
        # Opening reads the directory of the archive: once in each process, and zipfile's own lock serves the threads.
        with _OPENING:
            key = (self.url, os.getpid())
            if (archive := _ARCHIVES.get(key)) is None:
                _ARCHIVES.clear()
                archive = _ARCHIVES[key] = self._archive()
        return archive.read(name)

    def _archive(self) -> zipfile.ZipFile:
        fs, path = fsspec.url_to_fs(self.url, **self._options)
        return zipfile.ZipFile(fs.open(path, "rb"))


_ARCHIVES: dict[tuple[str, int], zipfile.ZipFile] = {}
_OPENING = threading.Lock()


def _only_folder(paths: Sequence[PurePosixPath], skip: int) -> bool:
    """Whether one folder holds everything, and folders of its own: what archives are often wrapped in."""
    parts = [path.parts[skip:] for path in paths]
    seen = [p for p in parts if p and not p[0].startswith((".", "__MACOSX"))]
    tops = {p[0] for p in seen}
    return len(tops) == 1 and tops.isdisjoint(SPLIT_FOLDERS) and any(len(p) > 2 for p in seen)


def arranged(files: Sequence[FoundFile], folders: set[tuple[str, ...]]) -> Listing:
    """Which class and split files belong to, by the folders that they lie in.

    ``train``, ``test``, ``val`` and the like are splits where there is a train folder with folders of classes in it;
    otherwise every folder is a class.

    Args:
        files: Images; those that lie in no folder are passed over.
        folders: All folders as tuples of names, empty ones too.
    """
    listing = Listing(expected=LAYOUT)
    tops = {folder[0] for folder in folders}
    nested = {folder[0] for folder in folders if len(folder) > 1}
    direct = {parts[0] for file in files if len(parts := file.path.split("/")) == 2}
    splits = {top for top in tops & SPLIT_FOLDERS.keys() if top in nested or top not in direct}
    with_train = any(SPLIT_FOLDERS[top] == "train" for top in splits)
    classes_alone = not splits or bool(tops - splits and not with_train)
    depth = 0 if classes_alone else 1
    for folder in sorted(folders):
        if len(folder) == depth + 1 and (classes_alone or folder[0] in splits):
            split = "" if classes_alone else SPLIT_FOLDERS[folder[0]]
            listing.folders.append(ListedFolder(split, folder[depth], "/".join(folder)))
    for file in sorted(files, key=lambda file: file.path):
        parts = file.path.split("/")
        if len(parts) > depth + 1 and (classes_alone or parts[0] in splits):
            split = "" if classes_alone else SPLIT_FOLDERS[parts[0]]
            listing.images.append(
                ListedImage(file.path, file.uri, parts[depth], split, file.bytes, file.stamp, file.problem)
            )
    return listing


def _local_files(root: str) -> tuple[list[FoundFile], set[tuple[str, ...]]]:
    folders: set[tuple[str, ...]] = set()
    return list(_walk(root, (), (), folders)), folders


def _walk(
    folder: str, parts: tuple[str, ...], above: tuple[tuple[int, int], ...], folders: set[tuple[str, ...]]
) -> Iterator[FoundFile]:
    """Images below a folder, links followed; the folders are added to ``folders``."""
    place = os.stat(folder)  # noqa: PTH116 - strings are faster for a million files
    here = (place.st_dev, place.st_ino)
    if here in above:  # a link to a folder above itself
        return
    if parts:
        folders.add(parts)
    prefix = "".join(f"{part}/" for part in parts)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*parts, entry.name), (*above, here), folders)
            elif _is_image(entry.name):
                path = prefix + entry.name
                try:
                    found = entry.stat()
                except OSError:  # a link to nothing: reading it will fail and say so
                    yield FoundFile(path, entry.path, 0, "")
                    continue
                problem = "" if stat.S_ISREG(found.st_mode) else "is no regular file"
                yield FoundFile(path, entry.path, found.st_size, str(found.st_mtime_ns), problem)


def _remote_files(fs: fsspec.AbstractFileSystem, root: str) -> tuple[list[FoundFile], set[tuple[str, ...]]]:
    files: list[FoundFile] = []
    folders: set[tuple[str, ...]] = set()
    for path, entry in fs.find(root, detail=True, withdirs=True).items():
        relative = path[len(root) :].strip("/")
        parts = tuple(relative.split("/"))
        if not relative or any(part.startswith(".") for part in parts):
            continue
        is_folder = entry["type"] == "directory"
        folders |= {parts[:depth] for depth in range(1, len(parts) + is_folder)}
        if not is_folder and _is_image(parts[-1]):
            files.append(FoundFile(relative, fs.unstrip_protocol(path), int(entry["size"] or 0), stamp_of(entry)))
    return files, folders


def stamp_of(entry: Mapping[str, Any]) -> str:
    """What changes with a file, out of what its file system says of it; empty where nothing tells."""
    marks = (
        "ETag",
        "etag",
        "md5Hash",
        "LastModified",
        "last_modified",
        "Last-Modified",
        "Content-MD5",
        "mtime",
        "updated",
        "modified",
        "created",
    )
    return next((f"{mark}={entry[mark]}" for mark in marks if entry.get(mark)), "")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - strings are faster for a million files
