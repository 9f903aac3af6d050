"""The devices that a job is estimated on: this machine's, and GPUs to compare it with."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from d3m_assets.compute.devices import choose_devices, device_name
from d3m_assets.compute.hardware import gpu_called, parse_gpu
from d3m_assets.cost_estimate.model_work import ModelWork
from d3m_assets.cost_estimate.speed import (
    Device,
    cpu_device,
    default_measurements,
    gpu_device,
    read_benchmarks,
    read_measured,
)
from d3m_assets.errors import FoundationError
from d3m_assets.pipeline import Pipeline


def measured_file(pipeline: Pipeline) -> Path:
    """Where ``d3m plan --measure`` keeps what it found."""
    return pipeline.settings.home.absolute() / "measured-speed.json"


def job_devices(pipeline: Pipeline, model: ModelWork, *, own_device: bool = True) -> list[Device]:
    """The device that the settings name on this machine, and the GPUs to compare."""
    settings = pipeline.settings
    measurements = [
        *read_measured(measured_file(pipeline)),
        *read_benchmarks(settings.plan.measurements or default_measurements()),
    ]
    utilisation, on_ray = settings.plan.utilisation, settings.compute.engine == "ray"
    workers = settings.compute.workers if on_ray and settings.compute.workers else 1
    found = []
    if own_device and not on_ray:
        where = device_here(pipeline)
        if where == "cpu":
            found.append(replace(cpu_device(model, measurements, settings.workers), memory_bytes=machine_memory()))
        elif where.startswith("cuda") and (gpu := gpu_called(device_name(where))) is not None:
            gpu = replace(gpu, memory_bytes=cuda_memory(where))
            here = gpu_device(gpu, model, measurements, utilisation, len(choose_devices(settings.device)))
            found.append(_renamed(here, f"this machine: {device_name(where)}"))
    if settings.device != "cpu":
        gpus = [parse_gpu(text) for text in settings.plan.gpus]
        found += [gpu_device(gpu, model, measurements, utilisation, workers) for gpu in gpus]
    elif on_ray:
        found.append(cpu_device(model, measurements, 1, workers))
    return found


def cuda_memory(device: str) -> int:
    """Bytes of a CUDA device's memory, as its driver says."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory


def device_here(pipeline: Pipeline) -> str:
    """The torch device that the settings name; empty where this machine has none, and the job is for another one."""
    try:
        return pipeline.context.device
    except FoundationError:
        return ""


def _renamed(device: Device, name: str) -> Device:
    return replace(device, name=name, usd_per_hour=None, price_source="")


def machine_memory() -> int | None:
    """Bytes of this machine's memory, or what its container is allowed; None: unknown."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # "max", or no control groups
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return physical
