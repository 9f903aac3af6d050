import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from d3m_assets.datasets.loose_files import LooseFiles, records_of
from d3m_assets.distillation.latents import ImageFiles, LatentCache, encode
from d3m_assets.errors import DatasetError


@pytest.fixture
def files(tmp_path, characters):
    paths = []
    for i, image in enumerate(characters("5", 6)):
        path = tmp_path / f"{i}.png"
        Image.fromarray(image[..., 0]).save(path)
        paths.append(path)
    return ImageFiles(LooseFiles(), records_of(paths), 1)


def another(files, grey):
    """The same files, of which the first has become another image, and was recorded as it is now."""
    first, *rest = files.images
    Image.new("L", (32, 32), grey).save(first.uri)
    return replace(files, images=(*records_of([first.uri]), *rest))


def test_latents_are_encoded_once(foundation, files, tmp_path, monkeypatch):
    cache = LatentCache(tmp_path / "cache", 10**6)
    first = cache.get(foundation, files)
    assert first.dtype == np.float16
    assert first.shape == (6, 4, 8, 8)
    assert np.array_equal(first, encode(foundation, files.load(32)))
    monkeypatch.setattr(foundation, "encode_images", None)
    assert np.array_equal(cache.get(foundation, files), first)


def test_a_changed_image_is_encoded_again(foundation, files, tmp_path):
    cache = LatentCache(tmp_path / "cache", 10**6)
    cache.get(foundation, files)
    cache.get(foundation, another(files, 9))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_nothing_is_kept_of_an_image_that_changed_after_it_was_recorded(foundation, files, tmp_path):
    cache = LatentCache(tmp_path / "cache", 10**6)
    path = tmp_path / "0.png"
    recorded = path.read_bytes()
    another(files, 9)
    with pytest.raises(DatasetError, match=r"0\.png has changed since"):
        cache.get(foundation, files)
    assert not (tmp_path / "cache").exists()
    path.write_bytes(recorded)
    assert np.array_equal(cache.get(foundation, files), encode(foundation, files.load(32)))


def test_flipped_images_follow(foundation, files):
    both = replace(files, flip=True).load(32)
    assert len(both) == 12
    assert np.array_equal(both[6:], both[:6, :, ::-1])


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:-9] + b"\x01" * 9, lambda b: b""])
def test_a_damaged_file_is_noticed_and_made_again(foundation, files, tmp_path, damage, caplog):
    cache = LatentCache(tmp_path / "cache", 10**6)
    first = cache.get(foundation, files)
    (path,) = (tmp_path / "cache").iterdir()
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    assert np.array_equal(cache.get(foundation, files), first)
    assert "damaged" in caplog.text
    assert path.read_bytes() == sound


def test_the_cache_keeps_what_was_used_last_within_its_bytes(foundation, files, tmp_path):
    one = len(encode(foundation, files.load(32)).tobytes()) + 300
    folder = tmp_path / "cache"
    cache = LatentCache(folder, 2 * one)

    def use(grey, second):
        variant = another(files, grey)
        before = {p: p.stat().st_mtime_ns for p in folder.glob("*")}
        cache.get(foundation, variant)
        (touched,) = (p for p in folder.glob("*") if p.stat().st_mtime_ns != before.get(p))
        os.utime(touched, ns=(second * 10**9, second * 10**9))
        return touched

    first = use(10, 1)
    second = use(20, 2)
    assert use(10, 3) == first  # read, and so used later than the second
    third = use(30, 4)
    assert set(folder.iterdir()) == {first, third}
    assert not second.exists()


def test_a_cache_of_nothing_neither_reads_nor_keeps(foundation, files, tmp_path, monkeypatch):
    LatentCache(tmp_path / "cache", 10**6).get(foundation, files)
    nothing = LatentCache(tmp_path / "cache", 0)
    calls = []
    encode_images = foundation.encode_images
    monkeypatch.setattr(foundation, "encode_images", lambda images: calls.append(1) or encode_images(images))
    nothing.get(foundation, files)
    assert calls
    nothing.trim()
    assert not list((tmp_path / "cache").iterdir())
    LatentCache(tmp_path / "none", 0).get(foundation, files)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_costs_time_only(foundation, files, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    found = LatentCache(tmp_path / "file" / "cache", 10**6).get(foundation, files)
    assert np.array_equal(found, encode(foundation, files.load(32)))
    assert "cannot be kept" in caplog.text


def test_an_image_that_cannot_be_read_is_named(foundation, files, tmp_path):
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"3\.png"):
        LatentCache(tmp_path / "cache", 10**6).get(foundation, files)


def test_latents_of_colour_images_are_kept_too(foundation, tmp_path, characters, monkeypatch, caplog):
    paths = []
    for i, image in enumerate(characters("5", 3)):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.stack([image[..., 0], 255 - image[..., 0], image[..., 0] // 2], -1)).save(path)
        paths.append(path)
    files, cache = ImageFiles(LooseFiles(), records_of(paths), 3), LatentCache(tmp_path / "cache", 10**6)
    first = cache.get(foundation, files)
    monkeypatch.setattr(foundation, "encode_images", None)
    assert np.array_equal(cache.get(foundation, files), first)
    assert "damaged" not in caplog.text
