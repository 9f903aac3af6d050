"""What all sources have in common: images are listed, each is read and decoded once, and what would spoil a result is found.

Damaged files, classes without images, an image in two classes or in both splits: each stops the class that it is in. What
was learnt of a file is kept in an index and used again as long as its size and time of change stay the same.
"""

from __future__ import annotations

import hashlib
import os
import statistics
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from d3m_assets.datasets.checks import (
    MOST_UNREADABLE,
    SMALLEST_SIDE,
    PlacedImage,
    duplicates,
    held_out_part,
    lopsided_splits,
    refuse_many_unusable,
    refuse_without_sound_class,
    unusable_image,
    validation_part,
)
from d3m_assets.datasets.exclusion import Exclusion
from d3m_assets.datasets.image_cache import ImageCache
from d3m_assets.datasets.image_index import Facts, ImageIndex
from d3m_assets.datasets.images import GREY_MODES, decoded
from d3m_assets.datasets.names import natural, normalized
from d3m_assets.datasets.problems import DatasetProblem, utf8_path
from d3m_assets.datasets.settings import ImageSettings
from d3m_assets.datasets.source import ClassImages, ImageRecord, Scan, Split
from d3m_assets.errors import DatasetError
from d3m_assets.progress import Progress, ProgressEvent, silent

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
"""Of files that are taken for images."""

INDEX_VERSION = "1"
"""Raised whenever images are examined in another way, so that what was learnt before is not used."""

_BAND_PIXELS = 2**20

ListedSplit = Split | Literal[""]


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that was found, and not yet read.

    Attributes:
        relative_path: Path below the dataset, with ``/``; what names the image.
        uri: Where it is; the source that listed it reads it by this.
        class_name: Its class, as it is spelled there.
        split: What it may be used for; empty: the dataset does not say.
        bytes: Size of the file; 0: not known before it is read.
        stamp: Changes when the file does; empty where nothing tells.
        problem: Why it is not to be read, such as "is no regular file"; empty: nothing is known against it.
    """

    relative_path: str
    uri: str
    class_name: str
    split: ListedSplit
    bytes: int
    stamp: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ListedFolder:
    """A folder that stands for a class in one split, whether or not there is an image in it."""

    split: ListedSplit
    class_name: str
    path: str
    emptied: bool = False
    """Whether all its images are excluded."""


@dataclass
class Listing:
    """Everything that a dataset holds, before it is read.

    Attributes:
        images: All images.
        folders: Folders of classes, where a class is a folder.
        problems: What is wrong already.
        expected: What the layout should be, as a sentence, for messages.
    """

    images: list[ListedImage] = field(default_factory=list)
    folders: list[ListedFolder] = field(default_factory=list)
    problems: list[DatasetProblem] = field(default_factory=list)
    expected: str = ""


class ListedSource(ABC):
    """A dataset whose images are listed and then read one by one."""

    def __init__(
        self,
        url: str | Path,
        *,
        validation_fraction: float = 0.1,
        settings: ImageSettings | None = None,
        exclude: Exclusion | None = None,
        cache: Path | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Name a dataset; nothing is read before :meth:`scan`.

        Args:
            url: Local path or fsspec URL.
            validation_fraction: Part of train that is set aside, chosen by the hash of the image; without effect where the
                dataset has a validation split of its own.
            settings: How images are found and read; None: as by default.
            exclude: What is left out.
            cache: Folder for the index and for copies of images from a network; None to keep none.
            storage_options: Arguments of the fsspec file system.
        """
        # Worker processes may run in another folder.
        self.url = str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())
        self.validation_fraction = validation_fraction
        self.settings = settings or ImageSettings()
        self._exclude = exclude or Exclusion()
        self._options = dict(storage_options or {})
        name = f"images-{INDEX_VERSION}-{hashlib.sha256(os.fsencode(self.url)).hexdigest()[:16]}.parquet"
        self._index = ImageIndex(None if cache is None else cache / name)
        self._copies = ImageCache(None if cache is None else cache / "images", int(self.settings.cache_gib * 2**30))

    @abstractmethod
    def _list(self) -> Listing:
        """Find all images.

        Raises:
            DatasetError: The dataset does not exist, cannot be listed, or has another layout.
        """

    @abstractmethod
    def _fetch(self, uri: str) -> bytes:
        """Contents of an image that was listed; called by several threads at once.

        Raises:
            Exception: It cannot be read; the text of it says why.
        """

    def _remote(self) -> bool:
        """Whether fetching goes through a network, so that copies are worth their disk."""
        return "://" in self.url and not self.url.startswith(("file://", "local://"))

    def scan(self, progress: Progress = silent) -> Scan:
        """Read, decode and check every image.

        Args:
            progress: Told now and then how many images are done, with stage ``"scan"``.

        Raises:
            DatasetError: The dataset does not exist or has another layout; what is to be left out is not there; or not one
                class is without an error: no train or no test images; files that are damaged, smaller than 4 pixels a side,
                or shared with another class or split. The message names the first 20 and says what to do.
        """
        listing = self._list()
        problems = list(listing.problems)
        images, folders = self._leave_out(listing)
        self._refuse_without_train(images, folders, listing.expected)
        problems += self._spellings(folders)
        facts, unusable = self._read_all(images, progress)
        problems += unusable
        images, folders, told = self._with_splits(images, folders, facts)
        problems += told
        problems += self._lopsided(images, folders)
        problems += duplicates(
            PlacedImage(
                image.split,
                normalized(image.class_name),
                utf8_path(image.relative_path),
                fact.sha256,
                fact.pixels,
            )
            for image in images
            if (fact := facts.get(image.relative_path))
        )
        errors: dict[str, list[DatasetProblem]] = defaultdict(list)
        for problem in problems:
            if problem.severity == "error":
                errors[problem.class_name].append(problem)
        records = self._records(images, facts)
        names = {normalized(place.class_name) for place in _places(images, folders)}
        classes = {
            name: ClassImages(name, tuple(records.get(name, ())), tuple(errors[name]))
            for name in sorted(names, key=natural)
        }
        if self._remote():
            self._copies.trim()
        refuse_without_sound_class(self.url, classes.values(), problems)
        # Readable images of broken classes count too: one truncated file must not give all other classes another shape,
        # as leaving out its class might. Where the one file does decide (it alone is coloured), the shape changes.
        train = [image for images in classes.values() for image in images.of("train")]
        grey = all(image.mode in GREY_MODES for images in classes.values() for image in images.images)
        channels: Literal[1, 3] = 1 if grey else 3
        return Scan(
            url=self.url,
            classes=classes,
            image_height=statistics.median_low(image.height for image in train),
            image_width=statistics.median_low(image.width for image in train),
            channels=channels,
            problems=tuple(problems),
        )

    def read(self, image: ImageRecord) -> bytes:
        """Contents of an image file, exactly as they were when they were scanned.

        Args:
            image: As the scan recorded it; :attr:`ImageRecord.uri` says where it is.

        Raises:
            DatasetError: It cannot be read, or has changed since.
        """
        data = self._copies.get(image.sha256) if self._remote() else None
        if data is None:
            try:
                data = self._fetch(image.uri)
            except Exception as error:  # each service raises its own
                raise DatasetError(f"image {utf8_path(image.relative_path)} cannot be read: {error}") from error
            if hashlib.sha256(data).hexdigest() != image.sha256:
                self._index.forget()  # it was misled by an unchanged size and time
                raise DatasetError(
                    f"image {utf8_path(image.relative_path)} has changed since the dataset was scanned; run again, "
                    "which scans it anew"
                )
            if self._remote():
                self._copies.put(image.sha256, data)
        return data

    def _leave_out(self, listing: Listing) -> tuple[list[ListedImage], list[ListedFolder]]:
        """What is not excluded; a class of which nothing is left is gone, as if it had never been there."""
        if not self._exclude:
            return listing.images, listing.folders
        kept = [image for image in listing.images if not self._exclude.covers(image.relative_path)]
        had = {(image.split, image.class_name) for image in listing.images}
        left = {(image.split, image.class_name) for image in kept}
        folders = []
        for folder in listing.folders:
            place, covered = (folder.split, folder.class_name), self._exclude.covers(folder.path)
            folders.append(replace(folder, emptied=place not in left and (covered or place in had)))
        self._exclude.refuse_unused(self.url)
        names = {image.class_name for image in kept} | {f.class_name for f in folders if not f.emptied}
        return kept, [folder for folder in folders if folder.class_name in names]

    def _refuse_without_train(
        self, images: Sequence[ListedImage], folders: Sequence[ListedFolder], expected: str
    ) -> None:
        if not any(place.split in ("train", "") for place in _places(images, folders)):
            rest = " that `exclude` leaves in" if self._exclude else ""
            raise DatasetError(f"{self.url} has no class folder in train/{rest}. {expected}")

    @staticmethod
    def _spellings(folders: Sequence[ListedFolder]) -> list[DatasetProblem]:
        """Folders of one split whose names differ in Unicode spelling alone; their images are taken together."""
        first: dict[tuple[str, str], ListedFolder] = {}
        problems = []
        for folder in folders:
            name = normalized(folder.class_name)
            other = first.setdefault((folder.split, name), folder)
            if other.class_name != folder.class_name:
                what = f"and {folder.path} spell {name} differently in Unicode ({other.path!r} and {folder.path!r})"
                problems.append(DatasetProblem(name, other.path, what, "merge them"))
        return problems

    def _read_all(
        self, images: Sequence[ListedImage], progress: Progress
    ) -> tuple[dict[str, Facts], list[DatasetProblem]]:
        """Facts by relative path, from the index where the file has not changed since; and what cannot be used."""
        index = self._index.load()
        facts: dict[str, Facts] = {}
        unread, problems = [], []
        for image in images:
            known = index.get(image.relative_path)
            if image.problem:
                problems.append(self._unusable(image, image.problem))
            elif (
                image.stamp and known is not None and known[0] == (image.bytes, image.stamp) and self._allows(known[1])
            ):
                facts[image.relative_path] = known[1]
            else:
                unread.append(image)
        from_index = len(facts)
        try:
            with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
                done = len(images) - len(unread)
                progress(ProgressEvent("scan", done, len(images)))
                remaining = iter(unread)
                # In pieces, so that a folder full of damaged files is given up early.
                while (piece := list(islice(remaining, 256))) and len(problems) < MOST_UNREADABLE:
                    for image, read in zip(piece, pool.map(self._examine, piece), strict=True):
                        if isinstance(read, Facts):
                            facts[image.relative_path] = read
                        else:
                            problems.append(self._unusable(image, read))
                    done += len(piece)
                    progress(ProgressEvent("scan", done, len(images), utf8_path(piece[-1].relative_path)))
        finally:
            # A file that stays broken is read by every scan, and adds nothing to the index.
            if not len(index) == from_index == len(facts):
                stamped = [(i.relative_path, i.bytes, i.stamp) for i in images if i.stamp]
                self._index.save((place, facts[place[0]]) for place in stamped if place[0] in facts)
        refuse_many_unusable(self.url, problems)
        return facts, problems

    def _allows(self, facts: Facts) -> bool:
        """Whether an image that was examined before is within the limits of today."""
        within = facts.width * facts.height <= self.settings.max_pixels
        return within and facts.bytes <= self.settings.max_bytes

    @staticmethod
    def _unusable(image: ListedImage, what: str) -> DatasetProblem:
        return unusable_image(normalized(image.class_name), utf8_path(image.relative_path), what)

    def _examine(self, image: ListedImage) -> Facts | str:
        """What is in a file, or what is wrong with it."""
        try:
            image.relative_path.encode()
        except UnicodeEncodeError:
            return "has a name that is not valid UTF-8"
        try:
            data = self._fetch(image.uri)
            with decoded(data, self.settings.max_pixels) as (pixels, mode):
                width, height = pixels.size
                if min(width, height) < SMALLEST_SIDE:
                    return f"is {width}x{height} pixels; the least is {SMALLEST_SIDE} a side"
                pixel_digest = _pixel_digest(pixels)
        except ValueError as error:
            return str(error)
        except Exception as error:  # each service raises its own
            return f"cannot be read: {error}"
        digest = hashlib.sha256(data).hexdigest()
        if self._remote():
            self._copies.put(digest, data)
        return Facts(digest, pixel_digest, len(data), width, height, mode)

    def _with_splits(
        self, images: list[ListedImage], folders: list[ListedFolder], facts: Mapping[str, Facts]
    ) -> tuple[list[ListedImage], list[ListedFolder], list[DatasetProblem]]:
        """Give every image a split.

        A dataset without a test split gets one: its validation split where it has one, as ImageNet is used, otherwise a part
        of each class by the hash of the pixels, so that equal images stay together. What was decided is told.
        """
        splits = {place.split for place in _places(images, folders)}
        other: Split | None = "validation" if "validation" in splits else None
        if "test" in splits:
            return (
                [image if image.split else replace(image, split="train") for image in images],
                [folder if folder.split else replace(folder, split="train") for folder in folders],
                [],
            )
        if other:
            what = "has no test split; its validation split is used as test, and a part of train for choices"
            told = DatasetProblem("", self.url, what, "add a test split if that is not meant", "warning")
            return (
                [replace(image, split="test" if image.split == other else "train") for image in images],
                [replace(folder, split="test" if folder.split == other else "train") for folder in folders],
                [told],
            )
        share = self.settings.test_fraction
        aside: set[str] = set()
        by_class: dict[str, list[str]] = defaultdict(list)
        for image in images:
            if image.relative_path in facts:
                by_class[normalized(image.class_name)].append(image.relative_path)
        for paths in by_class.values():
            chosen = held_out_part([facts[path].pixels for path in paths], share)
            aside |= {path for path, out in zip(paths, chosen, strict=True) if out}
        what = f"has no test split; {share:.0%} of each class, by hash of the pixels, are set aside as one"
        told = DatasetProblem("", self.url, what, "add a test split, or set `images.test_fraction`", "warning")
        return (
            [replace(image, split="test" if image.relative_path in aside else "train") for image in images],
            [replace(folder, split="") for folder in folders],
            [told],
        )

    def _lopsided(self, images: Sequence[ListedImage], folders: Sequence[ListedFolder]) -> list[DatasetProblem]:
        """Classes without train or without test images, and folders without any."""
        of: dict[str, set[str]] = {"train": set(), "test": set()}
        for place in _places(images, folders):
            if place.split in of:
                of[place.split].add(normalized(place.class_name))
        problems = lopsided_splits(of)
        held = {(image.split, normalized(image.class_name)) for image in images}
        held |= {("", name) for _, name in held}  # a folder that holds both splits
        for folder in sorted(folders, key=lambda folder: folder.split != "train"):
            name = normalized(folder.class_name)
            if (folder.split, name) not in held:
                looked = "all are excluded" if folder.emptied else self._looked_for()
                remedy = "add images, or remove the class from train/ and test/"
                problems.append(DatasetProblem(name, folder.path, f"has no images ({looked})", remedy))
        return problems

    def _looked_for(self) -> str:
        """What an image is recognised by, for messages."""
        return f"looked for {', '.join(sorted(SUFFIXES))}"

    def _records(self, images: Sequence[ListedImage], facts: Mapping[str, Facts]) -> dict[str, list[ImageRecord]]:
        """Records of what could be read, by class: train and validation first, each sorted by path."""
        readable = [image for image in images if image.relative_path in facts]
        own_validation = any(image.split == "validation" for image in images)
        groups: dict[tuple[str, str], list[ListedImage]] = defaultdict(list)
        for image in sorted(readable, key=lambda image: image.relative_path):
            groups[normalized(image.class_name), image.split].append(image)
        records: dict[str, list[ImageRecord]] = defaultdict(list)
        for name in dict.fromkeys(name for name, _ in groups):
            train = groups.get((name, "train"), [])
            digests = [facts[image.relative_path].sha256 for image in train]
            aside = validation_part(digests, 0.0 if own_validation else self.validation_fraction)
            splits: list[tuple[ListedImage, Split]] = [
                (image, "validation" if out else "train") for image, out in zip(train, aside, strict=True)
            ]
            splits += [(image, "validation") for image in groups.get((name, "validation"), [])]
            splits += [(image, "test") for image in groups.get((name, "test"), [])]
            records[name] = [_record(image, facts[image.relative_path], split) for image, split in splits]
        return records


def _places(images: Sequence[ListedImage], folders: Sequence[ListedFolder]) -> list[ListedImage | ListedFolder]:
    return [*images, *folders]


def _pixel_digest(image: Image.Image) -> str:
    """SHA-256, in hex, of size and pixels; the same for a grey image that is stored in colour."""
    pixels = np.asarray(image)
    # In bands: comparing all pixels at once takes as much memory as they do.
    bands = range(0, len(pixels), rows := max(1, _BAND_PIXELS // pixels.shape[1]))
    if pixels.ndim == 3 and all((band == band[..., :1]).all() for band in (pixels[i : i + rows] for i in bands)):
        pixels = pixels[..., 0]
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _record(image: ListedImage, fact: Facts, split: Split) -> ImageRecord:
    return ImageRecord(
        uri=image.uri,
        relative_path=image.relative_path,
        sha256=fact.sha256,
        bytes=fact.bytes,
        width=fact.width,
        height=fact.height,
        mode=fact.mode,
        split=split,
    )
