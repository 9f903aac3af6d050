import json

import numpy as np
import pytest
import torch

from d3m_assets.compute.devices import one_thread
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import TeacherError
from d3m_assets.evaluation.settings import TeacherSettings
from d3m_assets.evaluation.teacher import (
    agreement,
    calibrated_temperature,
    features,
    labeller,
    load_teacher,
    probabilities,
    train_teacher,
    use_checkpoint,
)
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint, check_order, match_outputs
from d3m_assets_tests.evaluation.conftest import _digits

NAMES = tuple("0123456789")
QUICK = TeacherSettings(width=8, steps=120, batch_size=32, learning_rate=0.02)


@pytest.fixture(scope="module")
def digits():
    train = _digits()[0]
    return (
        LabelledImages(train.images[:1000], train.labels[:1000]),
        LabelledImages(train.images[1000:], train.labels[1000:], "validation"),
    )


@pytest.fixture(scope="module")
def trained(digits):
    return train_teacher(*digits, NAMES, QUICK, seed=0)


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    """A tiny ViT that was trained on the digits, with its outputs named."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2,
        num_channels=1, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    images = torch.from_numpy(digits[0].images[..., 0]).float()[:, None] / 127.5 - 1
    labels = torch.from_numpy(digits[0].labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with one_thread():
        for step in range(300):
            chosen = torch.arange(step * 64, step * 64 + 64) % len(images)
            loss = torch.nn.functional.cross_entropy(model(pixel_values=images[chosen]).logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    return folder


def _with_names(checkpoint, target, names):
    """The same weights with other names of the outputs."""
    import shutil

    shutil.copytree(checkpoint, target)
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {str(i): n for i, n in enumerate(names)}
    config["label2id"] = {n: i for i, n in enumerate(names)}
    (target / "config.json").write_text(json.dumps(config))
    return Checkpoint(target)


def test_trained_on_the_train_split_and_judged_on_the_validation_part(trained, digits):
    weights, record = trained
    assert record["accuracy"] > 0.85
    assert record["n_validation"] == len(digits[1]) and len(record["class_accuracy"]) == 10
    assert record["bytes"] == len(weights)
    again, same = train_teacher(*digits, NAMES, QUICK, seed=0)
    assert again == weights and same == record
    assert train_teacher(*digits, NAMES, QUICK, seed=1)[0] != weights
    with pytest.raises(TeacherError, match="validation part"):
        train_teacher(digits[0], digits[0], NAMES, QUICK, seed=0)


def test_loaded_it_answers_as_when_it_was_trained(trained, digits):
    weights, record = trained
    teacher = load_teacher(json.loads(json.dumps(record)), weights, NAMES)
    soft = probabilities(teacher, digits[1].images)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    assert (soft.argmax(1) == digits[1].labels).mean() == record["accuracy"]
    assert (probabilities(teacher, digits[1].images) == soft).all()
    assert probabilities(teacher, digits[1].images, 10.0).max() < soft.max()


def test_the_teacher_agrees_with_held_out_images_and_not_with_swapped_ones(trained, digits):
    teacher, (images, labels) = load_teacher(trained[1], trained[0], NAMES), (digits[1].images, digits[1].labels)
    sure, named = agreement(teacher, images, labels)
    assert sure.dtype == np.float32 and named.dtype == np.int64
    assert (named == labels).mean() == trained[1]["accuracy"]
    assert sure[named == labels].mean() > 0.5 > sure[named != labels].max()
    swapped = np.select([labels == 3, labels == 5], [5, 3], labels)
    other, same = agreement(teacher, images, swapped)
    assert (same == named).all() and (other == sure)[labels == swapped].all()
    assert other[labels != swapped].mean() < 0.1 < 0.9 < (named != swapped)[labels != swapped].mean()
    # A temperature makes it less sure of the same classes.
    softer, unmoved = agreement(teacher, images, labels, 10.0)
    assert (unmoved == named).all() and softer[named == labels].max() < sure.max()
    assert [part.shape for part in agreement(teacher, images[:0], labels[:0])] == [(0,), (0,)]
    with pytest.raises(TeacherError, match=r"2 images but labels of shape \(3,\); give one"):
        agreement(teacher, images[:2], labels[:3])
    with pytest.raises(TeacherError, match="labels from 0 to 10, but the teacher has 10 classes, 0 to 9"):
        agreement(teacher, images[:2], np.array([0, 10]))


def test_features_give_the_logits_through_the_head(trained, digits):
    teacher = load_teacher(trained[1], trained[0], NAMES)
    images = digits[1].images[:40]
    found = features(teacher, images)
    assert found.shape == (40, 8 * 2 * 2)
    logits = found @ teacher.head.weight.detach().numpy().T + teacher.head.bias.detach().numpy()
    expected = torch.from_numpy(logits / teacher.temperature).softmax(1).numpy()
    np.testing.assert_allclose(probabilities(teacher, images), expected, atol=1e-5)
    assert features(teacher, images[:0]).shape == (0, 32)


def test_the_labeller_labels_batches_of_any_size_and_colour(trained, digits):
    teacher = load_teacher(trained[1], trained[0], NAMES)
    small = LabelledImages(digits[1].images[:30], digits[1].labels[:30], "validation").resized(16, 1)
    batch = torch.from_numpy(small.images.transpose(0, 3, 1, 2)).float() / 255
    soft = labeller(teacher)(batch)
    np.testing.assert_allclose(soft.numpy(), probabilities(teacher, small.images), atol=1e-5)
    assert not soft.requires_grad
    colour = labeller(teacher)(batch.expand(-1, 3, -1, -1))
    np.testing.assert_allclose(colour.numpy(), soft.numpy(), atol=1e-4)
    larger = torch.nn.functional.interpolate(batch, (32, 32), mode="nearest")
    assert (labeller(teacher)(larger).argmax(1) == soft.argmax(1)).float().mean() > 0.8


def test_a_teacher_of_other_classes_or_another_order_is_refused(trained):
    weights, record = trained
    with pytest.raises(TeacherError, match="classes are 0, 1, 2.*dataset's are 1, 0, 2"):
        load_teacher(record, weights, ("1", "0", *NAMES[2:]))
    with pytest.raises(TeacherError, match="do not fit"):
        load_teacher(record, weights[:-8], NAMES)


def test_permuted_labels_are_recognised_by_held_out_accuracy(digits):
    train, validation = digits
    permuted = np.array([0, 2, 1, 3, 4, 5, 7, 8, 6, 9])
    with pytest.raises(TeacherError) as error:
        train_teacher(LabelledImages(train.images, permuted[train.labels]), validation, NAMES, QUICK, seed=0)
    assert "By name: 1: output 1, 2: output 2, 6: output 6, 7: output 7, 8: output 8." in str(error.value)
    assert "held-out images: 1: output 2, 2: output 1, 6: output 7, 7: output 8, 8: output 6." in str(error.value)


def test_a_checkpoint_teaches_whatever_the_order_of_its_outputs(checkpoint, digits, tmp_path):
    record = use_checkpoint(Checkpoint(checkpoint), digits[1], NAMES)
    assert record["accuracy"] > 0.8
    assert record["outputs"] == list(range(10))
    # The same classes in the order in which a dataset may have them.
    order = [3, 1, 2, 0, 4, 5, 6, 7, 9, 8]
    names = [NAMES[i] for i in order]
    position = np.argsort(order)
    other = LabelledImages(digits[1].images, position[digits[1].labels], "validation")
    moved = use_checkpoint(Checkpoint(checkpoint), other, names)
    assert moved["outputs"] == order
    assert moved["accuracy"] == record["accuracy"]
    images = digits[1].images[:20]
    teacher, second = load_teacher(record, None, NAMES), load_teacher(moved, None, names)
    np.testing.assert_allclose(probabilities(teacher, images)[:, order], probabilities(second, images), atol=1e-3)
    assert features(teacher, images).shape == (20, 32)


def test_a_checkpoint_with_permuted_names_is_an_error_that_shows_both_orders(checkpoint, digits, tmp_path):
    swapped = _with_names(checkpoint, tmp_path / "swapped", ["1", "0", *NAMES[2:]])
    with pytest.raises(TeacherError, match=r"By name: 0: output 1, 1: output 0\. .*0: output 0, 1: output 1"):
        use_checkpoint(swapped, digits[1], NAMES)
    nameless = _with_names(checkpoint, tmp_path / "nameless", [f"LABEL_{i}" for i in range(10)])
    use_checkpoint(nameless, digits[1], NAMES)
    reversed_labels = LabelledImages(digits[1].images, 9 - digits[1].labels, "validation")
    with pytest.raises(TeacherError, match="another order"):
        use_checkpoint(nameless, reversed_labels, NAMES)


def test_a_checkpoint_that_does_not_know_the_classes_or_cannot_be_read(checkpoint, digits, tmp_path):
    other = _with_names(checkpoint, tmp_path / "other", ["cat", *NAMES[1:]])
    with pytest.raises(
        TeacherError, match="no output, or several, for the classes 0.*outputs are cat, 1.*classes are 0"
    ):
        use_checkpoint(other, digits[1], NAMES)
    with pytest.raises(TeacherError, match=r"no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TeacherError, match=r"no \.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(TeacherError, match="id2label"):
        use_checkpoint(Checkpoint(tmp_path), digits[1], NAMES)


@pytest.mark.parametrize("model_type", ["vit", "of-its-own"])
def test_code_in_a_checkpoint_is_never_run(checkpoint, digits, tmp_path, monkeypatch, model_type):
    """Without asking either: a stock model is loaded as such, one that transformers lacks is refused."""
    copy = _with_names(checkpoint, tmp_path / "copy", NAMES)
    proof = tmp_path / "it_ran"
    (copy.path / "custom.py").write_text(
        f"import pathlib\npathlib.Path({str(proof)!r}).write_text('')\n"
        "from transformers import ViTConfig, ViTForImageClassification\n"
        # Subclasses: transformers marks the classes of trusted code, and saving a marked stock class would fail ever after.
        "class Config(ViTConfig):\n    pass\n"
        "class Model(ViTForImageClassification):\n    config_class = Config\n"
    )
    config = json.loads((copy.path / "config.json").read_text()) | {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "custom.Config", "AutoModelForImageClassification": "custom.Model"},
    }
    (copy.path / "config.json").write_text(json.dumps(config))

    def asked(*args):
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", asked)
    if model_type == "vit":
        assert use_checkpoint(copy, digits[1], NAMES)["accuracy"] > 0.8
    else:
        with pytest.raises(TeacherError, match=r"auto_map in config\.json\), which is never run"):
            use_checkpoint(copy, digits[1], NAMES)
    assert not proof.exists()
    # The module would have run, had it been trusted.
    from transformers import AutoModelForImageClassification, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    AutoModelForImageClassification.from_pretrained(copy.path, local_files_only=True, trust_remote_code=True)
    assert proof.exists()


def test_a_checkpoint_that_changed_after_it_was_checked_is_refused(checkpoint, digits, tmp_path):
    copy = _with_names(checkpoint, tmp_path / "copy", NAMES)
    record = use_checkpoint(copy, digits[1], NAMES)
    (copy.path / "config.json").write_text((copy.path / "config.json").read_text() + "\n")
    with pytest.raises(TeacherError, match="not what it was"):
        load_teacher(record, None, NAMES)


def test_images_are_prepared_as_the_checkpoint_says(checkpoint, digits, tmp_path):
    copy = _with_names(checkpoint, tmp_path / "copy", NAMES)
    images = digits[1].images[:50]
    plain = probabilities(load_teacher(use_checkpoint(copy, digits[1], NAMES), None, NAMES), images, 1.0)
    said = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 255}
    (copy.path / "preprocessor_config.json").write_text(json.dumps(said))
    same = Checkpoint(copy.path)
    np.testing.assert_allclose(
        probabilities(load_teacher(use_checkpoint(same, digits[1], NAMES), None, NAMES), images, 1.0), plain, atol=1e-6
    )
    (copy.path / "preprocessor_config.json").write_text(json.dumps(said | {"image_std": [5.0]}))
    other = Checkpoint(copy.path)
    changed = probabilities(load_teacher(use_checkpoint(other, digits[1], NAMES), None, NAMES), images, 1.0)
    assert np.abs(changed - plain).max() > 0.1
    (copy.path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 8, "width": 9}}))
    with pytest.raises(TeacherError, match="only squares"):
        _ = Checkpoint(copy.path).image_size


def test_outputs_are_matched_by_name():
    assert match_outputs(["b", "a", "c"], ["a", "b"]) == [1, 0]
    assert match_outputs(["a", "A"], ["A", "a"]) == [1, 0]  # exact names first
    assert match_outputs(["tabby_cat", "DOG"], ["dog", "Tabby cat"]) == [1, 0]
    assert match_outputs(["LABEL_0", "LABEL_1"], ["x", "y"]) == [0, 1]
    with pytest.raises(TeacherError, match="several"):
        match_outputs(["Cat", "cat "], ["CAT"])


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        ([0] * 12, [0] * 2 + [1] * 8 + [2] * 2),  # knows one answer only
        ([1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]),  # takes a class for another
        ([0, 1, 1, 0, 2, 2], [0, 0, 1, 1, 2, 2]),  # guesses
        ([1], [0]),  # one image is no evidence
    ],
)
def test_a_weak_teacher_is_not_taken_for_a_permuted_one(predictions, labels):
    check_order(np.array(predictions), np.array(labels), ("a", "b", "c"))


def test_a_swap_is_found_among_confusions():
    labels = np.repeat(np.arange(4), 10)
    predictions = labels.copy()
    predictions[:7], predictions[10:18] = 1, 0
    predictions[20:24] = 3
    with pytest.raises(TeacherError, match="By name: a: output 5, b: output 9. "):
        check_order(predictions, labels, ("a", "b", "c", "d"), [5, 9, 2, 1])


def test_calibration_finds_the_temperature_that_logits_were_sharpened_by():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(4000, 5)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([draw.choice(5, p=row) for row in p])
    assert calibrated_temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)
    certain = np.eye(5)[labels] * 8
    assert 0.5 < calibrated_temperature(certain, labels) < 5  # no error at all, and still a finite answer
