"""What workers are, wherever they run, and how the thread that hands out items talks to the caller."""

from __future__ import annotations

import pickle
import queue
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

from d3m_assets.errors import D3MError
from d3m_assets.progress import Progress, ProgressEvent

Work = Callable[[Any, Progress], Any]
"""A function of a module, so that another process can find it: ``work(item, progress)``."""

Listener = Callable[[int, ProgressEvent], None]
"""Told the position of an item and how far it is."""

RESULT, RAISED = "result", "raised"
"""Kinds of an answer."""

SECONDS_BETWEEN_EVENTS = 0.2
"""A worker reports the progress of an item this often at most."""


class WorkerPool(Protocol):
    """Workers that share out independent items; a context manager that closes at the end."""

    @property
    def count(self) -> int:
        """Workers that there is room for now."""

    @property
    def on_cpu(self) -> bool:
        """Whether they compute on the processor."""

    @property
    def in_process(self) -> bool:
        """Whether work is done in this process, one item after the other."""

    def run(self, work: Work, items: Sequence[Any], progress: Listener) -> Iterator[tuple[int, Any]]:
        """Do ``work(item, progress)`` for every item.

        Args:
            work: A function of a module.
            items: What to work on; must pickle. Large values that several items use belong in a
                :class:`~d3m_assets.compute.shared.Shared`.
            progress: Told the position of the item and how far it is.

        Yields:
            Position and result of each item as it finishes; a :class:`D3MError` is a result.
        """

    def close(self) -> None:
        """End the workers at once; a later :meth:`run` starts new ones."""

    def __enter__(self) -> WorkerPool:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class Messages:
    """From the thread that hands out items to the caller, who may be busy with a result."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()

    def progress(self, index: int, event: ProgressEvent) -> None:
        """How far an item is."""
        self._queue.put(("progress", index, event))

    def result(self, index: int, result: Any) -> None:
        """What became of an item."""
        self._queue.put(("result", index, result))

    def error(self, error: BaseException) -> None:
        """What ends the run."""
        self._queue.put(("error", -1, error))

    def results(self, count: int, progress: Listener) -> Iterator[tuple[int, Any]]:
        """Positions and results of ``count`` items as they come in; raises what :meth:`error` was given."""
        while count:
            try:
                kind, index, content = self._queue.get(timeout=1)  # else Windows would not hear Ctrl-C
            except queue.Empty:
                continue
            if kind == "progress":
                progress(index, content)
            elif kind == "result":
                count -= 1
                yield index, content
            else:
                raise content


def result_or_error(work: Work, item: Any, progress: Progress) -> Any:
    """The result of ``work(item, progress)``, or the :class:`D3MError` that it raised."""
    try:
        return work(item, progress)
    except D3MError as error:
        return error


def answer(load: Callable[[], tuple[Work, Any]], progress: Progress, where: str) -> bytes:
    """Work on one item; what a worker sends back.

    Args:
        load: Gives the function and the item.
        progress: Told how far the item is.
        where: For the note that an unexpected exception gets.

    Returns:
        A pickled pair: :data:`RESULT` and the result, or :data:`RAISED` and the exception with its traceback as a note.
    """
    try:
        work, item = load()
        return _pickled(RESULT, result_or_error(work, item, progress))
    except Exception as error:
        trace = traceback.format_exc()
        error.add_note(f"{where}:\n{trace}")
        try:
            return _pickled(RAISED, error)
        except Exception:  # it does not pickle
            return _pickled(RAISED, RuntimeError(trace))


def _pickled(kind: str, content: Any) -> bytes:
    return pickle.dumps((kind, content), pickle.HIGHEST_PROTOCOL)
