import numpy as np
import pytest
import torch

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.generation import generate
from d3m_assets.settings import GenerationSettings

DRAWING = GenerationSettings(steps=4, batch_size=4)
PLAN = EmbeddingPlan(prompts=2, vectors=1, storage_type="int8", width=64)


@pytest.fixture
def vectors():
    return np.random.default_rng(0).integers(-127, 128, (2, 1, 64)).astype(np.int8)


def test_a_sample_is_the_same_however_many_are_drawn(foundation, words, vectors):
    few, _ = generate(foundation, words("3"), DRAWING, 0, count=3, vectors=vectors, plan=PLAN)
    many, samples = generate(foundation, words("3"), DRAWING, 0, count=9, vectors=vectors, plan=PLAN)
    assert many.shape == (9, 32, 32, 3)
    assert few.tobytes() == many[:3].tobytes()
    assert [s.index for s in samples] == list(range(9))
    assert [s.prompt_index for s in samples][:4] == [0, 1, 0, 1]
    assert len({image.tobytes() for image in many}) == 9


def test_seed_class_and_budget_address_the_noise(foundation, words, vectors):
    _, a = generate(foundation, words("3"), DRAWING, 0, count=2, vectors=vectors, plan=PLAN)
    _, by_name = generate(foundation, words("3"), DRAWING, 0, count=2)
    assert [s.seed for s in a] == [s.seed for s in by_name]  # side by side with the same noise
    _, other = generate(foundation, words("4"), DRAWING, 0, count=2)
    assert not {s.seed for s in a} & {s.seed for s in other}


def test_grey_datasets_get_grey_images(foundation, words):
    images, samples = generate(foundation, words("3"), DRAWING, 0, count=2, channels=1)
    assert images.shape == (2, 32, 32, 1)
    assert samples[0].prompt == "a photo of a 3"


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_our_loop_draws_what_the_stock_pipeline_draws(foundation, words, scheduler, guidance):
    from diffusers import StableDiffusionPipeline

    from d3m_assets.distillation.generation import _scheduler, noise_seed
    from d3m_assets.distillation.random_streams import random_stream

    settings = GenerationSettings(steps=5, batch_size=2, guidance_scale=guidance, scheduler=scheduler)
    ours, _ = generate(foundation, words("6"), settings, 0, count=2)
    stock = StableDiffusionPipeline(
        vae=foundation.vae, text_encoder=foundation.text_encoder, tokenizer=foundation.tokenizer, unet=foundation.unet,
        scheduler=_scheduler(foundation.scheduler_config, scheduler), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 8, 8, generator=random_stream(noise_seed(0, words("6"), k))) for k in (0, 1)])
    theirs = stock(
        ["a photo of a 6"] * 2, num_inference_steps=5, guidance_scale=guidance, latents=noise, output_type="np"
    ).images
    assert np.abs(ours / 255 - theirs).max() < 0.01
