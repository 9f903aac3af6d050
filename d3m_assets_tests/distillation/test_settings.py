from __future__ import annotations

from pathlib import Path

import pytest

from d3m_assets.distillation.settings import GenerationSettings, InversionSettings, PromptSettings
from d3m_assets.errors import SettingsError
from d3m_assets.settings import load_settings


def test_whole_vectors_have_a_learning_rate_of_their_own():
    assert InversionSettings().learning_rate == 0.15
    assert InversionSettings(directional=False).learning_rate == 2e-3
    assert InversionSettings(directional=False, learning_rate=0.15).learning_rate == 0.15
    # What was made before there was a choice is still up to date.
    assert "directional" not in InversionSettings().fingerprint()
    assert InversionSettings(directional=False).fingerprint()["directional"] is False


def test_what_does_not_decide_about_vectors_and_images_is_left_out():
    assert InversionSettings(classes_per_batch=3).fingerprint() == InversionSettings().fingerprint()
    assert InversionSettings(steps=3).fingerprint() != InversionSettings().fingerprint()
    assert GenerationSettings(tiny_autoencoder=Path("here")).fingerprint() == GenerationSettings().fingerprint()


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {x} {}"])
def test_a_template_has_one_place_for_the_class(template):
    with pytest.raises(ValueError, match="exactly once"):
        PromptSettings(templates=(template,))


def test_one_template_may_hold_a_comma():
    assert PromptSettings(templates="a {}, on white").templates == ("a {}, on white",)


def test_numbers_of_a_selection_are_planned_unless_given():
    settings = load_settings(**{"selection.candidates": "auto", "selection.kept": 50}).selection
    assert (settings.criterion, settings.candidates, settings.kept) == ("centres", None, 50)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"selection.criterion": "luck"}, "selection.criterion.*'centres', 'herding', 'recognised' or 'none'"),
        ({"selection.candidates": 0}, "selection.candidates"),
        ({"selection.kept": "some"}, "selection.kept"),
        ({"selection.criterion": "none", "selection.kept": 5}, "criterion none.*leave them out"),
        ({"selection.candidates": 5, "selection.kept": 6}, "candidates=5 are fewer than kept=6"),
    ],
)
def test_an_impossible_selection_names_its_setting(wrong, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(**wrong)
