"""The verdict: its rows, its ledger, and what it says about itself."""

import json
import re
import shutil
from io import BytesIO

import pandas as pd
import pytest

from d3m_assets.assets.distillation_report import MEASURED
from d3m_assets.assets.graph import GRAPH
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline

REPORT, WHOLE = ArtefactKey("distillation_report"), ArtefactKey("whole_dataset_metrics")


def test_all_rows_have_all_kinds_of_labels_at_equal_bytes(soft):
    pipeline = open_pipeline(soft, soft / "images", **SOFT)
    assert pipeline.plan().pending() == []
    assert (
        open_pipeline(soft, soft / "images", **SOFT | {"evaluation.labels": "hard,soft stored,soft teacher"})
        .plan()
        .pending()
        == []
    )
    report = REPORT
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
    shown = pipeline.preview(ArtefactKey("teacher_model"))
    assert shown["accuracy by class"]["class"].tolist() == ["0", "1", "7"]
    assert (
        "accuracy D3M, soft teacher" in pipeline.store.manifest(ArtefactKey("student_metrics", None, "ipc-1")).metrics
    )


def test_the_teacher_is_charged_only_when_a_row_asks_it_at_training_time(soft):
    from d3m_assets.assets.distillation_report import ledger as ledger_of

    ledger = ledger_of(open_pipeline(soft, soft / "images", **SOFT).reading(REPORT))
    assert set(ledger.loc[ledger["kind"] == "for soft labels", "item"]) == {"teacher", "soft labels of the pool"}
    stored = open_pipeline(soft, soft / "images", **SOFT | {"evaluation.labels": "hard,soft stored"})
    assert "teacher" not in set(ledger_of(stored.reading(REPORT))["item"])
    assert set(ledger_of(open_pipeline(soft, soft / "images").reading(REPORT))["kind"]) == {
        "stored",
        "regenerable",
        "reference",
    }


def test_the_report_names_every_artefact_that_read_the_test_split_and_no_other(finished, tmp_path):
    """What the page says is compared with who opened the test split while everything was made anew."""
    from d3m_assets.evaluation.metrics import test_split_reads

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images")
    before = len(test_split_reads())
    for asset in GRAPH.names:
        assert all(o.error is None for o in pipeline.materialize(asset, pipeline.keys(asset), force=True))
    readers = test_split_reads().iloc[before:]["reader"].tolist()
    page = pipeline.store.read(REPORT, "report.html").decode()
    told = re.findall(r"(\w+(?: \[[^\]]*\])?) \((\d+) images\)", page)
    assert len(told) == len(set(told)) == 6
    assert {name for name, _ in told} == set(readers)
    assert {int(count) for _, count in told} == {len(list((tmp_path / "images" / "test").rglob("*.png")))}
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
    from d3m_assets.assets.raw_dataset import image_rows
    from d3m_assets.errors import DatasetError
    from d3m_assets.evaluation.metrics import test_split_reads

    pipeline = open_pipeline(finished, finished / "images")
    with pytest.raises(DatasetError, match="nothing may be chosen by the test split"):
        image_rows(pipeline.reading(WHOLE), "test")
    for asset in GRAPH.names:
        before = len(test_split_reads())
        assert all(o.error is None for o in pipeline.materialize(asset, pipeline.keys(asset)[:1], force=True))
        readers = test_split_reads().iloc[before:]["reader"].tolist()
        measured = asset in {asset.name for asset in MEASURED}
        assert readers == [str(key) for key in pipeline.keys(asset)[:1] if measured], asset
