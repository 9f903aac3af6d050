import logging
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from d3m_assets.errors import StoreError
from d3m_assets.loading.chunk_cache import ChunkCache


def chunk(value, size=1000):
    return np.full((size, 1), value, np.uint8)


def test_what_is_put_is_had_again_by_another_process(tmp_path):
    cache = ChunkCache(tmp_path / "cache", 10**6)
    assert cache.get("a/0") is None
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    cache.put("a/0", array)
    read = cache.get("a/0")
    assert np.array_equal(read, array)
    assert not read.flags.writeable
    code = f"from d3m_assets.loading.chunk_cache import ChunkCache; from pathlib import Path;\
print(int(ChunkCache(Path({str(tmp_path / 'cache')!r}), 10).get('a/0').sum()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(array.sum())


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_a_damaged_file_is_noticed_and_deleted(tmp_path, damage, caplog):
    cache = ChunkCache(tmp_path, 10**6)
    cache.put("a/0", chunk(7))
    path = tmp_path / "d3m-chunks" / "a" / "0.npy"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes({"cut": bytes(data[:500]), "bit": bytes(data), "empty": b"", "text": b"x" * 2000}[damage])
    assert cache.get("a/0") is None
    assert not path.exists()
    assert "a/0.npy is damaged" in caplog.text
    cache.put("a/0", chunk(7))
    assert np.array_equal(cache.get("a/0"), chunk(7))


def test_the_least_recently_used_go_first_and_the_cap_is_kept(tmp_path):
    size = 1000 + 128 + 32
    cache = ChunkCache(tmp_path, 3 * size)
    for k in range(3):
        cache.put(f"a/{k}", chunk(k))
        os.utime(tmp_path / "d3m-chunks" / "a" / f"{k}.npy", (k, k))
    assert cache.used_bytes() == 3 * size
    assert cache.get("a/0") is not None
    cache.put("b/3", chunk(3))
    assert cache.used_bytes() <= 3 * size
    assert cache.get("a/1") is None
    assert all(cache.get(key) is not None for key in ("a/0", "a/2", "b/3"))


def test_a_chunk_that_is_too_large_is_not_kept_and_said_once(tmp_path, caplog):
    cache = ChunkCache(tmp_path, 500)
    cache.put("a/0", chunk(0))
    cache.put("a/1", chunk(1))
    assert cache.get("a/0") is None
    assert caplog.text.count("cache_bytes=500") == 1


def test_a_full_disk_costs_the_place_only(tmp_path, monkeypatch, caplog):
    from pathlib import Path

    cache = ChunkCache(tmp_path, 10**6)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache.put("a/0", chunk(0))
    assert cache.get("a/0") is None
    assert "No space left" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cache=.*file.*cannot be written"):
        ChunkCache(tmp_path / "file", 10)


def test_files_of_killed_writers_are_deleted_later(tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    cache.put("a/0", chunk(0))
    old, new = tmp_path / "d3m-chunks" / "a" / "1.npy.1.tmp", tmp_path / "d3m-chunks" / "a" / "2.npy.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.put("a/3", chunk(3))
    assert not old.exists()
    assert new.exists()


def test_one_process_claims_and_a_killed_one_gives_its_claim_back(tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    code = f"import sys, time; from pathlib import Path; from d3m_assets.loading.chunk_cache import ChunkCache\n\
with ChunkCache(Path({str(tmp_path)!r}), 10).claim('a/0', wait=True) as had:\n    print(had, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with cache.claim("a/0", wait=False) as had:
            assert not had
        other.kill()
        begun = time.monotonic()
        with cache.claim("a/0", wait=True) as had:
            assert had
        assert time.monotonic() - begun < 10


def _write_and_read(folder, seed):
    logging.disable()
    cache = ChunkCache(folder, 8 * 1160)
    rng = np.random.default_rng(seed)
    for key in rng.integers(0, 20, 150):
        read = cache.get(f"a/{key}")
        if read is None:
            cache.put(f"a/{key}", chunk(key))
        else:
            assert np.array_equal(read, chunk(key))
        assert cache.used_bytes() <= 8 * 1160


def test_several_processes_write_and_evict_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_and_read, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
