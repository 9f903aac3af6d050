"""Tables of images: Hugging Face datasets, as parquet files or as ``save_to_disk`` wrote them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec

from d3m_assets.datasets.data_files import DataFile, data_files
from d3m_assets.datasets.image_folder import refuse_irregular
from d3m_assets.datasets.images import too_large
from d3m_assets.datasets.listed_source import ListedImage, ListedSource, Listing
from d3m_assets.datasets.problems import unlabelled
from d3m_assets.datasets.table_files import TableFile, forget
from d3m_assets.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow")
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo")
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "y")
"""Columns of labels, the likeliest first."""


class ImageTable(ListedSource):
    """Images in the rows of parquet or arrow files: a Hugging Face dataset on disk, or by hub id through ``hf://``.

    An image is the bytes of its file; rows are called ``FILE/ROW``. The split is told by a file's name, the classes by a
    ``ClassLabel`` feature where there is one.
    """

    def _list(self) -> Listing:
        forget(self.url)
        listing = Listing(expected="Expected files such as data/train-00000-of-00001.parquet, with images and labels.")
        for file in data_files(self.url, self._options, SUFFIXES):
            if PurePosixPath(file.name).name.startswith("cache-"):  # what `datasets` computed, not what it was given
                continue
            table = TableFile(self.url, self._open, file.path)
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
        value = TableFile(self.url, self._open, path).value(column, int(row))
        if isinstance(value, dict):
            data = value.get("bytes")
            if data is None and value.get("path"):
                inside = PurePosixPath(value["path"])
                if inside.is_absolute() or ".." in inside.parts:
                    raise ValueError("lies outside of the dataset, which a table of images may not ask for")
                with self._open(str(PurePosixPath(path).parent / inside)) as file:
                    data = file.read(self.settings.max_bytes + 1)
            value = data
        if not isinstance(value, bytes):
            raise ValueError("holds no image")
        if len(value) > self.settings.max_bytes:
            raise ValueError(too_large(len(value), self.settings.max_bytes))
        return value

    def _open(self, path: str) -> Any:
        fs, _ = fsspec.url_to_fs(self.url, **self._options)
        refuse_irregular(fs, path)
        return fs.open(path, "rb")

    def _columns(self, schema: pa.Schema, file: DataFile) -> tuple[str, str]:
        """Names of the columns of images and of labels."""
        features = _features(schema)
        images = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "Image"]
        images += [field.name for field in schema if _holds_images(field.type) and field.name not in images]
        image = self.settings.image_column or first_of(images, _IMAGE_NAMES)
        labels = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
        named = [name for name in schema.names if name.lower() in LABEL_NAMES and name not in labels]
        label = self.settings.label_column or first_of(labels or named, LABEL_NAMES)
        for column, what, setting in ((image, "images", "image_column"), (label, "labels", "label_column")):
            if column not in schema.names:
                named_it = f"no column {column!r}" if column else f"no column that looks like {what}"
                raise DatasetError(
                    f"{self.url}: the table {file.name} has {named_it}; its columns are {', '.join(schema.names)}. Name the "
                    f"one with the setting `images.{setting}`"
                )
        return image, label

    @staticmethod
    def _class_names(table: TableFile, column: str) -> list[str]:
        feature = _features(table.schema).get(column)
        names = feature.get("names") if isinstance(feature, dict) else None
        labels = table.column(column)
        if names is not None and not (labels and isinstance(labels[0], str)):
            return [names[label] if label is not None and 0 <= label < len(names) else "" for label in labels]
        return ["" if label is None else str(label) for label in labels]


def holds_images(url: str, options: dict[str, Any]) -> bool:
    """Whether a parquet file holds images, and not paths of images.

    Raises:
        DatasetError: It cannot be read.
    """
    import pyarrow.parquet as pq

    try:
        fs, path = fsspec.url_to_fs(url, **options)
        refuse_irregular(fs, path)
        with fs.open(path, "rb") as file:
            schema = pq.read_schema(file)
    except DatasetError:
        raise
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


def first_of(names: Sequence[str], preferred: Sequence[str]) -> str:
    """The likeliest of some names: by the order of preference, then the first; empty: there is none."""
    by_name = {name.lower(): name for name in reversed(names)}
    return next((by_name[name] for name in preferred if name in by_name), names[0] if names else "")
