"""What the teacher says of every distilled image, and what students make of it."""

import shutil
from io import BytesIO

import numpy as np
import pandas as pd
import pytest

from d3m_assets.assets.pool_labels import agreement_rows, read_labels, with_soft_labels, without_off_class
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import pool_images, read_pool
from d3m_assets.assets.teacher_model import loaded_teacher, read_teacher
from d3m_assets.datasets.labelled_images import resize_to_square
from d3m_assets.evaluation.labels import as_stored
from d3m_assets.evaluation.teacher import probabilities
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline, run

KEY = ArtefactKey("pool_labels", "7", "ipc-1")
REPORT = ArtefactKey("distillation_report")


def measuring(pipeline, budget):
    """The context in which the students of a budget are trained."""
    return pipeline.reading(ArtefactKey("student_metrics", None, budget))


@pytest.mark.parametrize("kept", [None, 2])
def test_a_row_an_image_with_what_the_teacher_says(soft, tmp_path, kept):
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT | {"evaluation.stored_classes": kept})
    (outcome,) = pipeline.materialize("pool_labels", [KEY], force=True)
    assert outcome.error is None
    table = pd.read_parquet(BytesIO(pipeline.store.read(KEY, "labels.parquet")))
    teacher = loaded_teacher(read_teacher(pipeline.reading(KEY)), "cpu")
    soft_labels = probabilities(teacher, pool_images(read_pool(pipeline.reading(KEY), "7", "ipc-1")))
    assert table["index"].tolist() == list(range(6))
    np.testing.assert_allclose(table["teacher_probability"], soft_labels[:, 2], rtol=1e-6)
    assert table["teacher_class"].tolist() == [("0", "1", "7")[k] for k in soft_labels.argmax(1)]
    assert table["accepted"].tolist() == (soft_labels.argmax(1) == 2).tolist()
    assert {len(label) for label in table["soft_label"]} == {kept or 3}
    assert table["soft_label"][0].dtype == np.float16
    assert outcome.manifest.metrics["off_class"] == (~table["accepted"]).sum()
    assert set(pipeline.preview(KEY)["teacher's classes"]["teacher_class"]) <= {"0", "1", "7"}


def test_the_teacher_sees_images_as_small_as_students_do(soft, tmp_path):
    """All other rows are labelled so; a sharper image would give the distilled row better labels."""
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(
        tmp_path, tmp_path / "images", **SOFT | {"students.image_size": 8, "teacher.image_size": 16}
    )
    for asset in ("teacher_model", "pool_labels"):
        assert all(o.error is None for o in pipeline.materialize(asset, pipeline.keys(asset)))
    table = pd.read_parquet(BytesIO(pipeline.store.read(KEY, "labels.parquet")))
    teacher = loaded_teacher(read_teacher(pipeline.reading(KEY)), "cpu")
    images = pool_images(read_pool(pipeline.reading(KEY), "7", "ipc-1"))
    assert images.shape[1] == 32
    small, large = (probabilities(teacher, resize_to_square(images, side, 1))[:, 2] for side in (8, 32))
    np.testing.assert_allclose(table["teacher_probability"], small, rtol=1e-6)
    assert np.abs(small - large).max() > 1e-4


def test_students_train_on_the_labels_that_are_stored(soft):
    pipeline = open_pipeline(soft, soft / "images", **SOFT)
    context = measuring(pipeline, "ipc-3")
    pool, labels = synthetic_images(context, "ipc-3"), read_labels(context, "ipc-3")
    told = with_soft_labels(context, pool, labels)
    teacher = loaded_teacher(read_teacher(pipeline.reading(KEY)), "cpu")
    np.testing.assert_allclose(told.probabilities, as_stored(probabilities(teacher, pool.images)), atol=1e-6)
    assert (told.images == pool.images).all()


def test_other_stored_labels_make_other_students(soft, tmp_path):
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT | {"students.steps": 60})
    student_key = ArtefactKey("student_metrics", None, "ipc-1")

    def confusions():
        (outcome,) = pipeline.materialize("student_metrics", [student_key], force=True)
        assert outcome.error is None
        rows = pd.read_parquet(BytesIO(pipeline.store.read(student_key, "metrics.parquet")))
        return {kind: [[list(c) for c in row] for row in own["confusion"]] for kind, own in rows.groupby("labels")}

    before = confusions()
    for class_key in ("0", "1", "7"):  # every image of every class is said to be a 7
        key = ArtefactKey("pool_labels", class_key, "ipc-1")
        table = pd.read_parquet(BytesIO(pipeline.store.read(key, "labels.parquet")))
        table["soft_label"] = [np.array([0, 0, 1], np.float16)] * len(table)
        out = BytesIO()
        table.to_parquet(out)
        pipeline.store.write(key, pipeline.spec(key), {"labels.parquet": out.getvalue()}, {})
    after = confusions()
    assert after["hard"] == before["hard"]
    assert after["soft teacher"] == before["soft teacher"]
    assert {taken for row in after["soft stored"] for _, taken, _ in row} == {2}


def test_off_class_images_are_left_out_but_no_class_loses_all(soft):
    pipeline = open_pipeline(soft, soft / "images", **SOFT)
    context = measuring(pipeline, "ipc-1")
    pool, labels = synthetic_images(context, "ipc-1"), read_labels(context, "ipc-1")
    accepted = np.array([True, False] * 9)
    accepted[6:12] = False
    labels = labels.assign(accepted=accepted, teacher_probability=np.linspace(0.1, 0.4, 18))
    kept = without_off_class(pool, labels)
    assert np.bincount(kept.labels).tolist() == [3, 1, 3]
    assert (kept.images[3] == pool.images[11]).all()  # the likeliest of class 1
    assert (kept.images[0] == pool.images[0]).all()


def test_the_report_counts_what_the_teacher_takes_for_another_class(soft):
    pipeline = open_pipeline(soft, soft / "images", **SOFT)
    rows = agreement_rows(pipeline.reading(REPORT))
    assert [r["budget"] for r in rows] == ["ipc-1", "ipc-3"]
    counted = [
        pipeline.store.manifest(k).metrics["off_class"] for k in pipeline.keys("pool_labels") if k.budget == "ipc-1"
    ]
    assert rows[0]["off_class"] == sum(counted)
    assert rows[0]["images"] == 18
    assert "What the teacher says" in pipeline.store.read(REPORT, "report.html").decode()


def test_one_changed_pool_is_labelled_again_and_no_other(soft, tmp_path):
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT)
    run(pipeline)
    other = open_pipeline(tmp_path, tmp_path / "images", **SOFT | {"generation.steps": 3})
    pending = {e.key.asset for e in other.plan().pending()}
    assert "pool_labels" in pending and "teacher_model" not in pending
    retrained = open_pipeline(tmp_path, tmp_path / "images", **SOFT | {"teacher.steps": 39})
    pending = {e.key.asset for e in retrained.plan().pending()}
    assert "pool_labels" in pending and "synthetic_pool" not in pending  # a new teacher draws nothing anew
