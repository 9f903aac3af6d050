"""The plan and the assets on a small real dataset with the real embedded model."""

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.assets.graph import GRAPH
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.errors import BudgetError, D3MError, DatasetError
from d3m_assets.evaluation.settings import RECIPES
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import QUICK, open_pipeline, run

REPORT, WHOLE = ArtefactKey("distillation_report"), ArtefactKey("whole_dataset_metrics")

NOT_MADE = {
    "teacher_model", "pool_labels", "frontier_metrics", "selection_model", "codec_choice", "image_codes", "payload_choice",
}  # fmt: skip
"""What settings without a teacher, a selection and image codes do without."""
MADE_BY_DEFAULT = [asset for asset in GRAPH.names if asset not in NOT_MADE]


def contents(tmp_path):
    return {p: p.read_bytes() for p in sorted((tmp_path / "home" / "store").rglob("*")) if p.is_file()}


def test_everything_is_made_once_and_then_nothing(finished):
    pipeline = open_pipeline(finished, finished / "images")
    assert pipeline.plan().pending() == []
    before = contents(finished)
    assert run(pipeline) == []
    assert contents(finished) == before
    assert len(pipeline.plan().entries) == 1 + 3 + 1 + 3 + 6 + 6 + 6 + 2 + 2 + 1 + 1 + 2 + 2 + 1


def test_one_changed_image_redoes_its_class_and_what_depends_on_it(copy):
    before = contents(copy)
    changed = copy / "images" / "train" / "7" / "000.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    pipeline = open_pipeline(copy, copy / "images")
    redone = {(e.key.asset, e.key.class_key) for e in pipeline.plan().pending()}
    assert redone == {
        ("class_catalog", None), ("raw_dataset", "7"), ("inverted_embeddings", "7"), ("synthetic_pool", "7"),
        ("sample_selection", "7"), ("distilled_bundle", None), ("reference_metrics", None), ("whole_dataset_metrics", None),
        ("foundation_metrics", None), ("student_metrics", None), ("pool_audit", None),
        ("distillation_report", None),
    }  # fmt: skip
    reasons = {str(e.key): e.reasons for e in pipeline.plan().pending()}
    assert reasons["inverted_embeddings [7, ipc-1]"] == ["input raw_dataset [7] changed"]
    run(pipeline)
    after = contents(copy)
    others = [p for p in before if "class=" in str(p) and "class=7" not in str(p)]
    assert len(others) > 20
    assert all(after[p] == before[p] for p in others)


def test_a_changed_setting_names_itself_and_redoes_only_what_it_matters_to(finished):
    pipeline = open_pipeline(finished, finished / "images", **{"generation.steps": 3})
    pending = pipeline.plan().pending()
    assert {e.key.asset for e in pending} == {
        "synthetic_pool", "sample_selection", "distilled_bundle", "foundation_metrics", "student_metrics", "pool_audit",
        "distillation_report",
    }  # fmt: skip
    assert "setting generation.steps 2 -> 3" in pending[0].reasons


def test_students_are_trained_again_when_the_recipe_changes_what_they_are_and_only_then(finished):
    measured = {"student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics"}
    folder = finished / "images"
    for change in ({"students.recipe": "soft-label"}, {"students.architecture": "resnet-18"}):
        pending = open_pipeline(finished, folder, **change).plan().pending()
        assert {e.key.asset for e in pending} == measured | {"distillation_report"}
    # The name of a recipe is nothing by itself, nor is saying what holds anyway.
    same = {f"students.{k}": v for k, v in RECIPES["quick"].items() if f"students.{k}" not in QUICK}
    for change in (same, same | {"students.recipe": "hard-label"}):
        assert open_pipeline(finished, folder, **change).plan().pending() == []


def test_new_and_vanished_classes(copy, characters):
    import shutil

    shutil.rmtree(copy / "images" / "train" / "1")
    shutil.rmtree(copy / "images" / "test" / "1")
    for split, images in (("train", characters("b", 8, 5)), ("test", characters("b", 3, 6))):
        for i, image in enumerate(images[..., 0]):
            target = copy / "images" / split / "b" / f"{i}.png"
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(image).resize((8, 8)).save(target)
    pipeline = open_pipeline(copy, copy / "images")
    plan = pipeline.plan()
    assert {e.key.class_key for e in plan.pending() if e.key.class_key} == {"b"}
    assert {k.class_key for k in plan.extra} == {"1"}
    run(pipeline)
    table = pipeline.context.dataset.full_catalog.set_index("class_name")
    assert table["class_id"].to_dict() == {"0": 0, "1": 1, "7": 2, "b": 3}  # never reused
    assert not table.loc["1", "active"]
    bundle = Bundle.from_bytes(
        pipeline.store.read(ArtefactKey("distilled_bundle", None, "ipc-1"), "bundle.safetensors")
    )
    assert [c.prompts.class_name for c in bundle.classes] == ["0", "7", "b"]


def test_bundle_and_report_hold_what_they_should(finished):
    pipeline = open_pipeline(finished, finished / "images")
    key = ArtefactKey("distilled_bundle", None, "ipc-3")
    bundle = Bundle.from_bytes(pipeline.store.read(key, "bundle.safetensors"))
    assert bundle.payload == 3 * 3 * 64
    assert bundle.recipe.foundation_fingerprint == pipeline.context.model.files.fingerprint
    report = pipeline.store.read(REPORT, "report.html").decode()
    for text in ("D3M", "random real images", "class-name prompts", "rendered characters", "whole train split"):
        assert text in report
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(REPORT, "metrics.parquet")))
    assert metrics.groupby("method").size().to_dict() == {
        "D3M": 4, "random real images": 4, "class-name prompts": 2, "rendered characters": 2, "whole train split": 2
    }  # fmt: skip
    assert metrics["steps"].nunique() == 1


def test_every_artefact_can_be_described(finished):
    pipeline = open_pipeline(finished, finished / "images")
    for key in [pipeline.keys(asset)[-1] for asset in MADE_BY_DEFAULT]:
        shown = pipeline.preview(key)
        assert shown
        for label, value in shown.items():
            if label.endswith("_png"):
                assert value[:4] == b"\x89PNG"
                assert len(value) <= 30_000


def test_verify_finds_what_is_wrong(copy):
    pipeline = open_pipeline(copy, copy / "images")
    assert pipeline.verify("inverted_embeddings") == []
    assert pipeline.verify("synthetic_pool") == []
    key = ArtefactKey("inverted_embeddings", "7", "ipc-1")
    from safetensors.numpy import save

    record = pipeline.store.read(key, "training.json")
    zero = save({"<d3m-0002aa>": np.zeros((1, 64), np.int8), "<d3m-0002ab>": np.ones((1, 64), np.int8)})
    pipeline.store.write(key, pipeline.spec(key), {"embeddings.safetensors": zero, "training.json": record}, {})
    messages = " ".join(p.message for p in pipeline.verify("inverted_embeddings"))
    assert "zero" in messages
    assert "128 bytes" in messages
    pool = ArtefactKey("synthetic_pool", "7", "ipc-1")
    table = pd.read_parquet(BytesIO(pipeline.store.read(pool, "pool.parquet")))
    out = BytesIO()
    table.assign(class_name="1").iloc[:3].to_parquet(out)
    pipeline.store.write(pool, pipeline.spec(pool), {"pool.parquet": out.getvalue()}, {})
    messages = " ".join(p.message for p in pipeline.verify("synthetic_pool"))
    assert "3 images" in messages
    assert "not of 7" in messages
    pipeline.store.delete(pool)
    assert [p.severity for p in pipeline.verify("synthetic_pool")] == ["warning"]


def test_bad_input_is_refused_before_anything_is_made(tmp_path, image_folder):
    with pytest.raises(DatasetError, match="nowhere"):
        open_pipeline(tmp_path, tmp_path / "nowhere").plan()
    folder = image_folder()
    with pytest.raises(BudgetError, match="64B"):
        open_pipeline(tmp_path, folder, budgets=("63B",)).plan()
    for name in ("0", "1", "7"):
        (folder / "train" / name / "005.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DatasetError, match=r"train/7/005\.png"):
        open_pipeline(tmp_path, folder).plan()
    assert not (tmp_path / "home" / "store").exists()


def test_a_damaged_file_is_made_again(copy):
    pipeline = open_pipeline(copy, copy / "images")
    key = ArtefactKey("synthetic_pool", "0", "ipc-1")
    from pathlib import Path

    file = Path(pipeline.store.uri(key, "pool.parquet"))
    good = file.read_bytes()
    file.write_bytes(good[:100])
    (entry,) = pipeline.plan().pending()
    assert entry.key == key
    assert run(pipeline) == [key]
    assert pipeline.plan().pending() == []


def test_the_plan_is_json(finished):
    plan = json.loads(open_pipeline(finished, finished / "images").plan().to_json())
    assert plan["extra"] == []
    assert {e["state"] for e in plan["entries"]} == {"up to date"}
    assert {e["asset"] for e in plan["entries"]} == set(MADE_BY_DEFAULT)


def test_a_budget_below_one_image_has_no_real_images_beside_it(tmp_path, image_folder):
    folder = image_folder()
    for path in folder.rglob("*.png"):
        Image.open(path).resize((16, 16)).save(path)
    pipeline = open_pipeline(tmp_path, folder, budgets=("64B", "ipc-1"))
    assert [k.budget for k in pipeline.keys("reference_metrics")] == ["ipc-1"]
    run(pipeline)
    assert pipeline.plan().pending() == []


def test_a_damaged_catalog_says_what_to_delete(copy):
    pipeline = open_pipeline(copy, copy / "images")
    from pathlib import Path

    Path(pipeline.store.uri(ArtefactKey("class_catalog"), "catalog.parquet")).write_bytes(b"x")
    with pytest.raises(D3MError, match="delete that folder"):
        open_pipeline(copy, copy / "images").plan()


def test_a_moved_dataset_needs_no_work(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images")
    assert pipeline.plan().pending() == []
    from d3m_assets.assets.raw_dataset import image_rows

    dataset = pipeline.context.dataset
    images = dataset.records(image_rows(pipeline.reading(WHOLE), "train"))
    assert all(str(tmp_path) in image.uri for image in images)
    assert dataset.source.read(images[0])


def test_another_dataset_of_the_same_name_does_not_retire_the_first(copy, image_folder):
    other = image_folder(("cat", "dog"), train=4, test=2, folder=copy / "elsewhere" / "images")
    with pytest.raises(D3MError, match="0, 1, 7.*setting `name`"):
        open_pipeline(copy, other).plan()
    assert open_pipeline(copy, copy / "images").plan().pending() == []
    assert len(open_pipeline(copy, other, name="pets").plan().pending()) > 20


def test_a_store_of_the_old_layout_is_named(copy):
    import shutil

    pipeline = open_pipeline(copy, copy / "images")
    folder = copy / "home" / "store" / "images"
    for child in folder.iterdir():
        shutil.move(child, folder.parent / child.name)
    folder.rmdir()
    with pytest.raises(D3MError, match="earlier version.*move"):
        open_pipeline(copy, copy / "images").plan()
    assert pipeline.store.url == str(folder)


def test_how_the_work_is_shared_makes_nothing_out_of_date(finished):
    changed = {"inversion.classes_per_batch": 2, "latent_cache_gib": 0, "workers": 2}
    assert open_pipeline(finished, finished / "images", **changed).plan().pending() == []
    pending = open_pipeline(finished, finished / "images", **{"inversion.flip": True}).plan().pending()
    assert {e.key.asset for e in pending} >= {"inverted_embeddings", "synthetic_pool", "student_metrics"}
