"""SHA-256 of large files, kept on disk so that weights are not read again by every process that asks for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from d3m_assets.replacing import replacing

_SETTLED_NS = 2_000_000_000
"""Age from which a file's time of change is trusted: file systems count in steps of up to two seconds (FAT), and a second
change within one step would bear the same time."""

_Entry = tuple[int, int, str]
"""Size in bytes, time of change in ns, SHA-256 in hex."""


def file_digests(paths: Iterable[Path], cache: Path | None = None) -> list[str]:
    """SHA-256 of the content of each file, in hex.

    Args:
        paths: Files; links are followed.
        cache: JSON file of digests known by absolute path, size and time of change (ns): a file that still has both is
            not read. Missing, it is created; damaged, it is ignored and replaced; None: every file is read.

    Raises:
        OSError: A file cannot be read. A cache that cannot be read or written costs time, nothing else.
    """
    known = {} if cache is None else _load(cache)
    digests, learned = [], False
    for path in paths:
        place = path.resolve()
        before = place.stat()
        size, changed, digest = known.get(str(place), (-1, -1, ""))
        if (size, changed) != (before.st_size, before.st_mtime_ns):
            with place.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            after = place.stat()
            unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if unchanged and time.time_ns() - after.st_mtime_ns > _SETTLED_NS:
                known[str(place)] = (after.st_size, after.st_mtime_ns, digest)
                learned = True
        digests.append(digest)
    if cache is not None and learned:
        _save(cache, known)
    return digests


def _load(cache: Path) -> dict[str, _Entry]:
    try:
        entries = json.loads(cache.read_text(encoding="utf-8")).items()
        return {str(path): (int(size), int(changed), str(digest)) for path, (size, changed, digest) in entries}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(cache: Path, entries: dict[str, _Entry]) -> None:
    """Write the cache whole or not at all; digests of files that are gone are left out."""
    present = {path: entry for path, entry in sorted(entries.items()) if Path(path).is_file()}
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as temporary:
            temporary.write_text(json.dumps(present, indent=1), encoding="utf-8")
