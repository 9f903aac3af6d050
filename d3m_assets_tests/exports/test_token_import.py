import numpy as np
import pytest
from safetensors.numpy import save_file

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.vectors import to_stored
from d3m_assets.errors import BundleError
from d3m_assets.exports.token_import import find_embeddings
from d3m_assets.exports.tokens import export_tokens
from d3m_assets.foundation.vector_layout import VectorLayout
from d3m_assets_tests.distillation.test_bundle import recipe

LAYOUT = VectorLayout((64,), (1.0,))


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


@pytest.mark.parametrize(
    "listed",
    [
        "[" * 100_000,
        "5",
        "[5]",
        '[{"class": "3"}]',
        '[{"class": "3", "file": 5}]',
        '[{"class": "3", "file": "../x.safetensors"}]',
        '[{"class": "3", "file": "/etc/passwd"}]',
        '[{"class": "3", "file": "..\\\\x.safetensors"}]',
        '[{"class": "3", "file": "C:x.safetensors"}]',
        '[{"class": "\\ud800", "file": "x.safetensors"}]',
        '[{"class": "3", "file": "x\\u0000"}]',
        "\udcff",
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_list_of_tokens_that_is_none_or_leaves_its_folder_is_refused(tmp_path, listed):
    (tmp_path / "tokens.json").write_bytes(listed.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match=r"tokens\.json is damaged .{5,300}export the tokens again"):
        find_embeddings(tmp_path, ["3"], (64,))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": np.float32(1)},
        {"clip_l": np.float32(1), "clip_g": np.float32(1)},
        {"a": np.zeros((0, 64), np.float32)},
        {"a": np.ones((1, 1, 64), np.float32)},
        {"a": np.full((1, 64), np.nan, np.float32)},
        {"\x1b[31m": np.ones(64, np.float32), "b": np.ones(64, np.float32)},
        {},
    ],
    ids=lambda tensors: ascii({name: np.shape(value) for name, value in tensors.items()}),
)
def test_tensors_that_are_no_embedding_are_refused(tmp_path, tensors):
    from safetensors.numpy import save_file

    save_file({name: np.asarray(value) for name, value in tensors.items()}, tmp_path / "3.safetensors")
    with pytest.raises(BundleError, match=r"3\.safetensors") as refused:
        find_embeddings(tmp_path, ["3"], (64,) if "clip_l" not in tensors else (64, 64))
    assert "\x1b" not in str(refused.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "3.safetensors")
    with pytest.raises(BundleError, match=r"3\.safetensors is no regular file"):
        find_embeddings(tmp_path, ["3"], (64,))
