"""``d3m verify`` of a store: every flipped byte is found, and exactly what it is in is made again."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from d3m_assets import cli
from d3m_assets.errors import StoreError
from d3m_assets.inspection.store_verification import verify_store
from d3m_assets.store import SUPERSEDED, ArtefactKey, Spec, Store
from d3m_assets.store_access import StoreFiles
from d3m_assets_tests.faults.storage import digests
from d3m_assets_tests.planning.toys import ToyContext, ToyPlanner

WORDS = {"a": "apple", "b": "bee"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "store" / "words")
    planner = ToyPlanner(ToyContext(dict(WORDS)), opened)
    planner.work_through(planner.plan())
    opened.keep_record("students", "0" * 64, {"accuracy": 0.5})
    opened.keep_record("students", "1" * 64, {"accuracy": 0.6})
    return opened


def data_files(store: Store) -> list[Path]:
    return sorted(path for path in Path(store.url).rglob("*-*") if path.is_file() and ".records" not in path.parts)


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def test_a_bad_sector_does_not_hide_what_else_is_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, flipped, *_ = data_files(store)
    flip(flipped, random.Random(0))
    real = StoreFiles.get

    def get(files: StoreFiles, path: str, *given: Any) -> bytes:
        if path == str(bad):
            raise OSError(errno.EIO, "Input/output error", path)
        return real(files, path, *given)

    monkeypatch.setattr(StoreFiles, "get", get)
    found = verify_store(store)
    assert {key_of(store, bad), key_of(store, flipped)} == set(found.damaged)
    assert "its disk is failing" in found.report() and "delete this file" in found.report()


def test_what_cannot_be_computed_again_is_not_removed(store: Store) -> None:
    store.keep_record(SUPERSEDED, "2" * 64, {"key": "none"})
    (kept,) = (Path(store.url) / ".records" / SUPERSEDED).rglob("*.json")
    kept.write_text("{")
    assert verify_store(store).dropped == 0 and kept.exists()


def key_of(store: Store, path: Path) -> str:
    key = ArtefactKey.from_path(str(path.parent.relative_to(store.url)))
    assert key is not None
    return str(key)


def verify_by_command(store: Store, *more: str):
    storage = str(Path(store.url).parent)
    return CliRunner().invoke(cli.app, ["verify", "--storage", storage, "--set", "name=words", *more])


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_are_found_and_exactly_these_artefacts_are_made_again(store, seed):
    draw, before = random.Random(seed), digests(store)
    assert verify_store(store).damaged == {}
    files = draw.sample(data_files(store), 3)
    for path in files:
        flip(path, draw)
    planner = ToyPlanner(ToyContext(dict(WORDS)), store)
    assert planner.plan().pending() == []  # of the same size and commit record
    found = verify_store(store)
    assert set(found.damaged) == {key_of(store, path) for path in files}
    for path in files:
        assert str(path) in found.report()
    made = planner.work_through(planner.plan()).made
    assert {str(key) for key in made} == set(found.damaged)
    assert digests(store) == before
    assert verify_store(store).damaged == {}
    assert planner.plan().pending() == []


def test_the_command_says_what_is_damaged(store):
    done = verify_by_command(store)
    assert (done.exit_code, "Every file is the one that was written." in done.stdout) == (0, True)
    path = data_files(store)[0]
    flip(path, random.Random(0))
    done = verify_by_command(store)
    assert done.exit_code == 1
    assert str(path) in done.stdout
    assert "`d3m distill` makes these again, and nothing else." in done.stdout
    done = verify_by_command(store, "--json")
    assert list(json.loads(done.stdout)["damaged"]) == [key_of(store, path)]


def test_missing_files_and_commit_records_are_found_too(store):
    files = data_files(store)
    files[0].unlink()
    (files[1].parent / "manifest.json").write_text("{")
    assert set(verify_store(store).damaged) == {key_of(store, path) for path in files[:2]}


def test_a_file_that_was_put_back_is_no_longer_damaged(store):
    path = data_files(store)[0]
    good = path.read_bytes()
    flip(path, random.Random(0))
    assert verify_store(store).damaged
    path.write_bytes(good)
    planner = ToyPlanner(ToyContext(dict(WORDS)), store)
    assert len(planner.plan().pending()) == 1
    assert verify_store(store).damaged == {}
    assert planner.plan().pending() == []


def test_damaged_results_go_and_the_others_stay(store):
    (path,) = Path(store.url).rglob(f"{'0' * 64}.json")
    path.write_text(path.read_text().replace("0.5", "0.9"))
    found = verify_store(store)
    assert (found.dropped, found.damaged) == (1, {})
    assert store.records("students") == ["1" * 64]


def test_damage_that_cannot_be_noted_is_told_all_the_same(store, monkeypatch):
    files = data_files(store)[:2]
    for path in files:
        flip(path, random.Random(0))

    def refuse(files, path, data):
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(StoreFiles, "put", refuse)
    found = verify_store(store)
    assert set(found.damaged) == {key_of(store, path) for path in files}
    assert "does not know of it yet, since the store takes nothing: cannot write" in found.report()
    assert "Read-only file system" in found.refusal


def test_a_damaged_catalog_is_not_said_to_be_made_again(store):
    key = ArtefactKey("class_catalog")
    store.write(key, Spec({}, {}, "1"), {"catalog.parquet": b"12345"}, {})
    flip(Path(store.uri(key, "catalog.parquet")), random.Random(0))
    found = verify_store(store)
    assert "restore it from a backup" in found.damaged["class_catalog"][0]
    assert found.report().endswith("and nothing else, the class catalog excepted.")


def test_a_store_without_anything_is_told(tmp_path):
    with pytest.raises(StoreError, match="holds no artefact; name the store"):
        verify_store(Store.open(tmp_path / "nothing"))
