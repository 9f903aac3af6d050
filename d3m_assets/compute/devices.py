"""Which device a process computes on, and with how many threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from d3m_assets.errors import FoundationError

if TYPE_CHECKING:
    import torch

_own_device: str | None = None


def choose_device(name: str) -> torch.device:
    """The torch device of a ``device`` setting.

    Raises:
        FoundationError: The device does not exist here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise FoundationError(f"device {name} was asked for, but this PyTorch sees no CUDA device; set device=auto")
    return torch.device(name)


def choose_devices(name: str) -> tuple[str, ...]:
    """Every torch device that a ``device`` setting stands for: all GPUs of the machine for "auto" and "cuda".

    Raises:
        FoundationError: There is none.
    """
    import torch

    first = choose_device(name)
    if first.type == "cuda" and first.index is None:
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return (str(first),)


def own_device() -> str | None:
    """The device that was given to this worker process; None where none was."""
    return _own_device


def set_own_device(name: str | None) -> None:
    """Give this process a device of its own; a worker does so once, before its first item."""
    global _own_device
    _own_device = name


def device_name(device: str) -> str:
    """What the hardware of a torch device calls itself: the GPU's name, or the processor's."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread for the time of the context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
