"""Faults of the pools of a small real dataset."""

import json
from io import BytesIO

import numpy as np
import pandas as pd

from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import open_pipeline

WHOLE = ArtefactKey("whole_dataset_metrics")


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
    (outcome,) = pipeline.materialize("pool_audit", [ArtefactKey("pool_audit", None, "ipc-1")], force=True)
    assert outcome.error is None
    return {(p.check, p.severity) for p in pipeline.verify("pool_audit") if p.key.budget == "ipc-1"}


def test_the_audit_names_copies_swaps_and_collapse(copy, characters):
    from d3m_assets.assets.raw_dataset import image_rows
    from d3m_assets.datasets.images import load_images, read_bytes

    pipeline = open_pipeline(copy, copy / "images", **{"audit.steps": 60})
    rows = image_rows(pipeline.reading(WHOLE), "train")
    list(pipeline.materialize("pool_audit", pipeline.keys("pool_audit")))

    def real(name):
        return load_images(read_bytes, list(rows[rows["class_name"] == name]["uri"]), size=8, channels=1)

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
    assert pipeline.preview(ArtefactKey("pool_audit", None, "ipc-3"))["coverage"] == summary["coverage"]


def test_the_audit_never_opens_a_test_image(copy, monkeypatch):
    from d3m_assets.assets import raw_dataset

    pipeline = open_pipeline(copy, copy / "images")
    rows = pd.concat([pipeline.context.dataset.scan.classes[c].table(0) for c in ("0", "1", "7")])
    tested = set(rows[rows["split"] == "test"]["relative_path"])
    seen = []
    real = raw_dataset.load_images
    monkeypatch.setattr(raw_dataset, "load_images", lambda r, images, **k: seen.extend(images) or real(r, images, **k))
    outcomes = list(pipeline.materialize("pool_audit", pipeline.keys("pool_audit"), force=True))
    assert all(o.error is None for o in outcomes)
    assert seen
    assert not tested & set(map(str, seen))


def test_thresholds_are_for_telling_and_redo_the_report_alone(finished):
    told = {"audit.off_class_warning": 0.0, "audit.off_class_error": 1.0}
    pipeline = open_pipeline(finished, finished / "images", **told)
    assert [e.key.asset for e in pipeline.plan().pending()] == ["distillation_report"]
    # Networks of three steps see little: some image is surely taken for another class.
    assert {p.severity for p in pipeline.verify("pool_audit") if p.check == "of_their_class"} == {"warning"}
    pending = open_pipeline(finished, finished / "images", **{"audit.quantile": 0.02}).plan().pending()
    assert {e.key.asset for e in pending} == {"pool_audit", "distillation_report"}
