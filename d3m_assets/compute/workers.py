"""Independent pieces of work on the cores or GPUs of one machine.

Small networks gain little from a second thread but all from a second process, and with one thread each a result does not
depend, to the last bit, on how many cores there are. Of several GPUs each has a process of its own. On one GPU, or with one
core, everything runs in this process.

The processes are our own and not those of ``ProcessPoolExecutor`` or loky, because both outlive their user: in a step of
Dagster, which is itself a ``multiprocessing`` child, they wait for each other for ever (loky 3.4 too), and after a SIGKILL or
SIGTERM of the parent they stay or compute on. Here a worker talks through one pipe, so that no lock is left behind by a
killed one, ends itself when the parent's end breaks, and is killed when this process exits or a run is given up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from d3m_assets.compute.devices import one_thread, set_own_device
from d3m_assets.compute.interface import (
    RESULT,
    SECONDS_BETWEEN_EVENTS,
    Listener,
    Messages,
    Work,
    answer,
    result_or_error,
)
from d3m_assets.compute.shared import Shared, pack, unpack
from d3m_assets.errors import StageError
from d3m_assets.progress import ProgressEvent

_READY, _PROGRESS = "ready", "progress"
_SHARE, _DROP, _WORK = "share", "drop", "work"


class Workers:
    """Shares out work; processes are started (spawned, never forked) at the first use and kept until :meth:`close`.

    They end with this process, however it ends, and with this object. As a context manager it closes at the end.

    Args:
        count: Processes; 1 works in this one.
        devices: A device for each process; none: all use the one that their items name.
        on_cpu: Whether that is the processor.

    Raises:
        StageError: There are not as many devices as processes.
    """

    def __init__(self, count: int, devices: Sequence[str] = (), *, on_cpu: bool = True) -> None:
        if devices and len(devices) != count:
            raise StageError(f"{count} processes for {len(devices)} devices; each process drives one")
        self.count, self.devices, self.on_cpu = count, tuple(devices), on_cpu and not devices
        self._workers: list[_Worker] = []
        self._run: _Run | None = None
        # Before the finalizers of multiprocessing itself, which join children and would wait for ours.
        self._finalize = Finalize(self, _end, (self._workers,), exitpriority=100)

    @property
    def in_process(self) -> bool:
        """Whether work is done in this process, one item after the other."""
        return self.count == 1

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, work: Work, items: Sequence[Any], progress: Listener) -> Iterator[tuple[int, Any]]:
        """Do ``work(item, progress)`` for every item.

        A run that is given up (its iterator closed, or another begun) kills the workers that are still busy with it.

        Args:
            work: A function of a module, so that another process can find it.
            items: What to work on; must pickle. Large values that several items use belong in a
                :class:`~d3m_assets.compute.shared.Shared`.
            progress: Told the position of the item and how far it is.

        Yields:
            Position and result of each item as it finishes; a :class:`D3MError` is a result.

        Raises:
            StageError: A worker process was killed, most often for want of memory. The next run starts new ones.
            Exception: What ``work`` raised that is not a :class:`D3MError`, with the worker's traceback as a note.
        """
        if self.count == 1 or len(items) < 2:
            with one_thread():
                for index, item in enumerate(items):
                    yield index, result_or_error(work, item, partial(progress, index))
            return
        if self._run is not None:
            self._run.stop()
        self._start()
        run = self._run = _Run(self._workers, work, items)
        try:
            yield from run.results(progress)
        finally:
            run.stop()

    def _start(self) -> None:
        """Start what is missing, so that there are ``count`` workers."""
        alive = [worker for worker in self._workers if worker.process.is_alive()]
        _end([worker for worker in self._workers if worker not in alive])
        free = [d for d in self.devices if d not in {worker.device for worker in alive}]
        # In place: the finalizer holds this list. Each is listed as soon as it is started.
        self._workers[:] = alive
        for position in range(self.count - len(alive)):
            self._workers.append(_Worker.start(free[position] if free else None))

    def close(self) -> None:
        """End the processes at once; a later :meth:`run` starts new ones."""
        if self._run is not None:
            self._run.stop()
            self._run = None
        _end(self._workers)


def end_with_parent() -> None:
    """End this process, started by ``multiprocessing``, at once when its parent ends, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        # The pipe breaks at once. A process that the parent forked may hold it open, so look for another parent, too.
        while not wait([parent.sentinel], timeout=1) and os.getppid() == parent.pid:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(eq=False)
class _Worker:
    """A worker process as its parent sees it.

    Attributes:
        process: The process.
        pipe: Our end of the only connection to it.
        device: The device it was given.
        ready: Whether it has started and reads its pipe.
        item: Position of the item that it works on.
        held: Shared values that it has; by weak references, since it may drop what nobody refers to here.
    """

    process: BaseProcess
    pipe: Connection
    device: str | None
    ready: bool = False
    item: int | None = None
    held: dict[str, weakref.ref[Shared[Any]]] = field(default_factory=dict)

    @classmethod
    def start(cls, device: str | None) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        try:
            process = context.Process(target=_serve, args=(theirs, device), daemon=True, name="d3m-worker")
            process.start()
            theirs.close()  # so that ours breaks when the worker ends
            return cls(process, ours, device)
        except BaseException:  # also an interrupt: a worker that nobody lists ends itself when its pipe breaks
            ours.close()
            theirs.close()
            raise


def _end(workers: list[_Worker]) -> None:
    """Kill workers and empty the list. They hold nothing that wants to be put away: the parent alone writes the store."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join(timeout=10)
        # The pipe is closed with its last reference: another thread may still be waiting on it.
    workers.clear()


class _Run:
    """One pass over the items. A thread hands them out, so that workers go on while the caller is busy with a result."""

    def __init__(self, workers: list[_Worker], work: Work, items: Sequence[Any]) -> None:
        self._workers, self._work = workers, work
        self._waiting = deque(enumerate(items))
        self._count = len(items)
        self._pickled: dict[str, bytes] = {}
        self._messages = Messages()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._hand_out, name="d3m-workers", daemon=True)
        self._thread.start()

    def results(self, progress: Listener) -> Iterator[tuple[int, Any]]:
        """Positions and results as they come in."""
        return self._messages.results(self._count, progress)

    def stop(self) -> None:
        """Kill the workers that are still busy, and end the thread; only the first call does."""
        if self._stopped.is_set():
            return  # the workers may be those of the next run by now
        self._stopped.set()
        self._messages.error(StageError("this run was given up: its workers were closed or given other work"))
        for worker in self._workers:
            if worker.item is not None:
                worker.process.kill()
        self._thread.join(timeout=10)
        busy = [worker for worker in self._workers if worker.item is not None]
        self._workers[:] = [worker for worker in self._workers if worker.item is None]
        _end(busy)
        self._pickled.clear()  # this object lives until the next run

    def _hand_out(self) -> None:
        workers = list(self._workers)
        try:
            for worker in workers:
                self._give(worker)
            while not self._stopped.is_set() and (self._waiting or any(w.item is not None for w in workers)):
                ready = wait([worker.pipe for worker in workers], timeout=1)
                for worker in workers:
                    if worker.pipe in ready:
                        self._hear(worker)
        except (EOFError, ConnectionError):
            self._messages.error(_death(workers))
        except Exception as error:  # an item or a result that does not pickle
            self._messages.error(error)

    def _hear(self, worker: _Worker) -> None:
        kind, content = pickle.loads(worker.pipe.recv_bytes())
        index = worker.item
        if kind != _PROGRESS:
            worker.ready, worker.item = True, None  # before the caller hears: it may stop us, which kills the busy
        if index is not None:
            if kind == _PROGRESS:
                self._messages.progress(index, content)
            elif kind == RESULT:
                self._messages.result(index, content)
            else:
                self._messages.error(content)
        if kind != _PROGRESS:
            self._give(worker)

    def _give(self, worker: _Worker) -> None:
        """Send the next item to a worker that reads its pipe, and first what it shares with others."""
        if not worker.ready or not self._waiting or self._stopped.is_set():
            return
        index, item = self._waiting.popleft()
        pickled, handles = pack((self._work, item))
        worker.item = index
        gone = [key for key, handle in worker.held.items() if handle() is None]
        for key in gone:
            del worker.held[key]
        worker.pipe.send((_DROP, gone))
        for key in handles.keys() - worker.held.keys():
            if key not in self._pickled:
                self._pickled[key] = pickle.dumps(handles[key].value, pickle.HIGHEST_PROTOCOL)
            worker.pipe.send((_SHARE, key))
            worker.pipe.send_bytes(self._pickled[key])
            worker.held[key] = weakref.ref(handles[key])
        worker.pipe.send((_WORK, None))
        worker.pipe.send_bytes(pickled)


def _death(workers: Sequence[_Worker]) -> StageError:
    """The error of workers of which one is dead or about to be."""
    codes: list[int] = []
    deadline = time.monotonic() + 5
    while not codes and time.monotonic() < deadline:
        codes = [worker.process.exitcode for worker in workers if worker.process.exitcode is not None]
        time.sleep(0.05)
    if codes and codes[0] >= 0:
        return StageError(
            f"a worker process ended by itself (exit code {codes[0]}); what it wrote to the terminal says why. A script "
            "that uses workers needs `if __name__ == '__main__':`; workers=1 does without them"
        )
    return StageError(
        "a worker process was killed, most often because memory ran out; what was finished is kept. Close other "
        "programs or set workers=1, and run it again"
    )


def _serve(pipe: Connection, device: str | None) -> None:
    """What a worker process does: items, one after the other, until it is killed."""
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the parent ends us
    end_with_parent()
    import torch

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    set_own_device(device)
    handles: dict[str, Shared[Any]] = {}
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has let go of us
        _send(pipe, _READY, None)
        while True:
            kind, content = pipe.recv()
            if kind == _DROP:
                for key in content:
                    del handles[key]
            elif kind == _SHARE:
                handles[content] = Shared(pickle.loads(pipe.recv_bytes()), content)
            else:
                _answer(pipe, pipe.recv_bytes(), handles)


def _answer(pipe: Connection, pickled: bytes, handles: dict[str, Shared[Any]]) -> None:
    """Work on one item and send its result, or what was raised."""
    last = 0.0

    def report(event: ProgressEvent) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_EVENTS:
            last = now
            _send(pipe, _PROGRESS, event)

    pipe.send_bytes(answer(lambda: unpack(pickled, handles), report, "in a worker process"))


def _send(pipe: Connection, kind: str, content: Any) -> None:
    pipe.send_bytes(pickle.dumps((kind, content), pickle.HIGHEST_PROTOCOL))
