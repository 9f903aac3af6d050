"""Whether what is stored is what is wanted, and what differs in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from d3m_assets.planning.compare import Status, changes, compare, compare_all
from d3m_assets.store import ArtefactKey, Spec, Store

KEY = ArtefactKey("inverted_embeddings", class_key="7", budget="ipc-1")
SPEC = Spec({"raw_dataset [7]": "aa"}, {"inversion": {"steps": 150}, "seeds": (0, 1)}, "1")
UP_TO_DATE, MISSING = Status("up to date", []), Status("missing", ["not stored"])


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        return Store.open("memory://d3m/compared")
    return Store.open(tmp_path / "store")


def test_what_changed_is_named(store: Store):
    assert compare(store, KEY, SPEC) == MISSING
    store.write(KEY, SPEC, {"a.bin": b"one"}, {})
    same = Spec(SPEC.inputs, {"seeds": [0, 1], "inversion": {"steps": 150}}, "1")
    assert compare(store, KEY, same) == UP_TO_DATE
    wanted = Spec({"raw_dataset [7]": "bb", "prompt": "c"}, {"inversion": {"steps": 200, "x": None}}, "2")
    status = compare(store, KEY, wanted)
    assert status.state == "out of date"
    assert status.reasons == [
        "input prompt added",
        "input raw_dataset [7] changed",
        "setting inversion.steps 150 -> 200",
        "setting inversion.x added",
        "setting seeds removed",
        "code version 1 -> 2",
    ]


def test_many_are_compared_as_each_alone(store: Store):
    keys = [ArtefactKey("inverted_embeddings", str(n), "ipc-1", n % 2) for n in range(40)]
    for key in keys[::2]:
        store.write(key, SPEC, {"a.bin": b"one"}, {})
    changed = Spec(SPEC.inputs, SPEC.settings, "2")
    specs = {key: changed if n % 4 == 0 else SPEC for n, key in enumerate(keys)}
    found = compare_all(store, specs)
    assert list(found) == keys
    assert found == {key: compare(store, key, spec) for key, spec in specs.items()}
    assert [status.state for status in found.values()] == ["out of date", "missing", "up to date", "missing"] * 10


def test_a_replicate_does_not_stand_for_another(store: Store):
    store.write(KEY, SPEC, {}, {})
    assert compare(store, ArtefactKey("inverted_embeddings", "7", "ipc-1", 1), SPEC) == MISSING


def test_damage_is_out_of_date_also_where_the_fingerprint_fits(tmp_path: Path):
    store = Store.open(tmp_path)
    manifest = store.write(KEY, SPEC, {"a.bin": b"one"}, {})
    folder = Path(store.uri(KEY))
    (folder / manifest.files["a.bin"].path).write_bytes(b"on")
    assert compare(store, KEY, SPEC) == Status("out of date", ["file a.bin has 2 bytes instead of 3"])
    (folder / manifest.files["a.bin"].path).unlink()
    assert compare(store, KEY, Spec(SPEC.inputs, SPEC.settings, "2")).reasons == [
        "code version 1 -> 2",
        "file a.bin missing",
    ]
    (folder / "manifest.json").write_text("{")
    status = compare(store, KEY, SPEC)
    assert status.state == "out of date"
    assert "manifest.json is damaged" in status.reasons[0]


def test_a_fingerprint_that_differs_is_never_called_the_same(tmp_path: Path):
    """A manifest that was edited by hand: the parts are equal and the fingerprint is not."""
    manifest = Store.open(tmp_path).write(KEY, SPEC, {}, {})
    assert changes(manifest, SPEC) == []
    assert changes(manifest.model_copy(update={"fingerprint": "0" * 64}), SPEC) == ["fingerprint changed"]


def test_long_values_are_shortened(tmp_path: Path):
    store = Store.open(tmp_path)
    store.write(KEY, SPEC, {}, {})
    (reason,) = compare(store, KEY, Spec(SPEC.inputs, {**SPEC.settings, "seeds": list(range(99))}, "1")).reasons
    assert reason.startswith("setting seeds [0, 1] -> [0, 1, 2, 3, ")
    assert reason.endswith("...")
    assert len(reason) < 100
