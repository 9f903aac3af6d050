from __future__ import annotations

import os
import re
import shutil
import time
import unicodedata
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from d3m_assets.datasets.catalog import class_catalog
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.datasets.images import load_images, read_bytes
from d3m_assets.errors import DatasetError
from d3m_assets_tests.datasets.conftest import png

HOSTILE = [
    "two words",
    "Cat",
    "cat",
    "a\u2215b",
    "a\uff0fb",
    "日本語",
    "emoji 🐈",
    "a::b",
    "#1?",
    "per%20cent",
    "con",
]


def counts(scan):
    return {name: [len(c.of(s)) for s in ("train", "validation", "test")] for name, c in scan.classes.items()}


def test_scan_of_a_sound_folder(make_folder):
    root = make_folder("10", "2", "a", height=6, width=9)
    (root / "train/a/.hidden.png").write_bytes(b"not read")
    (root / "train/.cache").mkdir()
    (root / "train/a/notes.txt").write_text("not read")
    (root / "train/2/deeper/still").mkdir(parents=True)
    (root / "train/2/deeper/still/x.PNG").write_bytes(png(77, 6, 9))
    scan = ImageFolder(root, validation_fraction=0).scan()
    assert counts(scan) == {"2": [7, 0, 2], "10": [6, 0, 2], "a": [6, 0, 2]}
    assert list(scan.classes) == ["2", "10", "a"]
    assert (scan.image_height, scan.image_width, scan.channels) == (6, 9, 1)
    record = next(r for r in scan.classes["2"].images if "deeper" in r.relative_path)
    assert record.relative_path == "train/2/deeper/still/x.PNG"
    assert (record.height, record.width, record.mode, record.split) == (6, 9, "L", "train")
    assert Path(record.uri).stat().st_size == record.bytes
    table = scan.classes["a"].table(5)
    assert len(table) == 8
    assert set(table["class_id"]) == {5}
    assert set(table["class_name"]) == {"a"}


def test_hostile_names_stay_apart(make_folder):
    scan = ImageFolder(make_folder(*HOSTILE)).scan()
    assert set(scan.classes) == set(HOSTILE)
    catalog = class_catalog(scan)
    assert catalog["class_key"].str.lower().nunique() == len(HOSTILE)
    assert catalog["class_key"].str.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}").all()


def test_colour_and_median_size(make_folder):
    root = make_folder("a", "b")
    (root / "test/b/colour.png").write_bytes(png(5, 20, 20, 3))
    scan = ImageFolder(root).scan()
    assert (scan.image_height, scan.channels) == (8, 3)


def test_exif_orientation_counts(make_folder):
    root = make_folder("a", height=8, width=12)
    for number, path in enumerate((root / "train/a").iterdir()):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("L", (12, 8), number * 20).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    scan = ImageFolder(root).scan()
    assert (scan.image_height, scan.image_width) == (12, 8)


def test_validation_part_depends_on_content_only(make_folder):
    root = make_folder("a", "b")
    for i in range(100):
        (root / f"train/a/more{i}.png").write_bytes(png(50_000 + i))
    scan = ImageFolder(root, validation_fraction=0.25).scan()
    train, validation, test = counts(scan)["a"]
    assert train + validation == 106
    assert 10 < validation < 45
    assert test == 2
    limit = 0.25 * 2**32
    for image in scan.classes["a"].of("validation"):
        assert int(image.sha256[:8], 16) < limit
    sides = {image.sha256: image.split for image in scan.classes["a"].images}
    for path in sorted((root / "train/a").iterdir())[:50]:
        path.unlink()
    after = ImageFolder(root, validation_fraction=0.25).scan().classes["a"]
    assert all(sides[image.sha256] == image.split for image in after.images)


def test_class_keeps_its_train_images_when_all_would_go(make_folder):
    root = make_folder("a")
    for path in (root / "train/a").iterdir():
        path.unlink()
    seed = next(s for s in range(900, 1000) if int(_sha(png(s))[:8], 16) < 2**31)
    (root / "train/a/only.png").write_bytes(png(seed))
    assert counts(ImageFolder(root, validation_fraction=0.5).scan())["a"] == [1, 0, 2]


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_damaged_files_are_all_named(make_folder):
    root = make_folder("a", "b")
    whole = png(7, 40, 40)
    bad = {
        "train/a/truncated.png": whole[: len(whole) // 2],
        "train/a/empty.png": b"",
        "train/b/text.jpg": b"<html>404</html>",
        "train/b/dot.png": png(3, 1, 1),
        "test/b/thin.png": png(3, 3, 50),
    }
    for name, data in bad.items():
        (root / name).write_bytes(data)
    (root / "test/a/link.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DatasetError) as error:
        ImageFolder(root).scan()
    assert str(error.value).startswith(f"{root}: no class can be used")
    lines = {line.strip().split()[0]: line for line in str(error.value).splitlines()[1:]}
    assert set(lines) == {*bad, "test/a/link.png"}
    assert "is empty (0 bytes)" in lines["train/a/empty.png"]
    assert "is not an image" in lines["train/b/text.jpg"]
    assert "is 1x1 pixels; the least is 4 a side" in lines["train/b/dot.png"]
    assert all("replace or remove it, or leave it out with the setting `exclude`" in line for line in lines.values())


def test_at_most_twenty_damaged_files_are_named(make_folder):
    root = make_folder("a")
    for i in range(30):
        (root / f"train/a/bad{i}.png").write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        ImageFolder(root).scan()
    assert str(error.value).count("0 bytes") == 20
    assert str(error.value).endswith("\nand 10 more")


def _remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def _make(name):
    return lambda root: (root / name).mkdir(parents=True)


def _copy(source, target):
    return lambda root: shutil.copy(root / source, root / target)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove("train"), r"no class folder in train/. Expected train/<class>"),
    ],
)
def test_folders_of_another_layout_are_refused(make_folder, spoil, message):
    root = make_folder("a", "b")
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        ImageFolder(root).scan()


@pytest.mark.parametrize(
    ("spoil", "broken", "message"),
    [
        (
            _remove("test/b"),
            "b",
            r"train/b is in train/ but not in test/; add test/b/ with images, or remove the class",
        ),
        (
            _remove("train/b"),
            "b",
            r"test/b is in test/ but not in train/; add train/b/ with images, or remove the class",
        ),
        (
            lambda root: [p.unlink() for p in (root / "train/b").iterdir()],
            "b",
            r"train/b has no images \(looked for .bmp.*; add images",
        ),
        (lambda root: [p.unlink() for p in (root / "test/b").iterdir()], "b", r"test/b has no images"),
        (_make("train/c"), "c", r"train/c is in train/ but not in test/"),
        (
            _copy("train/a/0.png", "train/b/x.png"),
            "ab",
            r"train/a/0.png = train/b/x.png is the same image in two classes; keep",
        ),
        (
            _copy("train/a/0.png", "test/b/x.png"),
            "ab",
            r"test/b/x.png = train/a/0.png is the same image in two classes;",
        ),
        (
            _copy("train/a/0.png", "test/a/x.png"),
            "a",
            r"test/a/x.png = train/a/0.png is the same image in train and test;",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_told_of_it(make_folder, spoil, broken, message):
    root = make_folder("a", "b", "sound")
    before = ImageFolder(root).scan()
    spoil(root)
    scan = ImageFolder(root).scan()
    assert {name for name, images in scan.classes.items() if images.errors} == set(broken)
    for name in broken:
        assert re.search(message, scan.classes[name].problem)
        assert name not in before.classes or scan.classes[name].fingerprint != before.classes[name].fingerprint
    assert scan.classes["sound"] == before.classes["sound"]
    assert scan.fingerprint != before.fingerprint


def test_repeated_image_in_one_class_and_split_is_allowed(make_folder):
    root = make_folder("a")
    shutil.copy(root / "train/a/0.png", root / "train/a/again.png")
    assert sum(counts(ImageFolder(root).scan())["a"]) == 9


def test_places_that_are_no_folder(make_folder, tmp_path):
    file = make_folder("a") / "train/a/0.png"
    with pytest.raises(DatasetError, match="is a file. Set `dataset` to a folder"):
        ImageFolder(file).scan()
    with pytest.raises(DatasetError, match="absent does not exist"):
        ImageFolder(tmp_path / "absent").scan()
    with pytest.raises(DatasetError, match="nothing-like-it"):
        ImageFolder("nothing-like-it://x").scan()


def test_spellings_of_one_name(make_folder):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    root = make_folder(composed)
    (root / "test" / composed).rename(root / "test" / decomposed)
    assert list(ImageFolder(root).scan().classes) == [composed]
    (root / "test" / composed).mkdir()
    with pytest.raises(DatasetError, match="spell é differently"):
        ImageFolder(root).scan()


def test_names_that_are_not_utf8(make_folder):
    root = make_folder("a")
    bad = os.fsencode(root / "train/a") + b"/caf\xe9.png"
    Path(os.fsdecode(bad)).write_bytes(png(9))
    with pytest.raises(DatasetError, match="not valid UTF-8") as error:
        ImageFolder(root, cache=root.parent / "cache").scan()
    str(error.value).encode()
    Path(os.fsdecode(bad)).unlink()
    Path(os.fsdecode(os.fsencode(root / "train") + b"/caf\xe9")).mkdir()
    with pytest.raises(DatasetError, match="not valid UTF-8; rename"):
        ImageFolder(root).scan()


def test_links_are_followed_and_loops_are_not(make_folder, tmp_path):
    root = make_folder("a", "b")
    (tmp_path / "aside.png").write_bytes(png(99))
    (root / "train/a/link.png").symlink_to(tmp_path / "aside.png")
    (root / "train/a/loop").symlink_to(root / "train/a")
    shutil.move(root / "train/b", tmp_path / "b")
    (root / "train/b").symlink_to(tmp_path / "b")
    assert counts(ImageFolder(root, validation_fraction=0).scan()) == {"a": [7, 0, 2], "b": [6, 0, 2]}


def test_fingerprints_follow_content_and_nothing_else(make_folder, tmp_path):
    root = make_folder("a", "b")
    before = ImageFolder(root).scan()
    moved = ImageFolder(shutil.copytree(root, tmp_path / "elsewhere")).scan()
    assert moved.fingerprint == before.fingerprint
    (root / "train/a/0.png").write_bytes(png(4242))
    after = ImageFolder(root).scan()
    assert after.classes["a"].fingerprint != before.classes["a"].fingerprint
    assert after.classes["b"].fingerprint == before.classes["b"].fingerprint
    assert after.fingerprint != before.fingerprint
    other = ImageFolder(root, validation_fraction=0.5).scan()
    assert other.fingerprint != after.fingerprint


def test_index_spares_unchanged_files_only(make_folder, tmp_path, monkeypatch):
    root, cache = make_folder("a", "b"), tmp_path / "cache"
    first = ImageFolder(root, cache=cache).scan()
    read = []
    real = ImageFolder._examine
    monkeypatch.setattr(ImageFolder, "_examine", lambda s, image: read.append(image.relative_path) or real(s, image))
    assert ImageFolder(root, cache=cache).scan() == first
    assert read == []
    (root / "train/a/0.png").write_bytes(png(4242))
    (root / "test/b/new.png").write_bytes(png(4243))
    (root / "train/b/0.png").unlink()
    second = ImageFolder(root, cache=cache).scan()
    assert sorted(read) == ["test/b/new.png", "train/a/0.png"]
    assert second == ImageFolder(root).scan()


def test_damaged_index_costs_a_scan(make_folder, tmp_path):
    root, cache = make_folder("a"), tmp_path / "cache"
    first = ImageFolder(root, cache=cache).scan()
    (index,) = cache.iterdir()
    index.write_bytes(b"PAR1 not really")
    assert ImageFolder(root, cache=cache).scan() == first
    assert index.read_bytes()[:4] == b"PAR1"
    assert len(index.read_bytes()) > 100


def test_cache_that_cannot_be_written_is_no_obstacle(make_folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert ImageFolder(make_folder("a"), cache=tmp_path / "file" / "cache").scan().classes


def test_work_before_a_damaged_file_is_not_lost(make_folder, tmp_path, monkeypatch):
    root, cache = make_folder("a"), tmp_path / "cache"
    (root / "train/a/bad.png").write_bytes(b"")
    with pytest.raises(DatasetError):
        ImageFolder(root, cache=cache).scan()
    (root / "train/a/bad.png").unlink()
    monkeypatch.setattr(ImageFolder, "_examine", lambda self, image: pytest.fail("read again"))
    assert ImageFolder(root, cache=cache).scan().classes


def test_progress_reaches_the_end(make_folder):
    events = []
    ImageFolder(make_folder("a", "b")).scan(events.append)
    assert {event.stage for event in events} == {"scan"}
    assert [(e.done, e.total) for e in (events[0], events[-1])] == [(0, 16), (16, 16)]


def test_remote_folder_equals_local_one(make_folder, tmp_path):
    names = ["a", "two words", "a::b", "日本語"]
    root = make_folder(*names)
    (root / "train/a/.hidden.png").write_bytes(b"not read")
    (root / "train/a/deeper").mkdir()
    (root / "train/a/deeper/x.png").write_bytes(png(77))
    fs = fsspec.filesystem("memory")
    if fs.exists("/remote"):
        fs.rm("/remote", recursive=True)
    fs.put(str(root), "/remote", recursive=True)
    remote = ImageFolder("memory://remote", cache=tmp_path / "cache").scan()
    local = ImageFolder(root).scan()
    assert remote.fingerprint == local.fingerprint
    images = remote.classes["a::b"].images
    assert images[0].uri.startswith("memory://")
    uris, paths = [i.uri for i in images], [i.uri for i in local.classes["a::b"].images]
    loaded = [load_images(read_bytes, u, size=8, channels=1) for u in (uris, paths)]
    assert (loaded[0] == loaded[1]).all()
    assert ImageFolder("memory://remote", cache=tmp_path / "cache").scan() == remote
    with pytest.raises(DatasetError, match="memory://remote/absent does not exist"):
        ImageFolder("memory://remote/absent").scan()
    with pytest.raises(DatasetError, match="is a file"):
        ImageFolder("memory://remote/train/a/0.png").scan()


def test_scanning_unchanged_digits_again_is_quick(digits_folder, tmp_path):
    seconds = []
    for _ in range(4):
        start = time.process_time()
        ImageFolder(digits_folder, cache=tmp_path).scan()
        seconds.append(time.process_time() - start)
    # Processor time: 0.12 s measured on a quiet machine, 1.5 s without the index.
    assert min(seconds[1:]) < seconds[0] / 2
