"""What the card says follows from the figures: held-out fonts, letters, unseen symbols, students, and what is missed."""

import json

import pytest
from huggingface_hub import ModelCard

from d3m_assets.errors import FoundationError
from d3m_assets.foundation.loading import embedded_path
from d3m_assets.foundation_card import FOLDED, TARGETS, model_card, write_card
from d3m_assets.settings import Settings

PARAMETERS = {"vae": 0.17, "text_encoder": 0.15, "unet": 1.02}
KINDS = ("digits", "letters")
FOUND = {f"{name}, {k}": 0.97 for name in ("renders", "renders, held-out fonts") for k in KINDS}
FOUND |= {f"guidance {g}, {k}": 0.991 for g in (1, 2, 4) for k in KINDS}
FOUND |= {f"students on {name}, {k}": 0.9 for name in ("class names", "renders") for k in KINDS}
FOUND |= {f"students on {name}, {k}, half-width": 0.01 for name in ("class names", "renders") for k in KINDS}
FOUND |= {"unseen": 0.95, "unseen, worst": 0.8}


@pytest.fixture
def facts():
    return json.loads((embedded_path() / "training.json").read_text())


def test_a_card_that_was_saved_is_read_again(tmp_path, facts):
    card = model_card(facts, PARAMETERS, 2.8, FOUND)
    card.save(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert (loaded.text, loaded.data.to_dict()) == (card.text, card.data.to_dict())
    assert loaded.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
    }


def test_what_is_missed_is_named_with_its_figure(facts):
    assert "All targets are met." in model_card(facts, PARAMETERS, 2.8, FOUND).text
    for name, target in TARGETS.items():
        text = model_card(facts, PARAMETERS, 2.8, {**FOUND, name: target - 0.05}).text
        assert f"Targets missed: {name} ({100 * target - 5:.1f} %, at least {100 * target:.0f} %)." in text
    text = model_card(facts, PARAMETERS, 2.8, {**FOUND, "students on class names, letters": 0.87}).text
    assert "letters (3.0 points below renders, at most 2)" in text


def test_the_folding_is_written_out(facts):
    text = model_card(facts, PARAMETERS, 2.8, FOUND).text
    assert all(f"{a} counts as {b}" in text for a, b in FOLDED.items())
    assert "o counts as 0; i counts as 1; l counts as 1" in text


def test_fonts_are_told_by_package(facts):
    fonts = [{"package": p, "file": "x.ttf", "sha256": "0"} for p in ("fonts-lato", "fonts-bwht", "fonts-lato")]
    settings = {n: v for n, v in facts["settings"].items() if n != "digit_share"}
    settings |= {"symbol_share": 0.12, "shape_share": 0.1, "pen_share": 0.3}
    text = model_card({**facts, "settings": settings, "fonts": fonts}, PARAMETERS, 2.8, FOUND).text
    assert "3 fonts of the Debian packages fonts-bwht, fonts-lato" in text
    assert "all 62 alike" in text
    assert "11 % are symbols and 10 % random strokes, which no caption names" in text
    assert "Muon" in text


def test_without_fonts_to_measure_with_the_way_out_is_named(tmp_path):
    with pytest.raises(FoundationError, match=r"scripts/fonts"):
        write_card(embedded_path(), tmp_path, Settings(home=tmp_path))
