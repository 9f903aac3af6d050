from __future__ import annotations

import shutil

from d3m_assets.foundation.files import FoundationFiles, embedded_path


def test_fingerprint_follows_weights_and_nothing_else(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(embedded_path(), copy)
    before = FoundationFiles("a", copy).fingerprint
    (copy / "README.md").write_text("notes")
    assert FoundationFiles("b", copy).fingerprint == before
    assert FoundationFiles("embedded", embedded_path()).fingerprint == before
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert FoundationFiles("a", copy).fingerprint != before


def test_where_digests_are_kept_is_no_part_of_what_a_model_is(tmp_path):
    plain = FoundationFiles("a", tmp_path)
    cached = FoundationFiles("a", tmp_path, digests=tmp_path / "digests.json")
    assert plain == cached
    assert hash(plain) == hash(cached)
