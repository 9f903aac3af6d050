"""Every format, read by the programs that it is written for, and by this package itself."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from d3m_assets.datasets.images import decode_png
from d3m_assets.datasets.opening import open_dataset
from d3m_assets.errors import BundleError
from d3m_assets.exports.formats.writer import CARD
from d3m_assets.exports.image_record import parse_record
from d3m_assets.exports.images import regenerate
from d3m_assets.exports.stream import generate_class
from d3m_assets_tests.exports.tricky import NAMES, tricky_bundle

PER_CLASS = 3
FORMATS = ("folder", "huggingface", "webdataset")


@pytest.fixture(scope="module")
def made(foundation):
    return tricky_bundle(foundation)


@pytest.fixture(scope="module")
def pixels(made, foundation):
    """Images of every class, by its name, as the pool has them."""
    return {c.prompts.class_name: generate_class(made, c, foundation, PER_CLASS)[0] for c in made.classes}


@pytest.fixture(scope="module")
def exported(made, foundation, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    for image_format in FORMATS:
        options = {"image_format": image_format, "per_class": PER_CLASS, "with_croissant": True}
        assert regenerate(made, foundation, root / image_format, **options) == PER_CLASS * len(NAMES)
    return root


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def same(image, expected):
    return np.array_equal(np.asarray(image.convert("L")), expected[..., 0])


def load(folder, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    return loaded["train"]


@pytest.mark.parametrize("image_format", ["folder", "huggingface"])
def test_datasets_reads_every_class_name_and_pixel(exported, pixels, tmp_path, image_format):
    import datasets

    data = load(exported / image_format, tmp_path)
    assert data.features["image"] == datasets.Image()
    assert data.features["label"] == datasets.ClassLabel(names=list(NAMES))
    assert data.num_rows == PER_CLASS * len(NAMES)
    label = data.features["label"]
    for row in data:
        assert same(row["image"], pixels[label.int2str(row["label"])][row["index"]])
        assert row["seed"] == f"0/{label.int2str(row['label'])}/{row['index']}"
        assert row["selected"] is True
        assert row["prompt"].startswith("a photo of a <d3m-")


def test_datasets_reads_the_tar_shards(exported, pixels, tmp_path):
    data = load(exported / "webdataset", tmp_path)
    assert data.num_rows == PER_CLASS * len(NAMES)
    for row in data:
        assert row["cls"] == row["json"]["label"]
        assert same(row["png"], pixels[NAMES[row["cls"]]][row["json"]["index"]])


def test_webdataset_reads_the_shards(exported, pixels):
    import webdataset

    folder = exported / "webdataset"
    about = json.loads((folder / "dataset.json").read_text())
    assert about["classes"] == list(NAMES)
    data = webdataset.WebDataset(f"{folder}/{about['shards']}", shardshuffle=False).decode("pil")
    keys = []
    for sample in data:
        keys.append(sample["__key__"])
        name = about["classes"][sample["cls"]]
        assert same(sample["png"], pixels[name][sample["json"]["index"]])
        assert sample["json"]["class_name"] == name
    assert len(set(keys)) == len(keys) == about["samples"] == PER_CLASS * len(NAMES)
    assert not any("." in key for key in keys)
    marks = sorted(folder.glob("*_stats.json"))
    assert len(marks) == len(list(folder.glob("*.tar"))) >= 20


@pytest.mark.parametrize("image_format", FORMATS)
def test_croissant_validates_and_iterates(exported, pixels, tmp_path, monkeypatch, image_format):
    import mlcroissant as mlc
    from etils import epath
    from mlcroissant._src.operation_graph.operations import extract

    # It unpacks archives into a folder named after their relative address.
    monkeypatch.setattr(extract, "EXTRACT_PATH", epath.Path(tmp_path / "extracted"))
    data = mlc.Dataset(jsonld=str(exported / image_format / "croissant.json"))
    assert not data.metadata.issues.errors
    assert all("datePublished" in warning for warning in data.metadata.issues.warnings)
    names = {row["classes/label"]: row["classes/name"] for row in data.records("classes")}
    assert list(names.values()) == list(NAMES)
    seen = []
    for row in data.records("images"):
        image = row["images/image"]
        name = names[row["images/label"]] if "images/label" in row else row["images/class_name"].decode()
        seen.append((name, image.convert("L").tobytes()))
    assert sorted(seen) == sorted((name, image.tobytes()) for name, images in pixels.items() for image in images)


def test_croissant_without_its_package_names_the_extra(made, foundation, tmp_path, monkeypatch):
    import importlib.util

    from d3m_assets.errors import BundleError

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlcroissant" else find(name, *a))
    with pytest.raises(BundleError, match=r"pip install 'd3m-assets\[croissant\]'"):
        regenerate(made, foundation, tmp_path / "out", per_class=1, with_croissant=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_was_exported_is_a_dataset_of_this_package(exported, pixels, tmp_path, image_format):
    source = open_dataset(str(exported / image_format), home=tmp_path / "home", validation_fraction=0.1)
    scan = source.scan()
    assert set(scan.classes) == set(NAMES)
    assert (scan.image_height, scan.image_width, scan.channels) == (32, 32, 1)
    for name, images in scan.classes.items():
        assert not images.errors
        assert len(images.images) == PER_CLASS
        found = sorted(decode_png(source.read(image)).tobytes() for image in images.images)
        assert found == sorted(image.tobytes() for image in pixels[name])


def test_an_image_is_the_same_file_in_every_format(exported):
    import pyarrow.parquet as pq

    files = {p.relative_to(exported / "folder").as_posix(): p.read_bytes() for p in exported.glob("folder/*/*.png")}
    rows = [row for p in sorted(exported.glob("huggingface/data/*.parquet")) for row in pq.read_table(p).to_pylist()]
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == files
    for row in rows:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            record = parse_record(image.info["d3m"], "it")
        assert (record.class_name, record.index) == (NAMES[row["label"]], row["index"])


def test_parquet_shards_are_many_and_say_their_number(exported, made, foundation, tmp_path):
    shards = sorted(p.name for p in exported.glob("huggingface/data/*"))
    assert shards == [f"train-{k:05d}-of-00020.parquet" for k in range(20)]
    few = tricky_bundle(foundation, names=("train", "a"))
    regenerate(few, foundation, tmp_path / "few", per_class=2, image_format="huggingface")
    assert sorted(p.name for p in tmp_path.glob("few/data/*")) == [f"train-{k:05d}-of-00004.parquet" for k in range(4)]


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_card_says_what_it_is(exported, made, image_format):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(exported / image_format / CARD)
    facts = card.data.to_dict()
    assert facts["license"] == "other"
    assert facts["license_name"] == "as-the-dataset-s-and-the-foundation-model-s"
    assert facts["size_categories"] == ["n<1K"]
    assert facts["task_categories"] == ["image-classification"]
    for text in (
        made.sha256,
        made.recipe.foundation_fingerprint,
        "128 bytes a class",
        f"d3m regenerate BUNDLE --format {image_format} --output FOLDER --per-class 3",
        "d3m metrics --budget ipc-2",
        "not known to the bundle",
    ):
        assert text in card.text


def test_fresh_samples_behind_a_selection_are_marked(foundation, tmp_path):
    from dataclasses import replace

    from d3m_assets.distillation.selection import encode_selection

    whole = tricky_bundle(foundation, names=("a", "b"), criterion="centres", candidates=10, kept=3)
    chosen = replace(whole.classes[0], selection=encode_selection([1, 5, 6], 10, 3))
    made = replace(whole, classes=(chosen, whole.classes[1]))
    regenerate(made, foundation, tmp_path / "out", per_class=5)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [(line["label"], line["index"], line["selected"]) for line in lines] == [
        *(("a", k, True) for k in (1, 5, 6)),
        *(("a", k, False) for k in (10, 11)),
        *(("b", k, True) for k in range(5)),
    ]
    for c in made.classes:
        numbers = made.samples(c, 5)
        images, _ = generate_class(made, c, foundation, 5, indices=numbers)
        for k, image in zip(numbers, images, strict=True):
            path = tmp_path / "out" / c.prompts.class_name / f"{k:05d}.png"
            assert np.array_equal(decode_png(path.read_bytes()), image)


@pytest.mark.parametrize("name", ["readme.md", "metadata.jsonl"])
def test_a_class_that_is_called_as_a_file_of_the_folder_is_refused_there_only(foundation, tmp_path, name):
    made = tricky_bundle(foundation, names=("3", name))
    with pytest.raises(BundleError, match="as a file that an image folder needs; .*--format huggingface"):
        regenerate(made, foundation, tmp_path / "folder", per_class=1)
    assert not (tmp_path / "folder").exists()
    assert regenerate(made, foundation, tmp_path / "parquet", per_class=1, image_format="huggingface") == 2


@pytest.mark.parametrize("name", [".d3m-export.json", ".metadata.jsonl.part"])
def test_a_class_that_is_called_as_a_hidden_file_has_a_folder_that_is_not_hidden(foundation, tmp_path, name):
    assert regenerate(tricky_bundle(foundation, names=("3", name)), foundation, tmp_path / "folder", per_class=1) == 2
    assert (tmp_path / "folder" / f"%2E{name[1:]}" / "00000.png").exists()
