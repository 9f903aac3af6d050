"""Independent pieces of work on the nodes of a Ray cluster.

One long-lived actor a GPU, or a number of cores, spread over the nodes; each loads a model once and takes item after item.
Only an actor that is up is given an item. One that dies, with its process or with its node, is replaced as soon as the
cluster has room, and its item goes to the next that is free. This process alone writes the store: actors hold nothing that
wants to be put away, so they are killed when a run is given up and when nobody needs them.

Restarts and retries are ours and not Ray's: the calls of an actor that Ray restarts wait for it, for ever where its node is
gone, while other actors have nothing to do.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib.metadata
import logging
import os
import pickle
import platform
import signal
import socket
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from d3m_assets.compute.devices import choose_device, set_own_device
from d3m_assets.compute.interface import RAISED, RESULT, SECONDS_BETWEEN_EVENTS, Listener, Messages, Work, answer
from d3m_assets.compute.settings import ComputeSettings
from d3m_assets.compute.shared import Shared, pack, unpack
from d3m_assets.errors import D3MError, StageError
from d3m_assets.progress import Progress, ProgressEvent

_log = logging.getLogger(__name__)

TRIES = 3
"""An item that this many actors died of is given up; so is starting actors when as many in a row did not come up."""

_SECONDS_FOR_A_NODE = 300.0
"""A cluster that grows by itself may take this long to get its first node with room for an actor."""

_SECONDS_TO_WAIT = 0.5
_SECONDS_TO_CONNECT = 10.0
_SOFTWARE = ("torch", "diffusers", "transformers", "numpy")


class RayWorkers:
    """Shares out work over a Ray cluster; actors are started at the first use.

    They are killed by :meth:`close`, after ``compute.idle_seconds`` without work, and by Ray when this process ends, however
    it ends.

    Args:
        compute: Which cluster, how many actors, and what each reserves.
        device: The torch device that the settings name; an index in it is of no use here, since Ray gives out the GPUs.
    """

    in_process = False
    """Never: this process may have no GPU."""

    def __init__(self, compute: ComputeSettings, device: str) -> None:
        self._compute, self._device = compute, device
        self._cluster: _Cluster | None = None
        self._workers: list[_Worker] = []
        self._run: _Run | None = None
        self._idle: threading.Timer | None = None
        self._lock = threading.RLock()
        self._finalize = Finalize(self, _end, (self._workers,), exitpriority=100)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """Actors that there is room for now.

        Raises:
            StageError: There is no cluster, or no room in it.
        """
        return self._connected().count()

    @property
    def on_cpu(self) -> bool:
        """Whether actors compute on the processor.

        Raises:
            StageError: There is no cluster.
        """
        return self._connected().device == "cpu"

    def run(self, work: Work, items: Sequence[Any], progress: Listener) -> Iterator[tuple[int, Any]]:
        """Do ``work(item, progress)`` for every item, as :meth:`~d3m_assets.compute.interface.WorkerPool.run` says.

        A run that is given up (its iterator closed, or another begun) kills the actors that are still busy with it. An item
        whose actor died three times is a :class:`StageError`.

        Raises:
            StageError: There is no cluster, no room in it, or its nodes run other code than this process.
            Exception: What ``work`` raised that is not a :class:`D3MError`, with the actor's traceback as a note.
        """
        if not items:
            return
        with self._lock:
            self._stop_idling()
            if self._run is not None:
                self._run.stop()
            run = self._run = _Run(self._connected(), self._workers, work, items)
        try:
            yield from run.results(progress)
        finally:
            with self._lock:
                run.stop()
                if self._run is run and self._workers:
                    self._idle = threading.Timer(self._compute.idle_seconds, self._release)
                    self._idle.daemon = True
                    self._idle.start()

    def close(self) -> None:
        """Kill the actors and leave the cluster; a later :meth:`run` joins it again."""
        with self._lock:
            self._stop_idling()
            if self._run is not None:
                self._run.stop()
                self._run = None
            _end(self._workers)
            if self._cluster is not None:
                self._cluster.leave()
                self._cluster = None

    def _connected(self) -> _Cluster:
        with self._lock:
            if self._cluster is not None and self._cluster.dead:
                _end(self._workers)
                self._cluster.leave()
                self._cluster = None
            if self._cluster is None:
                self._cluster = _Cluster(self._compute, self._device)
            return self._cluster

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _release(self) -> None:
        with self._lock:
            if self._idle is not None and threading.current_thread() is self._idle:
                self._idle = None
                _end(self._workers)


@dataclass(eq=False)
class _Worker:
    """An actor as this process sees it.

    Attributes:
        actor: Its handle.
        answer: Reference of what it was asked last: to start, or to work; None: nothing.
        report: Reference of the progress that it was asked for.
        node: Where it is, once it is up; empty before.
        index: Position of the item that it works on.
    """

    actor: Any
    answer: Any
    report: Any = None
    node: str = ""
    index: int | None = None


def _end(workers: list[_Worker]) -> None:
    """Kill actors and empty the list."""
    if not workers:
        return
    import ray

    if ray.is_initialized():
        for worker in workers:
            with contextlib.suppress(Exception):  # its node is gone, or the cluster
                ray.kill(worker.actor)
    workers.clear()


class _Cluster:
    """The connection of this process to a cluster, and what an actor of ours reserves in it.

    Attributes:
        device: Kind of torch device that actors compute on.
        gpus: That an actor reserves.
        cpus: That an actor reserves.
        dead: Whether the connection was found to be lost, so that only a new one is of use.
    """

    _users = 0
    """Objects of this process that use the one connection that Ray allows it; of a connection that is not ours, none."""

    def __init__(self, compute: ComputeSettings, device: str) -> None:
        self._compute = compute
        self.dead = False
        self._ours = self._join()
        self._shared: dict[str, tuple[weakref.ref[Shared[Any]], Any]] = {}
        kind = device.partition(":")[0]
        self.gpus = compute.gpus_per_worker
        if self.gpus is None:
            known = kind not in ("auto", "cpu") or (kind == "auto" and self._total("GPU") > 0)
            self.gpus = 1.0 if known else 0.0
        self.cpus = compute.cpus_per_worker
        self.device = ("cuda" if self.gpus else "cpu") if kind == "auto" else kind

    def _join(self) -> bool:
        """Connect this process, unless it is; whether the connection is ours to close."""
        try:
            import ray
        except ImportError:
            raise StageError(
                "compute.engine is ray, but Ray is not installed: install the extra `ray` of d3m-assets, or set "
                "compute.engine=local"
            ) from None
        if ray.is_initialized() and not _Cluster._users:
            return False  # of a notebook, or of a Ray job that this process is
        if not ray.is_initialized():
            address = self._compute.address
            try:
                _check_that_it_listens(address)
                with _own_sigterm():
                    ray.init(address=address, log_to_driver=False, configure_logging=False)
            except Exception as error:  # ConnectionError, ValueError, RuntimeError, and those of gRPC
                with contextlib.suppress(Exception):
                    ray.shutdown()  # what a failed connection leaves would be in the way of the next
                raise StageError(
                    f"no Ray cluster was found at {address} ({_line(error)}); start one with `ray start --head`, correct "
                    "compute.address, or set compute.engine=local"
                ) from error
        _Cluster._users += 1
        return True

    def leave(self) -> None:
        """Close the connection when nobody of this process uses it any more."""
        import ray

        self._shared.clear()
        if self._ours:
            _Cluster._users -= 1
            if not _Cluster._users:
                with contextlib.suppress(ConnectionError):  # it is lost
                    ray.shutdown()

    def count(self) -> int:
        """Actors to start: as the settings say, or as many as there is room for when nobody else is there."""
        if self._compute.workers is not None:
            return self._compute.workers
        if room := self.room():
            return room
        raise StageError(f"{self.no_room()}, or compute.workers for a cluster that grows by itself")

    def room(self) -> int:
        """Actors that the nodes could hold if nobody else used them."""
        needs = [(name, need) for name, need in (("GPU", self.gpus), ("CPU", self.cpus)) if need]
        return sum(int(min(node.get(name, 0.0) / need + 1e-9 for name, need in needs)) for node in self._nodes())

    def no_room(self) -> str:
        """Why no node can hold an actor."""
        return (
            f"no node of the Ray cluster at {self._compute.address} has {self.gpus:g} GPUs and {self.cpus:g} cores for a "
            f"worker: in {len(self._nodes())} nodes there are {self._total('GPU'):g} GPUs and {self._total('CPU'):g} "
            "cores; add nodes, or lower compute.gpus_per_worker or compute.cpus_per_worker (device=cpu needs no GPU)"
        )

    def _nodes(self) -> list[dict[str, float]]:
        import ray

        try:
            return [node["Resources"] for node in ray.nodes() if node["Alive"]]
        except ConnectionError as error:  # of a lost ray:// client
            raise self.lost(error) from error

    def _total(self, name: str) -> float:
        return sum(node.get(name, 0.0) for node in self._nodes())

    def start_worker(self) -> _Worker:
        """Ask for one more actor; it comes up when there is room for it."""
        import ray

        patterns = self._compute.forward_environment
        environment = {n: v for n, v in os.environ.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
        options: dict[str, Any] = {
            "num_gpus": self.gpus,
            "num_cpus": self.cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
            "concurrency_groups": {"progress": 1},
        }
        actor: Any = ray.remote(**options)(_Actor).remote(environment)
        return _Worker(actor, actor.start.remote(self.device))

    def put(self, handles: Mapping[str, Shared[Any]]) -> tuple[dict[str, Any], set[str]]:
        """Make shared values known to the cluster, which sends each to a node once.

        Returns:
            References by key, and the keys of all values that may still be asked for.
        """
        import ray

        self._shared = {key: entry for key, entry in self._shared.items() if entry[0]() is not None}
        for key in handles.keys() - self._shared.keys():
            # Pickled by us: what Ray takes apart itself comes out as arrays that cannot be written to.
            reference = ray.put(pickle.dumps(handles[key].value, pickle.HIGHEST_PROTOCOL))
            self._shared[key] = (weakref.ref(handles[key]), reference)
        return {key: self._shared[key][1] for key in handles}, set(self._shared)

    def lost(self, error: Exception) -> StageError:
        """The error of a cluster that does not answer; the next run connects anew."""
        self.dead = True
        return StageError(
            f"the Ray cluster at {self._compute.address} was lost: {_line(error)}; what was finished is kept. Run it again "
            "when the cluster is back"
        )


def _check_that_it_listens(address: str) -> None:
    """See that something answers at an address; Ray itself would try for minutes.

    Raises:
        OSError: Nothing does.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    place = urlsplit(address if "://" in address else f"gcs://{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_SECONDS_TO_CONNECT).close()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Leave this process its handler of SIGTERM, by which Dagster ends a run; Ray sets one of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


class _Run:
    """One pass over the items. A thread hands them out, so that actors go on while the caller is busy with a result."""

    def __init__(self, cluster: _Cluster, workers: list[_Worker], work: Work, items: Sequence[Any]) -> None:
        self._cluster, self._workers, self._work, self._items = cluster, workers, work, items
        self._count = cluster.count()
        self._waiting = deque(range(len(items)))
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._start_error = ""
        self._none_up_since: float | None = None
        self._messages = Messages()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._hand_out, name="d3m-ray-workers", daemon=True)
        self._thread.start()

    def results(self, progress: Listener) -> Iterator[tuple[int, Any]]:
        """Positions and results as they come in."""
        return self._messages.results(len(self._items), progress)

    def stop(self) -> None:
        """End the thread, and kill the actors that are busy or not up; only the first call does."""
        if self._stopped.is_set():
            return  # the actors may be those of the next run by now
        self._stopped.set()
        self._messages.error(StageError("this run was given up: its workers were closed or given other work"))
        self._thread.join(timeout=10)
        unwanted = [worker for worker in self._workers if worker.index is not None or not worker.node]
        self._workers[:] = [worker for worker in self._workers if worker not in unwanted]
        _end(unwanted)
        self._items = ()  # this object lives until the next run, but not the values that its items share

    def _hand_out(self) -> None:
        from ray.exceptions import RayError

        try:
            while not self._stopped.is_set() and (self._waiting or self._busy()):
                self._start_missing()
                for worker in self._workers:
                    if worker.node and worker.index is None and self._waiting:
                        self._give(worker)
                self._listen()
                self._check_that_one_is_up()
        except (RayError, ConnectionError) as error:  # the latter of a lost ray:// client
            self._messages.error(self._cluster.lost(error))
        except Exception as error:  # also an item that does not pickle
            self._messages.error(error)

    def _busy(self) -> int:
        return sum(worker.index is not None for worker in self._workers)

    def _start_missing(self) -> None:
        wanted = min(self._count, self._busy() + len(self._waiting))
        while len(self._workers) < wanted and self._failed_starts < TRIES:
            self._workers.append(self._cluster.start_worker())
        if wanted and not self._workers:
            raise self._none_starts()

    def _give(self, worker: _Worker) -> None:
        index = self._waiting.popleft()
        pickled, handles = pack((self._work, self._items[index]))
        references, known = self._cluster.put(handles)
        worker.index = index
        worker.answer = worker.actor.work.remote(index, pickled, references, known)
        self._ask_for_progress(worker)

    def _ask_for_progress(self, worker: _Worker) -> None:
        # In a group, and so a thread, of its own: it is answered while the actor works.
        worker.report = worker.actor.progress.options(concurrency_group="progress").remote()

    def _listen(self) -> None:
        """Wait a moment for what actors say."""
        import ray

        asked = [r for w in self._workers for r in (w.answer, w.report) if r is not None]
        if not asked:
            time.sleep(_SECONDS_TO_WAIT)
            return
        said, _ = ray.wait(asked, num_returns=1, timeout=_SECONDS_TO_WAIT)
        for worker in list(self._workers):
            if worker.answer in said:
                self._hear(worker)
            elif worker.report in said:
                self._hear_progress(worker)

    def _hear(self, worker: _Worker) -> None:
        import ray

        try:
            kind, content = pickle.loads(ray.get(worker.answer))
        except ray.exceptions.RayError as error:
            self._replace(worker, error)
            return
        worker.answer, index = None, worker.index
        worker.index = None  # before the caller hears: it may stop us, which kills the busy
        if index is None:
            if kind == RAISED or isinstance(content, D3MError):
                raise content
            worker.node, self._failed_starts = content.checked(), 0
        elif kind == RESULT:
            self._messages.result(index, content)
        else:
            self._messages.error(content)

    def _hear_progress(self, worker: _Worker) -> None:
        import ray

        reference, worker.report = worker.report, None
        with contextlib.suppress(ray.exceptions.RayError):  # its answer will tell
            for index, event in ray.get(reference):
                if index == worker.index:
                    self._messages.progress(index, event)
            if worker.index is not None:
                self._ask_for_progress(worker)

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """Let go of an actor that died; its item comes first, unless too many died of it."""
        self._workers.remove(worker)
        _end([worker])  # it may be alive and out of reach, and must not work beside its successor
        if worker.index is None:
            self._failed_starts += 1
            self._start_error = _line(error)
            _log.warning("a Ray worker did not start: %s", _line(error))
            if self._failed_starts >= TRIES and not any(w.node for w in self._workers):
                raise self._none_starts()
            return
        index = worker.index
        self._deaths[index] += 1
        _log.warning("the Ray worker on %s died (%s); its work goes to another", worker.node, _line(error))
        if self._deaths[index] < TRIES:
            self._waiting.appendleft(index)
            return
        reason = StageError(
            f"{TRIES} workers died of the same piece of work, the last on {worker.node}, most often because memory ran "
            f"out: {_line(error)}. Fewer workers on a node leave more to each: raise compute.cpus_per_worker"
        )
        self._messages.result(index, reason)

    def _none_starts(self) -> StageError:
        return StageError(
            f"{TRIES} Ray workers in a row did not start: {self._start_error}. The nodes need the Python environment of "
            "this process, d3m-assets included"
        )

    def _check_that_one_is_up(self) -> None:
        """A cluster that is busy is waited for; one that could never hold an actor is not."""
        if any(worker.node for worker in self._workers):
            self._none_up_since = None
        elif self._none_up_since is None:
            self._none_up_since = time.monotonic()
        elif time.monotonic() - self._none_up_since > _SECONDS_FOR_A_NODE:
            if not self._cluster.room():
                raise StageError(self._cluster.no_room())
            self._none_up_since = time.monotonic()
            _log.warning("no worker has come up yet: others use the cluster, or it starts very slowly; still waiting")


def _line(error: BaseException, most: int = 400) -> str:
    """An error on one line, without what Ray tells of every dead actor."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.partition(" Some common causes include")[0]
    text = text[text.find("The actor is dead because") :] if "The actor is dead because" in text else text
    return text if len(text) <= most else f"{text[: most - 2]} …"


@dataclass(frozen=True)
class _Node:
    """What an actor tells about the node that it is on.

    Attributes:
        name: Of its host, and its id in the cluster.
        software: Versions that results depend on, and the hash of this package's code.
    """

    name: str
    software: dict[str, str]

    def checked(self) -> str:
        """Its name.

        Raises:
            StageError: It runs other code than this process, and would store other results under the same fingerprint.
        """
        here = _software()
        other = [
            f"{name} {self.software.get(name)} instead of {here[name]}"
            for name in here
            if here[name] != self.software.get(name)
        ]
        if other:
            raise StageError(
                f"node {self.name} of the Ray cluster does not run the software of this process: {', '.join(other)}; "
                "install the same on all nodes"
            )
        return self.name


def _software() -> dict[str, str]:
    """Versions without their builds, since a driver may have a PyTorch without CUDA; and the hash of our own code."""
    root = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        code.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in _SOFTWARE}
    return versions | {"the code of d3m-assets": code.hexdigest()[:12]}


class _Actor:
    """What runs on a node: items, one after the other, until it is killed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # before any library that reads it is imported
        self._handles: dict[str, Shared[Any]] = {}
        self._event: tuple[int, ProgressEvent] | None = None

    def start(self, device: str) -> bytes:
        """Take the device; the pickled answer holds the :class:`_Node`."""
        import ray

        def ready(device: str, progress: Progress) -> _Node:
            set_own_device(str(choose_device(device)))
            node = ray.get_runtime_context().get_node_id()
            return _Node(f"{platform.node()} ({node[:8]})", _software())

        return answer(lambda: (ready, device), lambda event: None, f"on {platform.node()}")

    def work(self, index: int, pickled: bytes, references: Mapping[str, Any], known: set[str]) -> bytes:
        """Work on one item; the pickled answer holds its result."""
        import ray
        import torch

        torch.set_num_threads(1)
        last = 0.0

        def report(event: ProgressEvent) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > SECONDS_BETWEEN_EVENTS:
                last, self._event = now, (index, event)

        def load() -> tuple[Work, Any]:
            for key in self._handles.keys() - known:
                del self._handles[key]
            for key in references.keys() - self._handles.keys():
                self._handles[key] = Shared(pickle.loads(ray.get(references[key])), key)
            return unpack(pickled, self._handles)

        return answer(load, report, f"in a worker on {platform.node()}")

    def progress(self) -> list[tuple[int, ProgressEvent]]:
        """The newest event, if there is a new one after a second."""
        time.sleep(1)
        event, self._event = self._event, None
        return [] if event is None else [event]
