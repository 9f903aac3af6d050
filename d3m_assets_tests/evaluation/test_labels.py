import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from d3m_assets.errors import DatasetError, TeacherError
from d3m_assets.evaluation.labels import Labelling, as_stored, label_bytes
from d3m_assets.evaluation.metrics import student_metrics
from d3m_assets.evaluation.students import LabelledImages, evaluate, train_student
from d3m_assets.evaluation.teacher import load_teacher, train_teacher
from d3m_assets.settings import TeacherSettings
from d3m_assets_tests.evaluation.conftest import _digits

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def teacher():
    train = _digits()[0]
    validation = LabelledImages(train.images[1000:], train.labels[1000:], "validation")
    settings = TeacherSettings(width=8, steps=150, batch_size=32, learning_rate=0.02)
    weights, record = train_teacher(
        LabelledImages(train.images[:1000], train.labels[:1000]), validation, NAMES, settings, seed=0
    )
    return load_teacher(record, weights, NAMES)


def _weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    ("classes", "kept", "size"), [(10, None, 20), (10, 10, 20), (10, 3, 9), (1000, 5, 20), (100_000, 2, 12)]
)
def test_what_a_stored_label_weighs(classes, kept, size):
    assert label_bytes(classes, kept) == size


def test_stored_labels_keep_the_highest_and_spread_the_rest():
    soft = np.array([[0.6, 0.25, 0.1, 0.05], [0.25, 0.25, 0.25, 0.25]], np.float32)
    np.testing.assert_allclose(as_stored(soft), soft, atol=1e-3)
    two = as_stored(soft, 2)
    np.testing.assert_allclose(two[0], [0.6, 0.25, 0.075, 0.075], atol=1e-3)
    np.testing.assert_allclose(two.sum(1), 1, atol=1e-6)
    assert (two[1] == as_stored(soft[1:], 2)[0]).all()
    # fp16 loses what is too small for it, not the sum.
    assert as_stored(np.array([[1 - 1e-9, 1e-9]], np.float32))[0].tolist() == [1.0, 0.0]


def test_certain_soft_labels_train_like_hard_ones_and_others_do_not(train_digits, quick):
    data = LabelledImages(train_digits.images[:50], train_digits.labels[:50]).fitted(16, 1)
    certain = replace(data, probabilities=np.eye(10, dtype=np.float32)[data.labels])
    other = replace(data, probabilities=np.eye(10, dtype=np.float32)[(data.labels + 1) % 10])
    hard = train_student(data, quick, n_classes=10, seed=0)
    torch.testing.assert_close(
        _weights(train_student(certain, quick, n_classes=10, seed=0)), _weights(hard), atol=1e-3, rtol=0
    )
    misled = train_student(other, quick, n_classes=10, seed=0)
    assert (evaluate(misled, data) == (data.labels + 1) % 10).mean() > 0.8
    assert (evaluate(hard, data) == data.labels).mean() > 0.8


def test_the_labeller_sees_the_augmented_batch_and_overrules_the_labels(train_digits, quick):
    data = LabelledImages(train_digits.images[:40], train_digits.labels[:40]).fitted(16, 1)
    originals = torch.from_numpy(data.images.transpose(0, 3, 1, 2)).float() / 255
    seen = []

    def always_three(batch):
        seen.append(batch)
        return torch.eye(10)[torch.full((len(batch),), 3)]

    model = train_student(data, quick, n_classes=10, seed=0, labeller=always_three)
    assert (evaluate(model, data) == 3).mean() > 0.9
    assert len(seen) == quick.steps
    assert seen[0].shape == (quick.batch_size, 1, 16, 16)
    assert not any(torch.equal(image, original) for image in seen[0] for original in originals)


def test_rows_of_every_kind_of_labels(teacher, train_digits, test_digits, quick):
    wrong = LabelledImages(train_digits.images[:100], (train_digits.labels[:100] + 1) % 10)
    rows = {
        kind: student_metrics(
            "D3M", lambda seed: wrong, test_digits, quick, budget="ipc-1", n_classes=10,
            labelling=Labelling(kind, teacher, "abc", stored_classes=3),
        )
        for kind in ("hard", "soft stored", "soft teacher")
    }  # fmt: skip
    assert {k: set(r["labels"]) for k, r in rows.items()} == {k: {k} for k in rows}
    # The hard labels are all wrong; the teacher knows better, and only soft rows are told.
    assert (
        rows["hard"]["accuracy"].max()
        < 0.3
        < 0.6
        < min(rows[k]["accuracy"].min() for k in ("soft stored", "soft teacher"))
    )
    recipes = {k: json.loads(r["recipe"][0]) for k, r in rows.items()}
    assert "labels" not in recipes["hard"]
    assert recipes["soft stored"]["labels"]["stored_classes"] == 3
    assert recipes["soft teacher"]["labels"]["temperature"] == teacher.temperature
    assert all({k: v for k, v in r.items() if k != "labels"} == recipes["hard"] for r in recipes.values())
    assert rows["soft stored"]["accuracy"].tolist() != rows["soft teacher"]["accuracy"].tolist()


def test_the_temperature_reaches_the_student(teacher, train_digits):
    data = LabelledImages(train_digits.images[:20], train_digits.labels[:20]).fitted(16, 1)
    cool = Labelling("soft stored", teacher, temperature=0.5).applied(data).probabilities
    warm = Labelling("soft stored", teacher, temperature=20.0).applied(data).probabilities
    assert warm.max(1).mean() < cool.max(1).mean()
    assert Labelling("soft teacher", teacher).applied(data) is data
    assert Labelling("soft stored", teacher).labeller() is None


def test_unfit_soft_labels_are_refused(train_digits, quick):
    data = LabelledImages(train_digits.images[:4], train_digits.labels[:4]).fitted(16, 1)
    for bad in (np.ones((4, 10)), np.full((3, 10), 0.1), np.eye(10, dtype=int)[:4], -np.eye(10)[:4]):
        with pytest.raises(DatasetError, match="add up to 1"):
            replace(data, probabilities=bad)
    with pytest.raises(DatasetError, match="of 3 classes, the student of 10"):
        train_student(replace(data, probabilities=np.eye(3)[[0, 1, 2, 0]]), quick, n_classes=10, seed=0)
    with pytest.raises(TeacherError, match="need a teacher"):
        Labelling("soft teacher")
