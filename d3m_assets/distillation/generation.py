"""Generation: fresh labelled images from prompts, each addressed by (seed, class, index).

Sample k of a class is the same image whatever else is drawn with it: its noise comes from a counter-based stream of its
own, and samples are computed in chunks of fixed size and position, because a matrix product may round differently in a
batch of another size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.settings import GenerationSettings

CODE_VERSION = "1"
"""Raised whenever a change here changes an image."""


@dataclass(frozen=True)
class Sample:
    """Where one image comes from.

    Attributes:
        index: Its number within its class.
        prompt_index: Which of the class's prompts drew it.
        prompt: That prompt as text.
        seed: What its noise was seeded with.
    """

    index: int
    prompt_index: int
    prompt: str
    seed: str


def _scheduler(config: dict[str, Any], name: str) -> Any:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    kind = {"dpmsolver++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}[name]
    if name == "dpmsolver++":
        config = {**config, "algorithm_type": "dpmsolver++", "solver_order": 2}
    else:
        config = {**config, "clip_sample": False}
    return kind.from_config(config)


def noise_seed(seed: int, prompts: ClassPrompts, index: int) -> str:
    """Name of the noise of sample ``index`` of a class: equal for every budget, so that budgets compare like with like."""
    return f"{seed}/{prompts.class_name}/{index}"


def prompt_states(
    foundation: Foundation, prompts: ClassPrompts, vectors: np.ndarray | None, plan: EmbeddingPlan | None
) -> torch.Tensor:
    """Text states of a class's prompts, float ``[prompts, L, D]``; without ``vectors`` those of its name."""
    import torch

    from d3m_assets.distillation.text import encode, extended_table, learned_ids, tokenize

    with torch.inference_mode():
        if vectors is None or plan is None:
            return encode(foundation, tokenize(foundation, [prompts.by_name()]))
        ids = learned_ids(foundation, prompts, plan.prompts, plan.vectors, 0)
        with extended_table(foundation) as table:
            rows = torch.from_numpy(from_stored(vectors, foundation.norm)).flatten(0, 1)
            table.rows = rows.to(foundation.device)
            return encode(foundation, ids)


def generate(
    foundation: Foundation,
    prompts: ClassPrompts,
    settings: GenerationSettings,
    seed: int,
    *,
    count: int,
    vectors: np.ndarray | None = None,
    plan: EmbeddingPlan | None = None,
    channels: int = 3,
    progress: Progress = silent,
) -> tuple[np.ndarray, list[Sample]]:
    """Draw images of one class.

    Args:
        foundation: The frozen model.
        prompts: Of the class.
        settings: Sampler, steps and guidance (Ho and Salimans 2022).
        seed: Root of the random streams.
        count: How many images: samples 0 to ``count`` - 1.
        vectors: Stored vectors ``[prompts, vectors, D]``; None draws from the class-name prompt.
        plan: How the vectors were planned; given with ``vectors``.
        channels: 1 turns the images grey, as a grey dataset's are.
        progress: Told of every chunk.

    Returns:
        uint8 images ``[count, H, W, channels]`` at the foundation's size, and where each came from.
    """
    import torch

    states = prompt_states(foundation, prompts, vectors, plan)
    with torch.inference_mode():
        from d3m_assets.distillation.text import encode, tokenize

        empty = encode(foundation, tokenize(foundation, [""]))
    size = foundation.files.image_size // 2 ** (len(foundation.vae.config.block_out_channels) - 1)
    shape = (foundation.unet.config.in_channels, size, size)
    images = []
    for begin in range(0, count, settings.batch_size):
        # The last chunk is drawn whole, too: its size decides how products round.
        indices = range(begin, begin + settings.batch_size)
        noise = torch.stack(
            [torch.randn(shape, generator=random_stream(noise_seed(seed, prompts, k))) for k in indices]
        )
        text = states[[k % len(states) for k in indices]]
        images.append(_denoise(foundation, noise, text, empty, settings))
        progress(ProgressEvent("generation", min(begin + settings.batch_size, count), count))
    pixels = torch.cat(images)[:count].permute(0, 2, 3, 1).cpu().numpy()
    if channels == 1:
        pixels = np.round(pixels.astype(np.float32).mean(-1, keepdims=True)).astype(np.uint8)
    samples = [
        Sample(
            k, k % len(states), prompts.by_name() if vectors is None else prompts.learned(k % len(states)),
            noise_seed(seed, prompts, k),
        )
        for k in range(count)
    ]  # fmt: skip
    return pixels, samples


def _denoise(
    foundation: Foundation, noise: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, settings: GenerationSettings
) -> torch.Tensor:
    import torch

    scheduler = _scheduler(foundation.scheduler_config, settings.scheduler)
    scheduler.set_timesteps(settings.steps, device=foundation.device)
    guided = not math.isclose(settings.guidance_scale, 1.0)
    states = torch.cat([empty.expand_as(text), text]) if guided else text
    with torch.inference_mode():
        latents = noise.to(foundation.device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
            predicted = foundation.unet(model_input.to(foundation.unet.dtype), t, states).sample.float()
            if guided:
                without, with_text = predicted.chunk(2)
                predicted = without + settings.guidance_scale * (with_text - without)
            latents = scheduler.step(predicted, t, latents).prev_sample
        return foundation.decode_latents(latents)
