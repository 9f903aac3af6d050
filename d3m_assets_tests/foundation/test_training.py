import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from d3m_assets.errors import SettingsError
from d3m_assets.foundation.characters import caption_words, render
from d3m_assets.foundation.tokens import TokenTable
from d3m_assets.foundation.training import CaptionBatch, ImageSets, TrainingSettings, build_tokenizer, train

TINY = TrainingSettings(processes=1, vae_steps=3, vae_batch=4, images=12, steps=4, batch=4)


def test_every_caption_word_is_one_token_and_any_text_is_tokens():
    tokenizer = build_tokenizer()
    assert [w for w in caption_words() if len(tokenizer.tokenize(w)) != 1] == []
    assert tokenizer.unk_token_id not in tokenizer("Größe ∕ 日本", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_rows_are_sums_of_words_and_images_at_the_norm_of_the_table():
    table = TokenTable(torch.randn(10, 8), norm=2.0)
    images = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    table.merge([[1], [2, 3], [], [4]], images, torch.tensor([0.0, 0.0, 1.0, 0.5]))
    out = table(torch.tensor([1, 10, 11, 12, 13]))
    assert torch.allclose(out[0], out[1], atol=1e-6)
    total = table.weight[2] + table.weight[3]
    assert torch.allclose(out[2], 2 * total / total.norm(), atol=1e-5)
    assert torch.allclose(out[3], 2 * images[2], atol=1e-5)
    total = table.weight[4] + 0.5 * images[3]
    assert torch.allclose(out[4], 2 * total / total.norm(), atol=1e-5)


@pytest.mark.parametrize("image_share", [0.0, 0.5, 1.0])
def test_captions_become_ids_that_point_at_words_sums_and_images(image_share):
    tokenizer = build_tokenizer()
    captions = CaptionBatch(tokenizer, image_share)
    drawn = captions(render(60, 0), np.arange(60), np.random.default_rng(0))
    assert drawn.ids.shape == (60, 24)
    rows = len(drawn.words)
    assert rows == len(drawn.image_of) == len(drawn.weights)
    used = drawn.ids[drawn.ids >= len(tokenizer)]
    assert sorted(used.tolist()) == list(range(len(tokenizer), len(tokenizer) + rows))
    assert all(0 <= i < len(tokenizer) for group in drawn.words for i in group)
    # A row holds words, an image or both; the image is the one that the caption describes.
    for row, (words, image, weight) in enumerate(zip(drawn.words, drawn.image_of, drawn.weights, strict=True)):
        assert (image >= 0) == (weight > 0)
        assert words or image >= 0
        if image >= 0:
            assert (drawn.ids[image] == len(tokenizer) + row).any()
    unconditional = (drawn.ids[:, 1:] == tokenizer.eos_token_id).all(1).sum()
    assert 0 < unconditional < 20
    with_image = sum(i >= 0 for i in drawn.image_of)
    assert with_image == 0 if image_share == 0 else with_image >= 0.3 * (60 - unconditional)


def test_image_sets_hold_like_images_and_the_image_itself():
    drawn = render(500, 0)
    sets, rng = ImageSets(drawn), np.random.default_rng(0)
    lengths = set()
    for index in range(100):
        members = sets(index, rng)
        lengths.add(len(members))
        assert members[0] == index
        assert (drawn.characters[members] == drawn.characters[index]).all()
        assert (drawn.attributes[members][:, [5, 7]] == drawn.attributes[index, [5, 7]]).all()
    assert lengths == {1, 2, 4, 8}


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
