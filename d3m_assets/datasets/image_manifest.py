"""Tables of paths and labels (``metadata.csv``, a parquet manifest): which class image files are of that lie elsewhere."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec

from d3m_assets.datasets.data_files import without_query
from d3m_assets.datasets.image_folder import SPLIT_FOLDERS, refuse_irregular, stamp_of
from d3m_assets.datasets.image_table import LABEL_NAMES, first_of
from d3m_assets.datasets.images import read_bytes, too_large
from d3m_assets.datasets.listed_source import ListedImage, ListedSource, ListedSplit, Listing
from d3m_assets.datasets.table_files import check_size
from d3m_assets.errors import DatasetError

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl")
MOST_BYTES = 2**30
"""Of a table that is text, which is read as a whole."""
_PATH_NAMES = ("file_name", "path", "file", "filename", "filepath", "image_path", "image", "img")
_SPLIT_NAMES = ("split", "part", "subset")


@dataclass(frozen=True)
class _Columns:
    path: str
    label: str
    split: str  # empty: there is none


class ImageManifest(ListedSource):
    """A table of paths and labels: CSV, TSV, JSON lines or parquet, with image files beside it or anywhere.

    Columns are found by their names (path or file_name, label or class, split) or named in the settings. Relative paths
    begin at the folder of the table.
    """

    def _list(self) -> Listing:
        names, rows = read_manifest(self.url, self._options)
        columns = self._columns(names)
        listing = Listing(expected="Expected a table with a path and a label in each row.")
        known = self._known()
        for index, row in enumerate(rows, start=1):
            path, label = row[columns.path], row[columns.label]
            if not path or not label:
                raise DatasetError(
                    f"row {index} of the table {self.url} has no {'label' if path else 'path'}; give it one or remove it"
                )
            uri = path if "://" in path or path.startswith("/") else f"{self._base()}/{path}"
            size, stamp, problem = known(uri)
            problem = problem or self._forbidden(path)
            if size > self.settings.max_bytes:
                problem = too_large(size, self.settings.max_bytes)
            split = self._split(row[columns.split], index) if columns.split else split_of_path(path)
            listing.images.append(ListedImage(path, uri, label, split, size, stamp, problem))
        return listing

    def _columns(self, names: list[str]) -> _Columns:
        by_name = {name.lower(): name for name in names}
        path = self.settings.image_column or first_of([by_name[n] for n in _PATH_NAMES if n in by_name], ())
        label = self.settings.label_column or first_of([by_name[n] for n in LABEL_NAMES if n in by_name], ())
        for column, what, setting in ((path, "paths", "image_column"), (label, "labels", "label_column")):
            if column not in names:
                raise DatasetError(
                    f"the table {self.url} has {f'no column {column!r}' if column else f'no column of {what}'}; its columns "
                    f"are {', '.join(names)}. Name the one with the setting `images.{setting}`"
                )
        return _Columns(path, label, first_of([by_name[n] for n in _SPLIT_NAMES if n in by_name], ()))

    def _forbidden(self, path: str) -> str:
        """Why a table from a network may not name a path: it could be one of this machine."""
        if not super()._remote():
            return ""
        protocol, separator, _ = path.partition("://")
        if separator:
            own = self.url.partition("://")[0]
            foreign = protocol not in (own, "http", "https")
            return f"is on {protocol}://, which a table on {own}:// may not name" if foreign else ""
        inside = PurePosixPath(path)
        outside = inside.is_absolute() or ".." in inside.parts
        return "lies outside of the folder of the table, which one from a network may not name" if outside else ""

    def _fetch(self, uri: str) -> bytes:
        return read_bytes(uri, self._options, self.settings.max_bytes)

    def _remote(self) -> bool:
        return True if super()._remote() else self._elsewhere

    _elsewhere = False

    def _base(self) -> str:
        return without_query(self.url).rpartition("/")[0]

    def _split(self, text: str, index: int) -> ListedSplit:
        if not text:
            return ""
        if text.lower() not in SPLIT_FOLDERS:
            raise DatasetError(
                f"row {index} of the table {self.url} is of the split {text!r}; it takes {', '.join(SPLIT_FOLDERS)}"
            )
        return SPLIT_FOLDERS[text.lower()]

    def _known(self) -> Callable[[str], tuple[int, str, str]]:
        """What tells size, stamp and problem of an image file without reading it."""
        if super()._remote():
            try:
                fs, base = fsspec.url_to_fs(self._base(), **self._options)
                fs.invalidate_cache()
                entries = {fs.unstrip_protocol(path): entry for path, entry in fs.find(base, detail=True).items()}
            except Exception:  # what cannot be listed is read by every scan
                entries = {}

            def remote(uri: str) -> tuple[int, str, str]:
                entry = entries.get(uri, {})
                return int(entry.get("size") or 0), stamp_of(entry), ""

            return remote

        def local(uri: str) -> tuple[int, str, str]:
            if "://" in uri:
                self._elsewhere = True
                return 0, "", ""
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


def read_manifest(url: str, options: dict[str, Any]) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table of paths, every cell as text without blanks around it; an empty cell is empty text.

    Raises:
        DatasetError: It cannot be read.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    kind = without_query(url).lower()
    try:
        fs, path = fsspec.url_to_fs(url, **options)
        fs.invalidate_cache()
        refuse_irregular(fs, path)
        with fs.open(path, "rb") as file:
            if kind.endswith(".parquet"):
                check_size(pq.ParquetFile(file).metadata)
                rows = pq.read_table(file).to_pylist()
            elif kind.endswith(".jsonl"):
                text = _whole(file).decode("utf-8-sig")
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            else:
                # A class may be called NA or null.
                as_text = {"dtype": str, "keep_default_na": False, "na_filter": False, "encoding": "utf-8-sig"}
                separator = "\t" if kind.endswith(".tsv") else ","
                table = pd.read_csv(io.BytesIO(_whole(file)), sep=separator, **as_text)  # type: ignore[call-overload]
                return list(map(str, table.columns)), [
                    {str(name): str(cell).strip() for name, cell in row.items()} for row in table.to_dict("records")
                ]
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        return names, [{name: _text(row.get(name)) for name in names} for row in rows]
    except DatasetError:
        raise
    except Exception as error:  # pandas, pyarrow and each service raise their own
        raise DatasetError(f"the table {url} cannot be read: {error}. Check `dataset`.") from error


def _whole(file: IO[bytes]) -> bytes:
    """The content of a file; a server's answer may have no end."""
    content = io.BytesIO()
    while part := file.read(MOST_BYTES + 1 - content.tell()):  # of a server, as much as has come by then
        content.write(part)
        if content.tell() > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes; write it as parquet")
    return content.getvalue()


def _text(cell: Any) -> str:
    if cell is None or cell != cell:  # the second is not a number
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
