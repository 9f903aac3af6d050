"""Generation: fresh labelled images from prompts, each addressed by (seed, class, index).

Sample k of a class is the same image however many are generated: its noise comes from a stream of its own, and samples
are computed in chunks of fixed size and position, because a matrix product may round differently in a batch of another
size.
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
    """Address of one image of a class.

    Attributes:
        index: Its number within its class.
        prompt_index: Which of the class's prompts generated it; 0 of a coded image.
        prompt: That prompt as text; empty for a coded image.
        seed: Name of its noise, see :func:`noise_seed`; empty for a coded image.
    """

    index: int
    prompt_index: int
    prompt: str
    seed: str


def coded_sample(index: int) -> Sample:
    """Address of a coded image, which has neither prompt nor noise."""
    return Sample(index, 0, "", "")


def make_scheduler(config: dict[str, Any], name: str) -> Any:
    """The diffusers scheduler of a sampler, ``name`` as in ``generation.scheduler``, for a model's noise schedule."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UniPCMultistepScheduler

    if name == "dpmsolver++":
        return DPMSolverMultistepScheduler.from_config({**config, "algorithm_type": "dpmsolver++", "solver_order": 2})
    if name == "unipc":
        return UniPCMultistepScheduler.from_config({**config, "solver_order": 2})
    kind = {"ddim": DDIMScheduler, "lcm": LCMScheduler}[name]
    return kind.from_config({**config, "clip_sample": False})


def noise_seed(seed: int, prompts: ClassPrompts, index: int) -> str:
    """Name of the noise of sample ``index`` of a class; the same for every budget, so that budgets differ by prompts only."""
    return f"{seed}/{prompts.class_name}/{index}"


def prompt_states(
    foundation: Foundation, prompts: ClassPrompts, vectors: np.ndarray | None, plan: EmbeddingPlan | None
) -> TextStates:
    """Text states of a class's learned prompts; without ``vectors`` that of its class-name prompt.

    Args:
        foundation: The frozen model.
        prompts: Of the class.
        vectors: Stored vectors ``[prompts, vectors, stored_width]``.
        plan: How they were planned; given with ``vectors``.

    Raises:
        StageError: The vectors are not this model's.
    """
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
    first: int = 0,
    indices: Sequence[int] | None = None,
    vectors: np.ndarray | None = None,
    plan: EmbeddingPlan | None = None,
    channels: int = 3,
    autoencoder: AutoencoderTiny | None = None,
    progress: Progress = silent,
) -> tuple[np.ndarray, list[Sample]]:
    """Generate images of one class.

    Args:
        foundation: The frozen model.
        prompts: Of the class.
        settings: Sampler, steps and guidance (Ho and Salimans 2022), the latter on in a part of the noise schedule only
            where the settings say so (Kynkaanniemi et al. 2024, arXiv 2404.07724). A chunk that does not fit into the
            device's memory is generated in halves; a sample then agrees with the whole chunk's to rounding.
        seed: Root of the random streams.
        count: How many images: samples ``first`` to ``first + count - 1``.
        first: The first sample; a multiple of ``settings.batch_size``, so that chunks are the same wherever one begins.
        indices: Rising numbers of ``count`` samples, in place of those from ``first`` on. The chunks that hold them are
            generated whole, so each is the image that it is among all.
        vectors: Stored vectors ``[prompts, vectors, stored_width]``; None: images of the class-name prompt.
        plan: How the vectors were planned; given with ``vectors``.
        channels: 1 turns the images grey, as a grey dataset's are.
        autoencoder: Decodes in place of the model's own; what ``settings.tiny_autoencoder`` names is not loaded here.
        progress: Told of every chunk.

    Returns:
        uint8 images ``[count, H, W, channels]`` at the foundation's size, and the address of each.

    Raises:
        StageError: A single image does not fit into the device's memory, the vectors are not this model's, or the sampler
            cannot take so many steps.
        ValueError: ``first`` is within a chunk.
    """
    import torch

    from d3m_assets.distillation.text import empty_prompt

    if first % settings.batch_size:
        raise ValueError(f"generation begins at a multiple of {settings.batch_size}, not at {first}")

    states = prompt_states(foundation, prompts, vectors, plan)
    with torch.inference_mode():
        empty = empty_prompt(foundation)
    sampler = _Sampler(foundation, settings, empty, autoencoder, prompts.class_name)
    numbers = range(first, first + count) if indices is None else [int(k) for k in indices]
    chunks: dict[int, list[int]] = {}
    for k in numbers:
        chunks.setdefault(k - k % settings.batch_size, []).append(k)
    images, done = [], 0
    for begin, of_chunk in chunks.items():
        # Always whole chunks: their size decides how products round.
        whole = range(begin, begin + settings.batch_size)
        streams = [random_stream(noise_seed(seed, prompts, k)) for k in whole]
        chunk = sampler.generate_chunk(states[[k % len(states) for k in whole]], streams)
        images.append(chunk[[k - begin for k in of_chunk]])
        done += len(of_chunk)
        progress(ProgressEvent("generation", done, count))
    pixels = torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()
    if channels == 1:
        pixels = np.round(pixels.astype(np.float32).mean(-1, keepdims=True)).astype(np.uint8)
    samples = []
    for k in numbers:
        prompt = k % len(states)
        text = prompts.by_name() if vectors is None else prompts.learned(prompt)
        samples.append(Sample(k, prompt, text, noise_seed(seed, prompts, k)))
    return pixels, samples


@dataclass(frozen=True)
class _Sampler:
    """Generates chunks of images of one class.

    Attributes:
        foundation: The frozen model.
        settings: Sampler, steps and guidance.
        empty: Text states of the empty prompt, one row.
        autoencoder: Decodes in place of the model's own.
        class_name: For messages.
    """

    foundation: Foundation
    settings: GenerationSettings
    empty: TextStates
    autoencoder: AutoencoderTiny | None
    class_name: str

    def generate_chunk(self, text: TextStates, streams: Sequence[torch.Generator]) -> torch.Tensor:
        """Images of a chunk, in halves where the device's memory is too small for all of it.

        Args:
            text: Text states of the prompt of each image, N rows.
            streams: Random stream of each.

        Returns:
            uint8 ``[N, 3, H, W]``.
        """
        import torch

        before = [stream.get_state() for stream in streams]
        try:
            return self._decode(self._denoise(text, streams))
        except torch.OutOfMemoryError as error:
            half = len(streams) // 2
            if not half:
                raise StageError(
                    f"one image of class {self.class_name} does not fit into the memory of "
                    f"{self.foundation.device}: {error}"
                ) from error
            _log.warning("out of memory: %d images at a time; set generation.batch_size=%d", half, half)
        for stream, state in zip(streams, before, strict=True):
            stream.set_state(state)
        halves = (slice(0, half), slice(half, None))
        return torch.cat([self.generate_chunk(text[part], streams[part]) for part in halves])

    def _denoise(self, text: TextStates, streams: Sequence[torch.Generator]) -> torch.Tensor:
        """Clean latents, float ``[N, C, h, w]``."""
        import torch

        foundation, settings = self.foundation, self.settings
        scheduler = self._scheduler()
        low, high = (share * scheduler.config.num_train_timesteps for share in settings.guidance_interval)
        # Samplers that add noise on the way take that of a sample from the sample's own stream, too.
        options = {"generator": list(streams)} if settings.scheduler == "lcm" else {}
        size = foundation.files.image_size // 2 ** (len(foundation.vae.config.block_out_channels) - 1)
        shape = (foundation.unet.config.in_channels, size, size)
        with torch.inference_mode():
            empty_and_text = self.empty[[0] * len(text)].followed_by(text)
            latents = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
            latents = latents.to(foundation.device) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                guided = not math.isclose(settings.guidance_scale, 1.0) and low <= float(t) <= high
                model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
                predicted = foundation.predict(model_input, t, empty_and_text if guided else text)
                if guided:
                    unconditional, conditional = predicted.chunk(2)
                    predicted = unconditional + settings.guidance_scale * (conditional - unconditional)
                latents = scheduler.step(predicted, t, latents, **options).prev_sample
        return latents

    def _scheduler(self) -> Any:
        """A scheduler at its first step."""
        settings = self.settings
        scheduler = make_scheduler(self.foundation.scheduler_config, settings.scheduler)
        try:
            scheduler.set_timesteps(settings.steps, device=self.foundation.device)
        except ValueError as error:  # LCM takes no more steps than it was distilled from
            raise StageError(
                f"generation.scheduler={settings.scheduler} cannot take {settings.steps} steps: {error}"
            ) from error
        return scheduler

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """uint8 images ``[N, 3, H, W]`` of latents."""
        import torch

        default = None if self.foundation.device.type == "cpu" else 8
        with torch.inference_mode():
            return self.foundation.decode_latents(latents, self.settings.decode_batch_size or default, self.autoencoder)
