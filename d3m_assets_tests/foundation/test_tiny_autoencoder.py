import json

import numpy as np
import pytest
import torch

from d3m_assets.distillation.generation import generate, make_scheduler, noise_seed
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import FoundationError
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import load_foundation
from d3m_assets.foundation.tiny_autoencoder import find_tiny_autoencoder, load_tiny_autoencoder
from d3m_assets_tests.foundation.small_pipelines import write_pipeline, write_tiny_autoencoder

PROMPTS = ClassPrompts.of(0, "6", "6", templates=("a photo of a {}",), initializer=None, keep_class_name=True)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request, tmp_path_factory):
    return FoundationFiles(request.param, write_pipeline(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_autoencoder(tmp_path / "taesd")


def test_it_decodes_what_the_stock_pipeline_decodes_with_it(model, tiny):
    import diffusers

    foundation = load_foundation(model, "cpu")
    decoder = load_tiny_autoencoder(find_tiny_autoencoder(tiny, model), foundation)
    settings = GenerationSettings(steps=4, batch_size=2, guidance_scale=3.0)
    ours, _ = generate(foundation, PROMPTS, settings, 0, count=2, autoencoder=decoder)
    plain, _ = generate(foundation, PROMPTS, settings, 0, count=2)
    assert np.abs(ours.astype(int) - plain).max() > 10
    stock = getattr(diffusers, model.kind).from_pretrained(model.path, dtype=torch.float32, local_files_only=True)
    stock.vae = diffusers.AutoencoderTiny.from_pretrained(tiny, local_files_only=True)
    stock.scheduler = make_scheduler(foundation.scheduler_config, settings.scheduler)
    stock.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 8, 8, generator=random_stream(noise_seed(0, PROMPTS, k))) for k in (0, 1)])
    theirs = stock(
        ["a photo of a 6"] * 2,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="np",
        height=16,
        width=16,
    ).images
    assert np.abs(ours / 255 - theirs).max() < 0.01


def test_the_fingerprint_follows_configuration_and_weights(model, tiny):
    before = find_tiny_autoencoder(tiny, model).fingerprint
    (tiny / "README.md").write_text("notes")
    assert find_tiny_autoencoder(tiny, model).fingerprint == before
    weights = tiny / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    changed = find_tiny_autoencoder(tiny, model).fingerprint
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert len({before, changed, find_tiny_autoencoder(tiny, model).fingerprint}) == 3


def test_what_is_no_tiny_autoencoder_of_this_model_is_refused(model, tiny, tmp_path):
    with pytest.raises(FoundationError, match=r"generation.tiny_autoencoder=.*nowhere holds no readable config.json"):
        find_tiny_autoencoder(tmp_path / "nowhere", model)
    with pytest.raises(FoundationError, match="is a AutoencoderKL, not an AutoencoderTiny"):
        find_tiny_autoencoder(model.path / "vae", model)
    wide = write_tiny_autoencoder(tmp_path / "wide", latent_channels=16)
    with pytest.raises(FoundationError, match="latents of 16 channels .* has 4 channels"):
        find_tiny_autoencoder(wide, model)
    large = write_tiny_autoencoder(tmp_path / "large", levels=4)
    with pytest.raises(FoundationError, match="to 8 times their size, but .* 2 times"):
        find_tiny_autoencoder(large, model)
    weights = tiny / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FoundationError, match="cannot be loaded as an AutoencoderTiny"):
        load_tiny_autoencoder(find_tiny_autoencoder(tiny, model), load_foundation(model, "cpu"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FoundationError, match="pickled weights are not loaded"):
        find_tiny_autoencoder(tiny, model)
