"""Generation: fresh labelled images from prompts, each addressed by (seed, class, index).

Sample k of a class is the same image whatever else is drawn with it: its noise comes from a counter-based stream of its
own, and samples are computed in chunks of fixed size and position, because a matrix product may round differently in a
batch of another size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.errors import StageError
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderTiny

    from d3m_assets.distillation.settings import GenerationSettings
    from d3m_assets.foundation.loading import Foundation, TextStates

CODE_VERSION = "1"
"""Raised whenever a change here changes an image."""

_log = logging.getLogger(__name__)


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
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UniPCMultistepScheduler

    if name == "dpmsolver++":
        return DPMSolverMultistepScheduler.from_config({**config, "algorithm_type": "dpmsolver++", "solver_order": 2})
    if name == "unipc":
        return UniPCMultistepScheduler.from_config({**config, "solver_order": 2})
    kind = {"ddim": DDIMScheduler, "lcm": LCMScheduler}[name]
    return kind.from_config({**config, "clip_sample": False})


def noise_seed(seed: int, prompts: ClassPrompts, index: int) -> str:
    """Name of the noise of sample ``index`` of a class: equal for every budget, so that budgets compare like with like."""
    return f"{seed}/{prompts.class_name}/{index}"


def prompt_states(
    foundation: Foundation, prompts: ClassPrompts, vectors: np.ndarray | None, plan: EmbeddingPlan | None
) -> TextStates:
    """Text states of a class's prompts; without ``vectors`` those of its name."""
    import torch

    from d3m_assets.distillation.text import encode, extended_tables, learned_ids, tokenize

    with torch.inference_mode():
        if vectors is None or plan is None:
            return encode(foundation, tokenize(foundation, [prompts.by_name()]))
        ids = learned_ids(foundation, prompts, plan.prompts, plan.vectors, 0)
        with extended_tables(foundation) as learned:
            rows = torch.from_numpy(from_stored(vectors, foundation.layout)).flatten(0, 1)
            learned.set(rows.to(foundation.device))
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
    autoencoder: AutoencoderTiny | None = None,
    progress: Progress = silent,
) -> tuple[np.ndarray, list[Sample]]:
    """Draw images of one class.

    Args:
        foundation: The frozen model.
        prompts: Of the class.
        settings: Sampler, steps and guidance (Ho and Salimans 2022), the latter on in a part of the noise schedule only
            where the settings say so (Kynkaanniemi et al. 2024, arXiv 2404.07724). A chunk that does not fit into the
            device's memory is drawn in halves; a sample then agrees with the whole chunk's to rounding.
        seed: Root of the random streams.
        count: How many images: samples 0 to ``count`` - 1.
        vectors: Stored vectors ``[prompts, vectors, stored_width]``; None draws from the class-name prompt.
        plan: How the vectors were planned; given with ``vectors``.
        channels: 1 turns the images grey, as a grey dataset's are.
        autoencoder: Decodes in place of the model's own; what ``settings.tiny_autoencoder`` names is not loaded here.
        progress: Told of every chunk.

    Returns:
        uint8 images ``[count, H, W, channels]`` at the foundation's size, and where each came from.

    Raises:
        StageError: A single image does not fit into the device's memory, the vectors are not this model's, or the sampler
            cannot take so many steps.
    """
    import torch

    from d3m_assets.distillation.text import empty_prompt

    states = prompt_states(foundation, prompts, vectors, plan)
    with torch.inference_mode():
        empty = empty_prompt(foundation)
    size = foundation.files.image_size // 2 ** (len(foundation.vae.config.block_out_channels) - 1)
    shape = (foundation.unet.config.in_channels, size, size)
    images = []
    for begin in range(0, count, settings.batch_size):
        # The last chunk is drawn whole, too: its size decides how products round.
        indices = range(begin, begin + settings.batch_size)
        streams = [random_stream(noise_seed(seed, prompts, k)) for k in indices]
        text = states[[k % len(states) for k in indices]]
        images.append(_draw(foundation, prompts, shape, streams, text, empty, settings, autoencoder))
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


def _draw(
    foundation: Foundation, prompts: ClassPrompts, shape: tuple[int, ...], streams: Sequence[torch.Generator],
    text: TextStates, empty: TextStates, settings: GenerationSettings, autoencoder: AutoencoderTiny | None,
) -> torch.Tensor:  # fmt: skip
    """Images of a chunk; in halves where the device's memory is too small for all of it."""
    import torch

    before = [stream.get_state() for stream in streams]
    try:
        return _denoise(foundation, shape, streams, text, empty, settings, autoencoder)
    except torch.OutOfMemoryError as error:
        half = len(streams) // 2
        if not half:
            raise StageError(
                f"one image of class {prompts.class_name} does not fit into the memory of {foundation.device}: {error}"
            ) from error
        _log.warning("out of memory: %d images at a time; set generation.batch_size=%d", half, half)
    for stream, state in zip(streams, before, strict=True):
        stream.set_state(state)
    parts = [
        _draw(foundation, prompts, shape, streams[i], text[i], empty, settings, autoencoder)
        for i in (slice(0, half), slice(half, None))
    ]
    return torch.cat(parts)


def _denoise(
    foundation: Foundation, shape: tuple[int, ...], streams: Sequence[torch.Generator], text: TextStates,
    empty: TextStates, settings: GenerationSettings, autoencoder: AutoencoderTiny | None,
) -> torch.Tensor:  # fmt: skip
    import torch

    scheduler = _scheduler(foundation.scheduler_config, settings.scheduler)
    try:
        scheduler.set_timesteps(settings.steps, device=foundation.device)
    except ValueError as error:  # LCM takes no more steps than it was distilled from
        raise StageError(
            f"generation.scheduler={settings.scheduler} cannot take {settings.steps} steps: {error}"
        ) from error
    low, high = (share * scheduler.config.num_train_timesteps for share in settings.guidance_interval)
    # Samplers that add noise on the way draw that of a sample from the sample's own stream, too.
    options = {"generator": list(streams)} if settings.scheduler == "lcm" else {}
    with torch.inference_mode():
        both = empty[[0] * len(text)].followed_by(text)
        latents = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
        latents = latents.to(foundation.device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            guided = not math.isclose(settings.guidance_scale, 1.0) and low <= float(t) <= high
            model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
            predicted = foundation.predict(model_input, t, both if guided else text)
            if guided:
                without, with_text = predicted.chunk(2)
                predicted = without + settings.guidance_scale * (with_text - without)
            latents = scheduler.step(predicted, t, latents, **options).prev_sample
        at_once = settings.decode_batch_size or (None if foundation.device.type == "cpu" else 8)
        return foundation.decode_latents(latents, at_once, autoencoder)
