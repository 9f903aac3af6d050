"""A store that is busy, refuses, is full or damaged: what is asked again, what stops, what is made again."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from d3m_assets.assets.class_catalog import stored_catalog
from d3m_assets.assets.files import to_parquet
from d3m_assets.errors import DamagedError, StageError, StoreError, StoreNotWritableError, StoreUnavailableError
from d3m_assets.planning.planner import Outcome
from d3m_assets.store import ArtefactKey, Spec, Store
from d3m_assets.store_access import StoreFiles
from d3m_assets.store_errors import is_transient
from d3m_assets_tests.planning.toys import ToyContext, ToyPlanner

KEY = ArtefactKey("toy_word", "a")
SPEC = Spec({}, {}, "1")
WORDS = {"a": "apple", "b": "bee"}


class ServiceError(Exception):
    """An answer as botocore raises it."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(f"An error occurred ({code or status})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture
def remote() -> Store:
    """A store in memory, which is as remote as S3 to everything above it."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    # An instance of its own: what a test breaks must not be cached for others.
    return Store.open("memory://d3m/store", {"skip_instance_cache": True}, retry_seconds=5.0)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


def failing(monkeypatch, store: Store, method: str, error: Exception, times: int, path: str = "") -> Callable[[], int]:
    """Let a method of the store's file system fail; returns how often it was asked."""
    real, asked = getattr(store._fs, method), []

    def fail(*arguments, **named):
        if path not in str(arguments[0]):
            return real(*arguments, **named)
        asked.append(arguments)
        if len(asked) <= times:
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(store._fs, method, fail)
    return lambda: len(asked)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ServiceError(503, "SlowDown"), True),
        (ServiceError(500), True),
        (ServiceError(429), True),
        (ServiceError(400, "RequestTimeout"), True),
        (ServiceError(403, "AccessDenied"), False),
        (ServiceError(404, "NoSuchBucket"), False),
        (ServiceError(400, "InvalidArgument"), False),
        (caused(OSError(errno.EBUSY, "no"), ServiceError(503, "SlowDown")), True),  # as s3fs raises it
        (caused(PermissionError("Access Denied"), ServiceError(403)), False),
        (caused(FileNotFoundError("NoSuchBucket"), ServiceError(404)), False),
        (TimeoutError(), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (type("ClientPayloadError", (Exception,), {})("half of it"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("no JSON"), False),
    ],
    ids=repr,
)
def test_what_is_asked_again(error, transient):
    assert is_transient(error) == transient


@pytest.mark.parametrize(
    ("method", "use"),
    [
        ("cat_file", lambda store: store.read(KEY, "word.json")),
        ("cat_file", lambda store: store.look(KEY)),
        ("ls", lambda store: store.look(KEY)),
        ("ls", lambda store: store.assets()),
        ("find", lambda store: store.listing()),
        ("find", lambda store: store.keys("toy_word")),
        ("pipe_file", lambda store: store.write(KEY, SPEC, {"word.json": b"2"}, {})),
        ("rm_file", lambda store: store.delete(KEY)),
    ],
)
def test_a_busy_service_is_asked_again_and_one_that_refuses_is_not(remote, monkeypatch, method, use):
    remote.write(KEY, SPEC, {"word.json": b"1"}, {})
    asked = failing(monkeypatch, remote, method, ServiceError(503, "SlowDown"), times=3)
    use(remote)
    assert asked() > 3
    asked = failing(monkeypatch, remote, method, PermissionError("Access Denied"), times=10**6)
    with pytest.raises((StoreUnavailableError, StoreNotWritableError), match="Access Denied"):
        use(remote)
    assert asked() == 1


def test_a_service_that_stays_busy_is_given_up_after_a_while(remote, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    error = ServiceError(503, "SlowDown s3://user:hunter2@bucket")
    asked = failing(monkeypatch, remote, "cat_file", error, times=10**6)
    short = Store.open("memory://d3m/store", {"skip_instance_cache": True}, retry_seconds=0.05)
    short._fs.cat_file = remote._fs.cat_file
    with pytest.raises(StoreUnavailableError, match="does not answer just now: run the same command again") as told:
        short.manifest(KEY)
    assert asked() > 1
    assert "asked again in" in caplog.text
    assert "hunter2" not in str(told.value) + caplog.text


def test_nobody_at_an_address_is_told_at_once_and_waited_for_once_somebody_was_there(remote, monkeypatch):
    refused = caused(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), socket.gaierror("unknown"))
    asked = failing(monkeypatch, remote, "cat_file", refused, times=10**6)
    with pytest.raises(StoreUnavailableError, match="no server answers there"):
        remote.manifest(KEY)
    assert asked() == 1
    monkeypatch.undo()
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    remote.assets()
    asked = failing(monkeypatch, remote, "cat_file", refused, times=2)
    assert remote.manifest(KEY) is None
    assert asked() == 3


def test_wrong_bytes_on_the_way_are_read_again_before_they_are_called_damage(remote, monkeypatch):
    remote.write(KEY, SPEC, {"word.json": b"whole"}, {})
    real, cut = remote._fs.cat_file, []

    def cut_once(path, *arguments, **named):
        data = real(path, *arguments, **named)
        if path in cut:
            return data
        cut.append(path)
        return data[: len(data) // 2]

    monkeypatch.setattr(remote._fs, "cat_file", cut_once)
    assert remote.read(KEY, "word.json") == b"whole"
    assert len(cut) == 2  # the commit record and the file
    assert remote.look(KEY).damage == ""
    remote.keep_record("students", "0" * 64, {"accuracy": 0.5})
    assert remote.record("students", "0" * 64) == {"accuracy": 0.5}
    assert len(cut) == 3


@pytest.mark.parametrize("error", [ServiceError(503, "SlowDown"), PermissionError("Access Denied")])
def test_a_plan_over_a_store_that_cannot_be_read_is_no_plan(remote, monkeypatch, error):
    """One commit record that cannot be read just now must not have its artefact, and all below it, made again."""
    context = ToyContext(dict(WORDS))
    planner = ToyPlanner(context, remote)
    planner.work_through(planner.plan())
    context.made.clear()
    fresh = Store.open("memory://d3m/store", {"skip_instance_cache": True}, retry_seconds=0.0)
    failing(monkeypatch, fresh, "cat_file", error, times=10**6, path="toy_word/class=b/manifest.json")
    again = ToyPlanner(context, fresh)
    with pytest.raises(StoreUnavailableError, match="toy_word/class=b/manifest.json"):
        again.plan()
    with pytest.raises(StoreUnavailableError, match="toy_word/class=b/manifest.json"):
        list(again.materialize("toy_word", again.keys("toy_word")))
    assert context.made == []


def test_a_catalog_that_cannot_be_read_just_now_is_not_damaged(remote, monkeypatch):
    import pandas as pd

    key = ArtefactKey("class_catalog")
    table = pd.DataFrame({"class_name": ["a"], "fingerprint": ["f"], "active": [False]})
    remote.write(key, SPEC, {"catalog.parquet": to_parquet(table)}, {})
    for path in ("manifest.json", ".parquet"):
        fresh = Store.open("memory://d3m/store", {"skip_instance_cache": True}, retry_seconds=0.0)
        failing(monkeypatch, fresh, "cat_file", ServiceError(503, "SlowDown"), times=10**6, path=path)
        with pytest.raises(StoreUnavailableError) as told:
            stored_catalog(fresh, None)  # type: ignore[arg-type]
        assert "damaged" not in str(told.value)
        assert "delete" not in str(told.value)
    # What is damaged for good is still said to be.
    (data,) = [path for path in remote._fs.find(remote._root) if path.endswith(".parquet")]
    remote._fs.pipe_file(data, b"\0" * len(remote._fs.cat_file(data)))
    with pytest.raises(StoreError, match="delete that folder"):
        stored_catalog(remote, None)  # type: ignore[arg-type]


def refuse_writes(monkeypatch, number: int, after: int = 0) -> list[str]:
    """Let disks take so many files and no more; returns the paths that were asked for."""
    put, asked = StoreFiles.put, []

    def refuse(files, path, data):
        asked.append(path)
        if len(asked) > after:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data[: len(data) // 2])  # as much as there was room for
            raise OSError(number, "no", path)
        put(files, path, data)

    monkeypatch.setattr(StoreFiles, "put", refuse)
    return asked


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_store_that_takes_nothing_ends_the_run_before_the_work(tmp_path, monkeypatch, number):
    planner = ToyPlanner(ToyContext(dict(WORDS)), Store.open(tmp_path / "store"))
    asked = refuse_writes(monkeypatch, number)
    with pytest.raises(StoreNotWritableError, match="name another place"):
        planner.work_through(planner.plan())
    assert planner.context.made == []
    assert len(asked) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_disk_that_is_full_in_a_run_ends_it_after_the_first_artefact(tmp_path, monkeypatch, after):
    """The probe, a data file and the two parts of a commit; of what failed nothing stays."""
    store = Store.open(tmp_path / "store")
    planner = ToyPlanner(ToyContext({letter: letter for letter in "abcdef"}), store)
    with monkeypatch.context() as patch:
        refuse_writes(patch, errno.ENOSPC, after)
        with pytest.raises(StoreNotWritableError, match="free some space"):
            planner.work_through(planner.plan())
    committed = store.keys("toy_word")
    assert len(planner.context.made) == len(committed) + 1 < 4
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2 * len(committed)


def test_a_service_that_refuses_writing_ends_the_run(remote, monkeypatch):
    planner = ToyPlanner(ToyContext(dict(WORDS)), remote)
    failing(monkeypatch, remote, "pipe_file", PermissionError("Access Denied"), times=10**6)
    with pytest.raises(StoreNotWritableError, match="the service refuses these credentials"):
        planner.work_through(planner.plan())
    assert planner.context.made == []


def test_an_input_that_cannot_be_read_just_now_ends_the_run(remote, monkeypatch):
    context = ToyContext(dict(WORDS))
    planner = ToyPlanner(context, remote)
    plan = planner.plan()
    with monkeypatch.context() as patch:
        fresh = Store.open("memory://d3m/store", {"skip_instance_cache": True}, retry_seconds=0.0)
        failing(patch, fresh, "cat_file", ServiceError(503), times=10**6, path="toy_word/class=a/word")
        with pytest.raises(StoreUnavailableError, match="toy_word/class=a/word"):
            ToyPlanner(context, fresh).work_through(plan)
    assert [name for name in context.made if name.startswith("toy_image")] == ["toy_image [a, small]"]


def test_what_is_up_to_date_needs_no_store_that_can_be_written(tmp_path, monkeypatch):
    store = Store.open(tmp_path / "store")
    ToyPlanner(ToyContext(dict(WORDS)), store).work_through(ToyPlanner(ToyContext(dict(WORDS)), store).plan())
    asked = refuse_writes(monkeypatch, errno.EROFS)
    planner = ToyPlanner(ToyContext(dict(WORDS)), store)
    assert planner.work_through(planner.plan()).failed == []
    assert {o.skipped for o in planner.materialize("toy_image", planner.keys("toy_image"))} == {True}
    assert planner.preview(KEY)
    assert asked == []


def flip(store: Store, key: ArtefactKey, name: str) -> Path:
    """Change one byte of a stored file, and neither its size nor its time of change."""
    import os

    path = Path(store.uri(key, name))
    data, times = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return path


def test_a_flipped_byte_found_in_a_run_is_made_again_by_it_and_then_what_needs_it(tmp_path):
    store = Store.open(tmp_path / "store")
    planner = ToyPlanner(ToyContext(dict(WORDS)), store)
    planner.work_through(planner.plan())
    good = store.read(KEY, "word.json")
    flip(store, KEY, "word.json")
    assert planner.plan().pending() == []  # nobody has looked yet
    needs_it = ArtefactKey("toy_image", "a", "small")
    store.delete(needs_it)
    again = ToyPlanner(ToyContext(dict(WORDS)), store)
    tally = again.work_through(again.plan(), selected=[str(needs_it)])
    assert (tally.failed, tally.blocked) == ([], [])
    assert tally.made == [KEY, needs_it]  # only what was damaged, with the same bytes
    assert store.read(KEY, "word.json") == good
    assert again.plan().pending() == []
    assert list(Path(store.uri(KEY)).glob("*.damaged")) == []


def test_two_damaged_inputs_are_made_again_and_what_failed_for_another_reason_is_not(tmp_path):
    words_of = WORDS | {"c": "cedar"}
    store = Store.open(tmp_path / "store")
    planner = ToyPlanner(ToyContext(dict(words_of)), store)
    planner.work_through(planner.plan())
    images = [ArtefactKey("toy_image", name, "small") for name in words_of]
    words = [ArtefactKey("toy_word", name) for name in list(words_of)[:2]]
    assert len(images) > 2
    for key in words:
        flip(store, key, "word.json")
    score = ArtefactKey("toy_score", None, "small")
    for key in [*images, score]:
        store.delete(key)
    again = ToyPlanner(ToyContext(dict(words_of)), store)
    make, asked = again.materialize, []

    def one_fails(asset, keys):
        asked.extend(keys)
        for outcome in make(asset, keys):
            yield Outcome(outcome.key, None, error=StageError("no luck")) if outcome.key == images[2] else outcome

    tally = again.work_through(again.plan(), materialize=one_fails)
    assert [outcome.key for outcome in tally.failed] == [images[2]]
    assert asked.count(images[2]) == 1
    assert score in tally.blocked and score not in tally.deferred
    assert {*words, *images[:2]} <= set(tally.made)


def test_a_disk_that_damages_what_is_written_is_told_after_one_repair(tmp_path, monkeypatch):
    store = Store.open(tmp_path / "store")
    planner = ToyPlanner(ToyContext(dict(WORDS)), store)
    planner.work_through(planner.plan())
    flip(store, KEY, "word.json")
    store.delete(ArtefactKey("toy_image", "a", "small"))
    write, made = Store.write, []

    def write_badly(self, key, *arguments, **named):
        manifest = write(self, key, *arguments, **named)
        made.append(key)
        if key == KEY:
            flip(store, KEY, "word.json")
        return manifest

    monkeypatch.setattr(Store, "write", write_badly)
    again = ToyPlanner(ToyContext(dict(WORDS)), store)
    (failed,) = again.work_through(again.plan()).failed
    assert made == [KEY]
    assert failed.key == ArtefactKey("toy_image", "a", "small")
    assert "`d3m distill` will rebuild it" in str(failed.error)


def test_a_damaged_artefact_in_a_store_that_is_only_read_is_refused_all_the_same(tmp_path, monkeypatch):
    store = Store.open(tmp_path / "store")
    store.write(KEY, SPEC, {"word.json": b"12345"}, {})
    flip(store, KEY, "word.json")
    refuse_writes(monkeypatch, errno.EROFS)
    with pytest.raises(DamagedError, match="is damaged"):
        store.read(KEY, "word.json")
