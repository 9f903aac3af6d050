"""What one recursive listing shows of a store, and the commit records that were read before.

A plan of N artefacts on an object store is one listing (a request for every thousand files) and no other request for
commit records that have not changed: 12,000 artefacts cost 30 requests rather than 24,000.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

_VERSIONS = ("ETag", "etag", "generation", "created")
"""Fields of fsspec's file information that change with every write; times in whole seconds do not, so none is here."""


@dataclass(frozen=True)
class ListedFile:
    """A file as a listing shows it.

    Attributes:
        size: In bytes.
        version: Changes whenever the file is written; empty where the service says nothing that does.
    """

    size: int
    version: str


def list_local(root: str) -> dict[str, dict[str, ListedFile]]:
    """Files below a local folder by their folder relative to it, then by name."""
    folders: dict[str, dict[str, ListedFile]] = {}
    waiting = [(root, "")]
    while waiting:
        path, relative = waiting.pop()
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:  # not written yet, or just deleted
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=True):
                waiting.append((entry.path, f"{relative}/{entry.name}" if relative else entry.name))
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                version = f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"
                folders.setdefault(relative, {})[entry.name] = ListedFile(stat.st_size, version)
    return folders


def list_remote(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, dict[str, ListedFile]]:
    """Like :func:`list_local` for a path of any file system."""
    fs.invalidate_cache(root)
    folders: dict[str, dict[str, ListedFile]] = {}
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        return folders
    for path, info in found.items():
        folder, _, name = path.removeprefix(root).lstrip("/").rpartition("/")
        folders.setdefault(folder, {})[name] = ListedFile(info["size"] or 0, _version(info))
    return folders


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[field]) for field in _VERSIONS if info.get(field)), "")


class ManifestCache:
    """Contents of commit records by path, valid for one version of the file.

    Kept in SQLite: in memory, or in a file that processes share. It is only a cache: whatever goes wrong with the file,
    such as a folder that cannot be written, is taken as nothing having been kept.

    Args:
        file: Where to keep it; None: in memory.
        root: Folder of the store; what is kept is known by its path below it, since an address may hold a password.
    """

    def __init__(self, file: Path | None = None, root: str = "") -> None:
        self._root = root
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        try:
            self._database = _open(file)
        except (sqlite3.OperationalError, OSError):  # not to be written, or locked
            pass
        except sqlite3.DatabaseError:  # it is no database: begin anew
            with contextlib.suppress(sqlite3.Error, OSError):
                Path(str(file)).unlink()
                self._database = _open(file)

    def contents(self, versions: Mapping[str, str]) -> dict[str, bytes]:
        """Kept contents of the paths whose kept version is the given one."""
        kept = self._rows(versions)
        return {
            path: content
            for path, (version, content) in kept.items()
            if versions[path] and (version == versions[path] or _is_md5(versions[path], content))
        }

    def latest(self, path: str) -> bytes | None:
        """The content that was kept last, whether or not it is still the one in the store."""
        return self._rows([path]).get(path, ("", None))[1]

    def keep(self, contents: Mapping[str, tuple[str, bytes]]) -> None:
        """Keep contents by path, each with its version; an empty version is valid for :meth:`latest` only."""
        rows = [(self._below(path), version, content) for path, (version, content) in contents.items()]
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO manifests VALUES (?, ?, ?)", rows)

    def forget(self, path: str) -> None:
        """Keep nothing for a path."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                with self._database:
                    self._database.execute("DELETE FROM manifests WHERE path = ?", (self._below(path),))

    def _below(self, path: str) -> str:
        return path.removeprefix(self._root)

    def _rows(self, paths: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        full = {self._below(path): path for path in paths}
        chosen, rows = list(full), {}
        with self._lock, contextlib.suppress(sqlite3.Error):
            for start in range(0, len(chosen) if self._database is not None else 0, 500):
                some = chosen[start : start + 500]  # SQLite takes a limited number of parameters
                marks = ",".join("?" * len(some))
                query = f"SELECT path, version, content FROM manifests WHERE path IN ({marks})"  # noqa: S608 # only marks
                rows.update({full[p]: (v, c) for p, v, c in self._database.execute(query, some)})  # type: ignore[union-attr]
        return rows


def _open(file: Path | None) -> sqlite3.Connection:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(file or ":memory:", check_same_thread=False)
    with database:
        database.execute("PRAGMA synchronous=OFF")  # what a crash of the machine loses is read again
        database.execute("CREATE TABLE IF NOT EXISTS manifests (path TEXT PRIMARY KEY, version TEXT, content BLOB)")
    return database


def _is_md5(version: str, content: bytes) -> bool:
    """S3's ETag of an object that was put in one part is its MD5, so what was written need not be read back."""
    tag = version.strip('"')
    return len(tag) == 32 and tag == hashlib.md5(content, usedforsecurity=False).hexdigest()
