"""Hostile images and places of images: what is wrong with one is a sentence about its class, and nothing else happens."""

import csv
import dataclasses
import io
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from PIL import Image

from d3m_assets.assets.raw_dataset import real_images
from d3m_assets.datasets.image_folder import _ARCHIVES, ImageFolder, ZippedImageFolder
from d3m_assets.datasets.image_limits import LimitError, PixelRoom, _webp_pixels, check_file
from d3m_assets.datasets.images import FORMATS, decode_image
from d3m_assets.datasets.opening import open_dataset
from d3m_assets.datasets.settings import ImageSettings
from d3m_assets.datasets.table_files import forget
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.errors import DatasetError
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.faults.images import (
    MEMORY_MIB,
    examine,
    faults,
    hostile_images,
    mutated,
    run,
    scanned,
    valid_images,
)
from d3m_assets_tests.small_runs import open_pipeline
from d3m_assets_tests.small_runs import run as run_assets

# pytest puts back the filters that decoding sets; that nothing reaches the terminal is counted in processes of their own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning")

VALID = valid_images()
HARMLESS = {"png with 20 MB of EXIF"}


@pytest.fixture
def folder(tmp_path):
    """Classes a and b with 4 train and 2 test images of noise each."""
    noise = np.random.default_rng(5)
    for name in "ab":
        for split, count in (("train", 4), ("test", 2)):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise.integers(0, 256, (16, 16), np.uint8)).save(place / f"{i}.png")
    return tmp_path / "images"


def as_folder(root, target):
    return str(root)


def as_zip(root, target):
    with zipfile.ZipFile(target / "images.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    return str(target / "images.zip")


def as_shards(root, target):
    (target / "shards").mkdir()
    for split in ("train", "test"):
        with tarfile.open(target / f"shards/{split}.tar", "w") as shard:
            for path in sorted((root / split).rglob("*.png")):
                for suffix, content in ((".png", path.read_bytes()), (".cls", path.parent.name.encode())):
                    member = tarfile.TarInfo(f"{path.parent.name}-{path.stem}{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    return str(target / "shards")


def as_rows(root, target):
    (target / "rows").mkdir()
    for split in ("train", "test"):
        paths = sorted((root / split).rglob("*.png"))
        images, labels = [path.read_bytes() for path in paths], [path.parent.name for path in paths]
        table = pa.table({"image": images, "label": labels})
        pq.write_table(
            table, target / f"rows/{split}.parquet", compression="none", use_dictionary=False, write_statistics=False
        )
    return str(target / "rows")


def as_list(root, target):
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for path in sorted(root.rglob("*.png")):
            writer.writerow([str(path.relative_to(root)), path.parent.name, path.parent.parent.name])
    return str(root / "list.csv")


SOURCES = [as_folder, as_zip, as_shards, as_rows, as_list]


def opened(form, root, target):
    return open_dataset(form(root, target), home=target / "home", validation_fraction=0.1)


def test_damaged_and_hostile_images_are_refused_in_words_within_time_and_memory():
    found = run(120, seed=1)
    assert not faults(found), found
    assert found["accepted"] + found["refused"] == 120
    assert min(found["accepted"], found["refused"]) > 10
    assert found["taken by a scan"] + found["refused by a scan"] == 120  # a scan refuses the very small ones too


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.sampled_from(sorted(VALID)), st.sampled_from(sorted(VALID)), st.randoms(use_true_random=False))
def test_whatever_is_changed_in_an_image_it_is_taken_or_refused_in_a_line(name, other, rng):
    outcome, words = examine(mutated(VALID[name], VALID[other], rng))
    assert outcome in ("accepted", "refused"), words


def test_the_corpus_is_sound_and_the_harness_sees_faults(monkeypatch, tmp_path):
    assert {examine(data)[0] for data in VALID.values()} == {"accepted"}
    rng = random.Random(0)
    changed = [mutated(data, data, rng) for data in VALID.values()]
    assert sum(examine(data)[0] == "refused" for data in changed) > 5
    import d3m_assets_tests.faults.images as harness

    def fails(error):
        def decode(data):
            raise error

        monkeypatch.setattr(harness, "decode_image", decode)
        return harness.examine(b"x")[0]

    assert fails(KeyError("x")) == fails(ValueError("two\nlines")) == fails(MemoryError()) == "traceback"
    assert fails(ValueError("cannot be decoded: it takes more memory than there is")) == "over memory"
    monkeypatch.setattr(harness.ImageFolder, "scan", lambda self: 1 / 0)
    assert scanned([], tmp_path)["traceback"] == 1
    assert faults({"peak_mib": MEMORY_MIB + 1, "traceback": 0}) == [f"{MEMORY_MIB + 1} MiB"]


@pytest.mark.parametrize("form", SOURCES, ids=lambda form: form.__name__)
def test_a_hostile_image_is_an_error_of_its_class_in_every_source(form, folder, tmp_path):
    hostile = [data for name, data in hostile_images().items() if len(data) < 200_000 and name not in HARMLESS]
    for index, data in enumerate(hostile):
        (folder / f"train/a/hostile-{index:02d}.png").write_bytes(data)
    scan = opened(form, folder, tmp_path).scan()
    assert not scan.classes["b"].errors
    assert len(scan.classes["a"].errors) == len(hostile) > 10
    assert all(str(error).isprintable() for error in scan.classes["a"].errors)
    assert len(scan.classes["a"].images) == 6


def test_no_format_but_the_documented_ones_is_opened_and_no_program_is_started(folder, tmp_path, monkeypatch):
    proof = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    for program in ("gs", "djpeg"):
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\ntouch {proof}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    Image.init()
    image, others = Image.new("RGB", (40, 40)), 0
    for name in sorted(Image.SAVE.keys() - {*FORMATS, "MPO", "DIB", "PDF"}):
        buffer = io.BytesIO()
        try:
            image.save(buffer, name)
        except Exception:
            continue
        (folder / f"train/a/{name.lower()}.png").write_bytes(buffer.getvalue())
        others += 1
    scan = ImageFolder(folder).scan()
    told = [error.what for error in scan.classes["a"].errors]
    assert len(told) == others > 8
    assert (folder / "train/a/eps.png").exists()
    assert {what.partition(" (")[0] for what in told} == {"is not an image"}
    # Pillow itself would have started it.
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(Exception, match=r".*"):
        Image.open(folder / "train/a/eps.png").load()
    assert proof.exists()
    proof.unlink()
    ImageFolder(folder).scan()
    assert not proof.exists()


def test_what_is_no_file_is_an_error_of_its_class_and_nothing_waits(folder):
    place = folder / "train/a"
    os.mkfifo(place / "pipe.png")
    (place / "zero.png").symlink_to("/dev/zero")
    (place / "nothing.png").symlink_to(place / "nowhere")
    (place / "folder.png/deeper").mkdir(parents=True)
    (place / "full.png").mkdir()
    shutil.copy(place / "0.png", place / "full.png/inside.png")
    here = Path.cwd()
    os.chdir(place)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.png")
    finally:
        os.chdir(here)
    scan = ImageFolder(folder).scan()
    told = {error.place: error.what for error in scan.classes["a"].errors}
    irregular = "is no regular file"
    assert told.pop("train/a/nothing.png").startswith("cannot be read")
    assert told == {
        "train/a/pipe.png": irregular,
        "train/a/zero.png": irregular,
        "train/a/socket.png": irregular,
        "train/a/folder.png": "is a folder without images",
    }
    assert not scan.classes["b"].errors


@pytest.mark.parametrize("named", ["file:///dev/zero", "local:///dev/zero", "/dev/zero", "../pipe", "pipe"])
def test_a_table_that_names_what_is_no_file(folder, tmp_path, named):
    for place in (folder / "pipe", folder.parent / "pipe"):
        os.mkfifo(place)
    as_list(folder, tmp_path)
    with (folder / "list.csv").open("a") as file:
        file.write(f"{named},a,train\n")
    scan = open_dataset(str(folder / "list.csv"), home=tmp_path / "home", validation_fraction=0.1).scan()
    assert [error.what for error in scan.classes["a"].errors] == ["is no regular file"]
    assert not scan.classes["b"].errors


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.csv", "x.jsonl", "x.parquet", "x.arrow", "shards/x.tar"])
def test_a_dataset_that_is_a_pipe_is_refused(tmp_path, name):
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DatasetError, match="is no regular file"):
        open_dataset(
            str((tmp_path / name).parent if "/" in name else tmp_path / name),
            home=tmp_path / "home",
            validation_fraction=0,
        ).scan()


def _vast(side: int = 13_000) -> bytes:
    """A PNG of zeros, grey with 16 bits, packed a row at a time."""
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(bytes(1 + 2 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def test_a_vast_image_is_refused_before_it_is_unpacked(folder):
    data = bytearray(VALID["png 4"])
    data[16:24] = struct.pack(">II", 13_000, 13_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "train/a/vast.png").write_bytes(data)
    (error,) = ImageFolder(folder).scan().classes["a"].errors
    assert error.what == "has 169,000,000 pixels; `images.max_pixels` allows 64,000,000"
    # Of a WebP before its decoder is made, whatever kind of header it has.
    side = struct.pack("<I", 7_499)[:3]
    bits = struct.pack("<I", 7_499 | 7_499 << 14)
    for header in (
        b"VP8X\x0a\0\0\0\0\0\0\0" + side + side,
        b"VP8L\x08\0\0\0\x2f" + bits,
        b"VP8 \x10\0\0\0\x30\1\0\x9d\1\x2a" + struct.pack("<HH", 7_500, 7_500),
    ):
        with pytest.raises(ValueError, match="has 56,250,000 pixels; `images.max_pixels` allows 48,000,000 of a WebP"):
            decode_image(b"RIFF\x26\0\0\0WEBP" + header + bytes(9))
    for name in ("webp 0", "webp 1", "webp 2", "webp 3"):
        assert _webp_pixels(VALID[name]) == 24 * 16


@pytest.mark.long
@pytest.mark.parametrize("kind", ["16 bit", "rgba", "webp", "cmyk"])
def test_the_largest_image_takes_less_than_a_gibibyte(kind, tmp_path):
    side = {"16 bit": 13_000, "webp": 6_928}.get(kind, 8_000)
    if kind == "16 bit":
        (tmp_path / "x").write_bytes(_vast(side))
    else:
        image = Image.new({"rgba": "RGBA", "webp": "RGBA", "cmyk": "CMYK"}[kind], (side, side), 77)
        options = {
            "rgba": {"compress_level": 1},
            "webp": {"lossless": True, "quality": 0},
            "cmyk": {"progressive": True},
        }
        image.save(tmp_path / "x", {"rgba": "PNG", "webp": "WEBP", "cmyk": "JPEG"}[kind], **options[kind])
    code = (
        "import resource, sys; from d3m_assets.datasets.images import decoded\n"
        "from d3m_assets.datasets.listed_source import _pixel_digest\n"
        "with decoded(open(sys.argv[1], 'rb').read(), int(sys.argv[2])) as (image, mode): _pixel_digest(image)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    allowed = 178_956_970 if kind == "16 bit" else 64_000_000
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x"), str(allowed)], capture_output=True, text=True, check=True
    )
    print(kind, done.stdout)
    assert int(done.stdout) < 1024


def test_large_images_wait_for_each_other():
    room, order = PixelRoom(100, small=10), []

    def second():
        with room.taken(60):
            order.append("second")

    with room.taken(60):
        waiting = threading.Thread(target=second)
        waiting.start()
        with room.taken(9), room.taken(40):
            order.append("small")
        waiting.join(0.05)
        assert waiting.is_alive()
        order.append("first")
    waiting.join(10)
    with room.taken(1000):  # larger than all the room: alone
        order.append("vast")
    assert order == ["small", "first", "second", "vast"]


@pytest.mark.parametrize("form", SOURCES, ids=lambda form: form.__name__)
def test_an_image_that_changes_after_the_scan_is_not_used_and_nothing_of_it_is_kept(form, folder, tmp_path, foundation):
    source = opened(form, folder, tmp_path)
    scan = source.scan()
    images = scan.classes["a"].of("train")
    victim = images[1]
    recorded = source.read(victim)
    place = next(p for p in tmp_path.rglob("*") if p.is_file() and "home" not in p.parts and recorded in p.read_bytes()
                 and (form not in (as_zip, as_shards, as_rows) or p.suffix != ".png"))  # fmt: skip
    whole, status = place.read_bytes(), place.stat()
    changed = bytearray(recorded)
    changed[-20] ^= 1
    place.write_bytes(whole.replace(recorded, changed))
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    # What this process keeps of open files is as it was, and would rightly be used.
    forget(source.url)
    _ARCHIVES.clear()
    cache = LatentCache(tmp_path / "latents", 10**7)
    files = ImageFiles(source, images, scan.channels)
    with pytest.raises(
        DatasetError, match=victim.relative_path.replace(".", r"\.") + " (has changed since|cannot be read)"
    ):
        cache.get(foundation, files)
    assert not (tmp_path / "latents").exists()
    # The image is back, and the dataset scanned as the error says: what is encoded and kept is of it.
    place.write_bytes(whole)
    assert source.scan() == scan
    cache.get(foundation, files)
    assert len(list((tmp_path / "latents").iterdir())) == 1


def test_an_image_that_changes_in_a_run_fails_its_class_by_name(tmp_path, image_folder):
    folder = image_folder()
    pipeline = open_pipeline(tmp_path, folder, budgets=("ipc-1",))
    run_assets(pipeline, {"class_catalog", "raw_dataset", "foundation_model", "class_prompts"})
    victim = folder / "train/7/003.png"
    sound = victim.read_bytes()
    Image.new("L", (8, 8), 99).save(victim)
    plan = pipeline.plan()
    tally = pipeline.work_through(
        dataclasses.replace(plan, entries=[entry for entry in plan.entries if entry.key.asset == "inverted_embeddings"])
    )
    assert [outcome.key for outcome in tally.failed] == [ArtefactKey("inverted_embeddings", "7", "ipc-1")]
    assert "train/7/003.png has changed since the dataset was scanned; run again" in str(tally.failed[0].error)
    assert {key.class_key for key in tally.made} == {"0", "1"}
    victim.write_bytes(sound)
    made = run_assets(open_pipeline(tmp_path, folder, budgets=("ipc-1",)), {"inverted_embeddings"})
    assert [key.class_key for key in made] == ["7"]


def test_an_image_that_changes_before_a_student_sees_it_is_told_with_its_class(tmp_path, image_folder):
    folder = image_folder()
    context = open_pipeline(tmp_path, folder).context
    rows = context.dataset.scan.classes["7"].table(2)
    assert len(real_images(context, rows)) == len(rows)
    Image.new("L", (8, 8), 99).save(folder / "train/7/003.png")
    with pytest.raises(DatasetError, match=r"^class '7' cannot be used: image train/7/003\.png has changed since"):
        real_images(context, rows)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiff of 16 million strips", "has 16,777,216 strips or tiles"),
        ("tiff with a tile of 65536 pixels a side", "has tiles of 4,294,967,296 pixels"),
        ("png with 4,000 packed profiles", "has 4,000 colour profiles"),
        ("jpeg of 2,000 scans", "has 2,006 scans of 16,000,000 pixels"),
        ("gif with 40 MB of comment", "consists of more than 262,144 parts"),
    ],
)
def test_what_would_take_the_decoder_minutes_is_refused_by_name(name, words):
    with pytest.raises(LimitError, match=words):
        decode_image(hostile_images()[name])


def test_a_member_that_says_a_false_size_is_not_unpacked_whole(folder, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in sorted(folder.rglob("*.png")):
            archive.write(image, image.relative_to(folder))
        archive.writestr("train/a/bomb.png", bytes(2**27))
    data = bytearray(path.read_bytes())
    sizes = data.rindex(b"train/a/bomb.png") - 46 + 24  # in the directory at the end
    assert struct.unpack_from("<L", data, sizes)[0] == 2**27
    data[sizes : sizes + 4] = struct.pack("<L", 1000)
    path.write_bytes(data)
    tracemalloc.start()
    scan = ZippedImageFolder(path).scan()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (error,) = scan.classes["a"].errors
    assert error.what.startswith("cannot be read: Bad CRC-32")
    assert peak < 2**25
    # Of one that says its size, the size decides.
    data[sizes : sizes + 4] = struct.pack("<L", 2**27)
    path.write_bytes(data)
    (error,) = ZippedImageFolder(path, settings=ImageSettings(max_bytes=10**6)).scan().classes["a"].errors
    assert error.what == "has 134,217,728 bytes; `images.max_bytes` allows 1,000,000"


def test_members_whose_names_lead_out_of_an_archive_are_told_and_links_are_errors(folder, tmp_path):
    path = Path(as_zip(folder, tmp_path))
    image = VALID["png 0"]
    with zipfile.ZipFile(path, "a") as archive:
        for name in (
            "../../train/a/out.png",
            "/train/a/absolute.png",
            "train/a/../../../up.png",
            "train\\..\\..\\back.png",
        ):
            archive.writestr(name, image)
        link = zipfile.ZipInfo("train/a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    scan = ZippedImageFolder(path).scan()
    assert [(error.place, error.what) for error in scan.classes["a"].errors] == [("train/a/link.png", "is a link")]
    assert list(scan.classes) == ["a", "b"]
    assert any("has 4 members whose names lead out of it" in problem.what for problem in scan.problems)
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as archive:
        for index, name in enumerate(("../../a/out", "/a/absolute", "a/0", "a/1", "a/2")):
            for suffix, content in ((".png", VALID[f"png {index}"]), (".cls", b"a")):
                member = tarfile.TarInfo(f"{name}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    before = {file for file in tmp_path.rglob("*") if "home" not in file.parts}
    scan = open_dataset(str(shard), home=tmp_path / "home", validation_fraction=0).scan()
    assert len(scan.classes["a"].images) == 3
    assert any(
        "has 4 members whose names lead out of it" in problem.what for problem in scan.problems
    )  # images and labels
    assert {file for file in tmp_path.rglob("*") if "home" not in file.parts} == before


def run_length_bitmap(width: int, height: int, run: int) -> bytes:
    """A grey 8-bit BMP, compressed in runs of so many equal pixels."""
    row = bytes(value for i in range(0, width, run) for value in (min(run, width - i), i % 256)) + b"\0\0"
    pixels = row * height + b"\0\1"
    palette = bytes(value for grey in range(256) for value in (grey, grey, grey, 0))
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def test_a_bitmap_of_many_short_runs_is_read():
    image, mode = decode_image(run_length_bitmap(640, 480, 2))
    assert image.size == (640, 480) and mode in ("L", "P")
    with pytest.raises(ValueError, match="more than 2,097,152 parts; save it again, say as PNG"):
        decode_image(run_length_bitmap(2000, 2000, 1))


def test_the_tiles_of_a_tiff_may_be_as_large_as_the_setting_says():
    entries = [(322, 4, 1, 9000), (323, 4, 1, 9000)]  # width and length of a tile
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    data = b"II*\0" + struct.pack("<L", 8) + directory
    with pytest.raises(LimitError, match="tiles of 81,000,000 pixels; `images.max_pixels` allows 64,000,000"):
        check_file(data, 64_000_000)
    check_file(data, 100_000_000)
