"""A small bundle that generates in chunks of four, and its file."""

from dataclasses import replace

import numpy as np
import pytest

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.selection import encode_selection
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets_tests.distillation.conftest import words
from d3m_assets_tests.distillation.test_bundle import recipe

__all__ = ["words"]

GENERATION = GenerationSettings(steps=1, batch_size=4, images_per_class=6, guidance_scale=1.0).fingerprint()


@pytest.fixture
def plain_bundle(foundation, words) -> Bundle:
    """Three classes of six images, without a selection."""
    rng = np.random.default_rng(0)
    plan = EmbeddingPlan(2, 1, "int8", 64)
    classes = tuple(
        DistilledClass(words(name, class_id=i), plan, rng.integers(-127, 128, (2, 1, 64)).astype(np.int8))
        for i, name in enumerate("017")
    )
    return Bundle(recipe(foundation_fingerprint=foundation.files.fingerprint, generation=GENERATION), classes)


@pytest.fixture
def selected_bundle(plain_bundle) -> Bundle:
    """Three, four and four samples that were selected from ten."""
    kept = ([0, 5, 9], [1, 2, 3, 8], [4, 5, 6, 7])
    classes = [
        replace(c, selection=encode_selection(numbers, 10, 4))
        for c, numbers in zip(plain_bundle.classes, kept, strict=True)
    ]
    return Bundle(replace(plain_bundle.recipe, criterion="centres", candidates=10, kept=4), tuple(classes))


@pytest.fixture
def bundle_file(plain_bundle, tmp_path):
    path = tmp_path / "bundle.safetensors"
    path.write_bytes(plain_bundle.to_bytes())
    return path
