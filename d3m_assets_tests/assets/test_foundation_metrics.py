"""What the foundation model teaches without any inversion."""

import shutil
from io import BytesIO

import pandas as pd

from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import open_pipeline

REPORT = ArtefactKey("distillation_report")


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
        assert all(o.error is None for o in pipeline.materialize(asset, pipeline.keys(asset), force=True))
    report = REPORT
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(report, "metrics.parquet")))
    found = compare_all(metrics, reference="class-name prompts")
    assert [(c.difference, c.outcome) for c in found] == [(0.0, "too few seeds")] * 2  # two students
    page = pipeline.store.read(report, "report.html").decode()
    assert "Too few seeds to compare with class-name prompts at every budget" in page


def test_controls_have_as_many_images_as_are_kept_of_the_distilled_ones(finished, tmp_path):
    shutil.copytree(finished / "images", tmp_path / "images")
    kept = {"selection.kept": 4, "selection.criterion": "centres"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **kept)
    key = ArtefactKey("foundation_metrics")
    for asset in ("class_catalog", "raw_dataset", "foundation_model", "class_prompts", "foundation_metrics"):
        assert all(o.error is None for o in pipeline.materialize(asset, pipeline.keys(asset)))
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(key, "metrics.parquet")))
    assert set(metrics["n_train_images"]) == {3 * 4}
    more = open_pipeline(tmp_path, tmp_path / "images", **kept | {"selection.kept": 5})
    assert "foundation_metrics" in {entry.key.asset for entry in more.plan().pending()}


def test_class_names_are_not_sampled_with_less_guidance_than_suits_them(finished):
    from d3m_assets.assets.class_prompts import read_prompts
    from d3m_assets.assets.synthetic_pool import class_name_job

    def at(guidance=None):
        changes = {} if guidance is None else {"generation.guidance_scale": guidance}
        pipeline = open_pipeline(finished, finished / "images", **changes)
        context = pipeline.reading(ArtefactKey("foundation_metrics"))
        job = class_name_job(context, read_prompts(context, context.dataset.classes[0].key), 0, 1)
        pending = {entry.key.asset for entry in pipeline.plan().pending()}
        return job.settings.guidance_scale, pending

    assert at() == (2, set())
    guidance, pending = at(1.5)
    assert guidance == 2
    assert "synthetic_pool" in pending
    assert "foundation_metrics" not in pending
    guidance, pending = at(3)
    assert guidance == 3
    assert {"synthetic_pool", "foundation_metrics"} <= pending
