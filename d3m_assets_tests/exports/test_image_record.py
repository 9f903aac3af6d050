import json
import re

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from d3m_assets.datasets.images import decode_png, encode_png
from d3m_assets.errors import BundleError
from d3m_assets.exports.image_record import KEY, MAX_TEXT, ImageRecord, parse_record, read_record
from d3m_assets.exports.images import regenerate
from d3m_assets_tests.distillation.test_bundle import bundle

RECORD = {
    "format": "d3m-image-1",
    "bundle": "a" * 64,
    "class_id": 7,
    "class_name": "seven",
    "index": 3,
    "prompt_index": 1,
    "prompt": "a photo of a <d3m-0007ab> seven",
    "seed": "0/seven/3",
    "foundation": "b" * 64,
    "precision": "float32 cpu",
    "versions": {"torch": "2.13.0"},
}
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\nroot#"


def write_png(path, text=None, *, zip_=False):
    chunks = PngInfo()
    if text is not None:
        chunks.add_text(KEY, text, zip=zip_)
    Image.new("L", (4, 4)).save(path, pnginfo=chunks)
    return path


def test_regenerated_images_say_where_they_come_from_and_keep_their_pixels(foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    regenerate(made, foundation, tmp_path / "out", per_class=3)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"{c}/{k:05d}.png" for c in "37" for k in range(3)]
    for line in lines:
        path = tmp_path / "out" / line["file_name"]
        record = read_record(path)
        assert record.bundle == made.sha256
        assert (record.class_name, record.index) == (line["label"], line["index"])
        assert record.seed == f"0/{record.class_name}/{record.index}"
        assert record.foundation == foundation.files.fingerprint
        assert record.precision == "float32 cpu"
        assert "torch" in record.versions
        # The chunk stands beside the pixels: the same file without it is what pools hold.
        pixels = decode_png(path.read_bytes())
        assert encode_png(pixels) != path.read_bytes()
        assert encode_png(pixels, {KEY: record.to_text()}) == path.read_bytes()
    assert {line["prompt"] for line in lines[:3]} == {f"a photo of a <d3m-0000a{p}> 3" for p in "ab"}


def test_an_image_without_text_is_encoded_as_ever():
    import io

    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    plain = io.BytesIO()
    Image.fromarray(image).save(plain, "PNG")
    assert encode_png(image) == plain.getvalue()
    assert np.array_equal(decode_png(encode_png(image, {KEY: "x"})), image)


def test_a_record_comes_back():
    record = ImageRecord.model_validate(RECORD | {"class_name": "Größe 猫\x1b"})
    assert record.to_text().isascii()
    assert parse_record(record.to_text(), "it") == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage" + HOSTILE,
        "[" * 10_000,
        "x" * (MAX_TEXT + 1),
        json.dumps([RECORD]),
        json.dumps(RECORD | {"bundle": HOSTILE}),
        json.dumps(RECORD | {"index": -1}),
        json.dumps(RECORD | {"index": "3"}),
        json.dumps(RECORD | {"class_name": "x" * 1001}),
        json.dumps(RECORD | {"format": "d3m-image-9"}),
        json.dumps(RECORD | {"versions": {HOSTILE: 3}}),
        json.dumps({k: v for k, v in RECORD.items() if k != "seed"}),
    ],
)
def test_a_chunk_that_is_not_ours_is_refused_without_being_quoted(tmp_path, text):
    path = write_png(tmp_path / "image.png", text)
    with pytest.raises(BundleError, match=r"image\.png carries") as caught:
        read_record(path)
    assert "\x1b" not in str(caught.value)
    assert "owned" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_files_that_are_no_such_image_are_refused(tmp_path):
    with pytest.raises(BundleError, match="carries no record.*--pool"):
        read_record(write_png(tmp_path / "plain.png"))
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(write_png(tmp_path / "b.png", json.dumps(RECORD)).read_bytes()[:40])
    for name in ("a.jpg", "text.png", "cut.png", "missing.png"):
        with pytest.raises(BundleError, match=rf"{re.escape(name)} (cannot be read|carries no record)"):
            read_record(tmp_path / name)


def test_a_compressed_bomb_is_refused(tmp_path):
    bomb = write_png(tmp_path / "bomb.png", " " * 20_000_000, zip_=True)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(BundleError, match=r"bomb\.png"):
        read_record(bomb)
