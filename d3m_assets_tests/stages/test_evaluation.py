"""Rows of the table on a small real dataset: labels, teacher and baselines."""

import json
import shutil
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.errors import StageError
from d3m_assets.pipeline import ASSETS, METRIC_ASSETS
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline, run


def test_the_teacher_is_made_only_when_a_row_needs_it(finished):
    pipeline = open_pipeline(finished, finished / "images")
    assert pipeline.keys("teacher_model") == []
    assert not any(e.key.asset == "teacher_model" for e in pipeline.plan().entries)
    assert not any("teacher" in name for key in pipeline.keys("student_metrics") for name in pipeline.spec(key).inputs)
    assert "evaluation.labels" in pipeline.not_needed(ArtefactKey("teacher_model"))
    with pytest.raises(StageError, match="not part of"):
        pipeline.spec(ArtefactKey("teacher_model"))
    # What decides about soft labels and a teacher that nobody asks is no reason to do anything again.
    changes = {
        "evaluation.temperature": 3,
        "evaluation.stored_classes": 2,
        "teacher.steps": 9,
        "evaluation.labels": "hard",
    }
    assert open_pipeline(finished, finished / "images", **changes).plan().pending() == []


def test_all_rows_have_all_kinds_of_labels_at_equal_bytes(soft):
    pipeline = open_pipeline(soft, soft / "images", **SOFT)
    assert pipeline.plan().pending() == []
    assert (
        open_pipeline(soft, soft / "images", **SOFT | {"evaluation.labels": "hard,soft stored,soft teacher"})
        .plan()
        .pending()
        == []
    )
    report = ArtefactKey("distillation_report")
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(report, "metrics.parquet")))
    kinds = metrics.groupby("method")["labels"].agg(set)
    assert all(found == {"hard", "soft stored", "soft teacher"} for found in kinds)
    sizes = metrics.groupby(["labels", "method", "budget"])["bytes_per_class"].first()
    assert sizes["hard", "D3M", "ipc-3"] == sizes["soft teacher", "D3M", "ipc-3"] == 192
    # Six images of a pool with a label of three fp16 probabilities each.
    assert sizes["soft stored", "D3M", "ipc-3"] == 192 + 6 * 6
    assert sizes["hard", "random real images", "ipc-3"] == 192
    assert sizes["soft stored", "random real images", "ipc-3"] == 3 * (64 + 6) <= 228
    recipes = {kind: json.loads(rows["recipe"].iloc[0]) for kind, rows in metrics.groupby("labels")}
    assert recipes["soft teacher"]["labels"]["teacher"] == pipeline.spec(ArtefactKey("teacher_model")).fingerprint
    page = pipeline.store.read(report, "report.html").decode()
    for text in ("Soft labels from the teacher", "soft labels of the pool", ">teacher<"):
        assert text in page
    weights = pipeline.store.read(ArtefactKey("teacher_model"), "teacher.safetensors")
    assert f"{len(weights):,}" in page
    told = json.loads(pipeline.store.read(ArtefactKey("whole_dataset_metrics"), "teacher.json"))
    assert told["images"] == 18
    assert f"recipe of its own, reaches {100 * told['accuracy']:.1f} %" in page
    shown = pipeline.describe(ArtefactKey("teacher_model"))
    assert shown["accuracy by class"]["class"].tolist() == ["0", "1", "7"]
    assert (
        "accuracy D3M, soft teacher" in pipeline.store.manifest(ArtefactKey("student_metrics", None, "ipc-1")).metrics
    )


def test_the_teacher_is_charged_only_when_a_row_asks_it_at_training_time(soft):
    from d3m_assets.stages.report import _ledger

    ledger = _ledger(open_pipeline(soft, soft / "images", **SOFT))
    assert set(ledger.loc[ledger["kind"] == "for soft labels", "item"]) == {"teacher", "soft labels of the pool"}
    stored = open_pipeline(soft, soft / "images", **SOFT | {"evaluation.labels": "hard,soft stored"})
    assert "teacher" not in set(_ledger(stored)["item"])
    assert set(_ledger(open_pipeline(soft, soft / "images"))["kind"]) == {"stored", "regenerable", "reference"}


def test_what_changes_the_teacher_or_the_labels_redoes_what_depends_on_it(soft):
    def pending(**changes):
        return {e.key.asset for e in open_pipeline(soft, soft / "images", **SOFT | changes).plan().pending()}

    metrics = {"student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics"}
    told = {*metrics, "pool_labels", "distillation_report"}
    assert pending(**{"teacher.width": 5}) == {"teacher_model", *told}
    assert pending(**{"evaluation.temperature": 5.0}) == told
    assert pending(**{"evaluation.stored_classes": 2}) == told
    assert pending(**{"evaluation.stored_classes": 3}) == set()  # all there are
    assert pending(**{"evaluation.baselines": "random,herding"}) == {"reference_metrics", "distillation_report"}
    assert pending(**{"students.steps": 5}) == {*metrics, "distillation_report"}


def test_one_changed_image_trains_the_teacher_again(soft, tmp_path):

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT)
    weights = pipeline.store.read(ArtefactKey("teacher_model"), "teacher.safetensors")
    changed = next(i for i in pipeline.scan().classes["7"].images if i.split == "train").uri
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT)
    entries = {str(e.key): e.reasons for e in pipeline.plan().pending()}
    assert entries["teacher_model"] == ["input raw_dataset [7] changed"]
    run(pipeline)
    assert pipeline.store.read(ArtefactKey("teacher_model"), "teacher.safetensors") != weights


def test_a_teacher_of_permuted_classes_is_refused_where_it_is_loaded(soft, tmp_path):

    from d3m_assets.errors import TeacherError
    from d3m_assets.stages.teacher import loaded_teacher, stored_teacher

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline, key = open_pipeline(tmp_path, tmp_path / "images", **SOFT), ArtefactKey("teacher_model")
    record = json.loads(pipeline.store.read(key, "teacher.json")) | {"class_names": ["1", "0", "7"]}
    files = {
        "teacher.json": json.dumps(record).encode(),
        "teacher.safetensors": pipeline.store.read(key, "teacher.safetensors"),
    }
    pipeline.store.write(key, pipeline.spec(key), files, {})
    assert "classes are 1, 0, 7" in pipeline.verify("teacher_model")[0].message
    with pytest.raises(TeacherError, match="classes are 1, 0, 7; the dataset's are 0, 1, 7"):
        loaded_teacher(stored_teacher(pipeline), "cpu")
    (outcome,) = pipeline.materialise("student_metrics", [ArtefactKey("student_metrics", None, "ipc-1")], force=True)
    assert "1, 0, 7" in str(outcome.error)


def test_a_teacher_that_guesses_fails_its_check(soft, tmp_path):

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline, key = open_pipeline(tmp_path, tmp_path / "images", **SOFT), ArtefactKey("teacher_model")
    assert open_pipeline(tmp_path, tmp_path / "images").verify("teacher_model") == []
    files = {name: pipeline.store.read(key, name) for name in ("teacher.json", "teacher.safetensors")}
    for right, problems in ((30, []), (11, ["right on 37% of 30 held-out images, no better than a guess"])):
        record = json.loads(files["teacher.json"]) | {"accuracy": right / 30, "n_validation": 30}
        pipeline.store.write(key, pipeline.spec(key), files | {"teacher.json": json.dumps(record).encode()}, {})
        found = pipeline.verify("teacher_model")
        assert [p.severity for p in found] == ["error"] * len(problems)
        assert all(text in p.message for text, p in zip(problems, found, strict=True))


def test_a_checkpoint_as_teacher(soft, tmp_path):

    import torch
    from transformers import ViTConfig, ViTForImageClassification

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    names = {0: "7", 1: "1", 2: "0"}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, id2label=names)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    given = SOFT | {"teacher.checkpoint": str(tmp_path / "vit"), "evaluation.labels": "soft teacher"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **given)
    made = run(pipeline)
    assert ArtefactKey("teacher_model") in made
    record = json.loads(pipeline.store.read(ArtefactKey("teacher_model"), "teacher.json"))
    assert record["outputs"] == [2, 1, 0]
    # Moved it is the same; changed it is not; other settings of a trained teacher do not matter.
    shutil.move(tmp_path / "vit", tmp_path / "moved")
    moved = given | {"teacher.checkpoint": str(tmp_path / "moved"), "teacher.steps": 7}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **moved)
    assert pipeline.plan().pending() == []
    (outcome,) = pipeline.materialise("student_metrics", [ArtefactKey("student_metrics", None, "ipc-1")], force=True)
    assert outcome.error is None
    (tmp_path / "moved" / "config.json").write_text((tmp_path / "moved" / "config.json").read_text() + "\n")
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **moved)
    assert "teacher_model" in {e.key.asset for e in pipeline.plan().pending()}


def test_without_a_validation_image_there_is_no_teacher(copy):
    pipeline = open_pipeline(copy, copy / "images", **SOFT | {"validation_fraction": 0})
    list(pipeline.materialise("raw_dataset", pipeline.keys("raw_dataset")))
    (outcome,) = pipeline.materialise("teacher_model", pipeline.keys("teacher_model"))
    assert "validation_fraction" in str(outcome.error)


BASELINES = "random,herding,k-center,k-means,el2n,collages,latent-means"


def test_every_baseline_beside_every_kind_of_labels(soft, tmp_path):

    from d3m_assets.evaluation.methods import BASELINES as METHODS_OF
    from d3m_assets.evaluation.statistics import budgeted_baselines, compare_all

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    changes = SOFT | {"evaluation.baselines": BASELINES, "evaluation.labels": "hard,soft teacher"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **changes)
    assert "teacher_model" not in {e.key.asset for e in pipeline.plan().pending()}
    run(pipeline)
    report = ArtefactKey("distillation_report")
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(report, "metrics.parquet")))
    assert budgeted_baselines(metrics) == list(METHODS_OF.values())
    for budget, size in (("ipc-1", 64), ("ipc-3", 192)):
        rows = metrics[(metrics["budget"] == budget) & (metrics["method"] != "D3M")]
        assert set(rows["bytes_per_class"]) == {size}
        assert set(rows["n_train_images"]) == {3 * size // 64}
        assert len(rows) == 7 * 2 * 2
    assert len(compare_all(metrics, reference="real images by herding")) == 4
    assert "Against each baseline of equal bytes" in pipeline.store.read(report, "report.html").decode()
    key = ArtefactKey("reference_metrics", None, "ipc-1")
    assert {"teacher_model", "foundation_model"} <= set(pipeline.spec(key).inputs)
    # Distilling again does not touch them.
    again = open_pipeline(
        tmp_path, tmp_path / "images", **changes | {"inversion.steps": 4, "prompts.initializer": "digit"}
    )
    pending = {e.key.asset for e in again.plan().pending()}
    assert "student_metrics" in pending and not {"reference_metrics", "teacher_model"} & pending


def test_baselines_ask_for_what_they_need_only(finished):
    def inputs(baselines, asset="reference_metrics"):
        pipeline = open_pipeline(finished, finished / "images", **{"evaluation.baselines": baselines})
        spec = pipeline.spec(ArtefactKey(asset, None, "ipc-1"))
        return {name.partition(" [")[0] for name in spec.inputs}, bool(pipeline.keys("teacher_model"))

    assert inputs("random") == ({"raw_dataset"}, False)
    assert inputs("latent-means,random") == ({"raw_dataset", "foundation_model"}, False)
    assert inputs("random,herding") == ({"raw_dataset", "teacher_model"}, True)
    assert inputs("random,herding", "student_metrics")[0] == {"raw_dataset", "synthetic_pool"}


def test_a_baseline_that_fails_leaves_no_table_with_fewer_rows(soft, tmp_path, monkeypatch):

    from d3m_assets.stages.real_sets import RealSets

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT | {"evaluation.baselines": "random,herding"})

    def broken(self):
        raise StageError("no features")

    monkeypatch.setattr(RealSets, "_described", property(broken))
    outcomes = list(pipeline.materialise("reference_metrics", pipeline.keys("reference_metrics")))
    assert [str(o.error) for o in outcomes] == ["no features"] * 2


def test_a_pool_from_class_names_alone_is_told_to_be_no_better_than_them(finished, tmp_path):
    from d3m_assets.evaluation.statistics import compare_all

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images")
    named = pd.read_parquet(BytesIO(pipeline.store.read(ArtefactKey("foundation_metrics"), "pool.parquet")))
    for key in pipeline.keys("synthetic_pool"):
        table = pd.read_parquet(BytesIO(pipeline.store.read(key, "pool.parquet")))
        table["image"] = named.loc[named["class_name"] == table["class_name"][0], "image"].to_list()
        out = BytesIO()
        table.to_parquet(out)
        pipeline.store.write(key, pipeline.spec(key), {"pool.parquet": out.getvalue()}, {})
    for asset in ("student_metrics", "distillation_report"):
        assert all(o.error is None for o in pipeline.materialise(asset, pipeline.keys(asset), force=True))
    report = ArtefactKey("distillation_report")
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(report, "metrics.parquet")))
    found = compare_all(metrics, reference="class-name prompts")
    assert [(c.difference, c.outcome) for c in found] == [(0.0, "not distinguishable")] * 2
    page = pipeline.store.read(report, "report.html").decode()
    assert "Not distinguishable from class-name prompts at every budget" in page


def test_the_report_says_what_read_the_test_split(finished):
    page = (
        open_pipeline(finished, finished / "images")
        .store.read(ArtefactKey("distillation_report"), "report.html")
        .decode()
    )
    assert "student_metrics [ipc-1] (18 images)" in page
    assert "pool_audit [ipc-1] (" not in page
    # And what a reader needs to repeat it.
    for name in (
        "report written at commit",
        "report written on",
        "made",
        "versions",
        "foundation fingerprint",
        "dataset fingerprint",
    ):
        assert f">{name}<" in page, name


def test_only_what_is_reported_opens_the_test_split(finished, monkeypatch):
    """Everything that could be chosen by it asks in vain, and each reader is written down."""
    from d3m_assets.errors import DatasetError
    from d3m_assets.evaluation.metrics import test_split_reads
    from d3m_assets.stages.dataset import image_table

    pipeline = open_pipeline(finished, finished / "images")
    with pytest.raises(DatasetError, match="nothing may be chosen by the test split"):
        image_table(pipeline, "test")
    for asset in ASSETS:
        before = len(test_split_reads())
        assert all(o.error is None for o in pipeline.materialise(asset, pipeline.keys(asset)[:1], force=True))
        readers = test_split_reads().iloc[before:]["reader"].tolist()
        assert readers == ([str(pipeline.keys(asset)[0])] if asset in METRIC_ASSETS else []), asset
