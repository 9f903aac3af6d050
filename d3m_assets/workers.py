"""Independent pieces of work on the cores of one machine.

Small networks gain little from a second thread but all from a second process, and with one thread each a result does not
depend, to the last bit, on how many cores there are. Of several GPUs each has a process of its own. On one GPU, or with one
core, everything runs in this process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from d3m_assets.errors import D3MError, StageError
from d3m_assets.progress import Progress, ProgressEvent

Work = Callable[[Any, Progress], Any]
_queue: Any = None
_device: str | None = None


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Shares out work; processes are started (spawned, never forked) at the first use and kept.

    Args:
        count: Processes; 1 works in this one.
        devices: A device for each process; none: they work on the processor.

    Raises:
        StageError: There are not as many devices as processes.
    """

    def __init__(self, count: int, devices: Sequence[str] = ()) -> None:
        if devices and len(devices) != count:
            raise StageError(f"{count} processes for {len(devices)} devices; each process drives one")
        self.count, self.devices = count, tuple(devices)
        self._pool: ProcessPoolExecutor | None = None
        self._events: Any = None

    def run(
        self, work: Work, items: Sequence[Any], progress: Callable[[int, ProgressEvent], None]
    ) -> Iterator[tuple[int, Any]]:
        """Do ``work(item, progress)`` for every item.

        Args:
            work: A function of a module, so that another process can find it.
            items: What to work on; must pickle.
            progress: Told the position of the item and how far it is.

        Yields:
            Position and result of each item as it finishes; a :class:`D3MError` is a result.

        Raises:
            StageError: A worker process was killed, most often for want of memory.
        """
        if self.count == 1 or len(items) < 2:
            with one_thread():
                for index, item in enumerate(items):
                    yield index, _caught(work, item, partial(progress, index))
            return
        pool = self._start()
        while not self._events.empty():  # of an earlier run that was given up
            self._events.get()
        futures: dict[Future[Any], int] = {}
        try:
            futures |= {pool.submit(_remote, work, i, item): i for i, item in enumerate(items)}
            while futures:
                done, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                while not self._events.empty():
                    progress(*self._events.get())
                for future in done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            self.close()
            raise StageError(
                "a worker process was killed, most often because memory ran out; what was finished is kept. Close other "
                "programs or set workers=1, and run it again"
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            import multiprocessing

            context = multiprocessing.get_context("spawn")
            self._events = context.SimpleQueue()
            devices = context.SimpleQueue()
            for device in self.devices:
                devices.put(device)
            given = devices if self.devices else None
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self._events, os.getpid(), given))
        return self._pool

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


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


def end_with(parent: int) -> None:
    """End this process when its parent ends: a worker whose parent was killed would go on, or wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def own_device() -> str | None:
    """The device that was given to this worker process; None where none was."""
    return _device


def _begin(events: Any, parent: int, devices: Any) -> None:
    global _device, _queue
    import warnings

    import torch

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    _queue = events
    _device = devices.get() if devices is not None else None
    end_with(parent)


def _remote(work: Work, index: int, item: Any) -> Any:
    last = 0.0

    def report(event: ProgressEvent) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            _queue.put((index, event))

    return _caught(work, item, report)


def _caught(work: Work, item: Any, progress: Progress) -> Any:
    try:
        return work(item, progress)
    except D3MError as error:
        return error
