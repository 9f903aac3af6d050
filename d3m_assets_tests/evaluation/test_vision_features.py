"""Frozen vision models as features to select by: real models of transformers, small and random, from disk."""

import json

import numpy as np
import pytest
import torch

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import TeacherError
from d3m_assets.evaluation.teacher import features, load_teacher, probabilities, probe_features
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint
from d3m_assets.evaluation.vision_features import LinearProbe, load_features
from d3m_assets_tests.evaluation.conftest import _digits

NAMES = tuple("0123456789")
VIT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


def _models():
    from transformers import (
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTForImageClassification,
        ViTModel,
    )

    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 99,
    }
    dino = {name: value for name, value in VIT.items() if name != "intermediate_size"}
    residual = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return {
        "vit": lambda: (ViTModel(ViTConfig(**VIT)), 32),
        "classifier": lambda: (ViTForImageClassification(ViTConfig(**VIT)), 32),
        "dino": lambda: (Dinov2Model(Dinov2Config(**dino)), 32),
        "resnet": lambda: (ResNetModel(ResNetConfig(**residual)), 16),
        "clip": lambda: (CLIPModel(CLIPConfig(text_config=text, vision_config=VIT, projection_dim=24)), 24),
    }


@pytest.fixture(scope="module", params=["vit", "classifier", "dino", "resnet", "clip"])
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model, width = _models()[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    return request.param, model.eval(), width, Checkpoint(folder, "selection.features")


@pytest.fixture(scope="module")
def digits():
    train, test = _digits()
    return LabelledImages(train.images[:600], train.labels[:600]), test


def test_features_are_those_of_the_model(saved):
    kind, model, width, checkpoint = saved
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = load_features(checkpoint, "cpu")(pixels)
    assert found.shape == (2, width)
    with torch.no_grad():
        if kind == "clip":
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            expected = model.visual_projection(pooled)
        elif kind == "classifier":  # its checkpoint has no pooler, and a random one would say nothing
            expected = model.vit(pixel_values=pixels).last_hidden_state.mean(1)
        else:
            expected = model(pixel_values=pixels).pooler_output.flatten(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(load_features(checkpoint, "cpu")(pixels), found)


def test_a_linear_classifier_on_them_knows_the_classes(saved, digits):
    _, _, width, checkpoint = saved
    train, test = digits
    weights, record = probe_features(checkpoint, train, NAMES)
    network = load_teacher(json.loads(json.dumps(record)), weights, NAMES)
    seen = features(network, test.images[:100])
    assert seen.shape == (100, width)
    assert record["bytes"] == len(weights)
    # Random features of a random network: far above a guess all the same.
    assert (probabilities(network, test.images).argmax(1) == test.labels).mean() > 0.5
    assert probe_features(checkpoint, train, NAMES)[0] == weights


def test_the_probe_gives_the_probabilities_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    for k in (2, 3):
        labels = rng.integers(0, k, 90)
        # A feature far from zero, and one that never changes.
        points = (rng.normal(size=(90, 5)) + labels[:, None]) * [1, 10, 1e-4, 1, 0] + [3, 3, 100, 0, 1]
        probe = LinearProbe.fit(points, labels, k)
        scaled = (points - points.mean(0)) / np.where(points.std(0) == 0, 1, points.std(0))
        expected = LogisticRegression(max_iter=1000).fit(scaled, labels).predict_proba(scaled)
        logits = (points - probe.mean.astype(float)) / probe.deviation @ probe.weight.T + probe.bias
        found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_what_cannot_be_used_is_refused_by_the_name_of_its_setting(saved, tmp_path, digits):
    import shutil

    from safetensors.torch import load_file, save_file

    kind, _, _, checkpoint = saved
    with pytest.raises(TeacherError, match=r"selection\.features=.* no config\.json"):
        Checkpoint(tmp_path, "selection.features")
    copy = shutil.copytree(checkpoint.path, tmp_path / "copy")
    weights, record = probe_features(Checkpoint(copy, "selection.features"), digits[0], NAMES)
    tensors = load_file(copy / "model.safetensors")
    lost = next(
        n for n in tensors if n.endswith("weight") and not any(p in n for p in ("pooler", "text", "classifier"))
    )
    save_file({n: t for n, t in tensors.items() if n != lost}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"selection\.features=.* lacks weights"):
        load_features(Checkpoint(copy, "selection.features"), "cpu")
    with pytest.raises(TeacherError, match="not what it was"):
        load_teacher(record, weights, NAMES)
    own = json.loads((copy / "config.json").read_text())
    own |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "custom.Config", "AutoModel": "custom.Model"}}
    (copy / "config.json").write_text(json.dumps(own))
    with pytest.raises(TeacherError, match=r"auto_map in config\.json\), which is never run"):
        load_features(Checkpoint(copy, "selection.features"), "cpu")
