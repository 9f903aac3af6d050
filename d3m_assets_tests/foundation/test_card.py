"""The shipped model's card is what today's code writes of the figures in it."""

import json

from huggingface_hub import ModelCard

from d3m_assets.foundation.loading import embedded_path
from d3m_assets.foundation_card import model_card

PARAMETERS = {"vae": 0.17, "text_encoder": 0.15, "unet": 1.02}
RECOGNIZED = {
    "renders, digits": 0.92,
    "renders, all": 0.798,
    "renders, held-out fonts, digits": 0.935,
    "renders, held-out fonts, all": 0.782,
    "guidance 1, digits": 0.68,
    "guidance 1, all": 0.285,
    "guidance 2, digits": 0.93,
    "guidance 2, all": 0.444,
    "guidance 4, digits": 0.985,
    "guidance 4, all": 0.524,
}
ACCURACY = {"class-name prompts": (0.853, 0.015), "rendered characters": (0.841, 0.037)}


def test_the_shipped_card_is_what_the_code_writes(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    facts = json.loads((embedded_path() / "training.json").read_text())
    card = model_card(facts, PARAMETERS, 2.8, RECOGNIZED, ACCURACY)
    shipped = ModelCard.load(embedded_path() / "README.md")
    assert card.data.to_dict() == shipped.data.to_dict()
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
    }
    assert card.text == shipped.text


def test_a_card_that_was_saved_is_read_again(tmp_path):
    facts = json.loads((embedded_path() / "training.json").read_text())
    card = model_card(facts, PARAMETERS, 2.8, RECOGNIZED, ACCURACY)
    card.save(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert (loaded.text, loaded.data.to_dict()) == (card.text, card.data.to_dict())
