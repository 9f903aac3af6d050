from __future__ import annotations

import pytest

from d3m_assets.evaluation.settings import NAMES, RECIPES, TABLES, VARIANTS, EvaluationSettings, StudentSettings


def test_the_quick_recipe_is_the_default_and_widths_follow_the_architecture():
    assert {k: v for k, v in StudentSettings().model_dump().items() if k in RECIPES["quick"]} == RECIPES["quick"]
    assert {a: StudentSettings(architecture=a).width for a in ("convnet-3", "resnet-18", "vit-small")} == {
        "convnet-3": 32,
        "resnet-18": 16,
        "vit-small": 192,
    }
    assert StudentSettings(architecture="resnet-18", recipe="hard-label").width == 64
    assert StudentSettings(architecture="resnet-18", width=8).width == 8
    for values in RECIPES.values():
        assert values.keys() == RECIPES["quick"].keys() <= StudentSettings.model_fields.keys()


def test_another_network_keeps_what_was_set_and_takes_its_own_width():
    settings = StudentSettings(width=8, steps=7, seeds=(3,))
    other = settings.of("vit-small")
    assert (other.architecture, other.width, other.steps, other.seeds) == ("vit-small", 192, 7, (3,))
    assert other.learning_rate == 1e-3
    assert settings.of("convnet-3") is settings


def test_a_table_gives_what_is_not_set_and_lists_have_one_order():
    full = EvaluationSettings(table="full", labels=("soft teacher", "hard"), baselines="k-means, random")
    assert full.labels == ("hard", "soft teacher")
    assert full.baselines == ("random", "k-means")
    assert full.variants == VARIANTS
    assert EvaluationSettings(table="full").baselines == NAMES
    assert EvaluationSettings().baselines == ("random", "k-means", "packed", "coded")
    for values in TABLES.values():
        assert values.keys() <= EvaluationSettings.model_fields.keys()
    with pytest.raises(ValueError, match="add random"):
        EvaluationSettings(baselines=("herding",))
