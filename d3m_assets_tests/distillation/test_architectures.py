"""Every supported architecture goes the whole way and agrees with its stock diffusers pipeline."""

import numpy as np
import pytest
import torch

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import generate, noise_seed, prompt_states
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.settings import GenerationSettings, InversionSettings
from d3m_assets.distillation.text import empty_prompt, encode, tokenize
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.exports.tokens import export_tokens
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import load_foundation
from d3m_assets_tests.distillation.test_bundle import recipe
from d3m_assets_tests.foundation.small_pipelines import KINDS, write_pipeline


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    folder = write_pipeline(request.param, tmp_path_factory.mktemp(request.param))
    return load_foundation(FoundationFiles(request.param, folder), "cpu")


def stock_pipeline(model):
    import diffusers

    loaded = getattr(diffusers, model.files.kind).from_pretrained(
        model.files.path, dtype=torch.float32, local_files_only=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def plan_for(model, vectors=2):
    return EmbeddingPlan(2, vectors, "int8", model.layout.width)


@pytest.fixture
def learned(model, words, characters):
    tasks = [InversionTask(words(n), characters(n, 6).repeat(3, -1)[:, ::2, ::2], plan_for(model)) for n in "37"]
    settings = InversionSettings(steps=6, samples_per_step=8, learning_rate=0.3)
    found = dict(invert(model, tasks, settings, 0, classes_per_batch=2))
    assert all(isinstance(f, InvertedClass) for f in found.values()), found
    return [(tasks[i], found[i]) for i in (0, 1)]


def test_what_is_learned_lowers_the_loss_and_has_the_norms_of_the_tables(model, learned):
    for task, result in learned:
        assert result.vectors.shape == (2, 2, model.layout.width)
        assert result.vectors.nbytes == task.plan.payload
        assert min(loss for _, loss in result.losses) < result.losses[0][1]
        rows = torch.from_numpy(from_stored(result.vectors, model.layout))
        for part, norm in zip(model.layout.split(rows), model.layout.norms, strict=True):
            assert torch.allclose(part.norm(dim=-1), torch.tensor(norm), rtol=1e-5)


def test_every_text_encoder_learns_its_part(model, learned, words, characters):
    task, result = learned[0]
    ((_, start),) = invert(model, [task], InversionSettings(steps=1, samples_per_step=8, learning_rate=1e-9), 0)
    before, after = (model.layout.split(torch.from_numpy(r.vectors.astype(np.float32))) for r in (start, result))
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_prompts_mean_what_they_mean_to_diffusers(model):
    stock = stock_pipeline(model)
    ours = encode(model, tokenize(model, ["a photo of a 7"]))
    options = {"prompt": "a photo of a 7", "device": "cpu", "num_images_per_prompt": 1}
    found = stock.encode_prompt(**options, do_classifier_free_guidance=True)
    assert torch.allclose(ours.states, found[0], atol=1e-5)
    empty = empty_prompt(model)
    assert torch.allclose(empty.states, found[1], atol=1e-5)
    if len(found) > 2:
        assert torch.allclose(ours.pooled, found[2], atol=1e-5)
        assert torch.allclose(empty.pooled, found[3], atol=1e-5)


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "unipc", "ddim"])
def test_our_loop_draws_what_the_stock_pipeline_draws(model, words, scheduler):
    from d3m_assets.distillation.generation import make_scheduler

    settings = GenerationSettings(steps=4, batch_size=2, guidance_scale=3.0, scheduler=scheduler)
    ours, _ = generate(model, words("6"), settings, 0, count=2)
    stock = stock_pipeline(model)
    stock.scheduler = make_scheduler(model.scheduler_config, scheduler)
    noise = torch.stack([torch.randn(4, 8, 8, generator=random_stream(noise_seed(0, words("6"), k))) for k in (0, 1)])
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


def test_the_u_net_is_told_what_the_stock_pipeline_tells_it(model, words):
    settings = GenerationSettings(steps=1, batch_size=1, guidance_scale=1.0)
    heard = []
    stock = stock_pipeline(model)
    hooks = [
        unet.register_forward_pre_hook(lambda module, args, given: heard.append(given), with_kwargs=True)
        for unet in (model.unet, stock.unet)
    ]
    try:
        generate(model, words("6"), settings, 0, count=1)
        stock("a photo of a 6", num_inference_steps=1, guidance_scale=1.0, height=16, width=16, output_type="latent")
    finally:
        for hook in hooks:
            hook.remove()
    ours, theirs = (given.get("added_cond_kwargs") or {} for given in heard)
    assert set(ours) == set(theirs)
    assert bool(ours) == (len(model.text_encoders) > 1)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-5)


def test_diffusers_draws_with_exported_tokens(model, learned, tmp_path):
    from safetensors.torch import load_file

    plan = plan_for(model)
    made = Bundle(recipe(), tuple(DistilledClass(t.prompts, plan, r.vectors) for t, r in learned))
    stock = stock_pipeline(model)
    encoders = [stock.text_encoder, getattr(stock, "text_encoder_2", None)]
    tokenizers = [stock.tokenizer, getattr(stock, "tokenizer_2", None)]
    exported = export_tokens(made, model.layout, tmp_path / "out", "diffusers")
    for token in exported:
        stored = load_file(token.path)
        if len(stored) == 1:
            stock.load_textual_inversion(str(token.path))
        else:
            for part, encoder, tokenizer in zip(("clip_l", "clip_g"), encoders, tokenizers, strict=True):
                stock.load_textual_inversion(
                    {token.token: stored[part]}, token=token.token, text_encoder=encoder, tokenizer=tokenizer
                )
    for index, (task, result) in enumerate(learned):
        states = prompt_states(model, task.prompts, result.vectors, plan)
        for prompt in range(2):
            assert made.token_of(index, prompt) == exported[2 * index + prompt].token
            found = stock.encode_prompt(
                task.prompts.learned(prompt), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            assert torch.allclose(found[0][0], states.states[prompt], atol=1e-5)
            if states.pooled is not None:
                assert torch.allclose(found[2][0], states.pooled[prompt], atol=1e-5)


def test_learned_rows_do_not_hide_the_rest_from_the_pooled_prompt(tmp_path, words):
    # Published SDXL configurations say eos_token_id 2, at which transformers pools at the highest id.
    model = load_foundation(FoundationFiles("sdxl", write_pipeline("sdxl", tmp_path, legacy_end=True)), "cpu")
    vectors = np.random.default_rng(0).integers(-127, 128, (1, 1, 80)).astype(np.int8)
    plan = EmbeddingPlan(1, 1, "int8", 80)
    cat, dog = (prompt_states(model, words(n, class_id=0), vectors, plan) for n in ("cat", "dog"))
    assert not torch.allclose(cat.pooled, dog.pooled, atol=1e-4)
