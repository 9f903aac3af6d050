"""SQLite files of the instance that are damaged in many ways, and those that only cannot be read at the moment."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.orchestration import damaged_databases
from d3m_assets.orchestration.dagster_private import make_database
from d3m_assets.orchestration.damaged_databases import DATABASES, is_damage, put_aside
from d3m_assets.orchestration.instance_errors import explained
from d3m_assets.orchestration.launch import open_instance, run_pending, usable_databases
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets_tests.orchestration.runs import counts

Damage = Callable[[Path], object]


def cut_in_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def zero_page(number: int) -> Damage:
    def zero(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[4096 * number : 4096 * (number + 1)] = bytes(4096)
        file.write_bytes(content)

    return zero


DAMAGES: dict[str, Damage] = {
    "cut in half": cut_in_half,
    "cut in the first page": lambda file: file.write_bytes(file.read_bytes()[:1000]),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "garbage": lambda file: file.write_bytes(b"garbage\n" * 5000),
    "first page zeroed": zero_page(0),
    "a page zeroed": zero_page(3),
}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """One with some pages of a table, and its log written back."""
    file = tmp_path / DATABASES[1]
    file.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, body TEXT)")
        connection.executemany("INSERT INTO runs (body) VALUES (?)", [("x" * 500,)] * 200)
    return file


def tables_of(database: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_database_is_put_aside_with_its_log(tmp_path: Path, database: Path, damage: Damage) -> None:
    damage(database)
    before = database.read_bytes()
    Path(f"{database}-wal").touch()
    (sentence,) = put_aside(tmp_path, make_database)
    assert str(database) in sentence
    new, kept, *more = [name for name in files(tmp_path) if not name.endswith(("-wal", "-shm"))]
    assert new == "runs.db"
    assert not more
    assert kept.startswith("runs.db.damaged-20")
    assert kept in sentence
    assert (database.parent / kept).read_bytes() == before
    assert "alembic_version" in tables_of(database)
    assert not Path(f"{database}-wal").exists()
    assert put_aside(tmp_path, make_database) == []


@pytest.mark.parametrize("names", [True, False], ids=["a disk with hard links", "one without"])
def test_a_log_that_is_begun_while_the_damaged_one_is_kept_goes_along(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, names: bool
) -> None:
    database.write_bytes(database.read_bytes()[:5000])
    link = Path.hardlink_to

    def while_somebody_writes(self: Path, target: Path) -> None:
        Path(f"{database}-wal").write_bytes(b"of the damaged one")
        if not names:
            raise OSError("no hard links")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", while_somebody_writes)
    assert len(put_aside(tmp_path, make_database)) == 1
    (log,) = database.parent.glob("runs.db.damaged-*-wal")
    assert log.read_bytes() == b"of the damaged one"
    assert not Path(f"{database}-wal").exists()


def test_putting_aside_goes_on_where_a_process_was_killed_within_the_same_second(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.write_bytes(database.read_bytes()[:5000])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(damaged_databases, "datetime", Clock)
        patch.setattr(Path, "replace", interrupted)
        put_aside(tmp_path, make_database)
    monkeypatch.setattr(damaged_databases, "datetime", Clock)
    assert len(put_aside(tmp_path, make_database)) == 1
    assert "alembic_version" in tables_of(database)


class Clock:
    """A clock that stands still."""

    @staticmethod
    def now(zone: object) -> datetime:
        return datetime(2026, 11, 28, tzinfo=UTC)


def interrupted(self: Path, target: Path) -> None:
    raise KeyboardInterrupt


def test_a_whole_database_stays_also_one_whose_log_is_lost_or_not_written_back(tmp_path: Path, database: Path) -> None:
    assert put_aside(tmp_path, make_database) == []
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            connection.execute("INSERT INTO runs (body) VALUES ('new')")
        killed, lost = tmp_path / "killed", tmp_path / "lost"
        shutil.copytree(database.parent, killed / "history")
        shutil.copytree(database.parent, lost / "history", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    for home, rows in ((killed, 201), (lost, 200)):
        assert put_aside(home, make_database) == []
        with contextlib.closing(sqlite3.connect(home / DATABASES[1])) as connection:
            assert connection.execute("SELECT count(*) FROM runs").fetchone() == (rows,)


def test_a_database_that_is_locked_is_left_alone(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **options, timeout=0.1))
    with contextlib.closing(connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert put_aside(tmp_path, make_database) == []
        connection.rollback()
    assert files(tmp_path) == ["runs.db"]


@pytest.mark.parametrize(
    "code", ["SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY"]
)
def test_what_is_wrong_with_the_disk_or_the_rights_is_no_damage(code: str) -> None:
    error = sqlite3.OperationalError(code)
    error.sqlite_errorcode = getattr(sqlite3, code)
    assert not is_damage(error)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT_INDEX
    assert is_damage(error)


def test_damage_inside_a_large_database_is_met_and_put_aside_then(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_aside, "__defaults__", (10_000,))
    zero_page(20)(database)
    told: list[str] = []
    with pytest.raises(sqlite3.DatabaseError), usable_databases(tmp_path, told.append):
        assert told == []
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("SELECT sum(length(body)) FROM runs").fetchall()
    assert len(told) == 1
    assert len(list(tmp_path.rglob("runs.db.damaged-*Z"))) == 1
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_a_large_database_that_was_cut_is_put_aside_at_once(tmp_path: Path, database: Path) -> None:
    cut_in_half(database)
    assert len(put_aside(tmp_path, make_database, most_bytes=0)) == 1


@pytest.mark.parametrize("tables", ["", "CREATE TABLE event_logs (id INTEGER)"], ids=["no table", "the first table"])
def test_an_event_log_whose_maker_was_killed_is_put_aside_and_one_that_is_being_made_is_not(
    tmp_path: Path, tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure prevented: Dagster never makes the missing tables, and the next runs fail or hang for want of them."""
    database = tmp_path / "event_log.db"

    def make(statement: str) -> None:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(statement)

    database.touch()
    if tables:
        make(tables)
    last = threading.Timer(0.5, make, ["CREATE TABLE alembic_version (version_num TEXT)"])
    last.start()
    assert put_aside(tmp_path, make_database) == []
    last.join()
    make("DROP TABLE alembic_version")
    monkeypatch.setattr(damaged_databases, "SECONDS_TO_BE_MADE", 0.1)
    (sentence,) = put_aside(tmp_path, make_database)
    assert "its making was interrupted" in sentence
    assert {"alembic_version", "event_logs", "asset_keys"} <= tables_of(database)


@pytest.mark.parametrize("name", DATABASES)
def test_another_process_meets_the_damaged_database_or_a_whole_one_and_nothing_between(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure prevented: `d3m ui`, open meanwhile, makes an empty file of that name, or sees a half-made event log."""
    database = tmp_path / name
    make_database(name, tmp_path)
    whole = tables_of(database)
    cut_in_half(database)
    damaged = database.read_bytes()
    seen: list[str] = []
    replace = Path.replace

    def look() -> None:
        content = database.read_bytes() if database.exists() else b""
        seen.append("damaged" if content == damaged else "whole" if tables_of(database) == whole else "neither")

    def make(name: str, folder: Path) -> None:
        look()
        make_database(name, folder)
        look()

    def watched(path: Path, target: Path) -> Path:
        moved = replace(path, target)
        look()
        return moved

    monkeypatch.setattr(Path, "replace", watched)
    assert len(put_aside(tmp_path, make)) == 1
    assert seen == ["damaged", "damaged", "whole"]
    assert not list(tmp_path.glob(".new-*"))


def test_the_store_is_recorded_again_after_the_databases_were_damaged(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    run_pending(settings, instance, Pipeline(settings)).raise_for_failures()
    recorded = {asset: counts(instance, asset) for asset in GRAPH.names}
    home = settings.home / "dagster"
    for name in ("event_log.db", "history/runs.db", "schedules/schedules.db"):
        cut_in_half(home / name)
    told: list[str] = []
    with open_instance(settings, told.append) as again:
        assert [name for name in DATABASES if any(name in sentence for sentence in told)] == [
            "event_log.db", "history/runs.db", "schedules/schedules.db"
        ]  # fmt: skip
        assert again.get_runs() == []
        launched = run_pending(settings, again, Pipeline(settings))
        assert launched.run_id is None, "nothing was to be made"
        assert {asset: counts(again, asset) for asset in GRAPH.names} == recorded
        assert again.get_dynamic_partitions(CLASSES) == ["a", "b", "c"]
        run_pending(settings, again, Pipeline(settings))
        assert {asset: counts(again, asset) for asset in GRAPH.names} == recorded
    with open_instance(settings, told.append):
        assert len(told) == 3


OPEN = """
import os, sys, time
from pathlib import Path
os.environ["DAGSTER_HOME"] = ""
from d3m_assets.orchestration.launch import open_instance
from d3m_assets.settings import load_settings
settings = load_settings(home=sys.argv[1])
Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("ready-*"))) < 3:
    time.sleep(0.01)
with open_instance(settings) as instance:
    instance.add_dynamic_partitions("words", [sys.argv[3]])
"""


def test_processes_that_meet_a_damaged_database_at_once_put_it_aside_once(settings: Settings, tmp_path: Path) -> None:
    with open_instance(settings):
        home = settings.home / "dagster"
    for name in DATABASES:
        if (home / name).exists():
            cut_in_half(home / name)
    damaged = sorted(name for name in DATABASES if (home / name).exists())
    commands = [
        [sys.executable, "-c", OPEN, str(settings.home), str(tmp_path / f"ready-{word}"), word] for word in "abc"
    ]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    told = "".join(process.communicate(timeout=120)[1] for process in started)
    assert [process.returncode for process in started] == [0, 0, 0], told
    aside = sorted(path.relative_to(home).as_posix().partition(".damaged-")[0] for path in home.rglob("*.damaged-*Z"))
    assert aside == damaged
    assert told.count("was damaged") == len(damaged)
    with open_instance(settings) as instance:
        assert sorted(instance.get_dynamic_partitions("words")) == ["a", "b", "c"]


def test_the_sentence_of_a_damaged_database_names_the_way_out(tmp_path: Path, database: Path) -> None:
    cut_in_half(database)
    from d3m_assets.errors import InstanceError

    with (
        pytest.raises(InstanceError, match="is damaged: .*`d3m distill` puts it aside"),
        explained(tmp_path),
        contextlib.closing(sqlite3.connect(database)) as connection,
    ):
        connection.execute("SELECT sum(length(body)) FROM runs").fetchall()
