"""The batch of classes that are learned together, and the queue of those that wait for a place in it."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from d3m_assets.distillation.inversion_state import ClassState, InversionTask, InvertedClass
from d3m_assets.distillation.objective import DenoisingObjective
from d3m_assets.distillation.optimizers import cosine_rate
from d3m_assets.distillation.packing import MemoryProbe, Packing
from d3m_assets.errors import D3MError, StageError
from d3m_assets.progress import Progress, ProgressEvent

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.text import LearnedRows

_log = logging.getLogger(__name__)

Outcome: TypeAlias = "tuple[int, InvertedClass | D3MError]"
"""Position of a class among the tasks, and what was learned, or why it could not be."""


_COMPARED_BATCHES = 2
"""Batches of a shape whose gradients are compared with those of their classes alone, where bits must be equal."""


def _same_bits(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> bool:
    """Whether two losses and their gradients are equal; what is not a number equals itself."""
    import torch

    same_loss = one[0] == other[0] or (math.isnan(one[0]) and math.isnan(other[0]))
    return same_loss and torch.allclose(one[1], other[1], rtol=0, atol=0, equal_nan=True)


class ClassBatch:
    """Classes that wait, those that are active, and those that were set aside when memory ran out.

    The four phases of a round, :meth:`fill`, :meth:`evaluate`, :meth:`retire` and :meth:`step`, are called in this order;
    each yields the classes that it ends.

    Args:
        tasks: The classes.
        prepare: Makes the state of a class from its position and task.
        objective: Gives losses and gradients; its settings and optimizer are those of the batch.
        learned_rows: The rows that the text encoders see.
        packing: How many classes are active at most; kept up to date.
        probe: Measures the memory of steps; None: nothing is measured.
        progress: Told of every step.
        save_every: Seconds between two saves of the states of unfinished classes.
        exact: Whether each class gets the same bits that it would get alone; see :meth:`_gradients`.

    Attributes:
        active: Classes of the current batch.
    """

    def __init__(
        self,
        tasks: Sequence[InversionTask],
        prepare: Callable[[int, InversionTask], ClassState],
        objective: DenoisingObjective,
        learned_rows: LearnedRows,
        packing: Packing,
        *,
        probe: MemoryProbe | None,
        progress: Progress,
        save_every: float,
        exact: bool = False,
    ) -> None:
        self.active: list[ClassState] = []
        self._waiting = deque(enumerate(tasks))
        self._set_aside: deque[ClassState] = deque()
        self._total, self._finished = len(tasks), 0
        self._prepare, self._objective, self._learned_rows = prepare, objective, learned_rows
        self._settings = objective.settings
        self._packing, self._probe = packing, probe
        self._progress, self._save_every, self._saved_at = progress, save_every, time.monotonic()
        self._exact = exact
        self._compared: Counter[tuple[tuple[int, int, int], ...]] = Counter()

    @property
    def unfinished(self) -> bool:
        """Whether a class still waits, is active or was set aside."""
        return bool(self._waiting or self.active or self._set_aside)

    def fill(self) -> Iterator[Outcome]:
        """Activate classes while they fit, those that were set aside first; yield those that cannot be prepared."""
        import torch

        while self._set_aside or self._waiting:
            task = self._set_aside[0].task if self._set_aside else self._waiting[0][1]
            if not self._packing.takes([self._samples(state.task) for state in self.active], self._samples(task)):
                return
            if self._set_aside:
                self.active.append(self._set_aside.popleft())
                continue
            position, task = self._waiting.popleft()
            try:
                self.active.append(self._prepare(position, task))
            except D3MError as error:
                yield self._finish(position, error)
            except torch.OutOfMemoryError as error:
                yield self._finish(position, self._too_large(task, str(error)))

    def evaluate(self) -> Iterator[Outcome]:
        """Record the loss on the fixed batch of every class that is due; yield those that do not fit into memory."""
        due = [state for state in self.active if state.at_evaluation(self._settings) and not state.evaluated]
        for state, loss in zip(due, self._evaluate_fixed_batch(due), strict=True):
            if isinstance(loss, float):
                state.record(loss)
            else:
                yield self._drop(state, self._too_large(state.task, loss))

    def _evaluate_fixed_batch(self, states: Sequence[ClassState]) -> list[float | str]:
        """Loss of each class on its fixed batch.

        When memory runs out, the classes are evaluated in two halves; a single class that does not fit is returned as the
        message of its error (the error itself holds on to what filled the memory).
        """
        import torch

        if not states:
            return []
        if self._exact and len(states) > 1:  # one number would not show that others round otherwise in a batch
            return [loss for state in states for loss in self._evaluate_fixed_batch([state])]
        try:
            return [*self._objective.fixed_losses(states, self._learned_rows)]
        except torch.OutOfMemoryError as error:
            if len(states) == 1:
                return [str(error)]
        half = len(states) // 2
        return self._evaluate_fixed_batch(states[:half]) + self._evaluate_fixed_batch(states[half:])

    def retire(self) -> Iterator[Outcome]:
        """Yield the results of classes whose loss has settled or whose steps are done."""
        for state in list(self.active):
            reason = state.stop_reason(self._settings)
            if reason is not None:
                result = state.result(reason)
                measured = None if self._probe is None else replace(self._packing)
                yield self._drop(state, replace(result, packing=measured))

    def step(self) -> Iterator[Outcome]:
        """Take one step of all active classes, or make the batch smaller if it does not fit into memory.

        Yields those whose loss is not finite, or that do not fit even alone.
        """
        import torch

        try:
            if self._probe is not None:
                self._probe.begin()
            gradients = self._gradients()
        except torch.OutOfMemoryError as error:
            message = str(error)
        else:
            self._measure()
            yield from self._update(gradients)
            self._set_excess_aside()
            self._save_if_due()
            self._report(gradients[0][0])
            return
        if len(self.active) == 1:
            state = self.active[0]
            yield self._drop(state, self._too_large(state.task, message))
        else:
            self._halve()

    def _gradients(self) -> list[tuple[float, torch.Tensor]]:
        """Loss and gradient of each active class; of an exact batch those that each class alone would get.

        No operation of the model sums over samples of several classes, so only a kernel that adds in another order,
        because it was chosen by the size of the batch, can make a difference. Kernels are chosen by shapes and not by
        values, and a gradient shows the rounding of everything before it: the first two batches of each shape are compared
        with their classes alone, bit by bit. Where they differ, what the classes got alone counts, and from then on they are
        learned one at a time.
        """
        compute, rows, states = self._objective.gradients, self._learned_rows, self.active
        together = compute(states, rows)
        shape = tuple((len(state.rows), state.prompt_count, self._samples(state.task)) for state in states)
        if not self._exact or len(states) == 1 or self._compared[shape] == _COMPARED_BATCHES:
            return together
        alone = [gradient for state in states for gradient in compute([state], rows)]
        if all(map(_same_bits, together, alone)):
            self._compared[shape] += 1
            return together
        _log.warning("sums round by what shares a batch on this device: classes are learned one at a time from here on")
        self._packing.classes = 1
        return alone

    def _update(self, gradients: Sequence[tuple[float, torch.Tensor]]) -> Iterator[Outcome]:
        """Move the rows of each class; yield those whose loss or gradient is not finite."""
        import torch

        settings, optimizer = self._settings, self._objective.optimizer
        for state, (loss, gradient) in zip(list(self.active), gradients, strict=True):
            if not math.isfinite(loss) or not torch.isfinite(gradient).all():
                yield self._drop(
                    state,
                    StageError(
                        f"the inversion of {state.task.prompts.class_name} diverged at step {state.step} (not a finite "
                        "loss); lower inversion.learning_rate, or look for a broken image in that class"
                    ),
                )
                continue
            rate = cosine_rate(settings.learning_rate, state.step, settings.steps)
            state.step += 1
            state.rows, state.optimizer_state = optimizer.step(
                state.rows, gradient, state.optimizer_state, state.step, rate
            )

    def _halve(self) -> None:
        """Set the second half of the active classes aside; the batch stays that small."""
        kept = self._packing.halve(len(self.active))
        _log.warning("out of memory: %d classes a batch from here on", kept)
        self._set_excess_aside()

    def _set_excess_aside(self) -> None:
        """Set the classes aside that are more than a batch may have by now."""
        most = self._packing.classes
        self._set_aside.extendleft(reversed(self.active[most:]))
        del self.active[most:]

    def _measure(self) -> None:
        """Choose the size of the next batches by the memory of the step just taken."""
        if self._probe is None:
            return
        samples = sum(self._samples(state.task) for state in self.active)
        if self._packing.learn(self._probe.end(), samples):
            per_sample, fitting = self._packing.bytes_per_sample, self._packing.samples
            _log.info("a step of %d samples took %d bytes a sample; %d samples fit", samples, per_sample, fitting)

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_at > self._save_every:
            for state in (*self.active, *self._set_aside):
                state.save()
            self._saved_at = time.monotonic()

    def _report(self, loss: float) -> None:
        steps = self._settings.steps
        done = self._finished * steps + sum(state.step for state in (*self.active, *self._set_aside))
        detail = f"{len(self.active)} classes at a time, " if self._total > 1 else ""
        if self._packing.samples:
            detail += f"{self._packing.samples} samples fit, "
        self._progress(ProgressEvent("inversion", done, self._total * steps, f"{detail}loss {loss:.3f}"))

    def _drop(self, state: ClassState, outcome: InvertedClass | D3MError) -> Outcome:
        """End an active class."""
        self.active.remove(state)
        return self._finish(state.position, outcome)

    def _finish(self, position: int, outcome: InvertedClass | D3MError) -> Outcome:
        self._finished += 1
        return position, outcome

    def _samples(self, task: InversionTask) -> int:
        return task.samples(self._settings.samples_per_step)

    def _too_large(self, task: InversionTask, message: str) -> StageError:
        return StageError(
            f"class {task.prompts.class_name} alone does not fit into the memory of "
            f"{self._objective.foundation.device}: {message}. Lower inversion.samples_per_step or inversion.max_prompts"
        )
