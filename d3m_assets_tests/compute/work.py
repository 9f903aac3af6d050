"""Work for worker processes, which find it by the name of this module."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from d3m_assets.compute.devices import own_device
from d3m_assets.compute.workers import Workers
from d3m_assets.errors import BudgetError
from d3m_assets.progress import ProgressEvent


def square(item, progress):
    progress(ProgressEvent("square", 1, 2))
    if item == 3:
        raise BudgetError("three is too small")
    return item * item, os.getpid()


def talk(item, progress):
    for step in range(2 if item == 0 else 4):
        progress(ProgressEvent("talk", step, 4))
        time.sleep(0.25)


def die(item, progress):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(item, progress):
    os._exit(3)


def divide(item, progress):
    return 1 / item


def report_and_compute(folder, progress):
    """Computes for two minutes without a pause, as training does, and not for ever, should the test go wrong."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    ends = time.monotonic() + 120
    matrix = np.ones((300, 300))
    while time.monotonic() < ends:
        matrix = matrix @ matrix % 7


def compute_and_report(folder, progress):
    """Reports until it is killed, or two minutes are over."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    for step in range(240):
        progress(ProgressEvent("compute", step, 240))
        time.sleep(0.5)


def which_device(item, progress):
    time.sleep(0.3)
    return own_device()


def random_sum(seed, progress):
    import torch

    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(seed))
    return (noise.sum().item(), torch.get_num_threads())


def total(item, progress):
    offset, images = item
    return offset + int(images.value.sum()), id(images.value), os.getpid()


def child_that_returns():
    """Uses workers and returns without closing them, as a step of Dagster does."""
    global kept
    kept = Workers(2)
    assert [r[0] for _, r in sorted(kept.run(square, [4, 5], lambda i, e: None))] == [16, 25]


def child_that_computes(folder):
    list(Workers(2).run(report_and_compute, [folder] * 3, lambda i, e: None))


def where(item, progress):
    """Take a moment, so that others get work meanwhile; on which node and in which process."""
    import ray

    progress(ProgressEvent("where", item, 10))
    time.sleep(1.5)
    return ray.get_runtime_context().get_node_id(), os.getpid()


def die_as_often_as(item, progress):
    """Kill this process until as many files lie in the folder as it shall die."""
    folder, deaths = item
    files = len(list(Path(folder).glob("*")))
    if files < deaths:
        (Path(folder) / str(files)).touch()
        die(item, progress)
    return files


def environment(name, progress):
    return os.environ.get(name)


def device_of_work(item, progress):
    import torch

    return own_device(), torch.get_num_threads()


def driver_that_computes(address, folder):
    """A program whose actors compute until it is ended."""
    from d3m_assets.compute.ray_workers import RayWorkers
    from d3m_assets.compute.settings import ComputeSettings

    workers = RayWorkers(ComputeSettings(engine="ray", address=address), "cpu")
    list(workers.run(report_and_compute, [folder] * 2, lambda i, e: None))
