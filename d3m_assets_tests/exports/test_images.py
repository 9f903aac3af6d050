import json

import numpy as np
import pytest
from PIL import Image

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.generation import generate
from d3m_assets.errors import BundleError
from d3m_assets.exports.images import regenerate
from d3m_assets_tests.distillation.test_bundle import bundle


def test_regenerate_writes_what_generate_gives(foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    seen = []
    count = regenerate(
        Bundle.from_bytes(made.to_bytes()), foundation, tmp_path / "out", per_class=3, progress=seen.append
    )
    assert count == 6
    assert [(event.done, event.total) for event in seen] == [(k, 6) for k in range(7)]
    c = made.classes[1]
    generated, _ = generate(
        foundation, c.prompts, made.generation_settings(), 0, count=3, vectors=c.vectors, plan=c.plan, channels=1
    )
    for k in range(3):
        with Image.open(tmp_path / "out" / "7" / f"{k:05d}.png") as image:
            assert np.array_equal(np.asarray(image), generated[k, :, :, 0])


def test_regenerate_refuses_another_model_and_a_used_folder(foundation, words, tmp_path):
    with pytest.raises(BundleError, match="embedded.*another model"):
        regenerate(bundle(words), foundation, tmp_path / "out", per_class=1)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    right = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    with pytest.raises(BundleError, match="not empty"):
        regenerate(right, foundation, mine, per_class=1)
    assert (mine / "thesis.txt").read_text() == "keep"


@pytest.mark.parametrize("image_format", ["folder", "huggingface", "webdataset"])
def test_a_complete_export_is_left_alone_and_any_other_refused(foundation, words, tmp_path, image_format):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    out = tmp_path / "out"
    regenerate(made, foundation, out, per_class=2, image_format=image_format)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert regenerate(made, foundation, out, per_class=2, image_format=image_format) == 4
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    other = bundle(words, seed=1, foundation_fingerprint=foundation.files.fingerprint)
    for changed, options, message in (
        (made, {"per_class": 3}, r"holds another export, complete: images is 4 there and 6 here.*--output"),
        (other, {"per_class": 2}, f"bundle is {made.sha256} there and {other.sha256} here"),
    ):
        with pytest.raises(BundleError, match=message):
            regenerate(changed, foundation, out, image_format=image_format, **options)
    with pytest.raises(BundleError, match=r"holds another export.*format"):
        another = "folder" if image_format != "folder" else "webdataset"
        regenerate(made, foundation, out, per_class=2, image_format=another)
    (out / "thesis.txt").write_text("keep")
    with pytest.raises(BundleError, match=r"thesis\.txt, which the export"):
        regenerate(made, foundation, out, per_class=2, image_format=image_format)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "thesis.txt"}.keys() == before.keys()


def test_two_processes_do_not_write_into_one_folder(foundation, words, tmp_path):
    from filelock import FileLock

    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".d3m-export.lock"), pytest.raises(BundleError, match="another process"):
        regenerate(made, foundation, out, per_class=1)


def test_a_damaged_state_is_told(foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    for content in ("", "[]", "[" * 100_000, json.dumps({"format": "d3m-export-9", "export": {}, "complete": True})):
        (tmp_path / ".d3m-export.json").write_text(content)
        with pytest.raises(BundleError, match=r"\.d3m-export\.json cannot be used"):
            regenerate(made, foundation, tmp_path, per_class=1)


def test_damaged_metadata_of_an_export_that_goes_on_are_told(foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    regenerate(made, foundation, tmp_path / "out", per_class=1)
    for content in ("[" * 100_000 + "\n", "5\n", "{}\n", '{"file_name": 5}\n'):
        (tmp_path / "out" / "metadata.jsonl").write_text(content)
        with pytest.raises(BundleError, match=r"metadata\.jsonl in .* is damaged"):
            regenerate(made, foundation, tmp_path / "out", per_class=1)


def test_a_class_called_like_a_file_of_the_folder_is_refused(foundation, words, tmp_path):
    made = bundle(words, ["readme.md", "7"], foundation_fingerprint=foundation.files.fingerprint)
    with pytest.raises(BundleError, match=r"readme\.md.*--format"):
        regenerate(made, foundation, tmp_path / "out", per_class=1)
    assert regenerate(made, foundation, tmp_path / "out", per_class=1, image_format="huggingface") == 2


def test_classes_that_differ_by_case_are_refused_where_the_disk_ignores_it(foundation, words, tmp_path, monkeypatch):
    from d3m_assets.exports.formats import image_folder

    made = bundle(words, ["A", "b", "a"], foundation_fingerprint=foundation.files.fingerprint)
    assert not image_folder.ignores_case(tmp_path)
    monkeypatch.setattr(image_folder, "ignores_case", lambda folder: True)
    with pytest.raises(BundleError, match=r"takes 'A' and 'a' for one name.*--format"):
        regenerate(made, foundation, tmp_path / "out", per_class=1)
