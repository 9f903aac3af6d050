"""Files that take the place of others whole: readers see the previous content or the new one, whatever is killed when."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to be written in the body, which takes its place when the body has succeeded.

    What writers of this machine that were killed have left beside ``path`` is removed.

    Args:
        path: In a folder that exists.

    Yields:
        Where to write.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        if _is_of_killed(left.name):
            with contextlib.suppress(OSError):  # another user's
                left.unlink()
    temporary = path.with_name(f"{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@cache
def _machine() -> str:
    """What process ids are unique in: a host, and of a container its own."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    with contextlib.suppress(OSError):  # containers often have none
        known.append(Path("/etc/machine-id").read_text())
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:12]


def _is_of_killed(name: str) -> bool:
    """Whether a temporary file is of a process of this machine that has ended; on Windows nobody can say."""
    machine, _, rest = name.split(".")[-2].partition("-")
    pid = rest.partition("-")[0]
    if machine != _machine() or not pid.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
