"""A class on its way through the inversion: its task, its state, which outlives a stop, and its result."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.latents import ImageFiles
from d3m_assets.distillation.packing import Packing
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.vectors import to_stored
from d3m_assets.foundation.vector_layout import VectorLayout

if TYPE_CHECKING:
    import torch

Draw: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
"""Latents, noise and timesteps of samples."""

_log = logging.getLogger(__name__)
_SAMPLES_PER_PROMPT = 4
"""Least samples of a prompt in a step: with fewer, its gradient is mostly the noise of which timesteps were drawn."""

_SETTLED = 1e-3
"""Share of the best loss by which a later one must be lower to count as progress."""


@dataclass(frozen=True)
class InversionTask:
    """One class to invert.

    Attributes:
        prompts: What it is called.
        images: Training images, uint8 ``[N, H, W, C]`` at the foundation's size, or files that are read when the class's
            turn comes.
        plan: Prompts and vectors to learn.
    """

    prompts: ClassPrompts
    images: np.ndarray | ImageFiles
    plan: EmbeddingPlan

    def samples(self, in_all: int) -> int:
        """Samples of each prompt in a step that shall have ``in_all`` of the class."""
        return max(_SAMPLES_PER_PROMPT, math.ceil(in_all / self.plan.prompts))


@dataclass(frozen=True)
class InvertedClass:
    """What was learned for one class.

    Attributes:
        vectors: The stored vectors, int8 or float16 ``[prompts, vectors, D]``: directions; or ``stored_width`` numbers of
            each, where the plan has norms.
        losses: Loss on fixed latents, noise and timesteps as ``(step, loss)``; comparable between steps.
        cluster_sizes: Training images of each prompt.
        best_step: Step whose vectors these are, that of the lowest loss.
        stop_reason: "step limit" or "loss settled".
        state: File that would give this result again without work; to be removed once the result is stored.
        packing: The size of its batch as it was chosen, where memory was measured.
    """

    vectors: np.ndarray
    losses: list[tuple[int, float]]
    cluster_sizes: list[int]
    best_step: int
    stop_reason: str
    state: Path | None = None
    packing: Packing | None = None


@dataclass
class ClassState:
    """A class while it is learned: directions or whole vectors, Adam's moments of each, and the record of its losses."""

    position: int
    task: InversionTask
    latents: torch.Tensor
    owner: list[np.ndarray]
    ids: list[torch.Tensor]
    rows: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    best: torch.Tensor
    layout: VectorLayout
    file: Path | None
    step: int = 0
    best_step: int = 0
    checks_without_progress: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def prompts(self) -> int:
        """Learned prompts of the class."""
        return self.task.plan.prompts

    def samples(self, in_all: int) -> int:
        """Samples of each prompt."""
        return self.task.samples(in_all)

    def draw(self, seed: int, name: object, samples: int, steps_of_noise: int, power: float = 1.0) -> Draw:
        """Latents, noise and timesteps of ``samples`` samples for each prompt.

        Args:
            seed: Root of the random streams.
            name: Of this draw's own stream.
            samples: Of each prompt.
            steps_of_noise: Timesteps of the noise schedule.
            power: Timesteps are drawn as ``steps_of_noise * u ** power`` with uniform u: below 1 the noisy ones more often.
        """
        import torch

        generator = random_stream(seed, self.task.prompts.class_key, name)
        chosen, times = [], []
        for images in self.owner:
            pick = torch.randint(0, len(images), (samples,), generator=generator)
            chosen.append(torch.from_numpy(images)[pick])
            # Stratified: the loss depends far more on the timestep than on anything else.
            stratum = (torch.arange(samples) + torch.rand(samples, generator=generator)) / samples
            times.append((stratum**power * steps_of_noise).long().clamp(max=steps_of_noise - 1))
        clean = self.latents[torch.cat(chosen)].float()
        return clean, torch.randn(clean.shape, generator=generator), torch.cat(times)

    def record(self, loss: float) -> None:
        """Note the loss on fixed inputs at this step."""
        lowest = min((known for _, known in self.losses), default=math.inf)
        self.losses.append((self.step, loss))
        self.checks_without_progress = 0 if loss < lowest * (1 - _SETTLED) else self.checks_without_progress + 1
        if loss < lowest:
            self.best, self.best_step = self.rows.clone(), self.step

    def save(self) -> None:
        """Keep what is needed to go on after a stop: rows, moments and counters."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.file is None:
            return
        tensors = {n: getattr(self, n).detach().cpu().clone() for n in ("rows", "first", "second", "best")}
        counters = {"step": self.step, "best_step": self.best_step, "losses": self.losses,
                    "checks_without_progress": self.checks_without_progress}  # fmt: skip
        # Two budgets that buy the same vectors may be at work on the same file.
        part = self.file.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"state": json.dumps(counters), "sha256": _digest(tensors)})
            part.replace(self.file)
        except (OSError, SafetensorError) as error:
            _log.warning("the state of class %s cannot be kept in %s: %s", self.task.prompts.class_name,
                         self.file.parent, error)  # fmt: skip

    def restore(self) -> None:
        """Go on from :meth:`save`, if there is something; a damaged file is passed over."""
        from safetensors import SafetensorError, safe_open

        if self.file is None or not self.file.exists():
            return
        try:
            with safe_open(self.file, "pt") as stored:
                metadata = stored.metadata()
                found = {n: stored.get_tensor(n) for n in ("rows", "first", "second", "best")}
            if _digest(found) != metadata["sha256"]:
                raise ValueError("wrong hash")
            counters = json.loads(metadata["state"])
            found = {n: tensor.to(self.rows) for n, tensor in found.items()}
            losses = [(int(step), float(loss)) for step, loss in counters["losses"]]
            step, best_step = int(counters["step"]), int(counters["best_step"])
            checks = int(counters["checks_without_progress"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            _log.warning("the state of class %s in %s is damaged (%s); it begins anew",
                         self.task.prompts.class_name, self.file, error)  # fmt: skip
            return
        self.rows, self.first, self.second, self.best = (found[n] for n in ("rows", "first", "second", "best"))
        self.step, self.best_step, self.losses, self.checks_without_progress = step, best_step, losses, checks

    def result(self, reason: str) -> InvertedClass:
        """The best rows, as stored."""
        self.save()
        plan = self.task.plan
        rows = self.best.cpu().view(plan.prompts, plan.vectors, -1).numpy()
        sizes = [len(images) for images in self.owner]
        return InvertedClass(
            to_stored(rows, plan, self.layout.widths), self.losses, sizes, self.best_step, reason, self.file
        )


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def remove_old_states(folder: Path, days: float = 14) -> None:
    """Remove states that no run has touched for days: of settings, images or classes that have changed since."""
    for file in folder.glob("*"):
        try:
            if time.time() - file.stat().st_mtime > 86_400 * days:
                file.unlink(missing_ok=True)
        except OSError:
            continue
