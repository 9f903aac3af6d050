"""The files that a source consists of: one, many by a pattern, or all of a kind in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from d3m_assets.datasets.image_folder import SPLIT_FOLDERS, refuse_irregular, stamp_of
from d3m_assets.datasets.listed_source import ListedSplit
from d3m_assets.errors import DatasetError
from d3m_assets.store_errors import explained

_WILDCARDS = re.compile(r"[*?{]")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_FOLDERS)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that holds many images.

    Attributes:
        name: Its path below the dataset, with ``/``.
        path: Its path in its file system.
        split: What its name says that it is for; empty: nothing.
        stamp: Changes when it does; empty where nothing tells.
    """

    name: str
    path: str
    split: ListedSplit
    stamp: str


def data_files(url: str, options: Mapping[str, Any], suffixes: Sequence[str]) -> list[DataFile]:
    """Files of some kinds, sorted by path.

    Args:
        url: A file, a pattern of files (``*``, ``{0000..0012}``, ``{train,test}``), or a folder, on local disk or any fsspec
            URL.
        options: Arguments of the fsspec file system.
        suffixes: Of the files that are taken from a folder.

    Raises:
        DatasetError: There is none, or they cannot be listed.
    """
    try:
        fs, root = fsspec.url_to_fs(url, **options)
        fs.invalidate_cache()  # listings are kept for the life of a process
        wild = _WILDCARDS.search(without_query(root))
        if wild:
            found = {path: fs.info(path) for pattern in expand_braces(root) for path in sorted(fs.glob(pattern))}
        elif fs.isdir(root):
            listed = fs.find(root, detail=True)
            found = {path: entry for path, entry in sorted(listed.items()) if path.lower().endswith(tuple(suffixes))}
        else:
            found = {root: fs.info(root)}
        for path in found:
            refuse_irregular(fs, path)
    except DatasetError:
        raise
    except Exception as error:  # each service raises its own
        raise DatasetError(f"cannot open the dataset {url}: {explained(error)}. Check `dataset`.") from error
    if not found:
        raise DatasetError(f"the dataset {url} has no {' or '.join(suffixes)} file. Check `dataset`.")
    # Names are what follows the last folder that is spelled out, so that they stay when the dataset moves.
    spelled_out = root[: wild.start()] if wild else root if root in found else f"{root.rstrip('/')}/"
    base = spelled_out.rpartition("/")[0]
    files = []
    for path, entry in found.items():
        name = without_query(path.removeprefix(f"{base}/"))
        files.append(DataFile(name, path, split_of(name), _stamp(entry)))
    return files


def without_query(url: str) -> str:
    """A web address up to its ``?``; other paths as they are."""
    return url.partition("?")[0] if url.lower().startswith(("http://", "https://")) else url


def split_of(name: str) -> ListedSplit:
    """The split that a file's path names, as in ``data/train-00000-of-00004.parquet``; empty: none."""
    words = _SPLIT.findall(name)
    return SPLIT_FOLDERS[words[-1].lower()] if words else ""


def expand_braces(pattern: str) -> list[str]:
    """The patterns that ``{a,b}`` and ``{0000..0012}`` stand for, as a shell and WebDataset write them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inner = found[1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = int(numbers[1]), int(numbers[2])
        words = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    else:
        words = inner.split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [expanded for word in words for expanded in expand_braces(f"{before}{word}{after}")]


def _stamp(entry: Mapping[str, Any]) -> str:
    stamp = stamp_of(entry)
    return f"{entry.get('size')} {stamp}" if stamp else ""
