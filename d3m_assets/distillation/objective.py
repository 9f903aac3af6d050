"""The objective of textual inversion (Gal et al. 2022): the denoising error of a class's prompts on its own images.

The loss is the mean over a prompt's samples and the sum over prompts, so that classes that share a batch learn what
separate runs would. Every random number comes from a stream named by seed, class and step, never by the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from d3m_assets.distillation.inversion_state import ClassState
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.optimizers import Optimizer
    from d3m_assets.distillation.settings import InversionSettings
    from d3m_assets.distillation.text import LearnedRows
    from d3m_assets.foundation.loading import Foundation, TextStates

FIXED_SAMPLES = 64
"""Samples of a class, at least, in its fixed batch."""


class DiffusionBatch(NamedTuple):
    """Latents to be noised, their noise and timesteps, those of each prompt one behind the other.

    Attributes:
        latents: Clean latents, float32 ``[N, C, h, w]``.
        noise: Standard normal, of the same shape.
        timesteps: int64 ``[N]``.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor

    def slice(self, prompts: int, begin: int, end: int) -> DiffusionBatch:
        """Samples ``begin`` to ``end`` - 1 of each of ``prompts`` prompts."""
        return DiffusionBatch(*(part.view(prompts, -1, *part.shape[1:])[:, begin:end].flatten(0, 1) for part in self))


def sample_diffusion_batch(
    latents: torch.Tensor,
    clusters: Sequence[np.ndarray],
    generator: torch.Generator,
    samples: int,
    num_train_timesteps: int,
    timestep_power: float = 1.0,
) -> DiffusionBatch:
    """Choose images, noise and timesteps of one step.

    Args:
        latents: Of a class, float ``[N, C, h, w]``.
        clusters: Positions in ``latents`` that each prompt learns from.
        generator: On the CPU.
        samples: Of each prompt.
        num_train_timesteps: Of the noise schedule, T.
        timestep_power: Timesteps are T u^power with uniform u: below 1 the noisy ones more often.
    """
    import torch

    images, timesteps = [], []
    for cluster in clusters:
        pick = torch.randint(0, len(cluster), (samples,), generator=generator)
        images.append(torch.from_numpy(cluster)[pick])
        # Stratified: the loss depends far more on the timestep than on anything else.
        stratum = (torch.arange(samples) + torch.rand(samples, generator=generator)) / samples
        timesteps.append((stratum**timestep_power * num_train_timesteps).long().clamp(max=num_train_timesteps - 1))
    clean = latents[torch.cat(images)].float()
    return DiffusionBatch(clean, torch.randn(clean.shape, generator=generator), torch.cat(timesteps))


def min_snr_weights(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, gamma: float, velocity: bool
) -> torch.Tensor:
    """Min-SNR loss weights (Hang et al., ICCV 2023, arXiv 2303.09556).

    Args:
        alphas_cumprod: Of the noise schedule, float ``[T]``.
        timesteps: int64 ``[N]``.
        gamma: Cap of the signal-to-noise ratio.
        velocity: Whether the model predicts velocity; if not, the noise.

    Returns:
        min(SNR, gamma) / (SNR + 1) for velocity, / SNR for noise; float32 ``[N]``.
    """
    signal = alphas_cumprod[timesteps].double()
    snr = signal / (1 - signal).clamp(min=1e-12)
    weights = snr.clamp(max=gamma) / (snr + 1 if velocity else snr.clamp(min=1e-12))
    return weights.float()


class DenoisingObjective:
    """Denoising error of learned rows under the frozen model, and its gradient.

    Args:
        foundation: The frozen model.
        settings: Samples, timestep law and loss weights of a step.
        seed: Root of the random streams.
        optimizer: Turns rows into token embeddings.

    Raises:
        StageError: The model predicts neither noise nor velocity.
    """

    def __init__(self, foundation: Foundation, settings: InversionSettings, seed: int, optimizer: Optimizer) -> None:
        from diffusers import DDPMScheduler

        self.foundation, self.settings, self.seed, self.optimizer = foundation, settings, seed, optimizer
        self.schedule = DDPMScheduler.from_config(foundation.scheduler_config)
        prediction = str(self.schedule.config.prediction_type)
        if prediction not in ("epsilon", "v_prediction"):
            raise StageError(
                f"{foundation.files.name} predicts {prediction!r}; inversion knows epsilon and v_prediction"
            )
        self.velocity = prediction == "v_prediction"

    def sample(self, state: ClassState, stream: object, samples: int, timestep_power: float = 1.0) -> DiffusionBatch:
        """A batch of a class from its random stream of this name, ``samples`` for each prompt."""
        generator = random_stream(self.seed, state.task.prompts.class_key, stream)
        steps = int(self.schedule.config.num_train_timesteps)
        return sample_diffusion_batch(state.latents, state.clusters, generator, samples, steps, timestep_power)

    def text_states(self, states: Sequence[ClassState], templates: Sequence[int]) -> TextStates:
        """Text states of all prompts of the classes, one class behind the other, with the rows that are set."""
        import torch

        from d3m_assets.distillation.text import encode

        first_row, token_ids = 0, []
        for state, template in zip(states, templates, strict=True):
            ids = state.token_ids[template % len(state.token_ids)]
            token_ids.append(torch.where(ids < 0, ids - first_row, ids))
            first_row += len(state.rows)
        return encode(self.foundation, torch.cat(token_ids, 1))

    def losses(
        self,
        states: Sequence[ClassState],
        texts: TextStates,
        batches: Sequence[DiffusionBatch],
        samples: Sequence[int],
        *,
        weighted: bool = False,
    ) -> list[torch.Tensor]:
        """Mean squared error of every prompt, float ``[prompts]`` for each class.

        Args:
            states: The classes.
            texts: Of their prompts.
            batches: A batch of each class.
            samples: Samples of each prompt in them.
            weighted: Whether min-SNR weights apply, where the settings ask for them.
        """
        import torch

        foundation, device = self.foundation, self.foundation.device
        repeats = [n for state, n in zip(states, samples, strict=True) for _ in range(state.prompt_count)]
        text = texts.repeat(torch.tensor(repeats, device=device))
        latents, noise, timesteps = (torch.cat(part).to(device) for part in zip(*batches, strict=True))
        predicted = foundation.predict(self.schedule.add_noise(latents, noise, timesteps), timesteps, text)
        target = self.schedule.get_velocity(latents, noise, timesteps) if self.velocity else noise
        error = (predicted - target).square().flatten(1).mean(1)
        gamma = self.settings.snr_gamma
        if weighted and gamma is not None:
            weights = min_snr_weights(self.schedule.alphas_cumprod, timesteps.cpu(), gamma, self.velocity)
            error = error * weights.to(device)
        by_class = error.split([state.prompt_count * n for state, n in zip(states, samples, strict=True)])
        return [part.view(-1, n).mean(1) for part, n in zip(by_class, samples, strict=True)]

    def fixed_losses(self, states: Sequence[ClassState], learned_rows: LearnedRows) -> list[float]:
        """Loss of each class on its fixed batch: the same latents, noise and timesteps at every call, no weights.

        It is computed in chunks as large as a step, so that it needs no more memory than one.
        """
        import torch

        samples = [max(1, math.ceil(FIXED_SAMPLES / state.prompt_count)) for state in states]
        chunks = [state.samples_per_prompt(self.settings.samples_per_step) for state in states]
        batches = [self.sample(state, "fixed", n) for state, n in zip(states, samples, strict=True)]
        learned_rows.set(self.optimizer.embeddings(torch.cat([state.rows for state in states])))
        first_prompts = np.cumsum([0, *(state.prompt_count for state in states)])
        totals = [0.0] * len(states)
        with torch.inference_mode():
            texts = self.text_states(states, [0] * len(states))
            for chunk in range(max(math.ceil(n / size) for n, size in zip(samples, chunks, strict=True))):
                # A class with few samples is finished before the others.
                pending = [k for k in range(len(states)) if chunk * chunks[k] < samples[k]]
                bounds = [(chunk * chunks[k], min((chunk + 1) * chunks[k], samples[k])) for k in pending]
                parts = [
                    batches[k].slice(states[k].prompt_count, *bound) for k, bound in zip(pending, bounds, strict=True)
                ]
                counts = [end - begin for begin, end in bounds]
                prompts = [p for k in pending for p in range(first_prompts[k], first_prompts[k + 1])]
                losses = self.losses([states[k] for k in pending], texts[prompts], parts, counts)
                means = torch.stack([loss.mean() for loss in losses]).tolist()
                for k, count, mean in zip(pending, counts, means, strict=True):
                    totals[k] += mean * count
        return [total / n for total, n in zip(totals, samples, strict=True)]

    def gradients(self, states: Sequence[ClassState], learned_rows: LearnedRows) -> list[tuple[float, torch.Tensor]]:
        """Loss of each class at its own step, and the gradient of its rows, float ``[R, D]``.

        Nothing of a class depends on the others, but for the rounding of sums.
        """
        import torch

        rows = torch.cat([state.rows for state in states]).detach().requires_grad_(True)
        learned_rows.set(self.optimizer.embeddings(rows))
        samples = [state.samples_per_prompt(self.settings.samples_per_step) for state in states]
        power = self.settings.timestep_power
        batches = [self.sample(state, state.step, n, power) for state, n in zip(states, samples, strict=True)]
        texts = self.text_states(states, [state.step for state in states])
        losses = self.losses(states, texts, batches, samples, weighted=True)
        (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), rows)
        gradients = gradient.split([len(state.rows) for state in states])
        return [(float(loss.detach().mean()), part) for loss, part in zip(losses, gradients, strict=True)]
