"""Image folders on local disk, on any fsspec URL, or in a zip file.

``train/<class>/*`` and ``test/<class>/*``, with ``val/<class>/*`` or without; or ``<class>/*`` alone.
"""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from d3m_assets.datasets.images import read_bytes, too_large
from d3m_assets.datasets.listed_source import SUFFIXES, ListedFolder, ListedImage, ListedSource, ListedSplit, Listing
from d3m_assets.datasets.problems import DatasetProblem, listed_names
from d3m_assets.errors import DatasetError
from d3m_assets.store_errors import explained

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
        for index, file in enumerate(files):
            if file.bytes > self.settings.max_bytes and not file.problem:
                files[index] = replace(file, problem=too_large(file.bytes, self.settings.max_bytes))
        return arranged(files, folders, self.url)

    def _fetch(self, uri: str) -> bytes:
        return read_bytes(uri, self._options, self.settings.max_bytes)

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            fs, root = fsspec.url_to_fs(self.url, **self._options)
            fs.invalidate_cache(root)
            # Over http everything is a file to info(), also a page that lists a folder.
            kind = "" if not fs.exists(root) else "directory" if fs.isdir(root) else "file"
        except Exception as error:  # each service raises its own
            raise DatasetError(f"cannot open the dataset {self.url}: {explained(error)}. Check `dataset`.") from error
        if not kind:
            silent_server = "" if "://" not in self.url else ", or its server does not answer"
            here = f" (looked in {Path.cwd()})" if "://" not in self.url else ""
            raise DatasetError(
                f"the dataset {self.url} does not exist{here}{silent_server}. Set `dataset` to a folder. {LAYOUT}"
            )
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
            with self._opened() as file, zipfile.ZipFile(file) as archive:
                # A name that stands twice is the last one, as for every program that unpacks it.
                members = list({member.filename: member for member in archive.infolist()}.values())
        except FileNotFoundError as error:
            silent_server = ", or its server does not answer" if "://" in self.url else ""
            raise DatasetError(f"the dataset {self.url} does not exist{silent_server}. Check `dataset`.") from error
        except Exception as error:  # each service raises its own
            raise DatasetError(f"the dataset {self.url} cannot be read as a zip file: {explained(error)}") from error
        # Some programs of Windows write its own separator.
        foreign = not any("/" in member.filename for member in members)
        paths = [PurePosixPath(m.filename.replace("\\", "/") if foreign else m.filename) for m in members]
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
        return arranged(files, folders, self.url)

    def _fetch(self, uri: str) -> bytes:
        name = uri[len(self.url) + 1 :] if uri.startswith(f"{self.url}#") else uri.rpartition("#")[2]
        # Opening reads the directory of the archive: once in each process, and zipfile's own lock serves the threads.
        with _OPENING:
            key = (self.url, os.getpid())
            if (archive := _ARCHIVES.get(key)) is None:
                _ARCHIVES.clear()
                archive = _ARCHIVES[key] = zipfile.ZipFile(self._opened())
        return archive.read(name)

    def _opened(self) -> Any:
        fs, path = fsspec.url_to_fs(self.url, **self._options)
        fs.invalidate_cache()
        return fs.open(path, "rb")


_ARCHIVES: dict[tuple[str, int], zipfile.ZipFile] = {}
_OPENING = threading.Lock()


def _only_folder(paths: Sequence[PurePosixPath], skip: int) -> bool:
    """Whether one folder holds everything, and folders of its own: what archives are often wrapped in."""
    parts = [path.parts[skip:] for path in paths]
    seen = [p for p in parts if p and not p[0].startswith((".", "__MACOSX"))]
    tops = {p[0] for p in seen}
    return len(tops) == 1 and tops.isdisjoint(SPLIT_FOLDERS) and any(len(p) > 2 for p in seen)


def arranged(files: Sequence[FoundFile], folders: set[tuple[str, ...]], url: str) -> Listing:
    """Which class and split files belong to, by the folders that they lie in.

    ``train``, ``Test``, ``val`` and the like are splits where they hold folders of classes; otherwise every folder is a class.

    Args:
        files: Images; those that lie in no folder of a class are passed over, which is told.
        folders: All folders as tuples of names, empty ones too.
        url: Where they are, for messages.

    Raises:
        DatasetError: All folders are named after splits, and none holds folders of classes.
    """
    listing = Listing(expected=LAYOUT)
    split_of = {folder[0]: SPLIT_FOLDERS[name] for folder in folders if (name := folder[0].lower()) in SPLIT_FOLDERS}
    nested = {folder[0] for folder in folders if len(folder) > 1}
    direct = {parts[0] for file in files if len(parts := file.path.split("/")) == 2}
    others = {folder[0] for folder in folders} - split_of.keys()
    if direct and not others and not nested:
        raise DatasetError(
            f"{url} has images directly in {listed_names(sorted(direct))}, and no folders of classes. {LAYOUT}"
        )
    splits = {top for top in split_of if top in nested or top not in direct}
    classes_alone = not splits or bool(others and not any(split_of[top] == "train" for top in splits))
    depth = 0 if classes_alone else 1
    for folder in sorted(folders):
        if len(folder) == depth + 1 and (classes_alone or folder[0] in splits):
            listing.folders.append(
                ListedFolder("" if classes_alone else split_of[folder[0]], folder[depth], "/".join(folder))
            )
    outside = []
    for file in sorted(files, key=lambda file: file.path):
        parts = file.path.split("/")
        if len(parts) <= depth + 1 or not (classes_alone or parts[0] in splits):
            outside.append(file.path)
            continue
        split = "" if classes_alone else split_of[parts[0]]
        listing.images.append(
            ListedImage(file.path, file.uri, parts[depth], split, file.bytes, file.stamp, file.problem)
        )
    if outside:
        where = f"{', '.join(sorted(splits))} and their folders of classes" if splits else "the folders of classes"
        what = f"has {len(outside)} images outside of {where}, which are passed over ({listed_names(outside[:3])})"
        listing.problems.append(DatasetProblem("", url, what, "move them if they are meant to be used", "warning"))
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
