import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import prompt_states
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.errors import BundleError
from d3m_assets.exports.tokens import export_tokens
from d3m_assets.foundation.vector_layout import VectorLayout
from d3m_assets_tests.distillation.test_bundle import recipe

LAYOUT = VectorLayout((64,), (1.0,))


@pytest.fixture
def made(words):
    rng = np.random.default_rng(0)
    classes = [
        DistilledClass(
            words(n, class_id=i), EmbeddingPlan(2, v, "int8", 64), rng.integers(-127, 128, (2, v, 64)).astype(np.int8)
        )
        for i, (n, v) in enumerate((("3", 1), ("7", 3)))
    ]
    return Bundle(recipe(), tuple(classes))


@pytest.mark.parametrize("kind", ["diffusers", "a1111", "concept"])
def test_diffusers_loads_what_was_exported(made, foundation, pipeline, tmp_path, kind):
    exported = export_tokens(made, foundation.layout, tmp_path / "out", kind)
    assert len(exported) == 4
    for token in exported:
        if kind == "a1111":  # its files do not say the token
            pipeline.load_textual_inversion(str(token.path), token=token.token)
        else:
            pipeline.load_textual_inversion(str(token.path.parent if kind == "concept" else token.path))
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    for index, learned in enumerate(made.classes):
        rows = from_stored(learned.vectors, foundation.layout)
        states = prompt_states(foundation, learned.prompts, learned.vectors, learned.plan)
        for prompt in range(2):
            token = made.token_of(index, prompt)
            names = [token] + [f"{token}_{v}" for v in range(1, rows.shape[1])]
            ids = pipeline.tokenizer.convert_tokens_to_ids(names)
            assert np.array_equal(table[ids], rows[prompt])
            # And the prompt means to diffusers what it means to us.
            found = pipeline.encode_prompt(learned.prompts.learned(prompt), "cpu", 1, False)[0]
            assert torch.allclose(found[0], states.states[prompt], atol=1e-5)


def test_other_programs_find_one_tensor_under_the_name_they_look_for(made, tmp_path):
    exported = export_tokens(made, LAYOUT, tmp_path, "a1111")
    for token in exported:
        assert token.path.name == f"embedded-{token.token.strip('<>')}.safetensors"
        assert token.path.stem in token.prompt and token.token not in token.prompt
        assert list(load_file(token.path)) == ["emb_params"]
    names = [t.path.stem for t in exported]
    assert len({n.casefold() for n in names}) == len(names)
    assert all(n == n.lower() and not n[-1].isdigit() for n in names)


def test_a_concept_says_what_it_is(made, tmp_path):
    export_tokens(made, LAYOUT, tmp_path, "concept")
    folder = tmp_path / "embedded-d3m-0001ab"
    assert (folder / "token_identifier.txt").read_text() == "<d3m-0001ab>"
    card = (folder / "README.md").read_text()
    assert "class 7 of digits" in card
    assert "a photo of a <d3m-0001ab> 7" in card
    listed = json.loads((tmp_path / "tokens.json").read_text())
    assert [e["class"] for e in listed] == ["3", "3", "7", "7"]
    assert all((tmp_path / e["file"]).is_file() for e in listed)


def test_a_folder_with_something_in_it_is_refused(made, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BundleError, match="--output"):
        export_tokens(made, LAYOUT, tmp_path, "diffusers")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
