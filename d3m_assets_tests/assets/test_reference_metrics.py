"""What real images of equal bytes teach."""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from d3m_assets.assets.reference_metrics import TrainingImages
from d3m_assets.datasets.images import load_images
from d3m_assets.errors import StageError
from d3m_assets.evaluation.baselines.random_real import RANDOM_REAL, random_positions
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline, run

REPORT = ArtefactKey("distillation_report")
BASELINES = "random,herding,k-center,k-means,el2n,collages,latent-means"


def test_every_baseline_beside_every_kind_of_labels(soft, tmp_path):

    from d3m_assets.evaluation.baselines import BASELINES as ALL
    from d3m_assets.evaluation.statistics import budgeted_baselines, compare_all

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    changes = SOFT | {"evaluation.baselines": BASELINES, "evaluation.labels": "hard,soft teacher"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **changes)
    assert "teacher_model" not in {e.key.asset for e in pipeline.plan().pending()}
    run(pipeline)
    report = REPORT
    metrics = pd.read_parquet(BytesIO(pipeline.store.read(report, "metrics.parquet")))
    assert budgeted_baselines(metrics) == [baseline.method for baseline in ALL.values()]
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


ENCODED = {
    "evaluation.baselines": "random,packed,coded", "teacher.steps": 40, "teacher.width": 4, "teacher.learning_rate": 0.02,
    "validation_fraction": 0.3, "budgets": ("24B", "ipc-1", "ipc-2"),
}  # fmt: skip


def _with_little_inversion(tmp_path, folder, changes):
    """Only what real images teach: nothing is distilled at a budget that holds no vector."""
    pipeline = open_pipeline(tmp_path, folder, **changes)
    for asset in ("class_catalog", "raw_dataset", "teacher_model", "reference_metrics"):
        outcomes = list(pipeline.materialize(asset, pipeline.keys(asset)))
        assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return pipeline


def _table(pipeline, budget):
    return pd.read_parquet(
        BytesIO(pipeline.store.read(ArtefactKey("reference_metrics", None, budget), "metrics.parquet"))
    )


def test_packed_and_coded_images_are_charged_what_their_bytes_are_also_below_one_raw_image(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pipeline = _with_little_inversion(tmp_path, tmp_path / "images", ENCODED)
    tables = {budget: _table(pipeline, budget) for budget in ("24B", "ipc-1", "ipc-2")}
    coded = "coded real images"
    assert set(tables["24B"]["method"]) == {coded}
    for budget, allowed in (("24B", 24), ("ipc-1", 64), ("ipc-2", 128)):
        rows = tables[budget].groupby("method")[["bytes_per_class", "n_train_images"]].mean()
        encoded = rows.loc[[name for name in rows.index if name != "random real images"]]
        assert (encoded["bytes_per_class"] <= allowed).all()
        assert (encoded["bytes_per_class"] > allowed / 4).all()
        if budget != "24B":
            assert set(rows.index) == {"random real images", "packed real images", coded}
            raw = rows.loc["random real images", "n_train_images"]
            assert encoded["n_train_images"].min() >= raw
            assert encoded.loc[coded, "n_train_images"] > raw
    details = {m: set(rows["detail"]) for m, rows in tables["ipc-1"].groupby("method")}
    assert details["random real images"] == {""}
    (packed,), (lossy,) = details["packed real images"], details[coded]
    assert "images a class as" in packed
    assert "chosen on validation images among" in lossy


def test_encoded_images_may_take_the_bytes_of_the_labels_of_what_is_kept(finished):
    from d3m_assets.assets.encoded_images import EncodableImages, _job
    from d3m_assets.evaluation.baselines import ENCODED as BASELINES

    changes = ENCODED | {"selection.kept": 4, "selection.criterion": "centres", "evaluation.labels": "hard,soft stored"}
    context = open_pipeline(finished, finished / "images", **changes).context
    hard, soft = (
        _job(context, EncodableImages([], None), BASELINES["coded"], context.budgets[1], kind)
        for kind in ("hard", "soft stored")
    )
    assert (hard.allowed, hard.label_bytes) == (64, 0)
    assert soft.allowed == 64 + 4 * soft.label_bytes > 64


def test_the_choice_of_a_codec_never_sees_a_test_image(finished, tmp_path, monkeypatch):
    from d3m_assets.evaluation import codec_choice

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    judged, choose = [], codec_choice.choose_codec

    def watched(classes, validation, *given, **options):
        judged.append((validation, classes))
        return choose(classes, validation, *given, **options)

    monkeypatch.setattr(codec_choice, "choose_codec", watched)
    pipeline = _with_little_inversion(tmp_path, tmp_path / "images", ENCODED)
    scan = pipeline.context.dataset.scan
    size = pipeline.context.dataset.shape
    of_split = {
        split: {
            image.tobytes()
            for c in scan.classes.values()
            for image in load_images(
                pipeline.context.dataset.source.read,
                c.of(split),
                size=(size.height, size.width),
                channels=scan.channels,
            )
        }
        for split in ("train", "validation", "test")
    }
    assert len(judged) == 3
    for validation, classes in judged:
        assert {image.tobytes() for image in validation.images} == of_split["validation"]
        assert {image.tobytes() for c in classes for image in c.images} == of_split["train"]
    assert of_split["test"].isdisjoint(of_split["validation"] | of_split["train"])


def test_stored_labels_take_room_from_encoded_images(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    changes = ENCODED | {"evaluation.labels": "hard,soft stored", "budgets": ("ipc-2",)}
    table = _table(_with_little_inversion(tmp_path, tmp_path / "images", changes), "ipc-2")
    # Six images of the pool have a label of three classes, two bytes each.
    allowed = {"hard": 128, "soft stored": 128 + 6 * 3 * 2}
    for (method, labels), rows in table[table["method"] != "random real images"].groupby(["method", "labels"]):
        size, images = rows["bytes_per_class"].mean(), rows["images_per_class"].mean()
        assert size <= allowed[labels], method
        if labels == "soft stored":
            assert size > 6 * images


def test_baselines_ask_for_what_they_need_only(finished):
    def inputs(baselines, asset="reference_metrics"):
        pipeline = open_pipeline(finished, finished / "images", **{"evaluation.baselines": baselines})
        spec = pipeline.spec(ArtefactKey(asset, None, "ipc-1"))
        return {name.partition(" [")[0] for name in spec.inputs}, bool(pipeline.keys("teacher_model"))

    assert inputs("random") == ({"raw_dataset"}, False)
    assert inputs("latent-means,random") == ({"raw_dataset", "foundation_model"}, False)
    assert inputs("random,herding") == ({"raw_dataset", "teacher_model"}, True)
    assert inputs("random,coded") == ({"raw_dataset", "teacher_model"}, True)
    assert inputs("random,herding", "student_metrics")[0] == {"raw_dataset", "synthetic_pool", "sample_selection"}


def test_a_baseline_that_fails_leaves_no_table_with_fewer_rows(soft, tmp_path, monkeypatch):

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT | {"evaluation.baselines": "random,herding"})

    def broken(self, class_id):
        raise StageError("no features")

    monkeypatch.setattr(TrainingImages, "features", broken)
    outcomes = list(pipeline.materialize("reference_metrics", pipeline.keys("reference_metrics")))
    assert [str(o.error) for o in outcomes] == ["no features"] * 2


def _real(pipeline):
    return TrainingImages(pipeline.reading(ArtefactKey("reference_metrics", None, "ipc-1")))


def test_baselines_choose_from_training_images_only_in_the_order_of_their_hashes(copy):
    pipeline = open_pipeline(copy, copy / "images")
    real, context = _real(pipeline), pipeline.context
    for dataset_class in context.dataset.classes:
        rows = context.dataset.scan.classes[dataset_class.name].table(dataset_class.class_id)
        train = rows[rows["split"] == "train"]
        chosen_from = real.by_class[dataset_class.class_id]
        assert 0 < len(train) < len(rows)
        assert chosen_from["sha256"].tolist() == sorted(train["sha256"])
    taken = real.training_set(RANDOM_REAL, 5, seed=0)
    assert np.bincount(taken.labels).tolist() == [5, 5, 5]
    for position, dataset_class in enumerate(context.dataset.classes):
        known = real.images(dataset_class.class_id)
        expected = known[random_positions(len(known), 5, dataset_class.class_id, 0)]
        assert np.array_equal(taken.images[taken.labels == position], expected)


def test_a_class_is_not_moved_by_others_and_a_small_one_gives_all_it_has(copy):
    before = _real(open_pipeline(copy, copy / "images")).training_set(RANDOM_REAL, 4, seed=2)
    scanned = open_pipeline(copy, copy / "images").context.dataset.scan.classes["0"].images
    for image in [i for i in scanned if i.split == "train"][2:]:
        Path(image.uri).unlink()
    pipeline = open_pipeline(copy, copy / "images")
    list(pipeline.materialize("class_catalog", pipeline.keys("class_catalog")))
    list(pipeline.materialize("raw_dataset", pipeline.keys("raw_dataset")))
    after = _real(pipeline).training_set(RANDOM_REAL, 4, seed=2)
    assert np.bincount(after.labels).tolist() == [2, 4, 4]
    for label in (1, 2):
        assert np.array_equal(after.images[after.labels == label], before.images[before.labels == label])
    everything = _real(pipeline).training_set(RANDOM_REAL, 100, seed=0)
    counts = [c.n_train for c in pipeline.context.dataset.classes]
    assert np.bincount(everything.labels).tolist() == counts


def test_another_order_of_the_recorded_rows_chooses_the_same_images(copy, monkeypatch):
    from d3m_assets.assets import reference_metrics

    pipeline = open_pipeline(copy, copy / "images")
    before = _real(pipeline).training_set(RANDOM_REAL, 4, seed=1)
    real = reference_metrics.image_rows
    monkeypatch.setattr(reference_metrics, "image_rows", lambda *given: real(*given).sample(frac=1, random_state=0))
    after = _real(pipeline).training_set(RANDOM_REAL, 4, seed=1)
    assert np.array_equal(before.images, after.images)
    assert not np.array_equal(before.images, _real(pipeline).training_set(RANDOM_REAL, 4, seed=2).images)
