"""The plan and the stages on a small real dataset with the real embedded model."""

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.errors import BudgetError, D3MError, DatasetError, StageError
from d3m_assets.evaluation.settings import RECIPES
from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder
from d3m_assets.pipeline import ASSETS, Pipeline
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.foundation.small_pipelines import write_tiny_autoencoder
from d3m_assets_tests.small_runs import QUICK, open_pipeline, run

MADE_BY_DEFAULT = [asset for asset in ASSETS if asset not in ("teacher_model", "repeated_pools", "pool_labels")]


def contents(tmp_path):
    return {p: p.read_bytes() for p in sorted((tmp_path / "home" / "store").rglob("*")) if p.is_file()}


def test_everything_is_made_once_and_then_nothing(finished):
    pipeline = open_pipeline(finished, finished / "images")
    assert pipeline.plan().pending() == []
    before = contents(finished)
    assert run(pipeline) == []
    assert contents(finished) == before
    assert len(pipeline.plan().entries) == 1 + 3 + 1 + 3 + 6 + 6 + 2 + 2 + 1 + 1 + 2 + 2 + 1


def test_one_changed_image_redoes_its_class_and_what_depends_on_it(copy):
    before = contents(copy)
    changed = copy / "images" / "train" / "7" / "000.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    pipeline = open_pipeline(copy, copy / "images")
    redone = {(e.key.asset, e.key.class_key) for e in pipeline.plan().pending()}
    assert redone == {
        ("class_catalog", None), ("raw_dataset", "7"), ("inverted_embeddings", "7"), ("synthetic_pool", "7"),
        ("distilled_bundle", None), ("reference_metrics", None), ("whole_dataset_metrics", None),
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
        "synthetic_pool", "distilled_bundle", "foundation_metrics", "student_metrics", "pool_audit",
        "distillation_report",
    }  # fmt: skip
    assert "setting generation.steps 2 -> 3" in pending[0].reasons


def test_a_tiny_autoencoder_redraws_the_pools_and_goes_with_the_bundle(copy):
    from d3m_assets.errors import BundleError
    from d3m_assets.exports.images import regenerate
    from d3m_assets.foundation.loading import load_foundation

    tiny = write_tiny_autoencoder(copy / "taesd", levels=3)
    changes = {"generation.tiny_autoencoder": str(tiny)}
    pipeline = open_pipeline(copy, copy / "images", **changes)
    pending = pipeline.plan().pending()
    assert {e.key.asset for e in pending} == {
        "synthetic_pool", "distilled_bundle", "foundation_metrics", "student_metrics", "pool_audit",
        "distillation_report",
    }  # fmt: skip
    assert any("generation.autoencoder" in reason for reason in pending[0].reasons)
    key = ArtefactKey("synthetic_pool", "7", "ipc-1")
    before = pipeline.store.read(key, "pool.parquet")
    run(pipeline)
    assert pipeline.store.read(key, "pool.parquet") != before
    # Where the folder lies is nothing; what is in it is everything.
    moved = copy / "moved" / "taesd"
    moved.parent.mkdir()
    tiny.rename(moved)
    changes = {"generation.tiny_autoencoder": str(moved)}
    assert open_pipeline(copy, copy / "images", **changes).plan().pending() == []
    data = pipeline.store.read(ArtefactKey("distilled_bundle", None, "ipc-1"), "bundle.safetensors")
    assert str(copy).encode() not in data
    bundle = Bundle.from_bytes(data)
    assert bundle.recipe.autoencoder == "taesd"
    assert "tiny autoencoder" in set(bundle.ledger()["item"])
    from d3m_assets.stages.report import _ledger

    ledger = _ledger(pipeline)
    assert ledger.loc[ledger["item"].isin(["foundation model", "tiny autoencoder"]), "budget"].tolist() == ["", ""]
    foundation = load_foundation(pipeline.foundation_files, "cpu")
    with pytest.raises(BundleError, match="taesd.*--set generation.tiny_autoencoder="):
        regenerate(bundle, foundation, copy / "out", per_class=1)
    other = write_tiny_autoencoder(copy / "other", levels=3)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(BundleError, match="other has the fingerprint"):
        regenerate(bundle, foundation, copy / "out", per_class=1, autoencoder=TinyAutoencoder(other))
    regenerate(bundle, foundation, copy / "out", per_class=2, autoencoder=TinyAutoencoder(moved))
    pool = pd.read_parquet(BytesIO(pipeline.store.read(key, "pool.parquet")))
    for k in range(2):
        drawn = Image.open(BytesIO(pool["image"][k]["bytes"]))
        assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(copy / "out" / "7" / f"{k:05d}.png")))


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
    table = pipeline.full_catalog().set_index("class_name")
    assert table["class_id"].to_dict() == {"0": 0, "1": 1, "7": 2, "b": 3}  # never reused
    assert not table.loc["1", "active"]
    bundle = Bundle.from_bytes(
        pipeline.store.read(ArtefactKey("distilled_bundle", None, "ipc-1"), "bundle.safetensors")
    )
    assert [c.prompts.class_name for c in bundle.classes] == ["0", "7", "b"]


def test_lineage_reaches_down_to_the_image(finished):
    pipeline = open_pipeline(finished, finished / "images")
    key = ArtefactKey("synthetic_pool", "7", "ipc-3")
    pool = pd.read_parquet(BytesIO(pipeline.store.read(key, "pool.parquet")))
    assert len(pool) == 6
    row = pool.iloc[4]
    assert row["class_name"] == "7"
    assert row["prompt"] == "a photo of a <d3m-0002ab> 7"
    assert row["prompt_index"] == 1
    assert row["embeddings_fingerprint"] == pipeline.store.manifest(
        ArtefactKey("inverted_embeddings", "7", "ipc-3")
    ).fingerprint  # fmt: skip
    assert row["raw_dataset_fingerprint"] == pipeline.store.manifest(ArtefactKey("raw_dataset", "7")).fingerprint
    assert row["foundation_fingerprint"] == pipeline.foundation_files.fingerprint
    assert row["image"]["path"] == "7/00004.png"
    assert Image.open(BytesIO(row["image"]["bytes"])).size == (32, 32)


def test_training_sees_no_validation_or_test_image(finished, monkeypatch):
    from d3m_assets.distillation import latents

    pipeline = open_pipeline(finished, finished / "images", latent_cache_gib=0)
    rows = pd.concat([pipeline.scan().classes[c].table(0) for c in ("0", "1", "7")])
    allowed = set(rows[rows["split"] == "train"]["uri"])
    seen = []
    real = latents.load_images
    monkeypatch.setattr(latents, "load_images", lambda uris, **k: seen.extend(uris) or real(uris, **k))
    keys = pipeline.keys("inverted_embeddings")
    assert all(o.error is None for o in pipeline.materialise("inverted_embeddings", keys, force=True))
    assert seen
    assert set(seen) <= allowed


def test_bundle_and_report_hold_what_they_should(finished):
    pipeline = open_pipeline(finished, finished / "images")
    key = ArtefactKey("distilled_bundle", None, "ipc-3")
    bundle = Bundle.from_bytes(pipeline.store.read(key, "bundle.safetensors"))
    assert bundle.payload == 3 * 3 * 64
    assert bundle.recipe.foundation_fingerprint == pipeline.foundation_files.fingerprint
    report = pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    for text in ("D3M", "random real images", "class-name prompts", "rendered characters", "whole train split"):
        assert text in report
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(ArtefactKey("distillation_report"), "metrics.parquet")))
    assert metrics.groupby("method").size().to_dict() == {
        "D3M": 4, "random real images": 4, "class-name prompts": 2, "rendered characters": 2, "whole train split": 2
    }  # fmt: skip
    assert metrics["steps"].nunique() == 1


def test_every_artefact_can_be_described(finished):
    pipeline = open_pipeline(finished, finished / "images")
    for key in [pipeline.keys(asset)[-1] for asset in MADE_BY_DEFAULT]:
        shown = pipeline.describe(key)
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


def _replace_pools(pipeline, images_of):
    """Store other images as the pools of all classes of ipc-1, and audit them."""
    from d3m_assets.datasets.images import encode_png

    for name in ("0", "1", "7"):
        key = ArtefactKey("synthetic_pool", name, "ipc-1")
        table = pd.read_parquet(BytesIO(pipeline.store.read(key, "pool.parquet")))
        drawn = images_of(name)
        table = table.iloc[np.resize(np.arange(len(table)), len(drawn))].reset_index(drop=True)
        table["image"] = [{"bytes": encode_png(image), "path": "x.png"} for image in drawn]
        out = BytesIO()
        table.to_parquet(out)
        pipeline.store.write(key, pipeline.spec(key), {"pool.parquet": out.getvalue()}, {})
    (outcome,) = pipeline.materialise("pool_audit", [ArtefactKey("pool_audit", None, "ipc-1")], force=True)
    assert outcome.error is None
    return {(p.check, p.severity) for p in pipeline.verify("pool_audit") if p.key.budget == "ipc-1"}


def test_the_audit_names_copies_swaps_and_collapse(copy, characters):
    from d3m_assets.datasets.images import load_images
    from d3m_assets.stages.dataset import image_table

    pipeline = open_pipeline(copy, copy / "images", **{"audit.steps": 60})
    rows = image_table(pipeline, "train")
    list(pipeline.materialise("pool_audit", pipeline.keys("pool_audit")))

    def real(name):
        return load_images(list(rows[rows["class_name"] == name]["uri"]), size=8, channels=1)

    assert ("not_memorised", "error") in _replace_pools(pipeline, real)
    table = pd.read_parquet(BytesIO(pipeline.store.read(ArtefactKey("pool_audit", None, "ipc-1"), "images.parquet")))
    assert table["pixels_nearest"].str.startswith("train/").all()
    assert {"class_id", "class_name", "index", "memorised", "near_duplicate", "judged_class", "off_class",
            "pixels_distance", "features_distance", "features_nearest"} <= set(table)  # fmt: skip
    unseen = {n: characters(n, 12, seed=50 + k) for k, n in enumerate(("0", "1", "7"))}
    assert ("not_memorised", "error") not in _replace_pools(pipeline, unseen.get)
    swapped = {"0": unseen["1"], "1": unseen["0"], "7": unseen["7"]}
    assert ("of_their_class", "error") in _replace_pools(pipeline, swapped.get)
    collapsed = unseen | {"7": unseen["7"][:1].repeat(12, axis=0)}
    found = _replace_pools(pipeline, collapsed.get)
    assert {("no_class_collapsed", "error"), ("no_near_duplicates", "error")} <= found
    pipeline.store.delete(ArtefactKey("pool_audit", None, "ipc-3"))
    assert [p.severity for p in pipeline.verify("pool_audit") if p.key.budget == "ipc-3"] == ["warning"]


def test_the_audit_scores_the_pool_and_every_class(finished):
    pipeline = open_pipeline(finished, finished / "images")
    summary = json.loads(pipeline.store.read(ArtefactKey("pool_audit", None, "ipc-3"), "audit.json"))
    assert summary["scores_k"] == 5
    for scored in (summary, *summary["classes"]):
        assert all(0 <= scored[name] <= 1 for name in ("precision", "recall", "coverage"))
        assert scored["density"] >= 0
    assert [c["class_name"] for c in summary["classes"]] == ["0", "1", "7"]
    assert pipeline.describe(ArtefactKey("pool_audit", None, "ipc-3"))["coverage"] == summary["coverage"]


def test_the_audit_never_opens_a_test_image(copy, monkeypatch):
    from d3m_assets.stages import dataset

    pipeline = open_pipeline(copy, copy / "images")
    rows = pd.concat([pipeline.scan().classes[c].table(0) for c in ("0", "1", "7")])
    tested = set(rows[rows["split"] == "test"]["uri"])
    seen = []
    real = dataset.load_images
    monkeypatch.setattr(dataset, "load_images", lambda uris, **k: seen.extend(uris) or real(uris, **k))
    outcomes = list(pipeline.materialise("pool_audit", pipeline.keys("pool_audit"), force=True))
    assert all(o.error is None for o in outcomes)
    assert seen
    assert not tested & set(seen)


def test_thresholds_are_for_telling_and_redo_the_report_alone(finished):
    told = {"audit.off_class_warning": 0.0, "audit.off_class_error": 1.0}
    pipeline = open_pipeline(finished, finished / "images", **told)
    assert [e.key.asset for e in pipeline.plan().pending()] == ["distillation_report"]
    # Networks of three steps see little: some image is surely taken for another class.
    assert {p.severity for p in pipeline.verify("pool_audit") if p.check == "of_their_class"} == {"warning"}
    pending = open_pipeline(finished, finished / "images", **{"audit.quantile": 0.02}).plan().pending()
    assert {e.key.asset for e in pending} == {"pool_audit", "distillation_report"}


def test_a_class_that_fails_does_not_take_the_others_with_it(tmp_path, image_folder, monkeypatch):
    from d3m_assets.stages import distillation as stages

    folder = image_folder()
    pipeline = open_pipeline(tmp_path, folder, budgets=("ipc-1",))
    for asset in ("class_catalog", "raw_dataset", "foundation_model", "class_prompts"):
        list(pipeline.materialise(asset, pipeline.keys(asset)))
    real = stages.invert

    def one_fails(foundation, tasks, *rest, **options):
        if tasks[0].prompts.class_name == "1":
            raise StageError("diverged")
        return real(foundation, tasks, *rest, **options)

    monkeypatch.setattr(stages, "invert", one_fails)
    outcomes = list(pipeline.materialise("inverted_embeddings", pipeline.keys("inverted_embeddings")))
    assert [(o.key.class_key, o.error is None) for o in outcomes] == [("0", True), ("1", False), ("7", True)]
    # What needs the failed one says so instead of working on half a dataset.
    (bundle,) = pipeline.materialise("distilled_bundle", pipeline.keys("distilled_bundle"))
    assert "inverted_embeddings [1, ipc-1], which is missing" in str(bundle.error)


def test_bad_input_is_refused_before_anything_is_made(tmp_path, image_folder):
    with pytest.raises(DatasetError, match="nowhere"):
        open_pipeline(tmp_path, tmp_path / "nowhere").plan()
    folder = image_folder()
    with pytest.raises(BudgetError, match="64B"):
        open_pipeline(tmp_path, folder, budgets=("63B",)).plan()
    (folder / "train" / "7" / "005.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
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
    from d3m_assets.stages.dataset import image_table

    assert all(str(tmp_path) in uri for uri in image_table(pipeline, "train")["uri"])


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


def test_a_gpu_batch_learns_what_processes_learn(copy, monkeypatch):
    pipeline = open_pipeline(copy, copy / "images")
    keys = pipeline.keys("inverted_embeddings")
    from d3m_assets.stages.distillation import read_vectors

    before = {k: read_vectors(pipeline, k).astype(int) for k in keys}
    # The processor stands in for the GPU: what is tested is the one batch of all classes and budgets.
    monkeypatch.setattr(Pipeline, "on_cpu", property(lambda self: False))
    heard = []
    pipeline.progress = heard.append
    outcomes = list(pipeline.materialise("inverted_embeddings", keys, force=True))
    assert [o.error for o in outcomes] == [None] * len(keys)
    assert heard[-1].done == heard[-1].total == 3 * len(keys)
    for key in keys:
        assert np.abs(read_vectors(pipeline, key).astype(int) - before[key]).max() <= 2
    assert not list((copy / "home" / "cache" / "inversion").glob("*"))
    from d3m_assets.errors import FoundationError
    from d3m_assets.stages import distillation as stages

    def damaged(*model):
        raise FoundationError("damaged weights")

    monkeypatch.setattr(stages, "loaded_foundation", damaged)
    outcomes = list(pipeline.materialise("inverted_embeddings", keys, force=True))
    assert {o.key for o in outcomes} == set(keys)
    assert {str(o.error) for o in outcomes} == {"damaged weights"}


def test_several_gpus_share_the_classes(copy, monkeypatch):
    pipeline = open_pipeline(copy, copy / "images")
    keys = pipeline.keys("inverted_embeddings")
    from d3m_assets.stages.distillation import read_vectors

    before = {k: read_vectors(pipeline, k).astype(int) for k in keys}
    # Two processes on the processor stand in for two GPUs.
    monkeypatch.setattr(Pipeline, "on_cpu", property(lambda self: False))
    monkeypatch.setattr(Pipeline, "devices", ("cpu", "cpu"))
    assert pipeline.workers.devices == ("cpu", "cpu")
    for asset in ("inverted_embeddings", "synthetic_pool", "student_metrics"):
        outcomes = list(pipeline.materialise(asset, pipeline.keys(asset), force=True))
        assert [o.error for o in outcomes] == [None] * len(pipeline.keys(asset))
    for key in keys:
        assert np.abs(read_vectors(pipeline, key).astype(int) - before[key]).max() <= 2


def test_how_the_work_is_shared_makes_nothing_out_of_date(finished):
    changed = {"inversion.classes_per_batch": 2, "latent_cache_gib": 0, "workers": 2}
    assert open_pipeline(finished, finished / "images", **changed).plan().pending() == []
    pending = open_pipeline(finished, finished / "images", **{"inversion.flip": True}).plan().pending()
    assert {e.key.asset for e in pending} >= {"inverted_embeddings", "synthetic_pool", "student_metrics"}


def test_mirrored_images_are_learned_from_when_asked_for(finished, monkeypatch):
    from d3m_assets.stages import distillation as stages

    seen = []
    monkeypatch.setattr(stages, "invert", lambda foundation, tasks, *rest, **options: seen.extend(tasks) or iter(()))
    pipeline = open_pipeline(finished, finished / "images", **{"inversion.flip": True})
    list(pipeline.materialise("inverted_embeddings", pipeline.keys("inverted_embeddings")))
    assert {len(t.images.load(32)) - 2 * len(t.images.uris) for t in seen} == {0}


def test_what_the_store_refused_need_not_be_learned_again(copy, monkeypatch):
    from d3m_assets.errors import StoreError

    pipeline = open_pipeline(copy, copy / "images", budgets=("ipc-1",))
    key = ArtefactKey("inverted_embeddings", "7", "ipc-1")
    write = pipeline.store.write

    def full(*args):
        raise StoreError("the disk is full")

    monkeypatch.setattr(pipeline.store, "write", full)
    pipeline.store.delete(key)
    (outcome,) = pipeline.materialise("inverted_embeddings", [key])
    assert "disk is full" in str(outcome.error)
    states = copy / "home" / "cache" / "inversion"
    assert len(list(states.iterdir())) == 1
    monkeypatch.setattr(pipeline.store, "write", write)
    heard = []
    pipeline.progress = heard.append
    (outcome,) = pipeline.materialise("inverted_embeddings", [key])
    assert outcome.error is None
    assert not any("step" in e.detail for e in heard)
    assert not list(states.iterdir())


def test_embeddings_that_exist_already_are_taken_and_not_learned(copy, tmp_path):
    from safetensors.numpy import save_file

    from d3m_assets.stages.distillation import read_vectors

    (copy / "mine").mkdir()
    rows = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    save_file({"<mine>": rows}, copy / "mine" / "7.safetensors")
    pipeline = open_pipeline(copy, copy / "images", imported_embeddings=str(copy / "mine"))
    pending = [str(e.key) for e in pipeline.plan().pending() if e.key.asset == "inverted_embeddings"]
    assert pending == [f"inverted_embeddings [7, {b}]" for b in pipeline.settings.budgets]
    run(pipeline)
    for budget in pipeline.settings.budgets:
        key = ArtefactKey("inverted_embeddings", "7", budget)
        stored = read_vectors(pipeline, key)[0].astype(np.float32)
        cosine = (stored * rows).sum() / np.linalg.norm(stored) / np.linalg.norm(rows)
        assert cosine > 0.999
        assert pipeline.store.manifest(key).metrics["imported_from"] == "7.safetensors"
        assert pipeline.describe(key)["prompt"]
    assert pipeline.plan().pending() == []
    save_file({"<mine>": -rows}, copy / "mine" / "7.safetensors")
    changed = open_pipeline(copy, copy / "images", imported_embeddings=str(copy / "mine")).plan().pending()
    assert {e.key.class_key for e in changed if e.key.asset == "inverted_embeddings"} == {"7"}
    # More vectors than the budget holds.
    save_file({"<mine>": np.repeat(rows, 3, 0)}, copy / "mine" / "7.safetensors")
    with pytest.raises(BudgetError, match="class 7 take 192 bytes.*192B"):
        open_pipeline(copy, copy / "images", budgets=("ipc-1",), imported_embeddings=str(copy / "mine")).plan()


def test_words_dealt_out_to_vectors_are_part_of_what_determines_them(finished):
    def settings_of(**changes):
        pipeline = open_pipeline(finished, finished / "images", **changes)
        return pipeline.spec(ArtefactKey("inverted_embeddings", "7", "ipc-3")).settings

    several = {"prompts.initializer": "square ring"}
    assert "starts" not in settings_of()
    assert "starts" not in settings_of(**several)  # one vector starts from all of them
    assert settings_of(**several, **{"inversion.vectors_per_prompt": 2})["starts"] == ["square", "ring"]


def test_an_embedding_of_another_width_is_named_before_anything_is_made(finished, tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "mine").mkdir()
    save_file({"<mine>": np.ones((1, 768), np.float32)}, tmp_path / "mine" / "7.safetensors")
    pipeline = open_pipeline(finished, finished / "images", imported_embeddings=str(tmp_path / "mine"))
    with pytest.raises(D3MError, match=r"7\.safetensors holds vectors of shape \(1, 768\).* 64 numbers"):
        pipeline.plan()


def test_embeddings_keep_their_norms_where_whole_vectors_are_learned(copy):
    from safetensors.numpy import save_file

    from d3m_assets.distillation.vectors import from_stored
    from d3m_assets.foundation.loading import load_foundation
    from d3m_assets.stages.distillation import read_vectors

    (copy / "mine").mkdir()
    rows = 7 * np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    save_file({"<mine>": rows}, copy / "mine" / "7.safetensors")
    changes = {"inversion.directional": False, "budgets": ("ipc-3",), "imported_embeddings": str(copy / "mine")}
    pipeline = open_pipeline(copy, copy / "images", **changes)
    reasons = {e.key: e.reasons for e in pipeline.plan().pending() if e.key.asset == "inverted_embeddings"}
    assert any(
        "inversion.directional" in reason for reason in reasons[ArtefactKey("inverted_embeddings", "0", "ipc-3")]
    )
    run(pipeline)
    layout = load_foundation(pipeline.foundation_files, "cpu").layout
    key = ArtefactKey("inverted_embeddings", "7", "ipc-3")
    np.testing.assert_allclose(from_stored(read_vectors(pipeline, key), layout)[0], rows, atol=0.1)
    bundle = Bundle.from_bytes(
        pipeline.store.read(ArtefactKey("distilled_bundle", None, "ipc-3"), "bundle.safetensors")
    )
    assert [c.plan.norms for c in bundle.classes] == [1, 1, 1]
    assert bundle.payload == (2 + 2 + 1) * 66 <= 3 * 192
    assert pipeline.verify("inverted_embeddings") == []
    with pytest.raises(BudgetError, match="66B"):
        open_pipeline(copy, copy / "images", **changes | {"budgets": ("ipc-1",)}).plan()
