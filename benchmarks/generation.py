"""Generation, measured: ``pipe(prompt)`` class by class, and the engine."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.record import PeakMemory, count_flops, synchronise, weight_bytes
from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.prompts import ClassPrompts

if TYPE_CHECKING:
    from d3m_assets.distillation.settings import GenerationSettings
    from d3m_assets.foundation.loading import Foundation

PLAIN_STEPS = 50
"""Steps of the plain loop: diffusers' own default."""


def plain_pipeline(foundation: Foundation) -> Any:
    """The model as a diffusers pipeline with DDIM; it shares the weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler.from_config({**foundation.scheduler_config, "clip_sample": False})
    parts: dict[str, Any] = {"unet": foundation.unet, "vae": foundation.vae, "scheduler": scheduler}
    for suffix, encoder in zip(("", "_2"), foundation.text_encoders, strict=False):
        parts |= {f"text_encoder{suffix}": encoder.model, f"tokenizer{suffix}": encoder.tokenizer}
    if len(foundation.text_encoders) > 1:
        pipe = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=foundation.zero_empty_prompt)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_generation(
    foundation: Foundation, classes: Sequence[ClassPrompts], settings: GenerationSettings, seed: int, *,
    peak: float | None, repeats: int, seconds: float, plain_batch: int, say: Callable[[str], None],
    compiled: Foundation | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Images a second of the plain loop, one image a call and several, and of the engine.

    Args:
        foundation: The model, as the engine uses it, and the plain loop too.
        classes: Drawn one after another.
        settings: Of the engine; the plain loop takes its guidance and no more.
        seed: Root of everything random.
        peak: Dense bf16 FLOP/s of the device; None if not known.
        repeats: Rounds of timing, the variants taking turns.
        seconds: Least seconds of one variant in one round.
        plain_batch: ``num_images_per_prompt`` of the second plain loop.
        say: Told of progress.
        compiled: The model with a compiled U-Net, for one more run of the engine.

    Returns:
        For each variant ``images_per_second``, ``flops_per_image``, ``mfu`` and ``peak_memory`` in bytes.
    """
    import torch

    pipe, device, turn = plain_pipeline(foundation), foundation.device, itertools.cycle(classes)

    def plain(images: int, steps: int) -> int:
        generator = torch.Generator(device).manual_seed(seed)
        pipe(next(turn).by_name(), num_inference_steps=steps, guidance_scale=settings.guidance_scale,
             num_images_per_prompt=images, generator=generator)  # fmt: skip
        return images

    def engine(model: Foundation, batch: int) -> int:
        generate(model, next(turn), settings.model_copy(update={"batch_size": batch}), seed, count=batch)
        return batch

    say("counting the FLOPs of an image")
    # Every step of the plain loop costs the same, and counting fifty of a large model takes minutes.
    one, two = (count_flops(device, lambda n=n: plain(1, n)) for n in (1, 2))
    plain_flops = one + (PLAIN_STEPS - 1) * (two - one)
    engine_flops = count_flops(device, lambda: engine(foundation, 1))
    usual = f"pipe(prompt), DDIM {PLAIN_STEPS} steps"
    ours = f"engine, {settings.scheduler} {settings.steps} steps, {settings.batch_size} images a batch"
    kinds: dict[str, tuple[Callable[[], int], int]] = {
        usual: (lambda: plain(1, PLAIN_STEPS), plain_flops),
        f"{usual}, {plain_batch} images a call": (lambda: plain(plain_batch, PLAIN_STEPS), plain_flops),
        ours: (lambda: engine(foundation, settings.batch_size), engine_flops),
    }
    if compiled is not None:
        kinds[f"{ours}, compiled"] = (lambda: engine(compiled, settings.batch_size), engine_flops)
    own = weight_bytes([foundation.unet, foundation.vae, *(e.model for e in foundation.text_encoders)])
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    rows: dict[str, Any] = {}
    for name, (work, flops) in kinds.items():
        say(f"{name}: warming up")
        with PeakMemory(device, own) as used:
            work()
            synchronise(device)
        rows[name] = {"flops_per_image": flops, "peak_memory": used.peak}
    for _ in range(repeats):
        for name, (work, _) in kinds.items():
            synchronise(device)
            begun, images = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                images += work()
                say(f"{name}: timing, {images} images")
            synchronise(device)
            speeds[name].append(images / (time.perf_counter() - begun))
    for name, row in rows.items():
        speed = statistics.median(speeds[name])
        row |= {"images_per_second": speed, "images_per_second_each": speeds[name],
                "mfu": speed * row["flops_per_image"] / peak if peak else None}  # fmt: skip
    return {"variants": rows}
