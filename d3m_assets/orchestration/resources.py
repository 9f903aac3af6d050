"""What a run is given: the pipeline, made once a run, and the lease of a compute device."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.settings import Settings

SECONDS_BETWEEN_LINES = 10.0
"""A log line is a row in the event log (60 ms on SQLite), so progress is written this often at most."""

POOL = "gpu"
"""Assets that use a model queue in this Dagster pool, one at a time unless the instance says otherwise."""


class PipelineResource:
    """Hands out one :class:`~d3m_assets.pipeline.Pipeline` a run, so that its steps share one scan and one model.

    A plain object rather than a ``ConfigurableResource``: settings are read once, by the front door, and a run must
    not be able to disagree with the plan about them.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline | None = None) -> None:
        self.settings = settings
        self._given = pipeline
        self._made: tuple[str, Pipeline] | None = None
        self._listener: Progress = silent

    def fresh(self) -> Pipeline:
        """A pipeline that sees the dataset as it is now."""
        return Pipeline(self.settings)

    def of_run(self, run_id: str, listener: Progress = silent) -> Pipeline:
        """The pipeline of a run; ``listener`` hears its progress until the next call.

        A pipeline given to the constructor is used for every run and keeps its own listener.
        """
        if self._given is not None:
            return self._given
        self._listener = listener
        if self._made is None or self._made[0] != run_id:
            if self._made is not None:
                self._made[1].workers.close()
            self._made = (run_id, Pipeline(self.settings, progress=lambda event: self._listener(event)))
        return self._made[1]

    @contextlib.contextmanager
    def device_lease(self, say: Callable[[str], object], *, timeout: float = -1) -> Iterator[None]:
        """Hold the compute device: wait while another process of this home uses it.

        A Dagster pool does not do: it is a count that a killed process keeps, and a run started from a shell that
        waits for a slot answers neither Ctrl-C nor SIGTERM (seen in 1.13.27). The system frees this lock whatever
        becomes of the process.

        Args:
            say: Told when there is a wait.
            timeout: Seconds to wait at most; negative for ever.

        Raises:
            TimeoutError: The time is over.
        """
        path = locks(self.settings) / f"device-{self.settings.device.replace(':', '-')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"waiting for device {self.settings.device}, which another process of this home uses")
            lock.acquire(timeout=timeout, poll_interval=0.5)
        try:
            yield
        finally:
            lock.release()


def locks(settings: Settings) -> Path:
    """Folder of the lock files, on this machine."""
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


def device_request(device: str) -> dict[str, str]:
    """Tags with which a Ray or Kubernetes executor or launcher reserves one GPU; others pass over them."""
    if device == "cpu":
        return {}
    container = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    return {
        "dagster-ray/config": json.dumps({"num_gpus": 1}),
        "dagster-k8s/config": json.dumps({"container_config": container}),
    }
