from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from d3m_assets.foundation import digests
from d3m_assets.foundation.digests import file_digests
from d3m_assets.foundation.files import FoundationFiles, embedded_path
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings

OLD = 1_600_000_000 * 10**9


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose content was read."""
    names = []
    real = hashlib.file_digest

    def counted(content, name):
        names.append(Path(content.name).name)
        return real(content, name)

    monkeypatch.setattr(digests.hashlib, "file_digest", counted)
    return names


def write(path, content, mtime=OLD):
    path.write_bytes(content)
    os.utime(path, ns=(mtime, mtime))
    return path


def sha(content):
    return hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path, read):
    files = [write(tmp_path / name, name.encode()) for name in ("a", "b")]
    cache = tmp_path / "cache" / "digests.json"
    assert file_digests(files, cache) == file_digests(files, cache) == [sha(b"a"), sha(b"b")]
    assert read == ["a", "b"]
    assert [p.name for p in cache.parent.iterdir()] == ["digests.json"]


@pytest.mark.parametrize(("content", "mtime"), [(b"new", OLD + 1), (b"longer", OLD)])
def test_another_time_or_size_is_read_again(tmp_path, read, content, mtime):
    file, cache = write(tmp_path / "a", b"old"), tmp_path / "digests.json"
    file_digests([file], cache)
    write(file, content, mtime)
    assert file_digests([file], cache) == [sha(content)]
    assert read == ["a", "a"]


def test_a_file_just_written_is_not_trusted_yet(tmp_path, read):
    file, cache = tmp_path / "a", tmp_path / "digests.json"
    file.write_bytes(b"new")
    file_digests([file], cache)
    file_digests([file], cache)
    assert read == ["a", "a"]


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"a": 1}', '{"a": ["x", 1, "y"]}', "\xff"])
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, damage):
    file, cache = write(tmp_path / "a", b"a"), tmp_path / "digests.json"
    cache.write_bytes(damage.encode("latin-1"))
    assert file_digests([file], cache) == [sha(b"a")]
    assert json.loads(cache.read_text()) == {str(file.resolve()): [1, OLD, sha(b"a")]}


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    file = write(tmp_path / "a", b"a")
    assert file_digests([file], file / "digests.json") == [sha(b"a")]


def test_files_that_are_gone_leave_the_cache(tmp_path):
    a, b, cache = write(tmp_path / "a", b"a"), write(tmp_path / "b", b"b"), tmp_path / "digests.json"
    file_digests([a], cache)
    a.unlink()
    file_digests([b], cache)
    assert list(json.loads(cache.read_text())) == [str(b.resolve())]


def test_the_fingerprint_of_a_model_is_the_same_from_the_cache(tmp_path, read):
    cache = tmp_path / "digests.json"
    plain = FoundationFiles("embedded", embedded_path()).fingerprint
    assert FoundationFiles("embedded", embedded_path(), digests=cache).fingerprint == plain
    before = len(read)
    assert FoundationFiles("embedded", embedded_path(), digests=cache).fingerprint == plain
    assert len(read) == before


def test_a_second_pipeline_reads_no_weights(tmp_path, read):
    first = Pipeline(load_settings(home=tmp_path)).context.model.files.fingerprint
    assert any(name.endswith(".safetensors") for name in read)
    read.clear()
    assert Pipeline(load_settings(home=tmp_path)).context.model.files.fingerprint == first
    assert read == []
