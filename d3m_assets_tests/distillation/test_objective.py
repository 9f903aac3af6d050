import numpy as np
import torch

from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.objective import min_snr_weights, sample_diffusion_batch
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets_tests.distillation.inversions import QUICK, fixed_batch_sizes, learned, task


def test_min_snr_weights_follow_the_paper():
    alphas_cumprod = torch.linspace(0.999, 0.001, 1000)
    timesteps = torch.tensor([10, 300, 700])
    signal = alphas_cumprod[timesteps].double()
    snr = signal / (1 - signal)
    for velocity, denominator in ((True, snr + 1), (False, snr)):
        expected = torch.minimum(snr, torch.tensor(5.0)) / denominator
        weights = min_snr_weights(alphas_cumprod, timesteps, 5.0, velocity)
        assert torch.allclose(weights.double(), expected, atol=1e-6)


def test_weights_and_timestep_law_change_the_steps_and_not_the_fixed_loss(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    (plain,) = learned(foundation, [task(words, characters, "3", plan)])
    for changes in ({"snr_gamma": 1.0}, {"timestep_power": 0.4}):
        (other,) = learned(foundation, [task(words, characters, "3", plan)], QUICK.model_copy(update=changes))
        assert other.losses[0] == plain.losses[0]  # the same measure for every setting
        assert other.losses[-1] != plain.losses[-1]


def test_a_low_power_samples_the_noisy_timesteps_more_often():
    latents, clusters = torch.zeros(12, 4, 8, 8), [np.arange(12)]
    uniform, noisy = (
        sample_diffusion_batch(latents, clusters, random_stream("x"), 64, 1000, power).timesteps.float().mean()
        for power in (1.0, 0.5)
    )
    assert abs(uniform - 500) < 20
    assert noisy > 620


def test_a_prompt_is_given_images_of_its_own_cluster_and_a_slice_has_some_of_each():
    latents = torch.arange(6.0)[:, None, None, None].half()
    batch = sample_diffusion_batch(latents, [np.array([0, 1]), np.array([4, 5])], random_stream("x"), 8, 1000)
    images = batch.latents.flatten().tolist()
    assert set(images[:8]) == {0, 1}
    assert set(images[8:]) == {4, 5}
    assert batch.timesteps[:8].tolist() == sorted(batch.timesteps[:8].tolist())  # one of each eighth
    part = batch.slice(2, 3, 5)
    assert part.latents.flatten().tolist() == images[3:5] + images[11:13]
    assert part.timesteps.tolist() == batch.timesteps[3:5].tolist() + batch.timesteps[11:13].tolist()


def test_classes_of_a_batch_are_evaluated_together_and_alike(foundation, words, characters, monkeypatch):
    plans = [EmbeddingPlan(prompts, 1, "int8", 64) for prompts in (1, 3, 5)]
    tasks = [task(words, characters, name, plan) for name, plan in zip("358", plans, strict=True)]
    settings = InversionSettings(steps=4, samples_per_step=16, check_every=2)
    separate = [learned(foundation, [t], settings)[0] for t in tasks]
    sizes = fixed_batch_sizes(foundation, monkeypatch)
    together = learned(foundation, tasks, settings, classes_per_batch=3)
    for a, b in zip(separate, together, strict=True):
        np.testing.assert_allclose([x for _, x in a.losses], [x for _, x in b.losses], atol=1e-5)
    # 64 samples for one prompt in parts of 16, 22 for each of three in parts of 6, 13 for each of five in parts of 4.
    one_evaluation = [16 + 18 + 20] * 3 + [16 + 12 + 5]
    assert sizes == one_evaluation * 3
