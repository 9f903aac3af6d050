"""Where results come from: commit, package versions and hardware, as the report and artefacts tell them."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("d3m-assets", "torch", "diffusers", "transformers", "dagster", "numpy", "pandas")


def commit() -> str:
    """Commit of the checkout that this package runs from, where it runs from one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "not run from a checkout"
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and of Python."""
    return {package: _version(package) for package in PACKAGES} | {"Python": platform.python_version()}


def hardware(device: str, cores: int) -> str:
    """The device by its own name, cores and system.

    Args:
        device: A torch device such as ``"cpu"`` or ``"cuda:0"``.
        cores: Processor cores that may be used.
    """
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {cores} cores, {platform.system()} {platform.machine()}, device {device}"


@cache
def of_process(device: str, cores: int) -> dict[str, Any]:
    """Provenance of what this process makes, for the manifests of artefacts: the same on equal machines.

    Looked up once a process: the code that runs is the one that was imported, whatever the checkout holds later.

    Args:
        device: The torch device that is computed on.
        cores: Processor cores that may be used.

    Returns:
        "commit", "versions" by package, and "hardware"; no name of a host, no path.
    """
    return {"commit": commit(), "versions": versions(), "hardware": hardware(device, cores)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
