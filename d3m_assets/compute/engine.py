"""The workers that the settings ask for."""

from __future__ import annotations

from d3m_assets.compute.devices import choose_devices, cores
from d3m_assets.compute.interface import WorkerPool
from d3m_assets.compute.ray_workers import RayWorkers
from d3m_assets.compute.settings import ComputeSettings
from d3m_assets.compute.workers import Workers


def open_workers(compute: ComputeSettings, device: str, processes: int | None = None) -> WorkerPool:
    """Workers that are started at their first use.

    Args:
        compute: Where work is done.
        device: The torch device that the settings name.
        processes: Processes of this machine where it computes on the processor; None: one for each core.

    Raises:
        FoundationError: This machine shall do the work and has no such device.
    """
    if compute.engine == "ray":
        return RayWorkers(compute, device)
    devices = choose_devices(device)
    if devices == ("cpu",):
        return Workers(processes or cores())
    return Workers(len(devices), devices if len(devices) > 1 else (), on_cpu=False)
