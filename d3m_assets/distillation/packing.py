"""How many classes share a batch: as many as a GPU's memory holds, measured and not guessed; few on a processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

MOST_CLASSES = 64
"""Beyond this a GPU gains nothing, but the latents of every class of a batch are held in the computer's memory."""
UNMEASURED_CLASSES = 32
"""Classes of a batch where memory cannot be measured; if they are too many, the batch is halved as memory runs out."""
POSITIONS_ON_A_PROCESSOR = 96 * 64
"""Positions of all latents of a step on a processor: 96 samples of the embedded model. A class of a large model has more, and
is learned alone."""
_SHARE = 0.85
"""Part of the free memory to fill; the rest is for fragmentation and for larger steps."""


@dataclass(frozen=True)
class StepMemory:
    """Memory of one step, in bytes.

    Attributes:
        taken: Peak of the step, less what was allocated before it.
        free: Available to the step when it began.
    """

    taken: int
    free: int


class MemoryProbe(Protocol):
    """Measures the memory of steps."""

    def begin(self) -> None:
        """A step begins."""

    def end(self) -> StepMemory:
        """It has ended."""


class CudaMemory:
    """Measures steps on a CUDA device.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._free = 0

    def begin(self) -> None:
        """A step begins: what is allocated now is not counted."""
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)
        # What PyTorch has reserved but not allocated is free for a step, too.
        unused = torch.cuda.memory_reserved(self._device) - self._before
        self._free = torch.cuda.mem_get_info(self._device)[0] + unused

    def end(self) -> StepMemory:
        """It has ended."""
        import torch

        return StepMemory(torch.cuda.max_memory_allocated(self._device) - self._before, self._free)


def samples_that_fit(taken: int, samples: int, free: int, share: float = _SHARE) -> int:
    """Most samples of a step, from the memory of a smaller one.

    Memory is taken as proportional to samples, which overestimates it by the part that does not grow.

    Args:
        taken: Bytes of a step.
        samples: Of that step.
        free: Bytes a step may take in all.
        share: Part of them to fill.

    Returns:
        At least 1.
    """
    return max(1, int(share * free * samples / max(1, taken)))


def classes_on_a_processor(samples: int, side: int) -> int:
    """Classes that a processor learns in one batch; what else is to be learned has no say in it.

    Args:
        samples: Of a class in one step.
        side: Of the model's latents.
    """
    return max(1, POSITIONS_ON_A_PROCESSOR // (samples * side**2))


@dataclass
class Packing:
    """Limits of a batch of classes.

    Attributes:
        classes: Most classes.
        samples: Most samples of all its classes in one step; None: as many as the classes have.
        measured: Samples of the largest step whose memory is known.
        bytes_per_sample: Of that step.
    """

    classes: int
    samples: int | None = None
    measured: int = 0
    bytes_per_sample: int = 0

    @classmethod
    def to_measure(cls, classes: int) -> Packing:
        """A batch of one class, until a step has been measured; then of up to ``classes``."""
        return cls(classes, 0)

    def takes(self, samples: Sequence[int], more: int) -> bool:
        """Whether a class of ``more`` samples may join classes that have ``samples``; one alone always may."""
        if not samples:
            return True
        return len(samples) < self.classes and (self.samples is None or sum(samples) + more <= self.samples)

    def learn(self, step: StepMemory, samples: int) -> bool:
        """Choose the size by a step of ``samples`` samples, if it is the largest so far; returns whether it is."""
        if self.samples is None or samples <= self.measured:
            return False
        self.measured, self.bytes_per_sample = samples, -(-step.taken // samples)
        self.samples = samples_that_fit(step.taken, samples, step.free)
        return True

    def halve(self, classes: int) -> int:
        """Memory was too small for ``classes`` classes; returns the new limit."""
        self.classes = max(1, classes // 2)
        return self.classes
