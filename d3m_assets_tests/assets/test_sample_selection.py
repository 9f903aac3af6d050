"""Selection from end to end: what is made from what, bundle, regeneration, bytes, and what it may look at."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.graph import GRAPH
from d3m_assets.assets.sample_selection import CODE, TABLE, SampleSelection
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import FILE as POOL
from d3m_assets.datasets.images import decode_png
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.errors import BundleError
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import QUICK, SELECTED, open_pipeline, run

KEPT = QUICK["generation.images_per_class"]


@pytest.fixture(scope="module")
def selected(tmp_path_factory, finished):
    """A finished small distillation with a selection at both budgets."""
    root = tmp_path_factory.mktemp("selected")
    shutil.copytree(finished / "images", root / "images")
    run(open_pipeline(root, root / "images", **SELECTED))
    return root


@pytest.fixture
def copied(selected, tmp_path):
    shutil.copytree(selected, tmp_path, dirs_exist_ok=True)
    run(open_pipeline(tmp_path, tmp_path / "images", **SELECTED))
    return tmp_path


def read(pipeline, asset, file, class_key="7", budget="ipc-1"):
    return pipeline.store.read(ArtefactKey(asset, class_key, budget), file)


def bundle_of(pipeline, budget="ipc-1"):
    return Bundle.from_bytes(pipeline.store.read(ArtefactKey("distilled_bundle", None, budget), "bundle.safetensors"))


def test_the_training_set_is_what_was_selected_of_three_times_as_many(selected):
    pipeline = open_pipeline(selected, selected / "images", **SELECTED)
    pool = from_parquet(read(pipeline, "synthetic_pool", POOL))
    samples = from_parquet(read(pipeline, "sample_selection", TABLE))
    assert pool["index"].tolist() == samples["index"].tolist() == list(range(3 * KEPT))
    kept = samples.loc[samples["kept"], "index"].tolist()
    assert len(kept) == KEPT
    context = pipeline.reading(ArtefactKey("student_metrics", None, "ipc-1"))
    train = synthetic_images(context, "ipc-1")
    position = context.dataset.class_by_key["7"].position
    images = np.stack([decode_png(pool["image"][k]["bytes"]) for k in kept])
    assert np.array_equal(train.images[train.labels == position], images)
    audited = from_parquet(pipeline.store.read(ArtefactKey("pool_audit", None, "ipc-1"), "images.parquet"))
    assert audited.loc[audited["class_name"] == "7", "index"].tolist() == kept


def test_the_bytes_that_are_charged_are_those_that_are_stored(selected):
    pipeline = open_pipeline(selected, selected / "images", **SELECTED)
    for budget, allowed in (("ipc-1", 64), ("ipc-3", 192)):
        bundle = bundle_of(pipeline, budget)
        for c in bundle.classes:
            code = read(pipeline, "sample_selection", CODE, c.prompts.class_key, budget)
            assert c.selection == code
            assert len(code) > 0
            assert c.payload == c.vectors.nbytes + len(code) <= allowed
        ledger = bundle.ledger().set_index("item")["bytes"]
        assert ledger["selection of samples"] == sum(len(c.selection) for c in bundle.classes)
        assert ledger[["embedding vectors", "selection of samples"]].sum() == bundle.payload
        assert ledger[["embedding vectors", "selection of samples", "recipe and names"]].sum() == len(bundle.to_bytes())
        rows = from_parquet(pipeline.store.read(ArtefactKey("student_metrics", None, budget), "metrics.parquet"))
        assert set(rows["bytes_per_class"]) == {bundle.payload / len(bundle.classes)}


def test_a_rerun_makes_nothing(selected):
    assert run(open_pipeline(selected, selected / "images", **SELECTED)) == []


def test_another_criterion_remakes_what_depends_on_it_and_nothing_else(selected):
    pipeline = open_pipeline(selected, selected / "images", **SELECTED | {"selection.criterion": "herding"})
    assert {entry.key.asset for entry in pipeline.plan().pending()} == {
        "sample_selection", "distilled_bundle", "student_metrics", "pool_audit", "distillation_report",
    }  # fmt: skip


def test_a_selection_that_is_lost_is_made_again_as_it_was(copied):
    pipeline = open_pipeline(copied, copied / "images", **SELECTED)
    key = ArtefactKey("sample_selection", "7", "ipc-1")
    before, bundle = pipeline.store.read(key, CODE), bundle_of(pipeline).to_bytes()
    shutil.rmtree(next((copied / "home").rglob("sample_selection")))
    again = open_pipeline(copied, copied / "images", **SELECTED)
    assert {entry.key.asset for entry in again.plan().pending()} >= {"sample_selection"}
    run(again)
    assert again.store.read(key, CODE) == before
    assert bundle_of(again).to_bytes() == bundle


def test_regenerated_images_are_the_selected_ones_and_then_fresh_ones(selected, foundation, tmp_path):
    from d3m_assets.exports.images import regenerate
    from d3m_assets.exports.verification import FolderImages, verify

    pipeline = open_pipeline(selected, selected / "images", **SELECTED)
    bundle = bundle_of(pipeline)
    assert regenerate(bundle, foundation, tmp_path / "exact") == 3 * KEPT
    assert regenerate(bundle, foundation, tmp_path / "more", per_class=KEPT + 2) == 3 * (KEPT + 2)
    for c in bundle.classes:
        pool = from_parquet(read(pipeline, "synthetic_pool", POOL, c.prompts.class_key)).set_index("index")
        numbers = bundle.training_numbers(c).tolist()
        for folder, fresh in (("exact", []), ("more", [3 * KEPT, 3 * KEPT + 1])):
            files = sorted((tmp_path / folder / c.prompts.class_name).glob("*.png"))
            assert [int(path.stem) for path in files] == numbers + fresh
            for path in files[:KEPT]:
                stored = decode_png(pool.at[int(path.stem), "image"]["bytes"])
                assert np.array_equal(decode_png(path.read_bytes()), stored)
    lines = [json.loads(line) for line in (tmp_path / "more" / "metadata.jsonl").read_text().splitlines()]
    rows = pd.DataFrame(lines)
    assert rows["index"].tolist() == [
        n for c in bundle.classes for n in [*bundle.training_numbers(c).tolist(), 3 * KEPT, 3 * KEPT + 1]
    ]
    assert (rows["selected"] == (rows["index"] < 3 * KEPT)).all()
    for folder in ("exact", "more"):
        result = verify(bundle, foundation, FolderImages(tmp_path / folder))
        assert (result.verdict, result.total("missing")) == ("equal", 0)
    next((tmp_path / "exact").glob("*/*.png")).unlink()
    assert verify(bundle, foundation, FolderImages(tmp_path / "exact")).total("missing") == 1


def test_a_rejected_sample_is_no_image_of_the_bundle(selected, foundation, tmp_path):
    from d3m_assets.exports.images import regenerate
    from d3m_assets.exports.verification import FolderImages, verify

    bundle = bundle_of(open_pipeline(selected, selected / "images", **SELECTED))
    regenerate(bundle, foundation, tmp_path / "out")
    folder = tmp_path / "out" / bundle.classes[0].prompts.class_name
    rejected = sorted(set(range(3 * KEPT)) - set(bundle.training_numbers(bundle.classes[0]).tolist()))[0]
    shutil.copy(sorted(folder.glob("*.png"))[0], folder / f"{rejected:05d}.png")
    result = verify(bundle, foundation, FolderImages(tmp_path / "out"))
    assert (result.verdict, result.total("unselected")) == ("not equal", 1)


def test_the_bundle_is_compared_with_the_selected_images_of_its_pools(selected, foundation):
    from d3m_assets.exports.verification import verify
    from d3m_assets.inspection.verification import PoolImages

    pipeline = open_pipeline(selected, selected / "images", **SELECTED)
    bundle = bundle_of(pipeline)
    result = verify(bundle, foundation, PoolImages(bundle, pipeline.store))
    assert (result.verdict, result.total("checked")) == ("equal", 3 * KEPT)


def test_a_flipped_bit_of_the_selection_is_refused(selected):
    data = bundle_of(open_pipeline(selected, selected / "images", **SELECTED)).to_bytes()
    bundle = Bundle.from_bytes(data)
    codes = b"".join(c.selection for c in bundle.classes)
    start = data.index(codes, len(data) - bundle.payload)
    for bit in range(8 * len(codes)):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleError, match="damaged: its hash is wrong"):
            Bundle.from_bytes(bytes(damaged))


def test_the_selection_sees_the_training_part_alone(selected, monkeypatch):
    from d3m_assets.assets import raw_dataset, sample_selection, selection_model

    opened = []
    real = raw_dataset.image_rows

    def recorded(context, split, class_key=None):
        opened.append(split)
        return real(context, split, class_key)

    for module in (raw_dataset, sample_selection, selection_model):
        monkeypatch.setattr(module, "image_rows", recorded)
    monkeypatch.setattr(raw_dataset, "test_images", lambda *args, **options: pytest.fail("the test split was opened"))
    pipeline = open_pipeline(selected, selected / "images", **SELECTED | {"validation_fraction": 0.3})
    for asset in ("raw_dataset", "class_prompts", "inverted_embeddings", "synthetic_pool", "selection_model"):
        assert all(outcome.error is None for outcome in pipeline.materialize(asset, pipeline.keys(asset)))
    keys = pipeline.keys("sample_selection")
    assert all(outcome.error is None for outcome in pipeline.materialize("sample_selection", keys))
    assert opened
    assert set(opened) == {"train"}


def test_kept_and_rejected_samples_are_shown_and_checked(copied):
    pipeline = open_pipeline(copied, copied / "images", **SELECTED)
    key = ArtefactKey("sample_selection", "7", "ipc-1")
    shown = pipeline.preview(key)
    assert shown["kept_images_png"] != shown["rejected_images_png"]
    asset, item, own = GRAPH["sample_selection"], pipeline.context.item(key), pipeline.reading(key, own=True)
    assert list(asset.verify(own, item)) == []
    stored = {name: pipeline.store.read(key, name) for name in (CODE, TABLE)}
    stored[CODE] = bytes([stored[CODE][0] ^ 1, *stored[CODE][1:]])
    pipeline.store.write(key, pipeline.spec(key), stored, {})
    again = open_pipeline(copied, copied / "images", **SELECTED)
    found = list(asset.verify(again.reading(key, own=True), item))
    assert len(found) == 1
    page = (copied / "home" / "report.html").read_text() if (copied / "home" / "report.html").exists() else ""
    report = page or pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert "D3M ipc-1, rejected" in report


def test_a_budget_without_room_keeps_all_samples_and_says_so(finished, tmp_path):
    shutil.copytree(finished / "images", tmp_path / "images")
    changes = SELECTED | {"budgets": ("32B",), "evaluation.baselines": "random"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **changes)
    run(pipeline)
    bundle = bundle_of(pipeline, "32B")
    assert all(bundle.training_numbers(c) is None and bundle.training_images(c) == KEPT for c in bundle.classes)
    assert "selection of samples (none: the budget has no room)" in set(bundle.ledger()["item"])
    assert len(from_parquet(read(pipeline, "synthetic_pool", POOL, budget="32B"))) == KEPT
    assert "selection_model" not in pipeline.store.assets()


def test_recognised_may_keep_fewer_of_one_class(selected, tmp_path, foundation):
    from d3m_assets.exports.images import regenerate
    from d3m_assets.exports.verification import FolderImages, verify

    shutil.copytree(selected, tmp_path, dirs_exist_ok=True)
    changes = SELECTED | {"selection.criterion": "recognised"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **changes)
    run(pipeline)
    bundle = bundle_of(pipeline)
    for c in bundle.classes:
        samples = from_parquet(read(pipeline, "sample_selection", TABLE, c.prompts.class_key))
        recognised = samples.index[samples["predicted_class"] == c.prompts.class_name].tolist()[:KEPT]
        assert bundle.training_numbers(c).tolist() == recognised or len(bundle.training_numbers(c)) == 1
    count = regenerate(bundle, foundation, tmp_path / "out")
    assert count == sum(bundle.training_images(c) for c in bundle.classes)
    assert verify(bundle, foundation, FolderImages(tmp_path / "out")).verdict == "equal"


def test_what_it_is_made_from():
    assert {dep.name for dep in SampleSelection.deps} == {"synthetic_pool", "raw_dataset", "selection_model"}


def test_samples_are_selected_by_a_frozen_vision_model_that_may_move(copied, tmp_path_factory):
    import torch
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    models = tmp_path_factory.mktemp("models")
    ViTModel(config).save_pretrained(models / "vit")
    changes = SELECTED | {"selection.features": str(models / "vit")}
    pipeline = open_pipeline(copied, copied / "images", **changes)
    assert {entry.key.asset for entry in pipeline.plan().pending()} == {
        "selection_model", "sample_selection", "distilled_bundle", "student_metrics", "pool_audit", "distillation_report",
    }  # fmt: skip
    run(pipeline)
    record = json.loads(pipeline.store.read(ArtefactKey("selection_model"), "network.json"))
    assert (record["kind"], record["channels"], record["image_size"]) == ("frozen features", 3, 16)
    before = read(pipeline, "sample_selection", CODE)
    (models / "vit").rename(models / "moved")
    shutil.rmtree(next((copied / "home").rglob("sample_selection")))
    again = open_pipeline(copied, copied / "images", **changes | {"selection.features": str(models / "moved")})
    assert "selection_model" not in {entry.key.asset for entry in again.plan().pending()}
    run(again)
    assert read(again, "sample_selection", CODE) == before
