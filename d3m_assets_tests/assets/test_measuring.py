"""Students are kept one by one: what was trained once is not trained again, whatever table asks for it."""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.assets import context, measuring
from d3m_assets.compute.workers import Workers
from d3m_assets.evaluation.baselines.latent_means import LATENT_MEANS
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline, run

MEASURED = ("student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics")
ROWS = ("D3M", "random real images", "class-name prompts", "rendered characters", "whole train split")
OF_A_BUDGET = ROWS[:2]
IDENTITY = ["method", "budget", "labels", "architecture", "augmentation", "seed"]


@pytest.fixture
def trainings(monkeypatch):
    """Seeds of the students that are really trained, as (method, network, labels, seed)."""
    trained = []
    real = measuring._train

    def counted(job, progress):
        trained.extend((job.method, job.settings.architecture, job.labels, seed) for seed in job.seeds)
        return real(job, progress)

    monkeypatch.setattr(measuring, "_train", counted)
    return trained


def table(pipeline):
    """All students, by what identifies them: accuracy and confusion."""
    content = pipeline.store.read(ArtefactKey("distillation_report"), "metrics.parquet")
    rows = pd.read_parquet(BytesIO(content)).set_index(IDENTITY)
    assert rows.index.is_unique
    return {index: (row["accuracy"], [list(c) for c in row["confusion"]]) for index, row in rows.iterrows()}


def told(pipeline):
    """What the manifests say was trained, in all."""
    keys = [key for asset in MEASURED for key in pipeline.keys(asset)]
    return {key: pipeline.store.manifest(key).metrics["students trained"] for key in keys}


def test_a_new_table_says_that_it_trained_all_its_students(copy):
    pipeline = open_pipeline(copy, copy / "images")
    assert len(pipeline.store.records("students")) == len(table(pipeline)) == 14


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"evaluation.baselines": "random,latent-means"}, {(LATENT_MEANS.method, "convnet-3", "hard", s) for s in (0, 1)}),
        ({"students.seeds": (0, 1, 5)}, {(m, "convnet-3", "hard", 5) for m in ROWS}),
        ({"students.seeds": (1, 0)}, set()),
        ({"budgets": ("ipc-1", "ipc-2", "ipc-3")}, {(m, "convnet-3", "hard", s) for m in OF_A_BUDGET for s in (0, 1)}),
        ({"evaluation.architectures": "resnet-18"}, {(m, "resnet-18", "hard", s) for s in (0, 1) for m in ROWS}),
        ({"evaluation.variants": "unaugmented"}, {(m, "convnet-3", "hard", s) for m in OF_A_BUDGET for s in (0, 1)}),
    ],
)  # fmt: skip
def test_what_is_added_is_trained_and_nothing_else(copy, trainings, changes, new):
    before = table(open_pipeline(copy, copy / "images"))
    pipeline = open_pipeline(copy, copy / "images", **changes)
    run(pipeline)
    assert set(trainings) == new
    after = table(pipeline)
    assert {index: after[index] for index in before} == before
    assert len(after) - len(before) == len(trainings)


def test_students_that_are_trained_side_by_side_are_kept_one_by_one_too(copy, trainings, monkeypatch):
    before = table(open_pipeline(copy, copy / "images"))
    # The processor stands in for a GPU, on which all seeds of a row are one job.
    monkeypatch.setattr(context, "open_workers", lambda *settings: Workers(1, on_cpu=False))
    key = ArtefactKey("reference_metrics", None, "ipc-1")
    pipeline = open_pipeline(copy, copy / "images", **{"students.seeds": (0, 5, 1, 6)})
    (outcome,) = pipeline.materialize(key.asset, [key])
    assert outcome.manifest.metrics["students trained"] == 2
    assert trainings == [("random real images", "convnet-3", "hard", s) for s in (5, 6)]
    rows = pd.read_parquet(BytesIO(pipeline.store.read(key, "metrics.parquet"))).set_index("seed")
    assert rows.index.tolist() == [0, 5, 1, 6]
    for seed in (0, 1):
        assert (
            rows.loc[seed, "accuracy"] == before["random real images", "ipc-1", "hard", "convnet-3", "affine", seed][0]
        )


def test_manifests_say_how_many_students_were_new(copy, trainings):
    pipeline = open_pipeline(copy, copy / "images", **{"students.seeds": (0, 1, 5)})
    run(pipeline)
    # One of each row: two rows in foundation_metrics, whose students are of class names and of the renderer.
    assert {key.asset: count for key, count in told(pipeline).items()} == {
        "student_metrics": 1, "reference_metrics": 1, "foundation_metrics": 2, "whole_dataset_metrics": 1
    }  # fmt: skip
    assert sum(told(pipeline).values()) == len(trainings) == 7


def test_soft_labels_leave_students_with_hard_labels_alone(copy, trainings):
    # The teacher needs a larger validation part, which other students would be trained without.
    base = SOFT | {"evaluation.labels": "hard"}
    run(open_pipeline(copy, copy / "images", **base))
    before = table(open_pipeline(copy, copy / "images", **base))
    trainings.clear()
    pipeline = open_pipeline(copy, copy / "images", **SOFT | {"evaluation.labels": "hard,soft teacher"})
    run(pipeline)
    assert {labels for _, _, labels, _ in trainings} == {"soft teacher"}
    assert len(trainings) == len(before)
    after = table(pipeline)
    assert {index: after[index] for index in before} == before


def test_a_run_that_is_killed_between_two_students_goes_on_with_the_next(copy, monkeypatch):
    class Killed(BaseException):
        pass

    shutil.rmtree(copy / "home" / "store" / "images" / ".records")
    before = table(open_pipeline(copy, copy / "images"))
    key = ArtefactKey("reference_metrics", None, "ipc-3")
    changes = {"students.seeds": (0, 1, 2, 3)}
    real, trained = measuring._train, []

    def killed_at_the_third(job, progress):
        if len(trained) == 2:
            raise Killed
        trained.extend(job.seeds)
        return real(job, progress)

    pipeline = open_pipeline(copy, copy / "images", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_train", killed_at_the_third)
        with pytest.raises(Killed):
            list(pipeline.materialize(key.asset, [key]))
    assert trained == [0, 1]
    assert len(pipeline.store.records("students")) == 2
    assert pipeline.store.manifest(key).metrics["students"] == 2  # still the old table
    trained.clear()
    monkeypatch.setattr(measuring, "_train", lambda job, progress: trained.extend(job.seeds) or real(job, progress))
    pipeline = open_pipeline(copy, copy / "images", **changes)
    (outcome,) = pipeline.materialize(key.asset, [key])
    assert outcome.error is None
    assert trained == [2, 3]
    assert outcome.manifest.metrics["students trained"] == 2
    assert outcome.manifest.metrics["students"] == 4
    rows = pd.read_parquet(BytesIO(pipeline.store.read(key, "metrics.parquet"))).set_index("seed")
    for seed in (0, 1):
        index = ("random real images", "ipc-3", "hard", "convnet-3", "affine", seed)
        assert rows.loc[seed, "accuracy"] == before[index][0]


def test_a_damaged_record_is_trained_again_and_only_that(copy, trainings):
    pipeline = open_pipeline(copy, copy / "images")
    before = table(pipeline)
    key = ArtefactKey("whole_dataset_metrics")
    folder = Path(pipeline.store.uri(ArtefactKey("x"))).parent / ".records" / "students"
    files = sorted(folder.rglob("*.json"))
    assert len(files) == 14
    pipeline.store.delete(key)
    list(pipeline.materialize(key.asset, [key]))
    assert trainings == []  # made again, but every student is known
    for file in files:
        text = file.read_text()
        assert '"accuracy": ' in text
        file.write_text(text.replace('"accuracy": ', '"accuracy": 0.0, "was": ', 1))
    pipeline.store.delete(key)
    (outcome,) = pipeline.materialize(key.asset, [key])
    assert outcome.error is None
    assert sorted(trainings) == [("whole train split", "convnet-3", "hard", s) for s in (0, 1)]
    list(pipeline.materialize("distillation_report", pipeline.keys("distillation_report"), force=True))
    assert table(pipeline) == before


def test_what_is_forced_is_trained_again(copy, trainings):
    pipeline = open_pipeline(copy, copy / "images")
    key = ArtefactKey("whole_dataset_metrics")
    (outcome,) = pipeline.materialize(key.asset, [key], force=True)
    assert outcome.error is None
    assert sorted(trainings) == [("whole train split", "convnet-3", "hard", s) for s in (0, 1)]


def test_other_test_images_or_another_recipe_train_all(copy, trainings):
    students = len(table(open_pipeline(copy, copy / "images")))
    changed = next((copy / "images" / "test" / "7").glob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    run(open_pipeline(copy, copy / "images"))
    assert len(trainings) == students
    trainings.clear()
    run(open_pipeline(copy, copy / "images", **{"students.learning_rate": 1e-3}))
    assert len(trainings) == students


def test_one_changed_training_image_trains_no_student_of_a_pool_that_stays(copy, trainings):
    pipeline = open_pipeline(copy, copy / "images")
    key = ArtefactKey("student_metrics", None, "ipc-1")
    pipeline.store.delete(key)
    (outcome,) = pipeline.materialize(key.asset, [key])
    assert (trainings, outcome.manifest.metrics["students trained"]) == ([], 0)


def test_a_store_with_as_many_students_in_every_row_trains_only_those_that_rivals_lack(copy, trainings):
    before = table(open_pipeline(copy, copy / "images"))
    pipeline = open_pipeline(copy, copy / "images", **{"evaluation.baseline_students": 4})
    assert "student_metrics" not in {entry.key.asset for entry in pipeline.plan().pending()}
    run(pipeline)
    # Each at two budgets, but renders, which have none.
    drawn = {("random real images", "convnet-3", "hard", s) for s in (2, 3)}
    assert set(trainings) == drawn | {("rendered characters", "convnet-3", "hard", s) for s in (2, 3)}
    assert len(trainings) == 2 * 2 + 2
    after = table(pipeline)
    assert {index: after[index] for index in before} == before
