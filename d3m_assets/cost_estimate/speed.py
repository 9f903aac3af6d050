"""How fast devices do the work of a job: as measured where there is a measurement, else by a stated assumption."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from d3m_assets.compute.devices import cores, device_name, one_thread
from d3m_assets.compute.hardware import Gpu, gpu_called
from d3m_assets.cost_estimate.job_work import Kind, Stage
from d3m_assets.cost_estimate.model_work import ModelWork

_log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = get_args(Kind)
CPU_UTILISATION = 0.4
"""Part of the speed of a large float32 matrix product, measured at the time, that the work reaches on one core, as assumed
where nothing was measured. docs/how-to/planning-a-job.md has what was measured."""
GPU_OPERATION_SECONDS = 10e-6
"""Time of launching one PyTorch operation on a GPU, as assumed: small networks wait for launches and not for products."""
_CALIBRATION_SIDE, _CALIBRATION_SECONDS = 512, 0.3


@dataclass(frozen=True)
class Device:
    """A device that a job may be done on, with the speed of each kind of work.

    Attributes:
        name: For people.
        flops_per_second: Of each kind of work, all of one device.
        source: Where these speeds come from.
        measured: Whether they were measured with such a model on such a device.
        operation_seconds: Least time of one operation after another.
        devices: That share the work; classes do not need each other, so twice as many take half the time.
        memory_bytes: Of one; None: unknown.
        usd_per_hour: Rent of one; None: unknown or not rented.
        price_source: Where the rent comes from.
        is_cpu: Whether it is a processor, whose cores each have a worker.
        workers: Processes of a processor that hold the model.
    """

    name: str
    flops_per_second: Mapping[Kind, float]
    source: str
    measured: bool
    operation_seconds: float = 0.0
    devices: int = 1
    memory_bytes: int | None = None
    usd_per_hour: float | None = None
    price_source: str = ""
    is_cpu: bool = False
    workers: int = 1

    def seconds(self, stages: Iterable[Stage]) -> float:
        """Time of some work, in seconds."""
        return sum(self._seconds(stage) for stage in stages)

    def _seconds(self, stage: Stage) -> float:
        computing = stage.flops / self.flops_per_second[stage.kind]
        return max(computing, stage.operations * self.operation_seconds) / self.devices

    def dollars(self, seconds: float) -> float | None:
        """Rent of all devices for a time; None: unknown."""
        return None if self.usd_per_hour is None else self.usd_per_hour * self.devices * seconds / 3600


@dataclass(frozen=True)
class Measurement:
    """Measured speeds of a model on a device.

    Attributes:
        device: What the hardware calls itself.
        unet_parameters: Of the model, by which it is known together with its image size.
        image_size: Side of its images, in pixels.
        flops_per_second: By kind of work; on a processor those of one core.
        source: File and date.
    """

    device: str
    unet_parameters: int
    image_size: int
    flops_per_second: dict[str, float]
    source: str

    def is_of(self, model: ModelWork) -> bool:
        """Whether it was taken with a model of the same size."""
        return (self.unet_parameters, self.image_size) == (model.parameters["unet"], model.image_size)


def default_measurements() -> Path | None:
    """``benchmarks/results`` of a clone; None in an installed package."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    return folder if folder.is_dir() else None


def read_benchmarks(folder: Path | None) -> list[Measurement]:
    """Results of ``benchmarks.engine`` in a folder, the newest first; files that are none are passed over."""
    found = []
    for file in [] if folder is None else sorted(folder.expanduser().glob("engine-*.json"), reverse=True):
        try:
            found.append(_of_benchmark(json.loads(file.read_text(encoding="utf-8")), file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s is no result of benchmarks.engine, so it is not used: %r", file, error)
    return found


def _of_benchmark(result: dict[str, Any], file: Path) -> Measurement:
    speeds: dict[str, float] = {}
    inversions = result.get("inversion", {}).get("variants", {})
    # On a processor the pipeline learns a few classes at a time in each worker, on a GPU many.
    for name in ("engine, fused", "engine"):
        if name in inversions:
            speeds["inversion"] = inversions[name]["samples_per_second"] * inversions[name]["flops_per_sample"]
    for name, row in result.get("generation", {}).get("variants", {}).items():
        if name.startswith("engine") and "compiled" not in name:
            speeds["generation"] = row["images_per_second"] * row["flops_per_image"]
    model = result["model"]
    source = f"measured {result['date'][:10]}, {file.name}"
    return Measurement(
        str(result["hardware"]["device"]), int(model["unet_parameters"]), int(model["image_size"]), speeds, source
    )


def read_measured(file: Path) -> list[Measurement]:
    """What :func:`keep_measured` has kept, the newest first."""
    try:
        return [Measurement(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        _log.warning("%s cannot be read, so what was measured is not used: %s", file, error)
        return []


def keep_measured(file: Path, measurement: Measurement) -> None:
    """Keep a measurement for later plans, in place of an earlier one of the same device and model."""
    others = [
        kept
        for kept in read_measured(file)
        if (kept.device, kept.unet_parameters, kept.image_size)
        != (measurement.device, measurement.unet_parameters, measurement.image_size)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps([vars(entry) for entry in (measurement, *others)], indent=1), encoding="utf-8")
    part.replace(file)


def gpu_device(
    gpu: Gpu, model: ModelWork, measurements: Iterable[Measurement], utilisation: float, devices: int = 1
) -> Device:
    """A GPU of the table, at the speed that was measured on one of its kind, or at a stated part of its peak."""
    measured = [m for m in measurements if gpu_called(m.device) == gpu_called(gpu.name) and m.is_of(model)]
    assumed = gpu.peak_flops * utilisation
    device = Device(
        name=gpu.name,
        flops_per_second=dict.fromkeys(KINDS, assumed),
        source=f"assumed: {utilisation:.0%} of {gpu.peak_flops / 1e12:g} TFLOP/s",
        measured=False,
        operation_seconds=GPU_OPERATION_SECONDS,
        devices=devices,
        memory_bytes=gpu.memory_bytes,
        usd_per_hour=gpu.usd_per_hour,
        price_source=gpu.price_source if gpu.usd_per_hour is not None else "",
    )
    known = gpu_called(gpu.name) is not None
    return _with_measured(device, measured[0], assumed) if measured and known else device


def _with_measured(device: Device, measurement: Measurement, otherwise: float) -> Device:
    """A device at measured speeds; a kind of work that was not measured is taken as fast as the nearest that was."""
    speeds = measurement.flops_per_second
    inversion = speeds.get("inversion", speeds.get("generation", otherwise))
    generation = speeds.get("generation", inversion)
    all_kinds: dict[Kind, float] = {
        "inversion": inversion,
        "generation": generation,
        "encoding": speeds.get("encoding", generation),
        "training": speeds.get("training", inversion),
    }
    return replace(device, flops_per_second=all_kinds, source=measurement.source, measured=True)


def cpu_device(model: ModelWork, measurements: Iterable[Measurement], workers: int | None, devices: int = 1) -> Device:
    """The processor of this machine, with a worker on each core unless told otherwise.

    Args:
        model: The model.
        measurements: Those at hand.
        workers: Setting ``workers``.
        devices: Machines like this one.
    """
    name, count = device_name("cpu"), min(workers or cores(), cores())
    found = [m for m in measurements if m.device == name and m.is_of(model)]
    device = Device(
        name=f"this machine: {name}, {count} {'core' if count == 1 else 'cores'}",
        flops_per_second={},
        source="",
        measured=False,
        devices=devices,
        is_cpu=True,
        workers=workers or cores(),
    )
    if found:
        device = _with_measured(device, found[0], 1.0)
        return replace(device, flops_per_second={k: v * count for k, v in device.flops_per_second.items()})
    product = matrix_product_speed()
    source = f"assumed: {CPU_UTILISATION:.0%} of a matrix product ({product / 1e9:.0f} GFLOP/s a core, measured now)"
    return replace(device, flops_per_second=dict.fromkeys(KINDS, product * CPU_UTILISATION * count), source=source)


def matrix_product_speed() -> float:
    """FLOP/s of a large float32 matrix product on one core of this machine, measured now in a fraction of a second."""
    import torch

    with one_thread():
        a = torch.rand(_CALIBRATION_SIDE, _CALIBRATION_SIDE)
        a @ a
        # Time of the processor: what else runs on the machine now need not run beside the job.
        begun, products = time.thread_time(), 0
        while time.thread_time() - begun < _CALIBRATION_SECONDS:
            a @ a
            products += 1
        return products * 2 * _CALIBRATION_SIDE**3 / (time.thread_time() - begun)
