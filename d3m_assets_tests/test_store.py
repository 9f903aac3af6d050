from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from d3m_assets import store as store_module
from d3m_assets.errors import StoreError
from d3m_assets.store import ArtefactKey, Spec, Store, Stored, manifest_from_json
from d3m_assets.store_access import StoreFiles
from d3m_assets_tests.requirements import need

KEY = ArtefactKey("inverted_embeddings", class_key="7", budget="ipc-1")
SPEC = Spec({"raw_dataset [7]": "aa"}, {"inversion": {"steps": 150}, "seeds": (0, 1)}, "1")


needs_s3 = need(
    "s3", find_spec("s3fs") and find_spec("moto"), "s3fs or moto not installed; they are in the extra `test`"
)
S3 = pytest.param("s3", marks=needs_s3)


@pytest.fixture(params=["local", "memory", S3])
def store(request, tmp_path):
    if request.param == "s3":
        return Store.open("s3://d3m/some/prefix", request.getfixturevalue("s3_options"))
    if request.param == "memory":
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        return Store.open("memory://d3m/store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def local(tmp_path):
    return Store.open(tmp_path / "store")


def folder_of(store: Store, key: ArtefactKey = KEY) -> Path:
    return Path(store.uri(key))


def test_write_then_read(store):
    assert store.manifest(KEY) is None
    assert store.look(KEY) == Stored(None)
    written = store.write(KEY, SPEC, {"a.bin": b"one", "b": b""}, {"loss": np.float32(0.5)})
    assert store.manifest(KEY) == written
    assert written.fingerprint == SPEC.fingerprint
    assert written.metrics == {"loss": 0.5}
    assert store.read(KEY, "a.bin") == b"one"
    assert store.read(KEY, "b") == b""
    assert store.look(KEY) == Stored(written)
    assert pickle.loads(pickle.dumps(store)).url == store.url


def test_replacing_deletes_the_old_files_only(store):
    store.write(KEY, SPEC, {"a.bin": b"one", "gone.bin": b"x"}, {})
    store.write(KEY, SPEC, {"a.bin": b"two"}, {})
    assert store.read(KEY, "a.bin") == b"two"
    names = {path.rpartition("/")[2] for path in store._listing(store._folder(KEY))}
    assert names == {"manifest.json", store.manifest(KEY).files["a.bin"].path}
    with pytest.raises(StoreError, match=r"has no file gone.bin; it has a.bin"):
        store.read(KEY, "gone.bin")


def test_keys_and_delete(store):
    keys = [
        ArtefactKey("class_catalog"),
        ArtefactKey("raw_dataset", class_key="manifest.json"),
        ArtefactKey("raw_dataset", class_key="x"),
        ArtefactKey("raw_dataset", budget="x"),
        KEY,
    ]
    for number, key in enumerate(keys):
        store.write(key, SPEC, {"a": bytes([number])}, {})
    assert set(store.keys("raw_dataset")) == set(keys[1:4])
    assert store.keys("class_catalog") == keys[:1]
    assert store.keys("inverted_embeddings") == [KEY]
    assert store.keys("student_metrics") == []
    store.delete(keys[2])
    store.delete(keys[2])
    assert set(store.keys("raw_dataset")) == {keys[1], keys[3]}
    assert [store.read(key, "a")[0] for key in keys if key != keys[2]] == [0, 1, 3, 4]
    assert store.manifest(keys[2]) is None


def test_missing_and_shortened_files_are_noticed(store):
    manifest = store.write(KEY, SPEC, {"a.bin": b"one"}, {})
    path = f"{store._folder(KEY)}/{manifest.files['a.bin'].path}"
    store._fs.pipe_file(path, b"on")
    assert store.look(KEY) == Stored(manifest, damage="file a.bin has 2 bytes instead of 3")
    store._fs.rm_file(path)
    assert store.look(KEY) == Stored(manifest, damage="file a.bin missing")
    with pytest.raises(StoreError, match="is missing; `d3m distill` will rebuild it"):
        store.read(KEY, "a.bin")


def test_changed_bytes_are_refused(local):
    manifest = local.write(KEY, SPEC, {"a.bin": b"one"}, {})
    path = folder_of(local) / manifest.files["a.bin"].path
    path.write_bytes(b"two")
    with pytest.raises(StoreError, match=f"{path} of .* is damaged.*d3m distill"):
        local.read(KEY, "a.bin")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"fingerprint": 1}'])
def test_damaged_manifest_is_named_and_can_be_rebuilt(local, content):
    local.write(KEY, SPEC, {"a.bin": b"one"}, {})
    file = folder_of(local) / "manifest.json"
    file.write_bytes(content)
    with pytest.raises(StoreError, match=f"{file} is damaged"):
        local.manifest(KEY)
    found = local.look(KEY)
    assert (found.manifest, found.damage) == (None, "")
    assert f"{file} is damaged" in found.unreadable
    assert local.keys(KEY.asset) == [KEY]
    local.write(KEY, SPEC, {"a.bin": b"two"}, {})
    assert local.read(KEY, "a.bin") == b"two"


def test_every_flipped_bit_of_a_manifest_is_seen(local):
    local.write(KEY, SPEC, {"a.bin": b"one"}, {"accuracy": 0.75, "class": "Küche"}, {"run": None})
    file = folder_of(local) / "manifest.json"
    content = file.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            with pytest.raises(ValueError):
                manifest_from_json(bytes(changed))
    file.write_bytes(content.replace(b"0.75", b"0.95"))
    with pytest.raises(StoreError, match=f"{file} is damaged .*hash"):
        local.manifest(KEY)
    assert f"{file} is damaged" in local.check(KEY)[0]
    assert f"{file} is damaged" in local.look(KEY).unreadable


def test_a_manifest_of_an_earlier_version_has_no_hash_and_is_read(local):
    written = local.write(KEY, SPEC, {"a.bin": b"one"}, {"accuracy": 0.75})
    file = folder_of(local) / "manifest.json"
    content = json.loads(file.read_text())
    assert list(content)[-1] == "sha256"
    del content["sha256"]
    file.write_text(json.dumps(content))
    assert local.manifest(KEY) == written


def test_manifest_cannot_point_out_of_its_folder(local, tmp_path):
    local.write(KEY, SPEC, {"a.bin": b"one"}, {})
    (tmp_path / "secret").write_bytes(b"one")
    file = folder_of(local) / "manifest.json"
    content = json.loads(file.read_text())
    content["files"]["a.bin"]["path"] = "../../../../secret"
    del content["sha256"]  # whoever changes it can also leave that out
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="damaged"):
        local.read(KEY, "a.bin")


def test_failed_commit_keeps_the_previous_version(local, monkeypatch):
    local.write(KEY, SPEC, {"a.bin": b"one"}, {})

    def no_space(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_space)
        with pytest.raises(StoreError, match="No space left.*previous version is kept"):
            local.write(KEY, SPEC, {"a.bin": b"two"}, {})
    assert local.read(KEY, "a.bin") == b"one"
    # A full disk is not filled further: nothing of the version that failed stays.
    assert len(list(folder_of(local).iterdir())) == 2
    # What a killed writer left behind goes once no running one can own it.
    before = time.time() - 2 * 86400
    for name in ("a-7692c3ad3540bb80-07a169ad.bin", "manifest.json.07a169ad.tmp"):
        (folder_of(local) / name).write_bytes(b"two")
        os.utime(folder_of(local) / name, (before, before))
    local.write(KEY, SPEC, {"a.bin": b"three"}, {})
    assert len(list(folder_of(local).iterdir())) == 2


@pytest.mark.parametrize("part", ["", "a/b", "..", "a b", "ü", "x" * 65, "-a", "a\n", "a=b"])
def test_unsafe_keys_are_refused(part):
    for field in ("asset", "class_key", "budget"):
        with pytest.raises(StoreError, match="cannot name an artefact"):
            ArtefactKey(**{"asset": "raw_dataset", field: part})


def test_keys_in_words_and_paths():
    assert str(KEY) == "inverted_embeddings [7, ipc-1]"
    assert str(ArtefactKey("class_catalog")) == "class_catalog"
    assert KEY.path == "inverted_embeddings/budget=ipc-1/class=7"
    for key in (KEY, ArtefactKey("a"), ArtefactKey("a", class_key="b"), ArtefactKey("a", budget="b")):
        assert ArtefactKey.from_path(key.path) == key
    assert ArtefactKey.from_path("a/b") is None


def test_replicates_have_keys_of_their_own_and_the_first_keeps_the_old_path():
    second = dataclasses.replace(KEY, replicate=1)
    assert dataclasses.replace(KEY, replicate=0) == KEY
    assert str(second) == "inverted_embeddings [7, ipc-1, replicate 1]"
    assert second.path == "inverted_embeddings/budget=ipc-1/replicate=1/class=7"
    assert ArtefactKey("a", replicate=12).path == "a/replicate=12"
    for key in (
        second,
        ArtefactKey("a", replicate=12),
        ArtefactKey("a", "b", replicate=1),
        ArtefactKey("a", None, "b", 1),
    ):
        assert ArtefactKey.from_path(key.path) == key
    for path in ("a/replicate=0", "a/replicate=01", "a/replicate=-1", "a/class=b/replicate=1", "a/replicate=x"):
        assert ArtefactKey.from_path(path) is None
    with pytest.raises(StoreError, match="no replicate -1; they are counted from 0"):
        ArtefactKey("a", replicate=-1)


def test_replicates_are_stored_listed_and_deleted_apart(store):
    keys = [dataclasses.replace(KEY, class_key=c, replicate=r) for r in (0, 1, 10) for c in ("7", "8")]
    for number, key in enumerate(reversed(keys)):
        store.write(key, SPEC, {"a": bytes([number])}, {})
    assert store.keys(KEY.asset) == keys
    assert [store.read(key, "a")[0] for key in keys] == [5, 4, 3, 2, 1, 0]
    store.delete(keys[0])
    store.delete(keys[3])
    assert store.keys(KEY.asset) == [keys[1], keys[2], keys[4], keys[5]]
    assert store.look(keys[0]) == Stored(None)


def test_assets_lists_what_is_stored_and_nothing_else(store):
    assert store.assets() == []
    store.write(KEY, SPEC, {"a": b"x"}, {})
    store.write(ArtefactKey("class_catalog"), SPEC, {"a": b"x"}, {})
    store.keep_record("students", "ab" * 32, {"accuracy": 0.5})
    assert store.assets() == ["class_catalog", "inverted_embeddings"]


def test_records_are_kept_found_and_dropped(store):
    first, second = "ab" * 32, "cd" * 32
    assert store.record("students", first) is None
    assert store.records("students") == []
    store.drop_record("students", first)

    kept = {"accuracy": np.float32(0.5), "curve": np.array([1.0, np.nan]), "by class": {"ü": 1}}
    store.keep_record("students", second, kept)
    store.keep_record("students", first, {"accuracy": 0.25})
    store.keep_record("teachers", first, {"accuracy": 1})
    assert store.record("students", second) == {"accuracy": 0.5, "curve": [1.0, None], "by class": {"ü": 1}}
    assert store.record("teachers", first) == {"accuracy": 1}
    assert store.records("students") == [first, second]

    store.keep_record("students", first, {"accuracy": 0.75})
    assert store.record("students", first) == {"accuracy": 0.75}
    store.drop_record("students", first)
    assert store.record("students", first) is None
    assert store.records("students") == [second]
    assert store.records("teachers") == [first]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-4],
        lambda content: b"\xff",
        lambda content: b"[]",
        lambda content: b"null",
        lambda content: b'{"value": {"accuracy": 0.5}}',
        lambda content: content.replace(b"0.5", b"0.9"),
    ],
)
def test_a_damaged_record_is_none_and_can_be_kept_again(local, damage):
    digest = "ab" * 32
    local.keep_record("students", digest, {"accuracy": 0.5})
    (file,) = Path(local.url).rglob(f"{digest}.json")
    content = file.read_bytes()
    assert damage(content) != content
    file.write_bytes(damage(content))
    assert local.record("students", digest) is None
    local.keep_record("students", digest, {"accuracy": 0.5})
    assert local.record("students", digest) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("kind", "digest"), [("..", "ab" * 32), ("a/b", "ab" * 32), ("students", "../x"), ("students", "AB" * 32)]
)
def test_records_cannot_leave_their_folder(local, kind, digest):
    for use in (local.record, local.drop_record, lambda kind, digest: local.keep_record(kind, digest, {})):
        with pytest.raises(StoreError, match="cannot name a kept result"):
            use(kind, digest)


def test_a_record_that_is_not_json_is_refused(local):
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        local.keep_record("students", "ab" * 32, {"student": object()})
    assert local.records("students") == []


def test_a_refused_record_is_a_store_error(local, monkeypatch):
    def no_space(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(StoreError, match="cannot write .*No space left"):
        local.keep_record("students", "ab" * 32, {"accuracy": 0.5})


def test_fingerprint_depends_on_everything_and_nothing_else():
    same = Spec(dict(SPEC.inputs), {"seeds": [0, 1], "inversion": {"steps": np.int64(150)}}, "1")
    assert same.fingerprint == SPEC.fingerprint
    changed = [{"inputs": {}}, {"settings": {}}, {"code_version": "2"}]
    assert len({dataclasses.replace(SPEC, **c).fingerprint for c in changed} | {SPEC.fingerprint}) == 4


@pytest.mark.parametrize(
    ("files", "metrics", "message"),
    [
        ({"../a": b""}, {}, "'../a' cannot name a file"),
        ({"manifest.json": b""}, {}, "manifest.json"),
        ({}, {"model": object()}, "metrics of .* cannot be written as JSON"),
        ({}, {"by_class": {3: 0.5}}, "the key 3 is not a string"),
    ],
)
def test_unusable_contents_are_refused(local, files, metrics, message):
    with pytest.raises(StoreError, match=message):
        local.write(KEY, SPEC, files, metrics)
    assert local.manifest(KEY) is None


def test_metrics_are_plain_json(local):
    metrics = {"loss": float("nan"), "curve": np.array([1.0, np.inf]), "n": np.int64(3), "shape": (1, 2)}
    local.write(KEY, SPEC, {}, metrics)
    assert local.manifest(KEY).metrics == {"loss": None, "curve": [1.0, None], "n": 3, "shape": [1, 2]}


def test_unusable_addresses_are_named(tmp_path):
    with pytest.raises(StoreError, match="no address"):
        Store.open("")
    with pytest.raises(StoreError, match="nothing-like-it://x"):
        Store.open("nothing-like-it://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store.open(tmp_path / "file")


@pytest.mark.parametrize("store", ["memory", S3], indirect=True)
def test_remote_refusal_is_a_store_error(store, monkeypatch):
    store.write(KEY, SPEC, {"a.bin": b"one"}, {})

    class CredentialsError(Exception):
        pass

    def refuse(*args, **kwargs):
        raise CredentialsError("no credentials")

    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "pipe_file", refuse)
        with pytest.raises(StoreError, match="no credentials.*previous version is kept"):
            store.write(KEY, SPEC, {"a.bin": b"two"}, {})
    assert store.read(KEY, "a.bin") == b"one"


def test_reader_follows_a_version_that_replaces_the_one_it_began_with(local, monkeypatch):
    first = local.write(KEY, SPEC, {"a.bin": b"one"}, {})
    second = local.write(KEY, SPEC, {"a.bin": b"two"}, {})
    real = Store.manifest
    answers = iter([first])
    monkeypatch.setattr(Store, "manifest", lambda self, key: next(answers, None) or real(self, key))
    assert local.read(KEY, "a.bin") == b"two"
    answers = iter([first])
    assert local.look(KEY) == Stored(second)


WRITER = """
import sys
from d3m_assets.store import ArtefactKey, Manifest, Spec, Store
store, key = Store.open(sys.argv[1]), ArtefactKey("inverted_embeddings", class_key="7", budget="ipc-1")
for n in range(int(sys.argv[3])):
    text = f"{sys.argv[2]} {n} ".encode()
    files = {"a.bin": text * 40_000, "b.bin": text * 7}
    store.write(key, Spec({}, {"n": n}, sys.argv[2]), files, {"n": n})
    print(n, flush=True)
"""


def start_writer(store: Store, name: str, times: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, store.url, name, str(times)]
    root = Path(store_module.__file__).parents[1]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def check_consistent(store: Store) -> None:
    manifest = store.manifest(KEY)
    assert manifest is not None
    n, name = manifest.metrics["n"], manifest.code_version
    text = f"{name} {n} ".encode()
    assert (store.read(KEY, "a.bin"), store.read(KEY, "b.bin")) == (text * 40_000, text * 7)
    assert manifest.fingerprint == Spec({}, {"n": n}, name).fingerprint
    assert store.look(KEY) == Stored(manifest)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011])
def test_killed_writer_leaves_a_readable_version(local, delay):
    process = start_writer(local, "w", 100_000)
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert local.manifest(KEY).metrics["n"] >= 3
    check_consistent(local)


def test_two_writers_of_one_key_and_a_reader(local):
    writers = [start_writer(local, name, 25) for name in ("one", "two")]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if local.manifest(KEY) is not None:
            local.read(KEY, "b.bin")
            assert not local.look(KEY).damage
            reads += 1
        time.sleep(0.005)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert reads > 5
    check_consistent(local)


def test_a_probe_leaves_nothing_and_takes_old_ones_along(tmp_path):
    store = Store.open(tmp_path / "store")
    store.probe()
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    old, new = (tmp_path / "store" / f".probe-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    store.probe()
    assert list((tmp_path / "store").iterdir()) == [new]  # another process may be at it


def test_a_probe_that_cannot_be_read_back_is_taken_back(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(StoreFiles, "get", refuse)
    with pytest.raises(StoreError, match="cannot read"):
        Store.open(tmp_path / "store").probe()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
