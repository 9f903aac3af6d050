import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from d3m_assets.errors import SettingsError
from d3m_assets.foundation.characters import caption_words, render
from d3m_assets.foundation.tokens import TokenTable
from d3m_assets.foundation.training import CaptionBatch, TrainingSettings, build_tokenizer, train

TINY = TrainingSettings(processes=1, vae_steps=3, vae_batch=4, images=12, steps=4, batch=4)


def test_every_caption_word_is_one_token_and_any_text_is_tokens():
    tokenizer = build_tokenizer()
    assert [w for w in caption_words() if len(tokenizer.tokenize(w)) != 1] == []
    assert tokenizer.unk_token_id not in tokenizer("Größe ∕ 日本", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_merged_words_are_sums_at_the_norm_of_the_table():
    table = TokenTable(torch.randn(10, 8), norm=2.0)
    table.merge([[1], [2, 3]])
    out = table(torch.tensor([1, 10, 11]))
    assert torch.allclose(out[0], out[1], atol=1e-6)
    total = table.weight[2] + table.weight[3]
    assert torch.allclose(out[2], 2 * total / total.norm(), atol=1e-5)


def test_captions_become_ids_that_point_at_words_or_sums():
    tokenizer = build_tokenizer()
    captions = CaptionBatch(tokenizer)
    drawn = render(60, 0)
    ids, merged = captions(drawn, np.arange(60), np.random.default_rng(0))
    assert ids.shape == (60, 24)
    assert ids.max() < len(tokenizer) + len(merged)
    assert merged
    assert all(0 <= i < len(tokenizer) for group in merged for i in group)
    unconditional = (ids[:, 1:] == tokenizer.eos_token_id).all(1).sum()
    assert 0 < unconditional < 20


def test_a_stopped_training_goes_on_and_writes_a_pipeline(tmp_path):
    train(TINY, tmp_path / "work", tmp_path / "model")
    before = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    # As a stop right after the autoencoder would leave it.
    (tmp_path / "work" / "diffusion.safetensors").unlink()
    train(TINY, tmp_path / "work", tmp_path / "again")
    after = load_file(tmp_path / "again" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before)
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a bold 7", num_inference_steps=2).images[0].size == (32, 32)
    norms = pipeline.text_encoder.get_input_embeddings().weight.norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=2e-3)


def test_checkpoints_of_other_settings_are_refused(tmp_path):
    train(TINY, tmp_path / "work", tmp_path / "model")
    from dataclasses import replace

    with pytest.raises(SettingsError, match="--work"):
        train(replace(TINY, steps=5), tmp_path / "work", tmp_path / "model")


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    from dataclasses import replace

    with pytest.raises(SettingsError, match="--processes"):
        train(replace(TINY, processes=3), tmp_path / "work", tmp_path / "model")
