"""GPUs that a job can be planned for: peak speed and memory from data sheets, and what renting one costs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from d3m_assets.errors import SettingsError

PEAK_SOURCE = "NVIDIA's data sheets, dense bfloat16"
PRICE_SOURCE = "RunPod, March 2026, as reported by deploybase.ai/articles/runpod-gpu-pricing on 2026-03-10"
"""Prices move by the week; who plans names their own with ``NAME=PRICE``."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As people call it.
        peak_flops: Dense bfloat16 FLOP/s of its matrix units.
        memory_bytes: Of its memory.
        usd_per_hour: Rent of one, in US dollars; None: unknown.
        price_source: Where the rent comes from.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    usd_per_hour: float | None
    price_source: str = PRICE_SOURCE


_GB = 10**9
GPUS = (
    Gpu("L4", 121e12, 24 * _GB, 0.44),
    Gpu("RTX 4090", 165.2e12, 24 * _GB, 0.34),
    Gpu("L40S", 362e12, 48 * _GB, 0.79),
    Gpu("A100 40GB", 312e12, 40 * _GB, None),
    Gpu("A100 80GB", 312e12, 80 * _GB, 1.39),
    Gpu("H100 SXM", 989e12, 80 * _GB, 2.69),
    Gpu("H200", 989e12, 141 * _GB, 3.59),
)
"""Known GPUs, from :data:`PEAK_SOURCE` and :data:`PRICE_SOURCE`."""

_SPECIFICATION = re.compile(
    r"(?P<name>[^:=]+?)\s*(:\s*(?P<tflops>\d+(\.\d+)?)\s*:\s*(?P<memory>\d+(\.\d+)?))?\s*(=\s*(?P<price>\d+(\.\d+)?))?"
)


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _short(name: str) -> str:
    """A name without memory and form."""
    return name.removesuffix(" SXM").removesuffix(" 80GB")


def parse_gpu(text: str) -> Gpu:
    """Read ``NAME``, ``NAME=PRICE``, or ``NAME:TFLOPS:GB=PRICE`` for a GPU that is not in the table.

    Args:
        text: Upper and lower case, blanks and hyphens in the name do not count, and its memory or form may be left out:
            "a100" is "A100 80GB".

    Raises:
        SettingsError: There is no such GPU in the table, or the text is written otherwise.
    """
    match = _SPECIFICATION.fullmatch(text.strip())
    known = ", ".join(gpu.name for gpu in GPUS)
    if match is None:
        raise SettingsError(
            f'"{text}" names no GPU; write NAME, NAME=DOLLARS_AN_HOUR, or NAME:TFLOPS:GB=DOLLARS_AN_HOUR; known are {known}'
        )
    price = None if match["price"] is None else float(match["price"])
    if match["tflops"] is not None:
        peak, memory = float(match["tflops"]) * 1e12, round(float(match["memory"]) * _GB)
        if not peak or not memory:
            raise SettingsError(f'"{text}": a GPU has more than 0 TFLOP/s and more than 0 GB')
        return Gpu(match["name"], peak, memory, price, "" if price is None else "given")
    name = _squeezed(match["name"])
    found = [gpu for gpu in GPUS if name in (_squeezed(gpu.name), _squeezed(_short(gpu.name)))]
    if not found:
        raise SettingsError(
            f'the GPU "{match["name"]}" is not known; known are {known}. For another one, give its dense bfloat16 TFLOP/s '
            f'and its memory in GB: "{match["name"]}:100:24=0.50"'
        )
    return found[0] if price is None else replace(found[0], usd_per_hour=price, price_source="given")


def gpu_called(device_name: str) -> Gpu | None:
    """The GPU of the table that a device is by what its driver calls it, such as "NVIDIA H100 80GB HBM3"; None: none is."""
    words = set(re.split(r"[^a-z0-9]+", device_name.casefold()))
    if words & {"pcie", "laptop", "mig", "nvl"}:
        return None  # slower than the GPUs of the same name, or a part of one
    sizes = {int(word[:-2]) * _GB for word in words if re.fullmatch(r"\d+gb", word)}
    found = [
        gpu
        for gpu in GPUS
        if set(_short(gpu.name).casefold().split()) <= words and (not sizes or gpu.memory_bytes in sizes)
    ]
    return found[0] if len(found) == 1 else None
