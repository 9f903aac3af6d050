import numpy as np
import pytest
import torch

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import StageError

GENERATION = GenerationSettings(steps=4, batch_size=4)
PLAN = EmbeddingPlan(prompts=2, vectors=1, storage_type="int8", width=64)


@pytest.fixture
def vectors():
    return np.random.default_rng(0).integers(-127, 128, (2, 1, 64)).astype(np.int8)


def test_a_sample_is_the_same_however_many_are_generated(foundation, words, vectors):
    few, _ = generate(foundation, words("3"), GENERATION, 0, count=3, vectors=vectors, plan=PLAN)
    many, samples = generate(foundation, words("3"), GENERATION, 0, count=9, vectors=vectors, plan=PLAN)
    assert many.shape == (9, 32, 32, 3)
    assert few.tobytes() == many[:3].tobytes()
    assert [s.index for s in samples] == list(range(9))
    assert [s.prompt_index for s in samples][:4] == [0, 1, 0, 1]
    assert len({image.tobytes() for image in many}) == 9


def test_seed_class_and_budget_address_the_noise(foundation, words, vectors):
    _, a = generate(foundation, words("3"), GENERATION, 0, count=2, vectors=vectors, plan=PLAN)
    _, by_name = generate(foundation, words("3"), GENERATION, 0, count=2)
    assert [s.seed for s in a] == [s.seed for s in by_name]  # side by side with the same noise
    _, other = generate(foundation, words("4"), GENERATION, 0, count=2)
    assert not {s.seed for s in a} & {s.seed for s in other}


def test_grey_datasets_get_grey_images(foundation, words):
    images, samples = generate(foundation, words("3"), GENERATION, 0, count=2, channels=1)
    assert images.shape == (2, 32, 32, 1)
    assert samples[0].prompt == "a photo of a 3"


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_our_loop_generates_what_the_stock_pipeline_generates(foundation, words, scheduler, guidance):
    from diffusers import StableDiffusionPipeline

    from d3m_assets.distillation.generation import make_scheduler, noise_seed
    from d3m_assets.distillation.random_streams import random_stream

    settings = GenerationSettings(steps=5, batch_size=2, guidance_scale=guidance, scheduler=scheduler)
    ours, _ = generate(foundation, words("6"), settings, 0, count=2)
    stock = StableDiffusionPipeline(
        vae=foundation.vae,
        text_encoder=foundation.text_encoders[0].model,
        tokenizer=foundation.text_encoders[0].tokenizer,
        unet=foundation.unet,
        scheduler=make_scheduler(foundation.scheduler_config, scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 8, 8, generator=random_stream(noise_seed(0, words("6"), k))) for k in (0, 1)])
    theirs = stock(
        ["a photo of a 6"] * 2, num_inference_steps=5, guidance_scale=guidance, latents=noise, output_type="np"
    ).images
    assert np.abs(ours / 255 - theirs).max() < 0.01


@pytest.mark.parametrize("scheduler", ["unipc", "lcm"])
def test_a_sample_of_every_sampler_is_the_same_whatever_it_shares_a_batch_with(foundation, words, scheduler):
    settings = GENERATION.model_copy(update={"scheduler": scheduler})
    few, _ = generate(foundation, words("3"), settings, 0, count=3)
    many, _ = generate(foundation, words("3"), settings, 0, count=9)
    assert few.tobytes() == many[:3].tobytes()
    # Noise that is added on the way belongs to the sample as well.
    alone = settings.model_copy(update={"batch_size": 1})
    (single,), _ = generate(foundation, words("3"), alone, 0, count=1)
    assert np.abs(single.astype(int) - many[0]).max() <= 2


def test_guidance_can_be_limited_to_a_part_of_the_schedule(foundation, words, monkeypatch):
    sizes = []
    predict = foundation.predict
    monkeypatch.setattr(foundation, "predict", lambda x, t, p: sizes.append((len(x), float(t))) or predict(x, t, p))

    def images(**changes):
        sizes.clear()
        return generate(foundation, words("3"), GENERATION.model_copy(update={"steps": 10, **changes}), 0, count=4)[0]

    whole = images()
    assert {n for n, _ in sizes} == {8}
    part = images(guidance_interval=(0.2, 0.7))
    assert [n for n, t in sizes] == [8 if 200 <= t <= 700 else 4 for _, t in sizes]
    assert {n for n, _ in sizes} == {4, 8}
    assert not np.array_equal(whole, part)
    # Outside every timestep there is no guidance at all.
    assert np.array_equal(images(guidance_interval=(0.0, 1e-6)), images(guidance_scale=1.0))


def test_too_large_a_chunk_is_generated_in_halves(foundation, words, monkeypatch, caplog):
    settings = GENERATION.model_copy(update={"scheduler": "lcm", "batch_size": 8})
    whole, _ = generate(foundation, words("3"), settings, 0, count=8)
    predict = foundation.predict

    def small(noisy, times, prompts):
        if len(noisy) > 4:
            raise torch.OutOfMemoryError("simulated")
        return predict(noisy, times, prompts)

    monkeypatch.setattr(foundation, "predict", small)
    halves, _ = generate(foundation, words("3"), settings, 0, count=8)
    assert "generation.batch_size=4" in caplog.text
    assert np.abs(whole.astype(int) - halves.astype(int)).max() <= 2

    def none(noisy, times, prompts):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(foundation, "predict", none)
    with pytest.raises(StageError, match="one image of class 3"):
        generate(foundation, words("3"), settings, 0, count=8)


def test_images_are_decoded_few_at_a_time_where_asked(foundation, words, monkeypatch):
    whole, _ = generate(foundation, words("3"), GENERATION, 0, count=4)
    sizes = []
    decode = foundation.vae.decode
    monkeypatch.setattr(foundation.vae, "decode", lambda z: sizes.append(len(z)) or decode(z))
    parts, _ = generate(foundation, words("3"), GENERATION.model_copy(update={"decode_batch_size": 3}), 0, count=4)
    assert sizes == [3, 1]
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1


def test_more_steps_than_a_sampler_takes_are_refused(foundation, words):
    with pytest.raises(StageError, match="scheduler=lcm cannot take 60 steps"):
        generate(foundation, words("3"), GENERATION.model_copy(update={"scheduler": "lcm", "steps": 60}), 0, count=1)
