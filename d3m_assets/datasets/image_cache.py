"""Copies of images from a network, so that each is fetched once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY = 256
"""One of so many copies looks whether the folder has outgrown its size."""


@dataclass(frozen=True)
class ImageCache:
    """Image files on local disk under the hash of their contents.

    When the folder outgrows ``max_bytes``, what was used longest ago is removed. A damaged copy is noticed by its hash and
    fetched again; a folder that cannot be written costs time, not the run.

    Attributes:
        folder: Where the copies lie; made when needed. None keeps nothing.
        max_bytes: 0 keeps nothing.
    """

    folder: Path | None
    max_bytes: int

    def get(self, sha256: str) -> bytes | None:
        """The copy of an image; None: there is none."""
        if self.folder is None or not self.max_bytes:
            return None
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keep a copy of an image."""
        if self.folder is None or len(data) > self.max_bytes:
            return
        path = self._path(sha256)
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(data)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        # Large images fill it in a few steps.
        if secrets.randbelow(_LOOK_EVERY) == 0 or len(data) * _LOOK_EVERY > self.max_bytes:
            self.trim()

    def trim(self) -> None:
        """Remove what was used longest ago until the rest fits."""
        sizes: dict[Path, os.stat_result] = {}
        for file in self.folder.glob("*/*") if self.folder else ():
            with contextlib.suppress(OSError):  # another process made room
                sizes[file] = file.stat()
        total = sum(status.st_size for status in sizes.values())
        for file in sorted(sizes, key=lambda f: sizes[f].st_mtime_ns):
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            total -= sizes[file].st_size

    def _path(self, sha256: str) -> Path:
        assert self.folder is not None
        return self.folder / sha256[:2] / sha256
