"""Textual inversion of many classes (Gal et al. 2022), as D3M uses it to distil a dataset.

The latents of a class are encoded once; only the new rows are parameters; all prompts of the classes in a batch are
learned in one forward pass. The loss is the mean over a prompt's samples and the sum over prompts, so that fused classes
learn exactly what separate runs would. Every random number is drawn from a stream of its own (seed, class, step): which
classes share a batch changes nothing. The optimiser moves directions: a row keeps the norm of the token table
(Directional Textual Inversion, arXiv 2512.13672), and is stored as a direction.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.errors import StageError
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.settings import InversionSettings

CODE_VERSION = "1"
"""Raised whenever a change here changes the embeddings of a class."""

_Draw: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
_FIXED_SAMPLES = 64
_SAMPLES_PER_PROMPT = 4
"""Least samples of a prompt in a step: with fewer, its gradient is mostly the noise of which timesteps were drawn."""

_RECORD_EVERY = 10


@dataclass(frozen=True)
class InversionTask:
    """One class to invert.

    Attributes:
        prompts: What it is called.
        images: uint8 ``[N, H, W, C]`` training images at the foundation's size.
        plan: Prompts and vectors to learn.
    """

    prompts: ClassPrompts
    images: np.ndarray
    plan: EmbeddingPlan


@dataclass(frozen=True)
class InvertedClass:
    """What was learned for one class.

    Attributes:
        vectors: The stored vectors, int8 or float16 ``[prompts, vectors, D]``: directions.
        losses: Loss on fixed latents, noise and timesteps as ``(step, loss)``; comparable between steps.
        cluster_sizes: Training images of each prompt.
    """

    vectors: np.ndarray
    losses: list[tuple[int, float]]
    cluster_sizes: list[int]


def random_stream(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is the hash of ``parts``: equal parts give equal streams on every machine."""
    import torch

    digest = hashlib.sha256("/".join(str(p) for p in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def to_stored(rows: np.ndarray, plan: EmbeddingPlan) -> np.ndarray:
    """Directions of float ``[prompts, vectors, D]`` rows in the plan's storage type."""
    if plan.storage_type == "fp16":
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)
    return np.round(127 * rows / np.abs(rows).max(-1, keepdims=True)).astype(np.int8)


def from_stored(vectors: np.ndarray, norm: float) -> np.ndarray:
    """float32 rows at ``norm`` of stored directions, int8 or float16 ``[..., D]``.

    Raises:
        StageError: A vector is zero or not finite.
    """
    rows = vectors.astype(np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or not (length > 0).all():
        raise StageError("an embedding vector is zero or not finite; delete its artefact and run `d3m distill`")
    return rows / length * np.float32(norm)


def cluster(latents: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Assign a class's latents to clusters of similar images by k-means.

    Args:
        latents: float ``[N, ...]``.
        clusters: At most N.
        seed: Of the start.

    Returns:
        int ``[N]``; clusters are numbered from the largest.
    """
    if clusters == 1:
        return np.zeros(len(latents), np.int64)
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    flat = latents.reshape(len(latents), -1).astype(np.float64)
    with threadpool_limits(1):  # the order of additions, and so the result, would depend on the number of threads
        labels = KMeans(clusters, n_init=4, random_state=seed % 2**32).fit_predict(flat)
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return np.argsort(order)[labels]


def _initial_rows(foundation: Foundation, prompts: ClassPrompts, count: int, vectors: int, seed: int) -> torch.Tensor:
    """Start of every prompt: the sum of the initializer's tokens, with a little noise to part the prompts."""
    import torch

    ids = foundation.tokenizer(prompts.initializer, add_special_tokens=False).input_ids
    table = foundation.table.detach().float().cpu()
    word = torch.nn.functional.normalize(table[ids].sum(0), dim=0)
    noise = torch.randn(count, vectors, table.shape[1], generator=random_stream(seed, prompts.class_key, "start"))
    return word + 0.3 * torch.nn.functional.normalize(noise, dim=-1)


def invert(
    foundation: Foundation,
    tasks: Sequence[InversionTask],
    settings: InversionSettings,
    seed: int,
    progress: Progress = silent,
) -> list[InvertedClass]:
    """Learn the prompts of several classes in one batch.

    Args:
        foundation: The frozen model.
        tasks: The classes, all of one plan; each has at least as many images as prompts.
        settings: Steps, samples and learning rate.
        seed: Root of the random streams.
        progress: Told of every step.

    Returns:
        What was learned, in the order of the tasks.

    Raises:
        StageError: The loss of a class is not finite, or the plans differ.
    """
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler

    from d3m_assets.distillation.text import encode, extended_table, learned_ids

    schedule = DDPMScheduler.from_config(foundation.scheduler_config)
    if len({task.plan for task in tasks}) != 1:
        raise StageError("classes inverted in one batch need one plan; invert those with fewer prompts in another")
    samples = max(_SAMPLES_PER_PROMPT, math.ceil(settings.samples_per_step / tasks[0].plan.prompts))
    steps_of_noise = int(schedule.config.num_train_timesteps)
    device, dtype, norm = foundation.device, foundation.unet.dtype, foundation.norm
    latents, owner, rows, counts = [], [], [], []
    for task in tasks:
        pixels = torch.from_numpy(task.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        encoded = foundation.encode_images(pixels.expand(-1, 3, -1, -1)).cpu()
        assigned = cluster(encoded.numpy(), task.plan.prompts, seed)
        latents.append(encoded)
        clusters = [np.flatnonzero(assigned == p) for p in range(task.plan.prompts)]
        # With fewer distinct images than prompts some clusters are empty; their prompts learn the whole class.
        owner.append([c if len(c) else np.arange(len(encoded)) for c in clusters])
        counts.append(task.plan.prompts)
        start = _initial_rows(foundation, task.prompts, task.plan.prompts, task.plan.vectors, seed)
        rows.append(start.flatten(0, 1))
    parameter = F.normalize(torch.cat(rows), dim=-1).to(device)
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    records: list[list[tuple[int, float]]] = [[] for _ in tasks]

    def ids_of(template: int) -> torch.Tensor:
        out, row = [], 0
        for task in tasks:
            plan = task.plan
            out.append(learned_ids(foundation, task.prompts, plan.prompts, plan.vectors, template, row))
            row += plan.prompts * plan.vectors
        return torch.cat(out)

    templates = [ids_of(t) for t in range(len(tasks[0].prompts.templates))]

    def draw(task: int, name: object, samples: int) -> _Draw:
        """Latents, noise and timesteps of ``samples`` samples for each prompt of a class."""
        generator = random_stream(seed, tasks[task].prompts.class_key, name)
        chosen, times = [], []
        for images in owner[task]:
            pick = torch.randint(0, len(images), (samples,), generator=generator)
            chosen.append(torch.from_numpy(images)[pick])
            # Stratified: the loss depends far more on the timestep than on anything else.
            stratum = (torch.arange(samples) + torch.rand(samples, generator=generator)) / samples
            times.append((stratum * steps_of_noise).long().clamp(max=steps_of_noise - 1))
        clean = latents[task][torch.cat(chosen)]
        return clean, torch.randn(clean.shape, generator=generator), torch.cat(times)

    def errors(draws: Sequence[_Draw], ids: torch.Tensor, samples: int) -> torch.Tensor:
        """Squared error of every prompt, ``[prompts]``: the mean over its samples."""
        clean, noise, times = (torch.cat(part).to(device) for part in zip(*draws, strict=True))
        states = encode(foundation, ids).repeat_interleave(samples, 0)
        noisy = schedule.add_noise(clean, noise, times).to(dtype)
        predicted = foundation.unet(noisy, times, states.to(dtype)).sample.float()
        velocity = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(clean, noise, times) if velocity else noise
        return (predicted - target).square().flatten(1).mean(1).view(-1, samples).mean(1)

    fixed_samples = [max(1, math.ceil(_FIXED_SAMPLES / c)) for c in counts]
    fixed = [draw(t, "fixed", n) for t, n in enumerate(fixed_samples)]
    with extended_table(foundation) as table:

        def record(step: int) -> None:
            table.rows = parameter * norm
            with torch.inference_mode():
                for t, (ids, samples) in enumerate(zip(templates[0].split(counts), fixed_samples, strict=True)):
                    records[t].append((step, float(errors([fixed[t]], ids, samples).mean())))

        for step in range(settings.steps):
            if step % max(_RECORD_EVERY, settings.steps // 10) == 0:
                record(step)
            live = parameter.detach().requires_grad_(True)
            table.rows = live * norm
            batch = [draw(t, step, samples) for t in range(len(tasks))]
            loss = errors(batch, templates[step % len(templates)], samples)
            (gradient,) = torch.autograd.grad(loss.sum(), live)
            if not torch.isfinite(gradient).all():
                bad = [t.prompts.class_name for t, part in zip(tasks, loss.split(counts), strict=True)
                       if not torch.isfinite(part).all()]  # fmt: skip
                raise StageError(
                    f"the inversion of {', '.join(bad) or 'a class'} diverged at step {step} (not a finite loss); "
                    "lower inversion.learning_rate, or look for a broken image in that class"
                )
            with torch.no_grad():
                gradient -= (gradient * parameter).sum(-1, keepdim=True) * parameter  # along the sphere only
                first.lerp_(gradient, 0.1)
                # One second moment for a row: Adam's per-number scaling would turn the direction towards the axes.
                second.lerp_(gradient.square().mean(-1, keepdim=True).expand_as(gradient), 0.01)
                update = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
                rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
                parameter = F.normalize(parameter - rate * update / math.sqrt(parameter.shape[1]), dim=-1)
            progress(ProgressEvent("inversion", step + 1, settings.steps, f"loss {float(loss.detach().mean()):.3f}"))
        record(settings.steps)
        table.rows = None

    out = []
    sizes = [t.plan.prompts * t.plan.vectors for t in tasks]
    for task, part, images, curve in zip(tasks, parameter.cpu().split(sizes), owner, records, strict=True):
        shaped = part.view(task.plan.prompts, task.plan.vectors, -1).numpy()
        out.append(InvertedClass(to_stored(shaped, task.plan), curve, [len(i) for i in images]))
    return out
