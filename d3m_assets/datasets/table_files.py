"""Files of tables, read a group of rows at a time: parquet, and arrow as `datasets` writes it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MOST_BYTES = 512 * 2**20
"""Of rows that a process keeps in memory, beside the group that is being read."""

MOST_ROWS = 2**24
"""Of a parquet file: repeated values take no bytes in it, but memory once they are read."""
MOST_UNPACKED_BYTES = 4 * 2**30
"""Of what is read of a parquet file at once, as the file has it: a column, or the images of one group of rows."""

_Key = tuple[int, str, str]  # process, dataset, file
_groups: OrderedDict[tuple[_Key, str, int], pa.ChunkedArray] = OrderedDict()
_starts: dict[_Key, list[int]] = {}
_reading = threading.Lock()


def forget(dataset: str) -> None:
    """Drop what is kept of a dataset's files, which may be other ones by now."""
    with _reading:
        for kept in [kept for kept in _groups if kept[0][1] == dataset]:
            del _groups[kept]
        for key in [key for key in _starts if key[1] == dataset]:
            del _starts[key]


def check_size(metadata: pq.FileMetaData, column: str | None = None, group: int | None = None) -> None:
    """Compare what a parquet file unpacks to, by its own account, with what is read of one.

    A value that a dictionary has once for many rows is counted once.

    Args:
        metadata: Of the file.
        column: That is to be read; None: all.
        group: Of rows, that is to be read; None: all.

    Raises:
        ValueError: It is too large; the message says what to do.
    """
    if metadata.num_rows > MOST_ROWS:
        raise ValueError(f"has {metadata.num_rows:,} rows; write it as several files of at most {MOST_ROWS:,}")
    size = 0
    for index in range(metadata.num_row_groups) if group is None else (group,):
        rows = metadata.row_group(index)
        for chunk in map(rows.column, range(rows.num_columns)):
            if column in (None, chunk.path_in_schema) or chunk.path_in_schema.startswith(f"{column}."):
                size += chunk.total_uncompressed_size
    if size > MOST_UNPACKED_BYTES:
        what = "to read at once" if group is None else "in a group of rows"
        raise ValueError(
            f"has {size:,} bytes {what}, at most {MOST_UNPACKED_BYTES:,} are read; write it as several files or with smaller "
            "groups of rows"
        )


class TableFile:
    """A parquet or arrow file.

    Args:
        dataset: URL of the dataset that it belongs to.
        open_file: Opens a path for reading.
        path: Of the file, in the dataset's file system.
    """

    def __init__(self, dataset: str, open_file: Callable[[str], Any], path: str) -> None:
        self._open_file, self._path = open_file, path
        self._key = (os.getpid(), dataset, path)

    @property
    def schema(self) -> pa.Schema:
        """Names, types and metadata of the columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._open_file(self._path) as file:
            return pq.read_schema(file) if self._is_parquet else pa.ipc.open_stream(file).schema

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        import pyarrow.parquet as pq

        if not self._is_parquet:
            return self._arrow_column(name).to_pylist()
        with self._open_file(self._path) as file:
            check_size(pq.ParquetFile(file).metadata, name)
            return pq.read_table(file, columns=[name]).column(0).to_pylist()

    def value(self, column: str, row: int) -> Any:
        """One value. Called by several threads at once, which mostly want neighbours of it."""
        with _reading:
            if not self._is_parquet:
                return self._kept(column, 0, lambda: self._arrow_column(column))[row].as_py()
            starts = self._group_starts()
            group = max(i for i, start in enumerate(starts) if start <= row)
            return self._kept(column, group, lambda: self._group(column, group))[row - starts[group]].as_py()

    @property
    def _is_parquet(self) -> bool:
        return self._path.lower().endswith(".parquet")

    def _group(self, column: str, group: int) -> pa.ChunkedArray:
        import pyarrow.parquet as pq

        with self._open_file(self._path) as file:
            table = pq.ParquetFile(file)
            check_size(table.metadata, column, group)
            return table.read_row_group(group, columns=[column]).column(0)

    def _arrow_column(self, column: str) -> pa.ChunkedArray:
        import pyarrow as pa

        if os.path.exists(self._path):  # noqa: PTH110 - mapped, a column takes no memory before it is looked at
            return pa.ipc.open_stream(pa.memory_map(self._path)).read_all().column(column)
        with self._open_file(self._path) as file:
            return pa.ipc.open_stream(file).read_all().column(column)

    def _group_starts(self) -> list[int]:
        """Number of the first row of each row group."""
        import pyarrow.parquet as pq

        if self._key not in _starts:
            with self._open_file(self._path) as file:
                meta = pq.ParquetFile(file).metadata
            starts = [0]
            for i in range(meta.num_row_groups - 1):
                starts.append(starts[-1] + meta.row_group(i).num_rows)
            _starts[self._key] = starts
        return _starts[self._key]

    def _kept(self, column: str, group: int, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        key = (self._key, column, group)
        if key not in _groups:
            _groups[key] = read()
            while len(_groups) > 1 and sum(rows.nbytes for rows in _groups.values()) > _MOST_BYTES:
                _groups.popitem(last=False)
        _groups.move_to_end(key)
        return _groups[key]
