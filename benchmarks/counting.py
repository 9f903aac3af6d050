"""A store in memory that counts the requests an object store would be sent.

Each call of the file system is one request, except that a recursive listing is one for every thousand files, as on S3,
where it also shows the MD5 of each file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "counting"
PAGE = 1000
"""Files in one answer to a recursive listing (S3's ListObjectsV2)."""


class CountingFileSystem(MemoryFileSystem):
    """Files in memory; ``requests`` holds the number of requests by their name on S3."""

    protocol: ClassVar[Any] = PROTOCOL
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    requests: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix(f"{PROTOCOL}://"))

    def unstrip_protocol(self, name: str) -> str:
        """The path as a URL."""
        return f"{PROTOCOL}://{name.lstrip('/')}"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """One GET, also when there is nothing."""
        self.requests["get"] += 1
        with super().open(path, "rb") as file:
            return file.read()[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> Any:
        """One PUT."""
        self.requests["put"] += 1
        return super().pipe_file(path, value, mode=mode, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """One listing of a folder."""
        self.requests["list"] += 1
        return super().ls(path, detail=detail, **options)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **options: Any
    ) -> Any:
        """One listing for every thousand files below a path."""
        root = self._strip_protocol(path).rstrip("/") + "/"
        below = sorted(p for p in self.store if p.startswith(root))
        self.requests["list"] += 1 + len(below) // PAGE
        found = {path: self._listed(path) for path in below}
        return found if detail else list(found)

    def _listed(self, path: str) -> dict[str, Any]:
        content = self.store[path].getvalue()
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        return {"name": path, "size": len(content), "type": "file", "ETag": etag}

    def modified(self, path: str) -> Any:
        """One HEAD."""
        self.requests["head"] += 1
        return super().modified(path)

    def rm_file(self, path: str) -> None:
        """One DELETE."""
        self.requests["delete"] += 1
        super()._rm(path)


def counted() -> Counter[str]:
    """Requests since the last :func:`reset`, by name."""
    return Counter(CountingFileSystem.requests)


def reset(*, files: bool = False) -> None:
    """Count from zero; with ``files``, also forget what is stored."""
    CountingFileSystem.requests.clear()
    if files:
        CountingFileSystem.store.clear()
        CountingFileSystem.pseudo_dirs[:] = [""]


fsspec.register_implementation(PROTOCOL, CountingFileSystem, clobber=True)
