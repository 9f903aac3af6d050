"""Photographs with models of every supported kind: small random pipelines and a small vision model, all from disk."""

import json

import numpy as np
import pytest
from PIL import Image

from d3m_assets.assets.foundation_model import model_problems
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.exports.verification import verify
from d3m_assets.inspection.verification import PoolImages
from d3m_assets.planning.asset import Problem
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.foundation.small_pipelines import KINDS, write_pipeline
from d3m_assets_tests.small_runs import SELECTED, open_pipeline, run

WARNING = (
    "draws single characters in grey at 32x32 pixels and knows nothing else, but the images are in colour at 48x64"
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Patches of the two photographs that scikit-learn ships, 48x64 in colour."""
    from sklearn.datasets import load_sample_images

    root, rng = tmp_path_factory.mktemp("photographs") / "images", np.random.default_rng(0)
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for i in range(18):
            top, left = rng.integers(0, photograph.shape[0] - 48), rng.integers(0, photograph.shape[1] - 64)
            target = root / ("train" if i < 12 else "test") / name / f"{i:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph[top : top + 48, left : left + 64]).save(target)
    return root


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    import torch
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vision")
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_with_a_model_of_ones_own(photographs, vision_model, tmp_path, kind):
    from d3m_assets.foundation.loading import load_foundation

    write_pipeline(kind, tmp_path / "model")
    pipeline = open_pipeline(
        tmp_path,
        photographs,
        foundation=str(tmp_path / "model"),
        budgets=("512B",),
        **SELECTED | {"selection.features": str(vision_model), "inversion.storage_type": "int8"},
        **{"evaluation.baselines": "random,packed,coded", "validation_fraction": 0.3, "teacher.steps": 10},
    )
    assert model_problems(pipeline.context) == []
    run(pipeline)
    data = pipeline.store.read(ArtefactKey("distilled_bundle", None, "512B"), "bundle.safetensors")
    bundle = Bundle.from_bytes(data)
    foundation = load_foundation(pipeline.context.model.files, "cpu")
    result = verify(bundle, foundation, PoolImages(bundle, pipeline.store))
    assert (result.verdict, result.total("checked")) == ("equal", 2 * bundle.training_images(bundle.classes[0]))
    assert all(len(c.selection) > 0 and c.payload <= 512 for c in bundle.classes)
    page = pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert "coded real images" in page


def test_the_embedded_model_is_no_model_of_photographs(photographs, tmp_path):
    from d3m_assets_tests.test_cli import d3m

    pipeline = open_pipeline(tmp_path, photographs)
    (problem,) = model_problems(pipeline.context)
    assert WARNING in str(problem)
    assert problem.severity == "warning"
    for asset in ("class_catalog", "foundation_model"):
        assert all(outcome.error is None for outcome in pipeline.materialize(asset, pipeline.keys(asset)))
    found = pipeline.verify("foundation_model")
    assert [(p.severity, WARNING in p.message) for p in found if isinstance(p, Problem)] == [("warning", True)]
    told = d3m(tmp_path / "home", "status", "--dataset", photographs)
    assert WARNING in told.stderr
    assert "--foundation" in told.stderr
    assert json.loads(d3m(tmp_path / "home", "status", "--json", "--dataset", photographs).stdout)["entries"]


def test_nothing_is_said_of_characters(finished):
    assert model_problems(open_pipeline(finished, finished / "images").context) == []
