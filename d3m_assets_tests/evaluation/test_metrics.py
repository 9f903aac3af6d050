import json
import logging

import numpy as np
import pytest

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.metrics import student_metrics, test_split, test_split_reads
from d3m_assets.evaluation.scores import confusion_matrix


def _first(data, n):
    return LabelledImages(data.images[:n], data.labels[:n], data.split)


def test_one_row_a_student(quick, train_digits, test_digits):
    seeds, events = [], []

    def training_set(seed):
        seeds.append(seed)
        chosen = np.random.default_rng(seed).permutation(len(train_digits))[:100]
        return LabelledImages(train_digits.images[chosen], train_digits.labels[chosen])

    rows = student_metrics(
        "random real images", training_set, _first(test_digits, 200), quick,
        budget="ipc-10", bytes_per_class=640, progress=events.append,
    )  # fmt: skip
    assert seeds == [0, 1] == rows["seed"].tolist()
    assert set(rows["split"]) == {"test"} and set(rows["labels"]) == {"hard"} and set(rows["budget"]) == {"ipc-10"}
    assert rows["images_per_class"].tolist() == [10.0, 10.0]
    assert rows["bytes_per_class"].tolist() == [640.0, 640.0]
    assert rows["accuracy"].min() > 0.3
    assert rows["accuracy"].nunique() == 2
    counts = np.bincount(test_digits.labels[:200], minlength=10)
    for accuracy, by_class in zip(rows["accuracy"], rows["class_accuracy"], strict=True):
        assert np.dot(by_class, counts) / 200 == pytest.approx(accuracy)
    matrix = confusion_matrix(rows["confusion"][:1], 10)
    assert (matrix.sum(1) == counts).all()
    assert np.diag(matrix) / counts == pytest.approx(rows["class_accuracy"][0])
    assert json.loads(rows["recipe"][0])["image_size"] == 16
    assert events[-1].done == events[-1].total == 120
    assert [e.done for e in events] == sorted(e.done for e in events)


def test_generated_colour_images_are_brought_to_the_test_images_form(quick, train_digits, test_digits):
    """32 px RGB from a generator beside 8 px grey originals: both reach the student alike."""
    fast = quick.model_copy(update={"seeds": (0,), "steps": 20})
    generated = _first(train_digits, 50).resized(32, 3)
    test = _first(test_digits, 40)
    row = student_metrics("D3M", lambda seed: generated, test, fast, n_classes=10)
    assert json.loads(row["recipe"][0])["channels"] == 1
    assert row["n_train_images"][0] == 50


def test_only_held_out_images_are_evaluated_on(quick, train_digits):
    with pytest.raises(DatasetError, match='not on "train"'):
        student_metrics("D3M", lambda seed: train_digits, train_digits, quick)


def test_reads_of_the_test_split_are_recorded(test_digits, caplog):
    before = len(test_split_reads())
    unmarked = LabelledImages(test_digits.images, test_digits.labels)
    with caplog.at_level(logging.INFO, logger="d3m_assets.evaluation.metrics"):
        loaded = test_split(lambda: unmarked, reader="student_metrics [ipc-1]")
    assert loaded.split == "test"
    new = test_split_reads().iloc[before:]
    assert new[["reader", "images"]].to_numpy().tolist() == [["student_metrics [ipc-1]", 500]]
    assert "student_metrics [ipc-1]" in caplog.text
    with pytest.raises(DatasetError, match="which row"):
        test_split(lambda: unmarked, reader=" ")
    assert len(test_split_reads()) == before + 1


@pytest.mark.parametrize("architecture", ["convnet-3", "resnet-18"])
def test_a_gpu_trains_the_students_of_a_row_together_each_on_its_own_images(
    architecture, quick, train_digits, test_digits
):
    """The device cpu:0 stands for a GPU: it takes the same path."""
    changes = {"seeds": (3, 1, 2), "steps": 30, "architecture": architecture, "learning_rate": 5e-3}
    settings = quick.model_copy(update=changes)
    kept = {3: (0, 1, 2), 1: (3, 4, 5, 6), 2: (7, 8)}  # students of other digits: a swap would show
    sets = {}
    for seed, digits in kept.items():
        chosen = np.flatnonzero(np.isin(train_digits.labels, digits))[: 40 + 10 * seed]
        sets[seed] = LabelledImages(train_digits.images[chosen], train_digits.labels[chosen])
    together, alone = (
        student_metrics(
            "D3M", sets.__getitem__, _first(test_digits, 200), settings, n_classes=10, distillation=lambda seed: 10 * seed,
            device=device,
        )
        for device in ("cpu:0", "cpu")
    )  # fmt: skip
    assert together["seed"].tolist() == [3, 1, 2]
    assert together["distillation"].tolist() == [30, 10, 20]
    assert together["n_train_images"].tolist() == [len(sets[s]) for s in (3, 1, 2)]
    np.testing.assert_allclose(together["accuracy"], alone["accuracy"], atol=0.02)
    for seed, counts in zip(together["seed"], together["confusion"], strict=True):
        assert {taken for _, taken, _ in counts} <= set(kept[seed])
