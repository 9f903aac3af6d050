"""Where a measurement was taken and what it cost: hardware, versions, commit, memory, FLOPs, and the dated file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.compute.devices import device_name
from d3m_assets.compute.hardware import gpu_called

if TYPE_CHECKING:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device, as `d3m plan` knows it; None where it does not."""
    gpu = gpu_called(device_name)
    return None if gpu is None else gpu.peak_flops


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def surroundings(device: str) -> dict[str, Any]:
    """Date, command, commit, hardware and versions, for the head of a result file.

    Args:
        device: The torch device that was measured.
    """
    import diffusers
    import torch
    import transformers

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "hardware": {
            "device": device_name(device), "peak_bf16_flops": peak_flops(device_name(device)),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_1_min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None, "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__,
                     "transformers": transformers.__version__},
    }  # fmt: skip


def write_result(name: str, result: dict[str, Any], path: Path | None) -> Path:
    """Write a result as JSON, by default to ``benchmarks/results/<name>-<date>.json``, and return the file."""
    path = path or ROOT / "benchmarks" / "results" / f"{name}-{datetime.now(UTC):%Y-%m-%d-%H%M}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


class Lines:
    """Progress as lines on stderr, at most one in ``every`` seconds.

    Args:
        every: Seconds.
    """

    def __init__(self, every: float = 3.0) -> None:
        self.every, self._last, self._begun = every, time.monotonic(), time.monotonic()

    def __call__(self, text: str) -> None:
        """Show a line, if the last is old enough."""
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            print(f"[{now - self._begun:4.0f} s] {text}", file=sys.stderr, flush=True)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def weight_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of the parameters and buffers of modules, shared ones once."""
    tensors = {t.data_ptr(): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


class PeakMemory:
    """Peak memory of a block of code, in bytes, as ``peak`` when it is over.

    On CUDA: ``torch.cuda.max_memory_allocated`` less what was there before (the other variants' weights), plus ``own``.
    Elsewhere: the highest resident memory of the whole process, looked at fifty times a second.

    Args:
        device: Where the work is done.
        own: Bytes of the weights that the block uses.
    """

    def __init__(self, device: torch.device, own: int = 0) -> None:
        self.device, self.own, self.peak = device, own, 0
        self._before = 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        import torch

        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before + self.own
        else:
            self._done.set()
            self._watch.join()

    def _look(self) -> None:
        pages = Path("/proc/self/statm")
        while pages.exists():
            self.peak = max(self.peak, int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            if self._done.wait(0.02):
                return


@contextmanager
def counting(device: torch.device) -> Iterator[FlopCounterMode]:
    """Count FLOPs, 2 for a multiplication with addition (``torch.utils.flop_counter``), while the context lasts.

    PyTorch counts no attention kernel of processors; there the plain formula is used, which is counted.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with plain, FlopCounterMode(display=False) as counter:
        yield counter


def count_flops(device: torch.device, work: Callable[[], object]) -> int:
    """FLOPs of ``work``."""
    with counting(device) as counter:
        work()
    return counter.get_total_flops()
