"""Tables of images: Hugging Face datasets as parquet files or as ``save_to_disk`` wrote them, and tables of paths.

A table with a column of images holds everything. A table with a column of paths (``metadata.csv``, a parquet manifest) says
of image files that lie elsewhere which class they are of.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec

from d3m_assets.datasets.files import DataFile, data_files
from d3m_assets.datasets.image_folder import SPLIT_FOLDERS, stamp_of
from d3m_assets.datasets.images import read_bytes, too_large
from d3m_assets.datasets.listed_source import ListedImage, ListedSource, ListedSplit, Listing
from d3m_assets.datasets.problems import unlabelled
from d3m_assets.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow")
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl")
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo")
_PATH_NAMES = ("file_name", "path", "file", "filename", "filepath", "image_path", "image", "img")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "y")
_SPLIT_NAMES = ("split", "part", "subset")
_MOST_GROUPS = 4
"""Row groups of tables that a process keeps in memory."""


class ImageTable(ListedSource):
    """Images in the rows of parquet or arrow files: a Hugging Face dataset on disk, or by hub id through ``hf://``.

    An image is the bytes of its file; rows are called ``FILE/ROW``. The split is told by a file's name, the classes by a
    ``ClassLabel`` feature where there is one.
    """

    def _list(self) -> Listing:
        _GROUPS.clear()
        listing = Listing(expected="Expected files such as data/train-00000-of-00001.parquet, with images and labels.")
        for file in data_files(self.url, self._options, SUFFIXES):
            if PurePosixPath(file.name).name.startswith("cache-"):  # what `datasets` computed, not what it was given
                continue
            table = _Table(self._open, file.path)
            try:
                image, label = self._columns(table.schema, file)
                labels = self._class_names(table, label)
            except DatasetError:
                raise
            except Exception as error:  # pyarrow and each service raise their own
                raise DatasetError(f"{self.url}: the table {file.name} cannot be read: {error}") from error
            width = len(str(len(labels)))
            listing.problems += unlabelled(file.name, labels.count(""))
            for row, name in enumerate(labels):
                if not name:
                    continue
                listing.images.append(
                    ListedImage(
                        relative_path=f"{file.name}/{row:0{width}d}",
                        uri=f"{file.path}#{image}#{row}",
                        class_name=name,
                        split=file.split,
                        bytes=0,
                        stamp=f"{file.stamp} {image} {row}" if file.stamp else "",
                    )
                )
        return listing

    def _fetch(self, uri: str) -> bytes:
        path, column, row = uri.rsplit("#", 2)
        value = _Table(self._open, path).value(column, int(row))
        if isinstance(value, dict):
            data = value.get("bytes")
            if data is None and value.get("path"):
                inside = PurePosixPath(value["path"])
                if inside.is_absolute() or ".." in inside.parts:
                    raise ValueError("lies outside of the dataset, which a table of images may not ask for")
                with self._open(str(PurePosixPath(path).parent / inside)) as file:
                    data = file.read()
            value = data
        if not isinstance(value, bytes):
            raise ValueError("holds no image")
        if len(value) > self.settings.max_bytes:
            raise ValueError(too_large(len(value), self.settings.max_bytes))
        return value

    def _open(self, path: str) -> Any:
        fs, _ = fsspec.url_to_fs(self.url, **self._options)
        return fs.open(path, "rb")

    def _columns(self, schema: pa.Schema, file: DataFile) -> tuple[str, str]:
        """Names of the columns of images and of labels."""
        features = _features(schema)
        images = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "Image"]
        images += [field.name for field in schema if _holds_images(field.type) and field.name not in images]
        image = self.settings.image_column or _first(images, _IMAGE_NAMES)
        labels = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
        named = [name for name in schema.names if name.lower() in _LABEL_NAMES and name not in labels]
        label = self.settings.label_column or _first(labels or named, _LABEL_NAMES)
        for column, what, setting in ((image, "images", "image_column"), (label, "labels", "label_column")):
            if column not in schema.names:
                named_it = f"no column {column!r}" if column else f"no column that looks like {what}"
                raise DatasetError(
                    f"{self.url}: the table {file.name} has {named_it}; its columns are {', '.join(schema.names)}. Name the "
                    f"one with the setting `images.{setting}`"
                )
        return image, label

    @staticmethod
    def _class_names(table: _Table, column: str) -> list[str]:
        feature = _features(table.schema).get(column)
        names = feature.get("names") if isinstance(feature, dict) else None
        labels = table.column(column)
        if names is not None and not (labels and isinstance(labels[0], str)):
            return [names[label] if label is not None and 0 <= label < len(names) else "" for label in labels]
        return ["" if label is None else str(label) for label in labels]


class ImageManifest(ListedSource):
    """A table of paths and labels: CSV, TSV, JSON lines or parquet, with image files beside it or anywhere.

    Columns are found by their names (path or file_name, label or class, split) or named in the settings. Relative paths
    begin at the folder of the table.
    """

    def _list(self) -> Listing:
        rows = read_manifest(self.url, self._options)
        columns = {str(name).lower(): str(name) for name in rows.columns}
        path_column = self.settings.image_column or _first([columns[n] for n in _PATH_NAMES if n in columns], ())
        label_column = self.settings.label_column or _first([columns[n] for n in _LABEL_NAMES if n in columns], ())
        for column, what, setting in (
            (path_column, "paths", "image_column"),
            (label_column, "labels", "label_column"),
        ):
            if column not in rows.columns:
                raise DatasetError(
                    f"the table {self.url} has {f'no column {column!r}' if column else f'no column of {what}'}; its columns "
                    f"are {', '.join(map(str, rows.columns))}. Name the one with the setting `images.{setting}`"
                )
        split_column = _first([columns[n] for n in _SPLIT_NAMES if n in columns], ())
        listing = Listing(expected="Expected a table with a path and a label in each row.")
        known = self._known()
        for index, row in enumerate(rows.to_dict("records")):
            path, label = str(row[path_column]).strip(), str(row[label_column]).strip()
            if not path or not label:
                raise DatasetError(
                    f"row {index + 1} of the table {self.url} has no {'label' if path else 'path'}; give it one or remove it"
                )
            uri = path if "://" in path or path.startswith("/") else f"{self._base()}/{path}"
            size, stamp, problem = known(uri)
            split = self._split(str(row[split_column]).strip(), index) if split_column else split_of_path(path)
            listing.images.append(ListedImage(path, uri, label, split, size, stamp, problem))
        return listing

    def _fetch(self, uri: str) -> bytes:
        return read_bytes(uri, self._options, self.settings.max_bytes)

    def _remote(self) -> bool:
        return True if super()._remote() else self._elsewhere

    _elsewhere = False

    def _base(self) -> str:
        return self.url.rpartition("/")[0] or "."

    def _split(self, text: str, index: int) -> ListedSplit:
        if not text:
            return ""
        if text.lower() not in SPLIT_FOLDERS:
            raise DatasetError(
                f"row {index + 1} of the table {self.url} is of the split {text!r}; it takes {', '.join(SPLIT_FOLDERS)}"
            )
        return SPLIT_FOLDERS[text.lower()]

    def _known(self) -> Callable[[str], tuple[int, str, str]]:
        """What tells size, stamp and problem of an image file without reading it."""
        if super()._remote():
            fs, base = fsspec.url_to_fs(self._base(), **self._options)
            entries = {fs.unstrip_protocol(path): entry for path, entry in fs.find(base, detail=True).items()}

            def remote(uri: str) -> tuple[int, str, str]:
                entry = entries.get(uri, {})
                return int(entry.get("size") or 0), stamp_of(entry), ""

            return remote

        def local(uri: str) -> tuple[int, str, str]:
            if "://" in uri:
                self._elsewhere = True
                return 0, "", ""
            import stat

            try:
                found = os.stat(uri)  # noqa: PTH116 - strings are faster for a million files
            except OSError:  # reading it will fail and say so
                return 0, "", ""
            return found.st_size, str(found.st_mtime_ns), "" if stat.S_ISREG(found.st_mode) else "is no regular file"

        return local


def split_of_path(path: str) -> ListedSplit:
    """The split whose folder a path begins with; empty: none."""
    first, separator, _ = path.partition("/")
    return SPLIT_FOLDERS.get(first.lower(), "") if separator else ""


def read_manifest(url: str, options: dict[str, Any]) -> pd.DataFrame:
    """A table of paths, every cell as text.

    Raises:
        DatasetError: It cannot be read.
    """
    import pandas as pd

    try:
        fs, path = fsspec.url_to_fs(url, **options)
        with fs.open(path, "rb") as file:
            if url.endswith(".parquet"):
                return pd.read_parquet(file).astype(str)
            if url.endswith(".jsonl"):
                return pd.DataFrame([json.loads(line) for line in file.read().decode().splitlines() if line.strip()])
            # A class may be called NA or null.
            text = {"dtype": str, "keep_default_na": False, "na_filter": False, "encoding": "utf-8-sig"}
            return pd.read_csv(file, sep="\t" if url.endswith(".tsv") else ",", **text)  # type: ignore[call-overload]
    except Exception as error:  # pandas and each service raise their own
        raise DatasetError(f"the table {url} cannot be read: {error}. Check `dataset`.") from error


def holds_images(url: str, options: dict[str, Any]) -> bool:
    """Whether a parquet file holds images, and not paths of images.

    Raises:
        DatasetError: It cannot be read.
    """
    import pyarrow.parquet as pq

    try:
        fs, path = fsspec.url_to_fs(url, **options)
        with fs.open(path, "rb") as file:
            schema = pq.read_schema(file)
    except Exception as error:  # pyarrow and each service raise their own
        raise DatasetError(f"the table {url} cannot be read: {error}. Check `dataset`.") from error
    return any(_holds_images(field.type) for field in schema)


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's features of a table; empty where it has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _first(names: Sequence[str], preferred: Sequence[str]) -> str:
    """The most likely of some names: by the order of preference, then the first; empty: there is none."""
    by_name = {name.lower(): name for name in reversed(names)}
    return next((by_name[name] for name in preferred if name in by_name), names[0] if names else "")


_GROUPS: OrderedDict[tuple[int, str, str, int], pa.ChunkedArray] = OrderedDict()
_READING = threading.Lock()


class _Table:
    """A parquet file, or an arrow file as `datasets` writes it, read a group of rows at a time."""

    def __init__(self, open_file: Callable[[str], Any], path: str) -> None:
        self._open_file, self._path = open_file, path

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._open_file(self._path) as file:
            return pq.read_schema(file) if self._is_parquet else pa.ipc.open_stream(file).schema

    @property
    def _is_parquet(self) -> bool:
        return self._path.lower().endswith(".parquet")

    def column(self, name: str) -> list[Any]:
        return [value for group in self._groups(name) for value in group.to_pylist()]

    def value(self, column: str, row: int) -> Any:
        import pyarrow.parquet as pq

        with _READING:
            if not self._is_parquet:
                chunks = self._kept(column, 0, lambda file: next(iter(self._arrow(file, column))))
                return chunks[row].as_py()
            starts = self._kept_starts()
            group = max(i for i, start in enumerate(starts) if start <= row)
            chunk = self._kept(
                column, group, lambda file: pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)
            )
            return chunk[row - starts[group]].as_py()

    def _groups(self, name: str) -> Iterator[pa.ChunkedArray]:
        import pyarrow.parquet as pq

        with self._open_file(self._path) as file:
            if self._is_parquet:
                yield pq.read_table(file, columns=[name]).column(0)
            else:
                yield from self._arrow(file, name)

    @staticmethod
    def _arrow(file: Any, name: str) -> Iterator[pa.ChunkedArray]:
        import pyarrow as pa

        yield pa.ipc.open_stream(file).read_all().column(name)

    def _kept_starts(self) -> list[int]:
        import pyarrow.parquet as pq

        key = (os.getpid(), self._path)
        if key not in _STARTS:
            with self._open_file(self._path) as file:
                meta = pq.ParquetFile(file).metadata
            starts = [0]
            for i in range(meta.num_row_groups - 1):
                starts.append(starts[-1] + meta.row_group(i).num_rows)
            _STARTS[key] = starts
        return _STARTS[key]

    def _kept(self, column: str, group: int, read: Callable[[Any], pa.ChunkedArray]) -> pa.ChunkedArray:
        key = (os.getpid(), self._path, column, group)
        if key not in _GROUPS:
            with self._open_file(self._path) as file:
                _GROUPS[key] = read(file)
            while len(_GROUPS) > _MOST_GROUPS:
                _GROUPS.popitem(last=False)
        _GROUPS.move_to_end(key)
        return _GROUPS[key]


_STARTS: dict[tuple[int, str], list[int]] = {}
