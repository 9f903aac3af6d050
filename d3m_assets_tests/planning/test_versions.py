import json

import pytest

from d3m_assets.errors import StoreError
from d3m_assets.planning.versions import find_version, stored_version
from d3m_assets.store import SUPERSEDED, ArtefactKey, Manifest, Spec, Store

KEYS = [
    ArtefactKey("report"),
    ArtefactKey("vectors", "7"),
    ArtefactKey("vectors", None, "7"),
    ArtefactKey("vectors", "7", "ipc-1"),
    ArtefactKey("vectors", "7", "ipc-1", 2),
    ArtefactKey("vectors", None, "ipc-1", 1),
]


def spec(n, **inputs):
    return Spec(inputs, {"n": n}, "1")


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return Store.open(tmp_path / "store" if request.param == "local" else f"memory://{tmp_path.name}-versions")


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_version_is_found_by_its_name_and_fingerprint_current_or_replaced(store, key):
    for n, other in enumerate(KEYS):
        store.write(other, spec(f"other {n}"), {"data.bin": b"other"}, {})
    store.write(key, spec(1), {"data.bin": b"one"}, {"loss": 0.5}, {"run": "first"})
    store.write(key, spec(2), {"data.bin": b"two"}, {})
    new = find_version(store, str(key), spec(2).fingerprint)
    old = find_version(store, str(key), spec(1).fingerprint)
    assert (new.key, new.current, new.read("data.bin")) == (key, True, b"two")
    assert (old.key, old.current, old.manifest.metrics, old.manifest.provenance) == (
        key,
        False,
        {"loss": 0.5},
        {"run": "first"},
    )
    assert new.has("data.bin")
    assert not old.has("data.bin")
    with pytest.raises(StoreError, match="replaced"):
        old.read("data.bin")
    assert find_version(store, str(key), "0" * 64) is None
    assert find_version(store, "another [7]", spec(1).fingerprint) is None


def test_inputs_lead_from_version_to_version(store):
    raw, vectors, pool = (
        ArtefactKey("raw", "7"),
        ArtefactKey("vectors", "7", "ipc-1"),
        ArtefactKey("pool", "7", "ipc-1"),
    )
    store.write(raw, spec(1), {}, {})
    of_raw = spec(1, **{str(raw): spec(1).fingerprint})
    store.write(vectors, of_raw, {}, {})
    store.write(pool, spec(1, **{str(vectors): of_raw.fingerprint}), {}, {})
    store.write(raw, spec(2), {}, {})
    store.write(vectors, spec(2, **{str(raw): spec(2).fingerprint}), {}, {})
    version = stored_version(store, pool)
    assert version.input_names("vectors") == [str(vectors)]
    learned = version.made_from(str(vectors))
    assert (learned.current, learned.manifest.fingerprint) == (False, of_raw.fingerprint)
    origin = learned.made_from(str(raw))
    assert (origin.key, origin.manifest.settings) == (raw, {"n": 1})
    assert version.made_from("nothing") is None
    assert stored_version(store, ArtefactKey("pool", "8", "ipc-1")) is None


def test_the_same_fingerprint_replaces_nothing(store):
    key = ArtefactKey("vectors", "7")
    store.write(key, spec(1), {"data.bin": b"one"}, {}, {"run": "first"})
    store.write(key, spec(1), {"data.bin": b"one"}, {}, {"run": "second"})
    assert store.records(SUPERSEDED) == []
    assert store.manifest(key).provenance == {"run": "second"}


def test_a_version_that_is_replaced_while_it_is_read_is_not_mixed_up(store):
    key = ArtefactKey("vectors", "7")
    store.write(key, spec(1), {"data.bin": b"one"}, {})
    version = stored_version(store, key)
    store.write(key, spec(2), {"data.bin": b"two"}, {})
    with pytest.raises(StoreError, match="replaced"):
        version.read("data.bin")


def test_a_damaged_or_strange_record_is_as_good_as_none(store):
    key = ArtefactKey("vectors", "7")
    fingerprint = spec(1).fingerprint
    for value in ({"key": "../../etc", "manifest": {}}, {"key": key.path}, {"key": key.path, "manifest": {"files": 3}}):
        store.keep_record(SUPERSEDED, fingerprint, value)
        assert find_version(store, str(key), fingerprint) is None
    assert store.superseded("../../etc/passwd") is None
    for name in ("", "[", "a [b, c, d]", "../x [7]", "vectors [../7]"):
        assert find_version(store, name, fingerprint) is None


def test_a_manifest_without_provenance_is_read():
    manifest = {"fingerprint": "f", "inputs": {}, "settings": {}, "code_version": "1", "files": {}, "created": "now"}
    assert Manifest.model_validate_json(json.dumps(manifest)).provenance == {}
