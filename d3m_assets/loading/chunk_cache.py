"""Chunks of images on disk, up to a number of bytes, shared by any number of processes.

A file is an uncompressed ``.npy`` array followed by the SHA-256 of its bytes, written under another name and then renamed, and
read as a memory map: a sample costs its own bytes, not its chunk's. A damaged file is deleted and made anew. The time of last
use is the file's modification time; whoever adds a chunk deletes the least recently used ones first.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from d3m_assets.errors import StoreError

_FOLDER = "d3m-chunks"
"""Within the folder that is given, which may hold other things: what is here may be deleted."""
_LOCKS = "locks"
_STRIPES = 256
"""Lock files that chunks share, so that their number is bounded."""
_TEMPORARY = ".tmp"
_ABANDONED = 3600
"""Seconds after which a temporary file is taken for that of a process that was killed."""
_DIGEST = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


class ChunkCache:
    """A folder of chunks.

    Args:
        folder: Where; made if it does not exist. Chunks lie in a folder of their own in it.
        max_bytes: Most bytes of all chunks together.

    Raises:
        StoreError: The folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder.expanduser().absolute() / _FOLDER, max_bytes
        self._reported = False
        # Inode and size of chunks that were found sound, where their pixels begin, and their shape.
        self._verified: dict[str, tuple[int, int, int, tuple[int, ...]]] = {}
        try:
            (self.folder / _LOCKS).mkdir(parents=True, exist_ok=True)
            with self._lock("writable"):
                pass
        except OSError as error:
            raise StoreError(f"cache={folder} cannot be written: {error}; name another folder, or none") from error

    def get(self, key: str) -> np.ndarray | None:
        """A chunk, read-only; None: it is not there.

        Args:
            key: Its name, a relative path without suffix.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                raw = np.memmap(file, np.uint8, "r")
                # Hashing reads the whole chunk; once in a process is enough, however often it is opened for a sample.
                known = self._verified.get(key)
                if known is None or known[:2] != (status.st_ino, status.st_size):
                    if hashlib.sha256(raw[:-_DIGEST].data).digest() != raw[-_DIGEST:].tobytes():
                        raise ValueError("its digest is wrong")
                    file.seek(0)
                    np.lib.format.read_magic(file)
                    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                    if dtype != np.uint8:
                        raise ValueError(f"it has numbers of type {dtype}")
                    known = self._verified[key] = status.st_ino, status.st_size, file.tell(), shape
            _, _, begin, shape = known
            chunk = raw[begin:-_DIGEST].reshape(shape)
            os.utime(path)
        except OSError:  # it is not there, or cannot be opened just now
            return None
        except (ValueError, EOFError) as error:
            _log.warning("%s is damaged (%s) and is made anew", path, error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        return chunk

    def put(self, key: str, chunk: np.ndarray) -> None:
        """Keep a chunk. A disk that is full costs the chunk's place here, not the training that reads it.

        Args:
            key: Its name, a relative path without suffix.
            chunk: uint8, of any shape.
        """
        content = io.BytesIO()
        np.lib.format.write_array(content, np.ascontiguousarray(chunk), version=(1, 0), allow_pickle=False)
        content.write(hashlib.sha256(content.getvalue()).digest())
        data, path = content.getvalue(), self._path(key)
        if len(data) > self.max_bytes:
            self._report(f"a chunk has {len(data)} bytes, more than cache_bytes={self.max_bytes}")
            return
        temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            with self._lock("eviction"):
                self._evict(len(data))
                temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._report(f"{path} cannot be written: {error}")

    @contextmanager
    def claim(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Be the only process that makes a chunk, for the time of the context; a killed process gives its claim back.

        Args:
            key: Name of the chunk.
            wait: Whether to wait for another process that makes it.

        Yields:
            Whether the claim was had; always when it was waited for.
        """
        lock = self._lock(f"{zlib.crc32(key.encode()) % _STRIPES:03d}")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def used_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.folder / _LOCKS / name)

    def _report(self, problem: str) -> None:
        """Warn once that chunks are not kept."""
        if not self._reported:
            self._reported = True
            _log.warning("%s; it is generated again whenever it is needed", problem)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of every chunk; temporary files of killed processes are deleted."""
        for path in self.folder.rglob("*"):
            try:
                status = path.stat()
            except OSError:  # another process deleted it
                continue
            if path.suffix == ".npy":
                yield status.st_mtime, status.st_size, path
            elif path.suffix == _TEMPORARY and time.time() - status.st_mtime > _ABANDONED:
                with suppress(OSError):
                    path.unlink()

    def _evict(self, coming: int) -> None:
        """Delete least recently used chunks until ``coming`` bytes fit in."""
        files = sorted(self._files(), key=lambda file: file[:2])
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + coming <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= size
