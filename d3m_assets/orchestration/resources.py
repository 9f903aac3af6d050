"""What a run is given: the pipeline, opened once a run, and the lease of a compute device."""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import filelock

from d3m_assets.planning.planner import Planner
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.settings import Settings

SECONDS_BETWEEN_LINES = 10.0
"""A log line is a row in the event log (60 ms on SQLite), so progress is written this often at most."""

POOL = "gpu"
"""Dagster pool in which steps that use a model queue where each is a process of its own, one at a time unless the
instance says otherwise."""


class OpenPipeline(Protocol):
    """Opens the pipeline of settings as it is now, to be told of by ``progress``."""

    def __call__(self, settings: Settings, *, progress: Progress = ...) -> Planner:
        """Open it."""


class PipelineResource:
    """Hands out one pipeline a run, so that its steps share one scan and one model.

    A plain object rather than a ``ConfigurableResource``: settings are read once, by the front door, and a run must
    not be able to disagree with the plan about them.

    Args:
        settings: What to distill and how.
        open_pipeline: Opens it.
        pipeline: One that is open; it is used for every run and keeps its own listener.
    """

    def __init__(self, settings: Settings, open_pipeline: OpenPipeline, pipeline: Planner | None = None) -> None:
        self.settings = settings
        self._open = open_pipeline
        self._given = pipeline
        self._opened: tuple[str, Planner] | None = None
        self._listener: Progress = silent
        self._begun: str | None = None

    def fresh(self) -> Planner:
        """A pipeline that sees the dataset as it is now."""
        return self._open(self.settings)

    def of_run(self, run_id: str, listener: Progress = silent) -> Planner:
        """The pipeline of a run; ``listener`` hears its progress until the next call."""
        if self._given is not None:
            self._given.run_id = run_id
            return self._given
        self._listener = listener
        if self._opened is None or self._opened[0] != run_id:
            if self._opened is not None:
                self._opened[1].context.close()
            self._opened = (run_id, self._open(self.settings, progress=lambda event: self._listener(event)))
            self._opened[1].run_id = run_id
        return self._opened[1]

    def first_of_run(self, run_id: str) -> bool:
        """Whether this is asked for the first time in this process for a run."""
        first, self._begun = self._begun != run_id, run_id
        return first

    def close(self) -> None:
        """End the worker processes of a pipeline that was opened here; what is loaded and scanned stays for later steps.

        A step ends with this: an exiting process must not have to rely on finalizers to get rid of its workers.
        """
        if self._opened is not None:
            self._opened[1].context.close()

    @contextlib.contextmanager
    def device_lease(self, log: Callable[[str], object], *, timeout: float = -1) -> Iterator[None]:
        """Hold the compute devices of the settings: wait while another process of this home uses one of them.

        A Dagster pool does not do: it is a count that a killed process keeps, and a run started from a shell that
        waits for a slot answers neither Ctrl-C nor SIGTERM (seen in 1.13.27). The system frees this lock whatever
        becomes of the process.

        Args:
            log: Told when there is a wait.
            timeout: Seconds to wait at most for each device; negative for ever.

        Raises:
            TimeoutError: The time is over.
        """
        if self.settings.compute.engine == "ray":
            yield  # Ray gives out the GPUs of its cluster, and this process uses none
            return
        from d3m_assets.compute.devices import choose_devices

        locks(self.settings).mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            # One lock a device, in the order that all take them: "cuda" is every GPU, so it excludes "cuda:0".
            for device in choose_devices(self.settings.device):
                path = locks(self.settings) / f"device-{socket.gethostname()}-{device.replace(':', '-')}.lock"
                lock = filelock.FileLock(path)
                try:
                    lock.acquire(timeout=0)
                except filelock.Timeout:
                    log(f"waiting for device {device}, which another process of this home uses")
                    lock.acquire(timeout=timeout, poll_interval=0.5)
                held.callback(lock.release)
            yield


def locks(settings: Settings) -> Path:
    """Folder of the lock files."""
    return settings.home.absolute() / "locks"


def log_progress(log: logging.Logger) -> Progress:
    """A listener that writes the first, the last and every few seconds' event of a stage to ``log``."""
    last: dict[str, float] = {}

    def listen(event: ProgressEvent) -> None:
        now = time.monotonic()
        final = bool(event.total) and event.done >= event.total
        if final or now - last.get(event.stage, -SECONDS_BETWEEN_LINES) >= SECONDS_BETWEEN_LINES:
            last[event.stage] = now
            log.info("%s %d/%d %s", event.stage, event.done, event.total, event.detail)

    return listen


def device_request(settings: Settings) -> dict[str, str]:
    """Tags with which a Ray or Kubernetes executor or launcher reserves one GPU for a run; others pass over them.

    A run whose work Ray actors do needs none.
    """
    if settings.device == "cpu" or settings.compute.engine == "ray":
        return {}
    container = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    return {
        "dagster-ray/config": json.dumps({"num_gpus": 1}),
        "dagster-k8s/config": json.dumps({"container_config": container}),
    }
