"""Textual inversion of many classes (Gal et al. 2022), as D3M uses it to distil a dataset.

The latents of a class are encoded once; only the new rows are parameters; all prompts of the classes in a batch are
learned in one forward pass. The loss is the mean over a prompt's samples and the sum over prompts, so that fused classes
learn what separate runs would. Every random number is drawn from a stream of its own (seed, class, step), so which classes
share a batch changes the rounding of sums and nothing else; with one class at a time on a processor not even that. The
optimiser moves directions: a row keeps the norm of the token table (Directional Textual Inversion, arXiv 2512.13672), and
is stored as a direction. Or, where the settings say so, it is AdamW on whole rows, as in Gal et al., and the norms are kept.

A loss on fixed latents, noise and timesteps is looked at every few steps. The best rows by it are kept; a class whose
loss has settled leaves the batch, and the next one that waits takes its place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.distillation.inversion_state import ClassState, Draw, InversionTask, InvertedClass
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.latents import encode as encode_latents
from d3m_assets.distillation.packing import MemoryProbe, Packing
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.errors import D3MError, StageError
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.settings import InversionSettings
    from d3m_assets.distillation.text import LearnedRows
    from d3m_assets.foundation.loading import Foundation, TextStates

CODE_VERSION = "2"
"""Raised whenever a change here changes the embeddings of a class."""

_log = logging.getLogger(__name__)
_FIXED_SAMPLES = 64
_WEIGHT_DECAY = 1e-2
"""Of AdamW; that of diffusers' script and of PyTorch."""


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
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    flat = latents.reshape(len(latents), -1).astype(np.float64)
    with threadpool_limits(1), warnings.catch_warnings():
        # One thread: the order of additions, and so the result, would depend on how many there are. And with fewer
        # distinct images than clusters some stay empty, which is dealt with.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = KMeans(clusters, n_init=4, random_state=seed % 2**32).fit_predict(flat)
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return np.argsort(order)[labels]


def _initial_rows(foundation: Foundation, prompts: ClassPrompts, count: int, vectors: int, seed: int) -> torch.Tensor:
    """Start of every vector: the sum of the tokens of its words, with a little noise to part the prompts."""
    import torch

    sums = []
    for encoder in foundation.text_encoders:
        table = encoder.table.detach().float().cpu()
        ids = [encoder.tokenizer(text, add_special_tokens=False).input_ids for text in prompts.starts(vectors)]
        sums.append(torch.stack([table[tokens].sum(0) for tokens in ids]))
    layout = foundation.layout
    word = layout.unit(torch.cat(sums, -1))
    noise = torch.randn(count, vectors, layout.width, generator=random_stream(seed, prompts.class_key, "start"))
    return layout.unit(word + 0.3 * layout.unit(noise)).flatten(0, 1)


class _Engine:
    """The frozen model and how its error is measured."""

    def __init__(self, foundation: Foundation, settings: InversionSettings, seed: int) -> None:
        from diffusers import DDPMScheduler

        self.foundation, self.settings, self.seed = foundation, settings, seed
        self.schedule = DDPMScheduler.from_config(foundation.scheduler_config)
        self.steps_of_noise = int(self.schedule.config.num_train_timesteps)
        kind = str(self.schedule.config.prediction_type)
        if kind not in ("epsilon", "v_prediction"):
            raise StageError(f"{foundation.files.name} predicts {kind!r}; inversion knows epsilon and v_prediction")
        self.velocity = kind == "v_prediction"

    def begin(self, position: int, task: InversionTask, cache: LatentCache | None, states: Path | None) -> ClassState:
        """Encode a class and lay out its prompts; what a stopped run left is taken up."""
        import torch

        from d3m_assets.distillation.text import learned_ids

        plan, foundation = task.plan, self.foundation
        if isinstance(task.images, ImageFiles):
            latents = (cache or LatentCache(Path(), 0)).get(foundation, task.images)
        else:
            latents = encode_latents(foundation, task.images)
        if not np.isfinite(latents).all():
            raise StageError(
                f"the latents of class {task.prompts.class_name} are not finite numbers: the autoencoder of "
                f"{foundation.files.name} fails on one of its images; take that image out, or use a device with float32"
            )
        assigned = cluster(latents.astype(np.float32), plan.prompts, self.seed)
        clusters = [np.flatnonzero(assigned == p) for p in range(plan.prompts)]
        rows = _initial_rows(foundation, task.prompts, plan.prompts, plan.vectors, self.seed).to(foundation.device)
        if not self.settings.directional:
            rows = foundation.layout.scaled(rows)
        file = None
        if states is not None:
            learning = self.settings.learning()
            content = hashlib.sha256(latents.tobytes()).hexdigest()
            made_from = [foundation.files.fingerprint, task.prompts.to_json(), plan.facts(), self.seed, learning, content,
                         CODE_VERSION]  # fmt: skip
            if len(set(starts := task.prompts.starts(plan.vectors))) > 1:
                made_from.append(starts)
            digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
            file = states / f"{digest[:32]}.safetensors"
        state = ClassState(
            position, task, torch.from_numpy(latents),
            # With fewer distinct images than prompts some clusters are empty; their prompts learn the whole class.
            [c if len(c) else np.arange(len(latents)) for c in clusters],
            [learned_ids(foundation, task.prompts, plan.prompts, plan.vectors, t)
             for t in range(len(task.prompts.templates))],
            rows, torch.zeros_like(rows), torch.zeros_like(rows), rows, foundation.layout, file,
        )  # fmt: skip
        state.restore()
        return state

    def texts(self, states: Sequence[ClassState], templates: Sequence[int]) -> TextStates:
        """Text states of all prompts of the classes, whose rows are those in use, one class behind the other."""
        import torch

        from d3m_assets.distillation.text import encode

        offset, ids = 0, []
        for state, template in zip(states, templates, strict=True):
            own = state.ids[template % len(state.ids)]
            ids.append(torch.where(own < 0, own - offset, own))
            offset += len(state.rows)
        return encode(self.foundation, torch.cat(ids, 1))

    def errors(self, states: Sequence[ClassState], texts: TextStates, draws: Sequence[Draw], samples: Sequence[int], *,
               weighted: bool = False) -> list[torch.Tensor]:  # fmt: skip
        """Squared error of every prompt, ``[prompts]`` for each class: the mean over its samples.

        ``weighted`` applies min-SNR weights (Hang et al., ICCV 2023, arXiv 2303.09556) where the settings ask for them.
        """
        import torch

        foundation, device = self.foundation, self.foundation.device
        counts = [n for state, n in zip(states, samples, strict=True) for _ in range(state.prompts)]
        text = texts.repeat(torch.tensor(counts, device=device))
        clean, noise, times = (torch.cat(part).to(device) for part in zip(*draws, strict=True))
        predicted = foundation.predict(self.schedule.add_noise(clean, noise, times), times, text)
        target = self.schedule.get_velocity(clean, noise, times) if self.velocity else noise
        error = (predicted - target).square().flatten(1).mean(1)
        if weighted and self.settings.snr_gamma is not None:
            error = error * self.min_snr_weights(times.cpu(), self.settings.snr_gamma).to(device)
        parts = error.split([state.prompts * n for state, n in zip(states, samples, strict=True)])
        return [part.view(-1, n).mean(1) for part, n in zip(parts, samples, strict=True)]

    def min_snr_weights(self, times: torch.Tensor, gamma: float) -> torch.Tensor:
        """min(SNR, gamma) / SNR for a model that predicts the noise, / (SNR + 1) for velocity; float ``[N]``."""
        signal = self.schedule.alphas_cumprod[times].double()
        ratio = signal / (1 - signal).clamp(min=1e-12)
        weights = ratio.clamp(max=gamma) / (ratio + 1 if self.velocity else ratio.clamp(min=1e-12))
        return weights.float()

    def rows_in_use(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[R, D]`` of states as the text encoders see them: directions at the norms of the token tables."""
        return self.foundation.layout.scaled(rows) if self.settings.directional else rows

    def fixed_losses(self, states: Sequence[ClassState], learned: LearnedRows) -> list[float]:
        """Loss of each class on the same latents, noise and timesteps at every call."""
        import torch

        samples = [max(1, math.ceil(_FIXED_SAMPLES / state.prompts)) for state in states]
        at_once = [state.samples(self.settings.samples_per_step) for state in states]
        wholes = [s.draw(self.seed, "fixed", n, self.steps_of_noise) for s, n in zip(states, samples, strict=True)]
        learned.set(self.rows_in_use(torch.cat([state.rows for state in states])))
        firsts = np.cumsum([0, *(state.prompts for state in states)])
        totals = [0.0] * len(states)
        with torch.inference_mode():
            texts = self.texts(states, [0] * len(states))
            # No more at a time than a step takes: of each class a part, until none has any left.
            for turn in range(max(math.ceil(n / part) for n, part in zip(samples, at_once, strict=True))):
                left = [k for k in range(len(states)) if turn * at_once[k] < samples[k]]
                draws, counts = [], []
                for k in left:
                    begin = turn * at_once[k]
                    parts = [p.view(states[k].prompts, samples[k], *p.shape[1:])[:, begin : begin + at_once[k]]
                             for p in wholes[k]]  # fmt: skip
                    draws.append((parts[0].flatten(0, 1), parts[1].flatten(0, 1), parts[2].flatten(0, 1)))
                    counts.append(parts[0].shape[1])
                prompts = [p for k in left for p in range(firsts[k], firsts[k + 1])]
                found = self.errors([states[k] for k in left], texts[prompts], draws, counts)
                for k, count, loss in zip(left, counts, torch.stack([e.mean() for e in found]).tolist(), strict=True):
                    totals[k] += loss * count
        return [total / n for total, n in zip(totals, samples, strict=True)]

    def gradients(self, states: Sequence[ClassState], learned: LearnedRows) -> list[tuple[float, torch.Tensor]]:
        """Loss and gradient of the rows of each class, at its own step; nothing of a class depends on the others."""
        import torch

        live = torch.cat([state.rows for state in states]).detach().requires_grad_(True)
        learned.set(self.rows_in_use(live))
        samples = [state.samples(self.settings.samples_per_step) for state in states]
        power = self.settings.timestep_power
        draws = [s.draw(self.seed, s.step, n, self.steps_of_noise, power) for s, n in zip(states, samples, strict=True)]
        texts = self.texts(states, [state.step for state in states])
        losses = self.errors(states, texts, draws, samples, weighted=True)
        (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), live)
        parts = gradient.split([len(state.rows) for state in states])
        return [(float(loss.detach().mean()), part) for loss, part in zip(losses, parts, strict=True)]

    def update(self, state: ClassState, gradient: torch.Tensor) -> None:
        """One step of the optimiser, at the rate of a cosine schedule."""
        rate = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * state.step / self.settings.steps))
        if self.settings.directional:
            self._turn(state, gradient, rate)
        else:
            self._move(state, gradient, rate)
        state.step += 1

    def _move(self, state: ClassState, gradient: torch.Tensor, rate: float) -> None:
        """AdamW (Loshchilov and Hutter 2019): a class counts its own steps, and its rows decay only when they are learned."""
        import torch

        step = state.step + 1
        with torch.no_grad():
            state.first = state.first.lerp(gradient, 0.1)
            state.second = state.second.lerp(gradient.square(), 0.001)
            update = (state.first / (1 - 0.9**step)) / ((state.second / (1 - 0.999**step)).sqrt() + 1e-8)
            state.rows = state.rows * (1 - rate * _WEIGHT_DECAY) - rate * update

    def _turn(self, state: ClassState, gradient: torch.Tensor, rate: float) -> None:
        """Adam on the sphere, for the part of every text encoder by itself."""
        import torch
        import torch.nn.functional as F

        step, layout, moved = state.step, self.foundation.layout, []
        with torch.no_grad():
            for rows, slope, first, second in zip(
                *(layout.split(t) for t in (state.rows, gradient, state.first, state.second)), strict=True
            ):
                slope = slope - (slope * rows).sum(-1, keepdim=True) * rows  # along the sphere only
                first = first.lerp(slope, 0.1)
                # One second moment for a row: Adam's per-number scaling would turn the direction towards the axes.
                second = second.lerp(slope.square().mean(-1, keepdim=True).expand_as(slope), 0.01)
                update = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
                moved.append((F.normalize(rows - rate * update / math.sqrt(rows.shape[1]), dim=-1), first, second))
            state.rows, state.first, state.second = (torch.cat(parts, -1) for parts in zip(*moved, strict=True))


def invert(
    foundation: Foundation,
    tasks: Sequence[InversionTask],
    settings: InversionSettings,
    seed: int,
    progress: Progress = silent,
    *,
    classes_per_batch: int = 1,
    probe: MemoryProbe | None = None,
    cache: LatentCache | None = None,
    states: Path | None = None,
    save_every: float = 30.0,
) -> Iterator[tuple[int, InvertedClass | D3MError]]:
    """Learn the prompts of classes, several in one batch.

    Args:
        foundation: The frozen model.
        tasks: The classes; each has at least as many images as prompts.
        settings: Steps, samples, learning rate and when to stop.
        seed: Root of the random streams.
        progress: Told of every step.
        classes_per_batch: Most classes learned at a time. Halved when the device runs out of memory.
        probe: Measures the device's memory: the batch then begins with one class and takes in as many as fit. None: it is
            filled up to ``classes_per_batch`` at once.
        cache: Where latents of image files are kept.
        states: Folder where the state of unfinished classes is kept, so that a stopped run goes on where it was.
        save_every: Seconds between two such saves.

    Yields:
        Position of a class in ``tasks`` and what was learned, as each finishes; or why it could not be: its images cannot
        be read, its loss is not finite, or it alone does not fit into the device's memory. The others go on.
    """
    import torch

    from d3m_assets.distillation.text import extended_tables

    if any(bool(task.plan.norms) == settings.directional for task in tasks):
        raise ValueError("plans have norms if and only if whole vectors are learned (directional=False)")
    engine = _Engine(foundation, settings, seed)
    waiting = deque(enumerate(tasks))
    active: list[ClassState] = []
    set_aside: deque[ClassState] = deque()
    finished, saved = 0, time.monotonic()
    packing = Packing(classes_per_batch) if probe is None else Packing.to_measure(classes_per_batch)

    def in_a_step(task: InversionTask) -> int:
        return task.plan.prompts * task.samples(settings.samples_per_step)

    with extended_tables(foundation) as learned:
        while waiting or active or set_aside:
            while set_aside or waiting:
                following = set_aside[0].task if set_aside else waiting[0][1]
                if not packing.takes([in_a_step(state.task) for state in active], in_a_step(following)):
                    break
                if set_aside:
                    active.append(set_aside.popleft())
                    continue
                position, task = waiting.popleft()
                try:
                    active.append(engine.begin(position, task, cache, states))
                except D3MError as error:
                    finished += 1
                    yield position, error
                except torch.OutOfMemoryError as error:
                    finished += 1
                    yield position, _too_large(task, foundation, error)
            filled = len(active)
            due = [s for s in active if s.step % settings.check_every == 0 or s.step >= settings.steps]
            due = [s for s in due if not s.losses or s.losses[-1][0] != s.step]
            for state, loss in zip(due, _looks(engine, due, learned), strict=True):
                if isinstance(loss, float):
                    state.record(loss)
                    continue
                active.remove(state)
                finished += 1
                yield state.position, _too_large(state.task, foundation, loss)
            for state in list(active):
                if state.step % settings.check_every == 0 or state.step >= settings.steps:
                    settled = settings.patience is not None and state.checks_without_progress >= settings.patience
                    if settled or state.step >= settings.steps:
                        active.remove(state)
                        finished += 1
                        result = state.result("loss settled" if settled else "step limit")
                        yield state.position, result if probe is None else replace(result, packing=replace(packing))
            if len(active) < filled or not active:
                continue  # whoever waits takes the place before the next step
            try:
                if probe is not None:
                    probe.begin()
                found = engine.gradients(active, learned)
            except torch.OutOfMemoryError as error:
                if len(active) == 1:
                    finished += 1
                    alone = active.pop()
                    yield alone.position, _too_large(alone.task, foundation, error)
                    continue
                kept = packing.halve(len(active))
                _log.warning("out of memory: %d classes a batch from here on", kept)
                set_aside.extendleft(reversed(active[kept:]))
                del active[kept:]
                continue
            if probe is not None:
                drawn = sum(in_a_step(state.task) for state in active)
                if packing.learn(probe.end(), drawn):
                    _log.info("a step of %d samples took %d bytes a sample; %d samples fit", drawn,
                              packing.bytes_per_sample, packing.samples)  # fmt: skip
            for state, (loss, gradient) in zip(list(active), found, strict=True):
                if not math.isfinite(loss) or not torch.isfinite(gradient).all():
                    active.remove(state)
                    finished += 1
                    yield (
                        state.position,
                        StageError(
                            f"the inversion of {state.task.prompts.class_name} diverged at step {state.step} (not a finite "
                            "loss); lower inversion.learning_rate, or look for a broken image in that class"
                        ),
                    )
                    continue
                engine.update(state, gradient)
            if states is not None and time.monotonic() - saved > save_every:
                for state in (*active, *set_aside):
                    state.save()
                saved = time.monotonic()
            done = finished * settings.steps + sum(state.step for state in (*active, *set_aside))
            detail = f"{len(active)} classes at a time, " if len(tasks) > 1 else ""
            if packing.samples:
                detail += f"{packing.samples} samples fit, "
            progress(ProgressEvent("inversion", done, len(tasks) * settings.steps, f"{detail}loss {found[0][0]:.3f}"))


def _looks(engine: _Engine, states: Sequence[ClassState], learned: LearnedRows) -> list[float | str]:
    """Loss of each class on fixed inputs, in halves where memory is too small for all; of one alone, what was the matter."""
    import torch

    if not states:
        return []
    try:
        return [*engine.fixed_losses(states, learned)]
    except torch.OutOfMemoryError as error:
        if len(states) == 1:
            return [str(error)]  # the error itself holds on to what filled the memory
    half = len(states) // 2
    return _looks(engine, states[:half], learned) + _looks(engine, states[half:], learned)


def _too_large(task: InversionTask, foundation: Foundation, error: Exception | str) -> StageError:
    return StageError(
        f"class {task.prompts.class_name} alone does not fit into the memory of {foundation.device}: {error}. Lower "
        "inversion.samples_per_step or inversion.max_prompts"
    )
