"""Image folders, ``train/<class>/*`` and ``test/<class>/*``, on local disk or any fsspec URL.

A scan reads and decodes every image once and finds what would spoil a result later: damaged files, classes without images,
an image in two classes or in both splits. Each stops the class that it is in. What was learnt of a file is kept in an index
and used again as long as its size and time of change stay the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from d3m_assets.datasets.checks import (
    MOST_UNREADABLE,
    SMALLEST_SIDE,
    PlacedImage,
    duplicates,
    lopsided_splits,
    refuse_many_unusable,
    refuse_without_sound_class,
    unusable_image,
    validation_part,
)
from d3m_assets.datasets.exclusion import Exclusion
from d3m_assets.datasets.images import GREY_MODES, decode_image
from d3m_assets.datasets.names import natural, normalized
from d3m_assets.datasets.problems import DatasetProblem, utf8_path
from d3m_assets.datasets.source import ClassImages, ImageRecord, Scan, Split
from d3m_assets.errors import DatasetError
from d3m_assets.progress import Progress, ProgressEvent, silent

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LAYOUT = "Expected train/<class>/<image> and test/<class>/<image>."

_INDEX_COLUMNS = ["relative_path", "bytes", "stamp", "sha256", "pixels", "width", "height", "mode"]
"""An index that lacks one of them is of an earlier version, and not used."""


@dataclass(frozen=True, slots=True)
class _Listed:
    relative_path: str
    uri: str
    bytes: int
    stamp: str  # changes when the file does; empty when the file system cannot tell


@dataclass(slots=True)
class _Folder:
    path: str  # below the dataset, as it is spelled there
    images: list[_Listed]
    excluded: bool = False  # whether all its images were left out


_Tree = dict[tuple[str, str], _Folder]  # by split folder and class name


@dataclass(frozen=True, slots=True)
class _Facts:
    sha256: str
    pixels: str
    width: int
    height: int
    mode: str


class ImageFolder:
    """A folder of images by class. Hidden files and folders and files of other kinds are passed over."""

    def __init__(
        self,
        url: str | Path,
        *,
        validation_fraction: float = 0.1,
        exclude: Exclusion | None = None,
        cache: Path | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Name a folder; nothing is read before :meth:`scan`.

        Args:
            url: Local path or fsspec URL.
            validation_fraction: Part of train that is set aside, chosen by the hash of the image.
            exclude: What is left out.
            cache: Folder for the index; None to keep none.
            storage_options: Arguments of the fsspec file system.
        """
        self.url = str(url)
        self.validation_fraction = validation_fraction
        self._exclude = exclude or Exclusion()
        self._cache = cache
        self._options = dict(storage_options or {})

    def scan(self, progress: Progress = silent) -> Scan:
        """Read, decode and check every image.

        Args:
            progress: Told now and then how many images are done, with stage ``"scan"``.

        Raises:
            DatasetError: The folder does not exist or has another layout; what is to be left out is not there; or not one
                class is without an error: no train or no test images; files that are damaged, smaller than 4 pixels a side,
                or shared with another class or split. The message names the first 20 and says what to do.
        """
        fs, root = self._open()
        tree, problems = self._list(fs, root)
        facts, unusable = self._read_all(fs, tree, progress)
        problems += unusable
        problems += duplicates(
            PlacedImage(split, name, utf8_path(image.relative_path), fact.sha256, fact.pixels)
            for (split, name), folder in tree.items()
            for image in folder.images
            if (fact := facts.get(image.relative_path))
        )
        errors: dict[str, list[DatasetProblem]] = defaultdict(list)
        for problem in problems:
            if problem.severity == "error":
                errors[problem.class_name].append(problem)
        classes = {}
        for name in sorted({name for _, name in tree}, key=natural):
            listed, test = (self._read_of(tree.get((split, name)), facts) for split in ("train", "test"))
            records = self._split(listed, facts) + [_record(image, facts, "test") for image in test]
            classes[name] = ClassImages(name, tuple(records), tuple(errors[name]))
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
            raise DatasetError(f"the dataset {self.url} is a file. Set `dataset` to a folder. {LAYOUT}")
        return fs, root.rstrip("/")

    def _list(self, fs: fsspec.AbstractFileSystem, root: str) -> tuple[_Tree, list[DatasetProblem]]:
        """Images by split folder and class name, sorted by path, and what is wrong with folders."""
        tree: _Tree = {}
        problems: list[DatasetProblem] = []
        for split in ("train", "test"):
            walk = _walk_local if isinstance(fs, LocalFileSystem) else _walk_remote
            try:
                found = list(walk(fs, root, split))
            except Exception as error:  # each service raises its own
                raise DatasetError(f"cannot list {self.url}/{split}: {error}. Make it readable.") from error
            for folder_name, images in found:
                name, path = normalized(folder_name), f"{split}/{folder_name}"
                if (split, name) not in tree:
                    tree[split, name] = _Folder(path, images)
                    continue
                other = tree[split, name]
                other.images.extend(images)
                what = f"and {path} spell {name} differently in Unicode ({other.path!r} and {path!r})"
                problems.append(DatasetProblem(name, other.path, what, "merge them"))
        self._leave_out(tree)
        for split in ("train", "test"):
            if not any(s == split for s, _ in tree):
                rest = " that `exclude` leaves in" if self._exclude else ""
                raise DatasetError(f"{self.url} has no class folder in {split}/{rest}. {LAYOUT}")
        problems += lopsided_splits({split: [n for s, n in tree if s == split] for split in ("train", "test")})
        for (_, name), folder in tree.items():
            if not folder.images:
                looked = "all are excluded" if folder.excluded else f"looked for {', '.join(sorted(SUFFIXES))}"
                remedy = "add images, or remove the class from train/ and test/"
                problems.append(DatasetProblem(name, folder.path, f"has no images ({looked})", remedy))
        return tree, problems

    def _leave_out(self, tree: _Tree) -> None:
        """Remove excluded images; a class of which nothing is left is gone, as if it had never been there."""
        if not self._exclude:
            return
        for folder in tree.values():
            kept = [image for image in folder.images if not self._exclude.covers(image.relative_path)]
            covered = self._exclude.covers(folder.path)
            folder.excluded = not kept and (covered or bool(folder.images))
            folder.images = kept
        for name in {name for _, name in tree}:
            both = [(split, name) for split in ("train", "test") if (split, name) in tree]
            if all(tree[place].excluded for place in both):
                for place in both:
                    del tree[place]
        self._exclude.refuse_unused(self.url)

    def _read_all(
        self, fs: fsspec.AbstractFileSystem, tree: _Tree, progress: Progress
    ) -> tuple[dict[str, _Facts], list[DatasetProblem]]:
        """Facts by relative path, from the index where the file has not changed since; and what cannot be used."""
        class_of = {image.relative_path: name for (_, name), folder in tree.items() for image in folder.images}
        images = [image for folder in tree.values() for image in folder.images]
        index = self._load_index()
        known = {image.relative_path: (image.bytes, image.stamp) for image in images if image.stamp}
        facts = {path: fact for path, (marks, fact) in index.items() if known.get(path) == marks}
        unread = [image for image in images if image.relative_path not in facts]
        from_index = len(facts)
        problems: list[DatasetProblem] = []
        try:
            with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
                done = len(images) - len(unread)
                progress(ProgressEvent("scan", done, len(images)))
                remaining = iter(unread)
                # In pieces, so that a folder full of damaged files is given up early.
                while (piece := list(islice(remaining, 256))) and len(problems) < MOST_UNREADABLE:
                    for image, read in zip(piece, pool.map(lambda i: _read(fs, i), piece), strict=True):
                        path = image.relative_path
                        if isinstance(read, _Facts):
                            facts[path] = read
                        else:
                            problems.append(unusable_image(class_of[path], utf8_path(path), read))
                    done += len(piece)
                    progress(ProgressEvent("scan", done, len(images), utf8_path(piece[-1].relative_path)))
        finally:
            # A file that stays broken is read by every scan, and adds nothing to the index.
            if not len(index) == from_index == len(facts):
                self._save_index(images, facts)
        refuse_many_unusable(self.url, problems)
        return facts, problems

    @staticmethod
    def _read_of(folder: _Folder | None, facts: Mapping[str, _Facts]) -> list[_Listed]:
        """Images of a folder that could be read."""
        return [image for image in folder.images if image.relative_path in facts] if folder else []

    def _split(self, images: Sequence[_Listed], facts: Mapping[str, _Facts]) -> list[ImageRecord]:
        """Divide the train folder of a class into train and validation."""
        digests = [facts[image.relative_path].sha256 for image in images]
        aside = validation_part(digests, self.validation_fraction)
        return [
            _record(image, facts, "validation" if out else "train") for image, out in zip(images, aside, strict=True)
        ]

    def _index_path(self) -> Path | None:
        if self._cache is None:
            return None
        place = self.url if "://" in self.url else str(Path(self.url).absolute())
        return self._cache / f"images-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.parquet"

    def _load_index(self) -> dict[str, tuple[tuple[int, str], _Facts]]:
        path = self._index_path()
        if path is None or not path.exists():
            return {}
        import pandas as pd

        try:
            columns = pd.read_parquet(path, columns=_INDEX_COLUMNS)
            rows = zip(*(columns[name].tolist() for name in _INDEX_COLUMNS), strict=True)
            return {p: ((size, stamp), _Facts(*rest)) for p, size, stamp, *rest in rows}
        except Exception:  # an index that cannot be read costs a full scan, nothing else
            return {}

    def _save_index(self, images: Sequence[_Listed], facts: Mapping[str, _Facts]) -> None:
        path = self._index_path()
        if path is None:
            return
        import pandas as pd

        rows = [
            (i.relative_path, i.bytes, i.stamp, f.sha256, f.pixels, f.width, f.height, f.mode)
            for i in images
            if i.stamp and (f := facts.get(i.relative_path))
        ]
        temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        # Without an index the next scan takes longer, that is all.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                pd.DataFrame(rows, columns=_INDEX_COLUMNS).to_parquet(temporary, index=False)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


def _walk_local(fs: fsspec.AbstractFileSystem, root: str, split: str) -> Iterator[tuple[str, list[_Listed]]]:
    base = Path(root) / split
    if not base.is_dir():
        return
    with os.scandir(base) as entries:
        folders = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    for folder in folders:
        images = [
            _Listed(path[len(root) + 1 :].replace(os.sep, "/"), path, size, stamp)
            for path, size, stamp in _files(str(base / folder), ())
        ]
        yield folder, sorted(images, key=lambda image: image.relative_path)


def _files(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int, str]]:
    """Path, size and stamp of the images below a folder, links followed."""
    place = os.stat(folder)  # noqa: PTH116 - strings are faster for a million files
    here = (place.st_dev, place.st_ino)
    if here in above:  # a link to a folder above itself
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path, (*above, here))
            elif _is_image(entry.name):
                try:
                    found = entry.stat()
                    yield entry.path, found.st_size, str(found.st_mtime_ns)
                except OSError:  # a link to nothing: reading it will fail and say so
                    yield entry.path, 0, ""


def _walk_remote(fs: fsspec.AbstractFileSystem, root: str, split: str) -> Iterator[tuple[str, list[_Listed]]]:
    base = f"{root}/{split}"
    by_class: dict[str, list[_Listed]] = {}
    for entry in fs.ls(base, detail=True) if fs.isdir(base) else []:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "directory" and not name.startswith("."):
            by_class[name] = []
    found = fs.find(base, detail=True) if by_class else {}
    for path, entry in sorted(found.items()):
        parts = PurePosixPath(path[len(base) + 1 :]).parts
        hidden = any(part.startswith(".") for part in parts)
        if len(parts) > 1 and parts[0] in by_class and not hidden and _is_image(parts[-1]):
            relative, uri = path[len(root) + 1 :], fs.unstrip_protocol(path)
            by_class[parts[0]].append(_Listed(relative, uri, int(entry["size"] or 0), _stamp(entry)))
    yield from sorted(by_class.items())


def _stamp(entry: Mapping[str, Any]) -> str:
    marks = (
        "ETag",
        "etag",
        "md5Hash",
        "LastModified",
        "last_modified",
        "mtime",
        "updated",
        "modified",
        "created",
    )
    return next((f"{mark}={entry[mark]}" for mark in marks if entry.get(mark)), "")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - strings are faster for a million files


def _read(fs: fsspec.AbstractFileSystem, image: _Listed) -> _Facts | str:
    """What is in a file, or what is wrong with it."""
    try:
        image.relative_path.encode()
    except UnicodeEncodeError:
        return "has a name that is not valid UTF-8"
    try:
        data = fs.cat_file(fs._strip_protocol(image.uri))
        decoded, mode = decode_image(data)
    except ValueError as error:
        return str(error)
    except Exception as error:  # each service raises its own
        return f"cannot be read: {error}"
    if min(decoded.size) < SMALLEST_SIDE:
        return f"is {decoded.width}x{decoded.height} pixels; the least is {SMALLEST_SIDE} a side"
    digest = hashlib.sha256(data).hexdigest()
    return _Facts(digest, _pixel_digest(decoded), decoded.width, decoded.height, mode)


def _pixel_digest(image: Image.Image) -> str:
    """SHA-256, in hex, of size and pixels; the same for a grey image that is stored in colour."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _record(image: _Listed, facts: Mapping[str, _Facts], split: Split) -> ImageRecord:
    fact = facts[image.relative_path]
    return ImageRecord(
        uri=image.uri,
        relative_path=image.relative_path,
        sha256=fact.sha256,
        bytes=image.bytes,
        width=fact.width,
        height=fact.height,
        mode=fact.mode,
        split=split,
    )
