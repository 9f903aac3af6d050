"""A class on its way through the inversion: its task, its state, which outlives a stop, and its result."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.latents import ImageFiles
from d3m_assets.distillation.packing import Packing
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.vectors import to_stored
from d3m_assets.foundation.vector_layout import VectorLayout

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.settings import InversionSettings

_log = logging.getLogger(__name__)
_STATE_NAME = re.compile(r"[0-9a-f]{32}\.(safetensors|[0-9a-f]{8}\.part)")
FEWEST_SAMPLES_PER_PROMPT = 2
"""Four in a step taught no more than two, in twice the time (benchmarks/results/defaults-2026-11-28.md)."""

_MIN_PROGRESS = 1e-3
"""Share of the lowest loss by which a later one must be lower to count as progress."""


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

    def samples_per_prompt(self, samples_per_step: int) -> int:
        """Samples of each prompt in a step of at least ``samples_per_step`` of the class."""
        return max(FEWEST_SAMPLES_PER_PROMPT, math.ceil(samples_per_step / self.plan.prompts))

    def samples(self, samples_per_step: int) -> int:
        """Samples of the class in such a step."""
        return self.plan.prompts * self.samples_per_prompt(samples_per_step)


@dataclass(frozen=True)
class InvertedClass:
    """What was learned for one class.

    Attributes:
        vectors: The stored vectors, int8 or float16 ``[prompts, vectors, D]``: directions; or ``stored_width`` numbers of
            each, where the plan has norms.
        losses: Loss on fixed latents, noise and timesteps as ``(step, loss)``; comparable between steps.
        members: For each prompt the positions of the images it was learned from, as the task has them; with mirrored
            images the mirrored one of image i of N is N + i.
        best_step: Step whose vectors these are, that of the lowest loss.
        stop_reason: "step limit" or "loss settled".
        state: File that would give this result again without work; to be removed once the result is stored.
        packing: The size of its batch as it was chosen, where memory was measured.
    """

    vectors: np.ndarray
    losses: list[tuple[int, float]]
    members: list[list[int]]
    best_step: int
    stop_reason: str
    state: Path | None = None
    packing: Packing | None = None

    @property
    def cluster_sizes(self) -> list[int]:
        """Training images of each prompt."""
        return [len(positions) for positions in self.members]


@dataclass(eq=False)
class ClassState:
    """A class while it is learned; equal only to itself.

    Attributes:
        position: Of its task among all.
        task: What is learned.
        latents: Of its images, float16 ``[N, C, h, w]``, on the CPU.
        clusters: For each prompt the positions in ``latents`` that it learns from.
        token_ids: For each template the token ids of all prompts, int64 ``[E, prompts, L]``; see ``distillation.text``.
        rows: What is learned, float ``[prompts * vectors, D]``; directions or whole vectors, as the optimizer has it.
        optimizer_state: Tensors that the optimizer keeps from step to step.
        best_rows: The rows of the lowest loss on the fixed batch.
        layout: Of a row over the model's text encoders.
        state_file: Where the state is kept; None: nowhere.
        step: Steps taken.
        best_step: Step of ``best_rows``.
        evaluations_without_progress: On the fixed batch, since the last that lowered the loss notably.
        losses: Loss on the fixed batch as ``(step, loss)``.
    """

    position: int
    task: InversionTask
    latents: torch.Tensor
    clusters: list[np.ndarray]
    token_ids: list[torch.Tensor]
    rows: torch.Tensor
    optimizer_state: dict[str, torch.Tensor]
    best_rows: torch.Tensor
    layout: VectorLayout
    state_file: Path | None
    step: int = 0
    best_step: int = 0
    evaluations_without_progress: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def prompt_count(self) -> int:
        """Learned prompts of the class."""
        return self.task.plan.prompts

    def samples_per_prompt(self, samples_per_step: int) -> int:
        """Samples of each prompt in a step; see :meth:`InversionTask.samples_per_prompt`."""
        return self.task.samples_per_prompt(samples_per_step)

    def at_evaluation(self, settings: InversionSettings) -> bool:
        """Whether the fixed batch is evaluated at this step."""
        return self.step % settings.check_every == 0 or self.step >= settings.steps

    @property
    def evaluated(self) -> bool:
        """Whether the loss on the fixed batch is known at this step."""
        return bool(self.losses) and self.losses[-1][0] == self.step

    def record(self, loss: float) -> None:
        """Note the loss on the fixed batch at this step."""
        lowest = min((known for _, known in self.losses), default=math.inf)
        self.losses.append((self.step, loss))
        progress = loss < lowest * (1 - _MIN_PROGRESS)
        self.evaluations_without_progress = 0 if progress else self.evaluations_without_progress + 1
        if loss < lowest:
            self.best_rows, self.best_step = self.rows.clone(), self.step

    def stop_reason(self, settings: InversionSettings) -> str | None:
        """Why the class is finished at this step, "loss settled" or "step limit"; None if it is not."""
        if not self.at_evaluation(settings):
            return None
        if settings.patience is not None and self.evaluations_without_progress >= settings.patience:
            return "loss settled"
        return "step limit" if self.step >= settings.steps else None

    def save(self) -> None:
        """Keep what is needed to go on after a stop: rows, the optimizer's state and counters."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.state_file is None:
            return
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}
        counters = {
            "step": self.step,
            "best_step": self.best_step,
            "losses": self.losses,
            "evaluations_without_progress": self.evaluations_without_progress,
        }
        # Two budgets that buy the same vectors may be at work on the same file.
        part = self.state_file.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            self.state_file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"state": json.dumps(counters), "sha256": _digest(tensors)})
            part.replace(self.state_file)
        except (OSError, SafetensorError) as error:
            name, folder = self.task.prompts.class_name, self.state_file.parent
            _log.warning("the state of class %s cannot be kept in %s: %s", name, folder, error)

    def restore(self) -> None:
        """Go on from :meth:`save`, if there is something.

        A file that is damaged, or that another version of this code laid out otherwise, is passed over: the class begins
        anew.
        """
        from safetensors import SafetensorError, safe_open

        if self.state_file is None or not self.state_file.exists():
            return
        name = self.task.prompts.class_name
        try:
            with safe_open(self.state_file, "pt") as stored:
                metadata, names = stored.metadata(), stored.keys()
                tensors = {key: stored.get_tensor(key) for key in names}
            if tensors.keys() != self._tensors().keys():
                _log.info("the state of class %s in %s is another version's; it begins anew", name, self.state_file)
                return
            if _digest(tensors) != metadata["sha256"]:
                raise ValueError("wrong hash")
            if any(tensors[key].shape != tensor.shape for key, tensor in self._tensors().items()):
                raise ValueError("tensors of other shapes")
            counters = json.loads(metadata["state"])
            tensors = {key: tensor.to(self.rows) for key, tensor in tensors.items()}
            losses = [(int(step), float(loss)) for step, loss in counters["losses"]]
            step, best_step = int(counters["step"]), int(counters["best_step"])
            without_progress = int(counters["evaluations_without_progress"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            _log.warning("the state of class %s in %s is damaged (%s); it begins anew", name, self.state_file, error)
            return
        self.rows, self.best_rows = tensors.pop("rows"), tensors.pop("best_rows")
        self.optimizer_state = tensors
        self.step, self.best_step, self.losses = step, best_step, losses
        self.evaluations_without_progress = without_progress

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"rows": self.rows, "best_rows": self.best_rows, **self.optimizer_state}

    def result(self, reason: str) -> InvertedClass:
        """The best rows, as stored; the state is kept until the caller has stored them."""
        self.save()
        plan = self.task.plan
        rows = self.best_rows.cpu().view(plan.prompts, plan.vectors, -1).numpy()
        vectors = to_stored(rows, plan, self.layout.widths)
        members = [positions.tolist() for positions in self.clusters]
        return InvertedClass(vectors, self.losses, members, self.best_step, reason, self.state_file)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def remove_old_states(folder: Path, days: float = 14) -> None:
    """Remove states that no run has touched for days: of settings, images or classes that have changed since.

    The folder is the user's choice and may hold other files, so only names that :meth:`ClassState.save` gives are looked at.
    """
    for file in folder.glob("*"):
        try:
            if _STATE_NAME.fullmatch(file.name) and time.time() - file.stat().st_mtime > 86_400 * days:
                file.unlink(missing_ok=True)
        except OSError:
            continue
