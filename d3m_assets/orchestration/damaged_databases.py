"""SQLite databases of the instance that are damaged: found, put aside and replaced by new ones.

A new one is made beside the damaged one and takes its place when it is whole, so that ``d3m ui``, open meanwhile, never meets
one without its tables, which it would never look at again.

Nothing is lost with them but the history of runs: artefacts and their commit records are in the store, and what Dagster does
not know of them is recorded again by the next run (:mod:`~d3m_assets.orchestration.recovery`).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

DATABASES = ("event_log.db", "history/runs.db", "history/runs/index.db", "schedules/schedules.db")
"""Where Dagster's SQLite storages are in the folder of an instance, by our ``dagster.yaml`` and by Dagster's defaults."""
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Error codes for contents that are no database. A file that is locked, unreadable or on a full disk has others."""
MOST_BYTES_CHECKED = 2**29
"""Of a larger database only the head is looked at, which tells that it was cut; the check of 205 MB took 0.5 s. What is
damaged inside of it is found when it is used."""

LAST_TABLE = {"event_log.db": "alembic_version"}
"""The table that Dagster makes last (1.13.27). It never looks again at an event log that is there, so that one whose maker was
killed meanwhile lacks tables for ever, and runs fail or hang for want of them."""
SECONDS_TO_BE_MADE = 10.0
"""Another process may be making the tables at this moment."""

NEW = ".new-"
"""What the names of folders begin with in which new databases are made."""


def put_aside(home: Path, make: Callable[[str, Path], object], most_bytes: float = MOST_BYTES_CHECKED) -> list[str]:
    """Rename damaged databases of an instance, and put new ones in their place; for one process at a time.

    Args:
        home: Folder of the instance.
        make: Makes one of :data:`DATABASES`, by its name, below a folder.
        most_bytes: Size of a database up to which all of it is checked.

    Returns:
        A sentence for each that was damaged.
    """
    told = []
    for left in home.glob(f"{NEW}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    for name in DATABASES:
        database = home / name
        if database.is_file() and (damage := _damage(database, most_bytes) or _half_made(database)):
            suffix = datetime.now(UTC).strftime(".damaged-%Y-%m-%dT%H-%M-%SZ")
            with tempfile.TemporaryDirectory(prefix=NEW, dir=home) as folder:
                make(name, Path(folder))
                _keep_as(database, Path(f"{database}{suffix}"))
                # Its write-ahead log goes along: applied to the new database, it would damage that one too. In the last moment,
                # since whoever still writes to the damaged one begins another log.
                for part in ("-wal", "-shm", "-journal"):
                    with contextlib.suppress(FileNotFoundError):
                        Path(f"{database}{part}").replace(f"{database}{suffix}{part}")
                (Path(folder) / name).replace(database)
            told.append(
                f"Dagster's database {database} was damaged ({damage}) and is kept as {database.name}{suffix}; a new one is "
                "made, and the next run records in it what the store has"
            )
    return told


def _keep_as(database: Path, other: Path) -> None:
    """Give a file a second name, so that the first is there all the time; a copy where the disk has no such names."""
    try:
        other.hardlink_to(database)
    except FileExistsError:  # of a process that was killed within the same second
        return
    except OSError:
        shutil.copyfile(database, other)


def _damage(database: Path, most_bytes: float) -> str:
    """What is wrong with the contents of a database, empty if nothing was found or it cannot be read now."""
    try:
        with _opened(database) as connection:
            if database.stat().st_size > most_bytes:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
                return ""
            ((found, *_),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            return "" if found == "ok" else " ".join(str(found).split())
    except sqlite3.DatabaseError as error:
        return str(error) if is_damage(error) else ""


def _half_made(database: Path) -> str:
    """Says so if the making of a database was begun and not ended, and nobody is at it."""
    if (table := LAST_TABLE.get(database.name)) is None:
        return ""
    deadline = time.monotonic() + SECONDS_TO_BE_MADE
    while True:
        try:
            with _opened(database) as connection:
                query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
                if connection.execute(query, [table]).fetchone() != (0,):
                    return ""
        except sqlite3.DatabaseError:  # it is locked, or cannot be read now
            return ""
        if time.monotonic() > deadline:
            return "its making was interrupted"
        time.sleep(0.2)


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite says that the contents of a file are no database."""
    # The lowest byte is the primary code, those above it say more.
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.DatabaseError) and code is not None and code & 0xFF in DAMAGE


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    # Not read-only: after a crash, the first to open it has to write its log back.
    with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as connection:
        yield connection
