"""The files of a store: read, written, listed and removed, with patience where a service is busy.

What a service answers with 503, or does not answer at all, is asked again with growing pauses; the clients' own attempts
are not always enough for a service that is told to slow down. What a service refuses for good is not asked
twice, and neither is a disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from d3m_assets.addresses import masked
from d3m_assets.replacing import replacing
from d3m_assets.store_errors import is_transient, is_unreachable
from d3m_assets.store_listing import ListedFile, list_local, list_remote

RETRY_SECONDS = 60.0
"""For how long a request to a busy service is repeated. Rate limits of object stores last seconds, a restart under a minute."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds; each pause is random up to twice the one before, so that many processes do not come back at once."""
READINGS = 3
"""How often a remote file is read before wrong bytes are taken to be what is stored, not what a connection made of it."""
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "obs", "oci"})
"""File systems of fsspec whose top folders are buckets."""
_LOG = logging.getLogger(__name__)


class StoreFiles:
    """Files of one file system by their paths on it, without protocol.

    Every method raises the errors of the disk or service as they are.

    Args:
        fs: The file system.
        retry_seconds: For how long a request to a busy service is repeated.

    Attributes:
        local: Whether it is a disk of this machine.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, retry_seconds: float = RETRY_SECONDS) -> None:
        self.fs, self.local = fs, isinstance(fs, LocalFileSystem)
        self._retry_seconds = retry_seconds
        self._answered = False

    def get(self, path: str, intact: Callable[[bytes], bool] = lambda data: True) -> bytes:
        """Contents of a file.

        Args:
            path: Of the file.
            intact: Whether contents are what they should be; those of a remote file that are not are read again.
        """
        if self.local:
            return Path(path).read_bytes()
        for _ in range(READINGS):
            data: bytes = self._ask(self.fs.cat_file, path)
            if intact(data):
                break
        return data

    def put(self, path: str, data: bytes) -> None:
        """Write a file, and the folders above it; on a disk it is there when this returns, whatever happens next."""
        if not self.local:
            self._ask(self._put_remote, path, data)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def commit(self, path: str, content: bytes) -> None:
        """Write a file so that readers see the whole of it or the previous one."""
        if not self.local:
            self.put(path, content)
            return
        # The folder is synced before the commit, for its data files, and after it, for the manifest.
        with replacing(Path(path)) as temporary:
            self.put(str(temporary), content)
            _sync_folder(Path(path).parent)
        _sync_folder(Path(path).parent)

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens when another process was quicker."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(self.fs.rm_file, path)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files in a folder by path; none when there is no such folder."""
        return {entry["name"]: entry["size"] for entry in self._entries(folder) if entry["type"] != "directory"}

    def folders(self, root: str) -> list[str]:
        """Paths of the folders in a folder; none when there is no such folder."""
        return [entry["name"].rstrip("/") for entry in self._entries(root) if entry["type"] == "directory"]

    def find(self, root: str) -> list[str]:
        """Paths of all files below a folder."""
        self.fs.invalidate_cache(root)
        return list(self._ask(self.fs.find, root))

    def tree(self, root: str) -> dict[str, dict[str, ListedFile]]:
        """All files below a folder by their folder relative to it, then by name."""
        return list_local(root) if self.local else self._ask(list_remote, self.fs, root)

    def age(self, path: str) -> float | None:
        """Seconds since a file was written; None: the service does not say."""
        try:
            modified = self.fs.modified(path)
        except (OSError, NotImplementedError, KeyError):
            return None
        modified = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
        return float((datetime.now(UTC) - modified).total_seconds())

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        self.fs.invalidate_cache(folder)
        try:
            return list(self._ask(self.fs.ls, folder, detail=True))
        except FileNotFoundError:
            return []

    def _put_remote(self, path: str, data: bytes) -> None:
        try:
            self.fs.pipe_file(path, data)
        except FileNotFoundError:
            protocol = self.fs.protocol
            if _OBJECT_STORES.intersection([protocol] if isinstance(protocol, str) else protocol):
                raise  # it has no folders: the bucket is missing, and to create one is not ours
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(path, data)

    def _ask(self, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a request, of a service again and again while it is busy."""
        if self.local:
            return request(*arguments, **named)
        attempts = Retrying(
            retry=retry_if_exception(self._may_pass),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
            stop=stop_after_delay(self._retry_seconds),
            before_sleep=_log_pause,
            reraise=True,
        )
        try:
            result = attempts(request, *arguments, **named)
        except FileNotFoundError:
            self._answered = True
            raise
        self._answered = True
        return result

    def _may_pass(self, error: BaseException) -> bool:
        # An address at which nobody has answered yet is more often wrong than busy.
        return is_transient(error) and (self._answered or not is_unreachable(error))


def _log_pause(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    _LOG.info(
        "the store does not answer (%s); asked again in %.1f s", masked(f"{type(error).__name__}: {error}"), pause
    )


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
