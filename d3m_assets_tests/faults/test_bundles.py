"""Hostile bundles: whatever a file says, it is read whole, refused with a sentence, or safe to show and to write."""

import json
from dataclasses import replace
from pathlib import PureWindowsPath

import pytest

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.errors import BundleError
from d3m_assets.exports.bundle_repository import model_card
from d3m_assets.exports.images import regenerate
from d3m_assets.exports.verification import FolderImages, verify
from d3m_assets_tests.faults import bundles


@pytest.fixture(scope="module")
def sound(foundation):
    return bundles.subjects(foundation.files.fingerprint)


def test_no_hostile_bundle_ends_in_a_traceback_or_is_taken_for_another(sound, foundation, tmp_path):
    found = bundles.Counts()
    for case, data, original, right_hash in bundles.cases(sound, 100, seed=1):
        found.attack(data, original, right_hash, foundation, tmp_path, case)
    assert not found.tracebacks
    assert bundles.faults(dict(found.counts)) == []
    # The attack reaches what lies behind the hash, and hostile names are written, not refused.
    assert found.counts["accepted, equal"] >= 4
    assert found.counts["accepted, changed with a hash made right"] >= len(bundles.HOSTILE_NAMES)
    assert found.counts["refused"] > 200


NUMBERS_ALL_THE_SAME = ("int8", "vectors that are not finite")
"""What is no number in float16 is one in int8."""


@pytest.mark.parametrize("kind", ["int8", "int4 and selections", "float16 and norms", "codes"])
@pytest.mark.parametrize("case", sorted(bundles.CORPUS))
def test_each_file_of_the_corpus_is_refused_by_name(sound, kind, case):
    if (kind, case) == NUMBERS_ALL_THE_SAME:
        return
    data = bundles.CORPUS[case](bundles.Parts.of(sound[kind].to_bytes())).to_bytes()
    with pytest.raises(BundleError, match=r"x\.safetensors .{10,400}$"):
        Bundle.from_bytes(data, "x.safetensors")


@pytest.mark.parametrize("image_format", ["folder", "huggingface", "webdataset"])
def test_hostile_names_stay_in_their_folder_and_their_images_verify(sound, tmp_path, image_format):
    first = sound["codes"].classes[0]
    named = tuple(
        replace(first, prompts=replace(first.prompts, class_id=i, class_key=f"key-{i}", class_name=name))
        for i, name in enumerate(bundles.HOSTILE_NAMES)
    )
    bundle = Bundle.from_bytes(replace(sound["codes"], classes=named).to_bytes())
    out = tmp_path / "parent" / "out"
    assert regenerate(bundle, None, out, per_class=1, image_format=image_format) == len(named)
    written = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    assert all(p.parts[:2] == ("parent", "out") and len(p.parts) <= 4 for p in written)
    for path in written:
        for part in path.parts:
            assert part.isprintable() and not PureWindowsPath(part).is_reserved() and not set(part) & set('<>:"|?*\\')
            assert part[-1] not in ". "
    if image_format == "folder":
        names = {json.loads(line)["label"] for line in (out / "metadata.jsonl").read_bytes().splitlines()}
        assert names == set(bundles.HOSTILE_NAMES)
        result = verify(bundle, None, FolderImages(out), sample=None)
        assert result.verdict == "equal" and result.total("checked") == len(named) and not result.strangers
    assert regenerate(bundle, None, out, per_class=1, image_format=image_format) == len(named)  # it is known again


@pytest.mark.long
def test_a_thousand_hostile_bundles_stay_within_memory_and_time():
    found = bundles.run(1000, seed=2)
    assert found.pop("tracebacks") == {}
    assert bundles.faults(found) == []
    assert found["peak_mib"] < bundles.MEMORY_MIB


@pytest.mark.parametrize("kind", ["int8", "int4 and selections", "float16 and norms"])
@pytest.mark.parametrize("case", sorted(bundles.ODD))
def test_an_odd_file_is_read_shown_and_regenerated(sound, foundation, tmp_path, kind, case):
    data = bundles.ODD[case](bundles.Parts.of(sound[kind].to_bytes())).to_bytes()
    assert bundles.probe(data, foundation, tmp_path).to_bytes() == data


def test_texts_of_a_bundle_are_no_markup_or_code_of_its_card(sound):
    parts = bundles.ODD["markup and code in texts for people"](bundles.Parts.of(sound["int8"].to_bytes()))
    parts = parts.recipe(foundation='x`"); import os; ("<b>')
    page = model_card(Bundle.from_bytes(parts.to_bytes())).split("\n---\n", 1)[1]
    assert "\\<script\\>" in page
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "[x](javascript" not in page
    assert "\n# x" not in page
    assert 'from_pretrained("x`\\"); import os; (\\"<b>")' in page  # a string of Python, to its end
    assert '`x\'"); import os; ("<b>`' in page  # a code span, to its end
