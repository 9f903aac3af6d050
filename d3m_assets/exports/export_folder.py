"""The folder that an export is written into: refused where it holds anything else, and gone on with after a kill.

A state file says which export the folder holds. It is written before anything else and marked complete at the end, so an
export that was stopped is told from other people's files, and from an export of something else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from d3m_assets.errors import BundleError
from d3m_assets.terminal import printable

STATE = ".d3m-export.json"
"""Says what the folder holds; a hidden file, which programs that read datasets pass over."""
LOCK = ".d3m-export.lock"
OWN = frozenset({STATE, LOCK})
"""Names that every export's folder has or had."""
FORMAT = "d3m-export-1"


@dataclass(frozen=True)
class ExportFolder:
    """A folder that was opened for an export.

    Attributes:
        path: The folder.
        complete: Whether the same export has been finished in it.
    """

    path: Path
    complete: bool


@contextmanager
def open_export(
    path: Path, description: Mapping[str, Any], owns: Callable[[PurePosixPath], bool]
) -> Iterator[ExportFolder]:
    """Open a new or empty folder, or one in which the same export was begun; it is complete when the context ends well.

    Args:
        path: The folder.
        description: What is exported, as JSON values: bundle, format, numbers of images and what else decides about bytes.
        owns: Whether a file, named by its path below the folder, is one of the export's.

    Raises:
        BundleError: The folder holds anything else, or another process writes into it.
    """
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is no folder; name another one with --output")
    path.mkdir(parents=True, exist_ok=True)
    description = json.loads(json.dumps(description))
    begun = _read_state(path)
    _check(path, begun, description, owns)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BundleError(
            f"another process is writing an export into {path}; wait for it, or name another folder with --output"
        ) from None
    try:
        begun = _read_state(path) or begun  # another process may have finished it meanwhile
        complete = begun is not None and bool(begun["complete"])
        if begun is None:
            _write_state(path, description, complete=False)
        yield ExportFolder(path, complete)
        if not complete:
            _write_state(path, description, complete=True)
    finally:
        lock.release()
        (path / LOCK).unlink(missing_ok=True)


def _check(
    path: Path, begun: Mapping[str, Any] | None, description: Mapping[str, Any], owns: Callable[[PurePosixPath], bool]
) -> None:
    """Refuse a folder that holds anything but the export.

    Raises:
        BundleError: It does.
    """
    if begun is None:
        if any(entry.name not in (LOCK, part_of(path / STATE).name) for entry in path.iterdir()):
            raise BundleError(f"{path} exists and is not empty; name another folder with --output, or empty it")
        return
    differences = [
        f"{name} is {_told(begun['export'].get(name))} there and {_told(value)} here"
        for name, value in description.items()
        if begun["export"].get(name) != value
    ]
    if differences:
        raise BundleError(
            f"{path} holds another export, {'complete' if begun['complete'] else 'not finished'}: {'; '.join(differences)}. "
            "Name another folder with --output, or remove this one"
        )
    own = {STATE, LOCK, part_of(path / STATE).name}
    for folder, _, names in os.walk(path):
        for name in names:
            below = PurePosixPath((Path(folder) / name).relative_to(path).as_posix())
            if str(below) not in own and not owns(_without_part(below)):
                raise BundleError(
                    f"{path} holds {printable(below)}, which the export that was begun there did not write; take it away, or "
                    "name another folder with --output"
                )


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return printable(text, 200)


def _read_state(path: Path) -> dict[str, Any] | None:
    """What a folder says that it holds; None: it says nothing.

    Raises:
        BundleError: The file is damaged.
    """
    file = path / STATE
    if not file.is_file():
        return None
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["format"] != FORMAT or not isinstance(state["export"], dict):
            raise ValueError(f"not of the format {FORMAT}")
        return {"export": state["export"], "complete": bool(state["complete"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{file} cannot be used ({printable(repr(error))}); name another folder with --output"
        ) from None


def _write_state(path: Path, description: Mapping[str, Any], *, complete: bool) -> None:
    state = {"format": FORMAT, "complete": complete, "export": description}
    write_whole(path / STATE, (json.dumps(state, indent=1, ensure_ascii=False) + "\n").encode())


def part_of(path: Path) -> Path:
    """The hidden name under which a file is written before it is whole."""
    return path.with_name(f".{path.name}.part")


def _without_part(path: PurePosixPath) -> PurePosixPath:
    """Undo :func:`part_of`."""
    name = path.name
    return path.with_name(name[1:-5]) if name.startswith(".") and name.endswith(".part") and len(name) > 6 else path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there with all its bytes, or not at all."""
    part = part_of(path)
    part.write_bytes(data)
    part.replace(path)
