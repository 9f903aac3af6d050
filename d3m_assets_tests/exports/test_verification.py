"""Folders that were regenerated and then tampered with."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from d3m_assets.datasets.images import decode_png, encode_png
from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import BundleError
from d3m_assets.exports.images import regenerate
from d3m_assets.exports.verification import FolderImages, agreement, report, verify
from d3m_assets_tests.distillation.test_bundle import bundle

IMAGES = 10


@pytest.fixture(scope="module")
def made(foundation):
    from d3m_assets.distillation.prompts import ClassPrompts

    def words(name, class_id=0):
        return ClassPrompts.of(
            class_id, name, name, templates=("a photo of a {}",), initializer=None, keep_class_name=True
        )

    return bundle(words, foundation_fingerprint=foundation.files.fingerprint)


@pytest.fixture(scope="module")
def regenerated(made, foundation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regenerated") / "out"
    regenerate(made, foundation, folder, per_class=IMAGES)
    return folder


@pytest.fixture
def folder(regenerated, tmp_path):
    return shutil.copytree(regenerated, tmp_path / "out")


def check(made, foundation, folder, **options):
    return verify(made, foundation, FolderImages(folder, (made.sha256, "mine.safetensors")), **options)


def change(path, edit):
    """Change pixels of an image and keep what it says of itself."""
    with Image.open(path) as image:
        text = dict(image.text)
    pixels = decode_png(path.read_bytes()).copy()
    edit(pixels)
    path.write_bytes(encode_png(pixels, text))


def test_untouched_images_are_equal(made, foundation, folder):
    result = check(made, foundation, folder, exact=True)
    assert result.verdict == "equal"
    assert [(c.class_name, c.available, c.checked, c.equal) for c in result.classes] == [
        ("3", IMAGES, IMAGES, IMAGES),
        ("7", IMAGES, IMAGES, IMAGES),
    ]
    assert f"{2 * IMAGES} equal pixel for pixel" in report(result)


def test_a_sample_is_at_least_as_large_as_asked_and_whole_chunks(made, foundation, folder):
    batch = made.generation_settings().batch_size
    assert batch == 4
    result = check(made, foundation, folder, sample=3)
    assert all(3 <= c.checked <= 2 * batch for c in result.classes)
    assert check(made, foundation, folder, sample=3).to_json() == result.to_json()
    assert check(made, foundation, folder, sample=999).total("checked") == 2 * IMAGES


def test_one_edited_pixel_is_seen(made, foundation, folder):
    def edit(pixels):
        pixels[5, 5] ^= 0x80

    change(folder / "7" / "00006.png", edit)
    result = check(made, foundation, folder)
    assert result.verdict == "not equal"
    three, seven = result.classes
    assert (three.equal, seven.equal, seven.different + seven.precision) == (IMAGES, IMAGES - 1, 1)
    assert "image 6" in seven.examples[0]
    assert "128 of 255" in report(result)


def test_rounding_is_within_the_tolerance_unless_exactness_is_asked_for(made, foundation, folder):
    def edit(pixels):
        pixels[0, :3] = np.where(pixels[0, :3] < 128, pixels[0, :3] + 1, pixels[0, :3] - 1)

    change(folder / "3" / "00000.png", edit)
    result = check(made, foundation, folder)
    assert (result.verdict, result.total("rounding")) == ("equal within the tolerance", 1)
    assert check(made, foundation, folder, exact=True).verdict == "not equal"


def test_swapped_missing_damaged_and_foreign_files_are_counted(made, foundation, folder):
    (folder / "3" / "00000.png").write_bytes((folder / "3" / "00001.png").read_bytes())
    (folder / "3" / "00005.png").write_bytes(b"\x89PNG damaged")
    (folder / "7" / "00004.png").unlink()
    stripped = encode_png(decode_png((folder / "7" / "00001.png").read_bytes()))
    (folder / "7" / "00002.png").write_bytes(stripped)
    (folder / "7" / "thesis.txt").write_text("mine")
    (folder / "9").mkdir()
    result = check(made, foundation, folder)
    three, seven = result.classes
    assert (three.unreadable, three.equal) == (2, IMAGES - 2)
    assert any("says that it is image 1 of class 3" in example for example in three.examples)
    assert (seven.missing, seven.different, seven.equal) == (1, 1, IMAGES - 2)
    assert result.strangers == ("7/thesis.txt", "9")
    assert result.verdict == "not equal"


def test_a_class_that_is_cut_off_at_the_end_misses_images(made, foundation, folder):
    """Failure prevented: the last images of a class are gone, and what is left is called equal."""
    for index in (IMAGES - 2, IMAGES - 1):
        (folder / "7" / f"{index:05d}.png").unlink()
    result = check(made, foundation, folder)
    assert [c.missing for c in result.classes] == [0, 2]
    assert result.verdict == "not equal"
    assert f"of those present: {2 * IMAGES - 2} of the {2 * IMAGES} up to the highest number" in result.sentence


def test_a_class_without_images_is_not_equal(made, foundation, folder):
    shutil.rmtree(folder / "7")
    assert check(made, foundation, folder).verdict == "not equal"


def test_another_bundle_and_another_model_are_refused_by_name(made, foundation, folder, words):
    with pytest.raises(BundleError, match=f"{made.sha256[:12]}.*other.safetensors.*--bundle"):
        FolderImages(folder, ("0" * 64, "other.safetensors"))
    other = bundle(words)
    images = FolderImages(folder)
    with pytest.raises(BundleError, match="another model"):
        verify(other, foundation, images)
    # One image of another bundle among the right ones.
    mixed = bundle(words, seed=1, foundation_fingerprint=foundation.files.fingerprint)
    regenerate(mixed, foundation, folder.parent / "mixed", per_class=1)
    shutil.copy(folder.parent / "mixed" / "7" / "00000.png", folder / "7" / "00000.png")
    with pytest.raises(BundleError, match=mixed.sha256[:12]):
        check(made, foundation, folder)
    with pytest.raises(BundleError, match="holds no <class>/<number>.png"):
        FolderImages(folder / "7")


def test_images_of_another_number_format_are_the_same_within_the_tolerance(made, foundation, tmp_path):
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    coarse = load_foundation(FoundationFiles("embedded", embedded_path()), "cpu")
    for part in (coarse.unet, coarse.vae, *(encoder.model for encoder in coarse.text_encoders)):
        part.to(torch.bfloat16)
    regenerate(made, coarse, tmp_path / "out", per_class=IMAGES)
    result = check(made, foundation, tmp_path / "out")
    assert (result.made_with, result.here) == ("bfloat16 cpu", "float32 cpu")
    assert result.total("equal") < IMAGES
    assert result.verdict == "equal within the tolerance"
    assert check(made, foundation, tmp_path / "out", exact=True).verdict == "not equal"


def test_images_of_another_seed_are_different_in_any_number_format(made, foundation, folder):
    a, b = (decode_png((folder / "3" / f"0000{k}.png").read_bytes()) for k in (0, 1))
    assert agreement(a, b)[0] == "different"
    assert agreement(a, a) == ("equal", 0.0, 0)
    assert agreement(a, a[:-1]) == ("different", 255.0, 255)


def test_generation_can_begin_at_any_chunk(made, foundation):
    c, settings = made.classes[0], GenerationSettings(**made.recipe.generation)
    options = {"vectors": c.vectors, "plan": c.plan, "channels": 1}
    whole, samples = generate(foundation, c.prompts, settings, 0, count=10, **options)
    tail, tail_samples = generate(foundation, c.prompts, settings, 0, count=3, first=4, **options)
    assert np.array_equal(tail, whole[4:7])
    assert tail_samples == samples[4:7]
    with pytest.raises(ValueError, match="multiple of 4"):
        generate(foundation, c.prompts, settings, 0, count=3, first=2, **options)
