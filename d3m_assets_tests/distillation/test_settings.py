from __future__ import annotations

from pathlib import Path

import pytest

from d3m_assets.distillation.settings import GenerationSettings, InversionSettings, PromptSettings


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
