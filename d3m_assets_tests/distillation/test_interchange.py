import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import prompt_states
from d3m_assets.distillation.interchange import export_tokens, find_embeddings
from d3m_assets.distillation.vectors import from_stored, to_stored
from d3m_assets.errors import BundleError
from d3m_assets.foundation.vector_layout import VectorLayout
from d3m_assets_tests.distillation.test_bundle import recipe

LAYOUT = VectorLayout((64,), (1.0,))


@pytest.fixture
def made(words):
    rng = np.random.default_rng(0)
    classes = [
        DistilledClass(words(n, class_id=i), EmbeddingPlan(2, v, "int8", 64),
                       rng.integers(-127, 128, (2, v, 64)).astype(np.int8))
        for i, (n, v) in enumerate((("3", 1), ("7", 3)))
    ]  # fmt: skip
    return Bundle(recipe(), tuple(classes))


@pytest.fixture
def pipeline(foundation):
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(foundation.files.path, dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


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
        assert token.path.name == f"{token.token.strip('<>')}.safetensors"
        assert list(load_file(token.path)) == ["emb_params"]
    names = [t.path.stem for t in exported]
    assert len({n.casefold() for n in names}) == len(names)
    assert all(n == n.lower() and not n[-1].isdigit() for n in names)


def test_a_concept_says_what_it_is(made, tmp_path):
    export_tokens(made, LAYOUT, tmp_path, "concept")
    folder = tmp_path / "d3m-0001ab"
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


@pytest.mark.parametrize("kind", ["diffusers", "a1111", "concept"])
def test_what_was_exported_comes_back_to_the_last_bit(tmp_path, words, kind):
    rng = np.random.default_rng(0)
    plan = EmbeddingPlan(2, 3, "int8", 64)
    rows = rng.normal(size=(2, 2, 3, 64)).astype(np.float32)
    classes = [DistilledClass(words(n, class_id=i), plan, to_stored(rows[i], plan, (64,))) for i, n in enumerate("37")]
    export_tokens(Bundle(recipe(), tuple(classes)), LAYOUT, tmp_path, kind)
    found = find_embeddings(tmp_path, ["3", "7", "9"], (64,))
    assert set(found) == {"3", "7"}
    for learned in classes:
        embeddings = found[learned.prompts.class_name]
        assert embeddings.vectors == 3
        assert np.array_equal(to_stored(embeddings.rows((64,)), plan, (64,)), learned.vectors)


def test_what_diffusers_loaded_and_wrote_comes_back_to_the_last_bit(pipeline, foundation, words, tmp_path):
    plan = EmbeddingPlan(1, 1, "int8", 64)
    stored = to_stored(np.random.default_rng(1).normal(size=(1, 1, 64)), plan, (64,))
    bundle = Bundle(recipe(), (DistilledClass(words("3", class_id=0), plan, stored),))
    (token,) = export_tokens(bundle, foundation.layout, tmp_path / "out", "diffusers")
    pipeline.load_textual_inversion(str(token.path))
    row = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids(token.token)]
    # As diffusers' training script writes it: one concept folder, one vector without a first axis.
    (tmp_path / "mine" / "3").mkdir(parents=True)
    save_file({token.token: row.detach().numpy()}, tmp_path / "mine" / "3" / "learned_embeds.safetensors")
    found = find_embeddings(tmp_path / "mine", ["3"], (64,))
    assert np.array_equal(to_stored(found["3"].rows((64,)), plan, (64,)), stored)


def test_both_parts_of_an_sdxl_embedding_come_back_in_order(tmp_path):
    first, second = np.full((2, 32), 1, np.float32), np.full((2, 48), 2, np.float32)
    save_file({"clip_g": second, "clip_l": first}, tmp_path / "cat.safetensors")
    rows = find_embeddings(tmp_path, ["cat"], (32, 48))["cat"].rows((32, 48))
    assert rows.shape == (1, 2, 80)
    assert (rows[..., :32] == 1).all()
    assert (rows[..., 32:] == 2).all()


def test_embeddings_that_cannot_be_used_are_named_with_the_way_out(tmp_path):
    with pytest.raises(BundleError, match="no folder"):
        find_embeddings(tmp_path / "nowhere", ["3"], (64,))
    file = tmp_path / "3.safetensors"

    def refused(message, tensors=None, names=("3",)):
        if tensors:
            save_file(tensors, file)
        with pytest.raises(BundleError, match=message):
            find_embeddings(tmp_path, list(names), (64,))

    refused("another model", {"x": np.ones((1, 768), np.float32)})
    refused("2 tensors", {"a": np.ones((1, 64), np.float32), "b": np.ones((1, 64), np.float32)})
    refused("zero or not finite", {"x": np.zeros((1, 64), np.float32)})
    refused("named after no class.*cat, dog", {"x": np.ones((1, 64), np.float32)}, ("cat", "dog"))
    (tmp_path / "3").mkdir()
    save_file({"x": np.ones((1, 64), np.float32)}, tmp_path / "3" / "learned_embeds.safetensors")
    refused("two embeddings")
    (tmp_path / "3" / "learned_embeds.safetensors").rename(tmp_path / "3" / "3.safetensors")
    refused("not looked for there.*learned_embeds")
    (tmp_path / "3" / "3.safetensors").unlink()
    file.unlink()
    refused("holds no .safetensors")
    file.write_bytes(b"damaged")
    refused("cannot be read as safetensors")
    file.rename(tmp_path / "3.pt")
    refused("pickled")


def test_a_file_that_changed_meanwhile_is_noticed(tmp_path):
    save_file({"x": np.ones((1, 64), np.float32)}, tmp_path / "3.safetensors")
    found = find_embeddings(tmp_path, ["3"], (64,))["3"]
    save_file({"x": np.full((1, 64), 2, np.float32)}, tmp_path / "3.safetensors")
    with pytest.raises(BundleError, match="changed"):
        found.rows((64,))
