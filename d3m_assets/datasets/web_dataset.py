"""WebDataset shards: tar files of samples (``0001.jpg`` and ``0001.cls``), or of an image folder."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import fsspec

from d3m_assets.datasets.data_files import DataFile, data_files
from d3m_assets.datasets.image_folder import SPLIT_FOLDERS, FoundFile, arranged, leads_out, left_outside
from d3m_assets.datasets.images import too_large
from d3m_assets.datasets.listed_source import SUFFIXES, ListedImage, ListedSource, Listing
from d3m_assets.datasets.problems import DatasetProblem, unlabelled
from d3m_assets.errors import DatasetError

_LABEL_KEYS = ("class_name", "label", "class", "cls", "category")


class WebDataset(ListedSource):
    """Tar shards on local disk or any fsspec URL: a file, a pattern such as ``shards-{0000..0009}.tar``, or a folder.

    The class of a sample is in its ``.cls`` file, or in its ``.json`` file under ``class_name``, ``label`` or the name that
    the settings give; shards without either are taken for image folders. The split is told by a shard's name.
    """

    def _list(self) -> Listing:
        listing = Listing(expected="Expected shards such as train-0000.tar with 0001.png and 0001.cls.")
        for file in data_files(self.url, self._options, (".tar",)):
            try:
                fs, _ = fsspec.url_to_fs(self.url, **self._options)
                with fs.open(file.path, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as shard:
                    self._list_shard(file, shard, listing)
            except DatasetError:
                raise
            except tarfile.ReadError as error:
                raise DatasetError(
                    f"{self.url}: the shard {file.name} cannot be read as a plain tar file: {error}. Images in it are read by "
                    "their place, so it must not be compressed"
                ) from error
            except Exception as error:  # each service raises its own
                raise DatasetError(f"{self.url}: the shard {file.name} cannot be read: {error}") from error
        return listing

    def _fetch(self, uri: str) -> bytes:
        path, _, place = uri.rpartition("#")
        begin, size = (int(number) for number in place.split("+"))
        fs, _ = fsspec.url_to_fs(self.url, **self._options)
        return fs.cat_file(path, start=begin, end=begin + size)

    def _list_shard(self, file: DataFile, shard: tarfile.TarFile, listing: Listing) -> None:
        images: dict[str, list[tarfile.TarInfo]] = {}
        labels: dict[str, str] = {}
        links, outside = 0, []
        for member in shard:
            path = PurePosixPath(member.name)
            if leads_out(member.name):
                outside.append(member.name)
                continue
            if any(part.startswith(".") and part != "." for part in path.parts):
                continue
            if not member.isfile() or member.islnk():
                links += (member.islnk() or member.issym()) and path.suffix.lower() in SUFFIXES
                continue
            # WebDataset's rule: all files of a sample have the same name up to its first dot.
            stem, _, extension = path.name.partition(".")
            sample, extension = str(path.parent / stem), extension.lower()
            if f".{extension.rpartition('.')[2]}" in SUFFIXES:
                images.setdefault(sample, []).append(member)
            elif extension in ("cls", "json"):
                label = self._label(shard, member, extension)
                if label is not None and (extension == "json" or sample not in labels):
                    labels[sample] = label
        if links:
            what = f"has {links} images that are links to others in it, which are left out"
            listing.problems.append(DatasetProblem("", file.name, what, "store them as files", "warning"))
        listing.problems += left_outside(file.name, outside)
        if not labels:
            self._list_folder(file, [member for members in images.values() for member in members], listing)
            return
        listing.problems += unlabelled(file.name, len(images.keys() - labels.keys()))
        for sample, members in images.items():
            if sample not in labels:
                continue
            member, problem = _image_of_sample(members)
            listing.images.append(
                ListedImage(
                    relative_path=f"{file.name}/{member.name}",
                    uri=_uri(file, member),
                    class_name=labels[sample],
                    split=file.split,
                    bytes=member.size,
                    stamp=_stamp(file, member),
                    problem=problem or self._problem(member),
                )
            )

    def _list_folder(self, file: DataFile, images: Sequence[tarfile.TarInfo], listing: Listing) -> None:
        """A shard that holds an image folder."""
        parts = {str(PurePosixPath(member.name)): member for member in images}
        folders = {
            PurePosixPath(name).parts[:depth] for name in parts for depth in range(1, len(PurePosixPath(name).parts))
        }
        found = [
            FoundFile(name, _uri(file, member), member.size, _stamp(file, member), self._problem(member))
            for name, member in parts.items()
        ]
        inside = arranged(found, folders, f"{self.url}: the shard {file.name}")
        listing.problems += inside.problems
        for image in inside.images:
            listing.images.append(
                ListedImage(
                    f"{file.name}/{image.relative_path}",
                    image.uri,
                    image.class_name,
                    image.split or file.split,
                    image.bytes,
                    image.stamp,
                    image.problem,
                )
            )
        if not inside.images:
            raise DatasetError(
                f"{self.url}: the shard {file.name} has no labelled image: no .cls or .json beside them, and no folders of "
                f"classes ({', '.join(SPLIT_FOLDERS)} are taken for splits)"
            )

    def _label(self, shard: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> str | None:
        if member.size > 2**20:
            raise DatasetError(f"{self.url}: {member.name} is too large for a label")
        content = shard.extractfile(member)
        text = content.read().decode("utf-8").strip() if content else ""
        if extension == "cls":
            return text or None
        try:
            values: Any = json.loads(text)
        except ValueError:
            return None
        if not isinstance(values, dict):
            return None
        keys = (self.settings.label_column,) if self.settings.label_column else _LABEL_KEYS
        value = next((values[key] for key in keys if values.get(key) is not None), None)
        return None if value is None else str(value)

    def _problem(self, member: tarfile.TarInfo) -> str:
        return too_large(member.size, self.settings.max_bytes) if member.size > self.settings.max_bytes else ""


def _image_of_sample(members: Sequence[tarfile.TarInfo]) -> tuple[tarfile.TarInfo, str]:
    """The image of a sample, and what is wrong where that is not clear: ``0001.png`` and not ``0001.mask.png``."""
    plain = [member for member in members if PurePosixPath(member.name).name.count(".") == 1] or members
    if len(plain) == 1:
        return plain[0], ""
    names = ", ".join(PurePosixPath(member.name).name for member in plain)
    return plain[0], f"is one of {len(plain)} images of its sample ({names}), and which is meant is not said"


def _stamp(file: DataFile, member: tarfile.TarInfo) -> str:
    return f"{file.stamp} {member.offset_data}" if file.stamp else ""


def _uri(file: DataFile, member: tarfile.TarInfo) -> str:
    return f"{file.path}#{member.offset_data}+{member.size}"
