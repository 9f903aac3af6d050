"""What a person sees in a terminal: text that cannot steer it, and how far the work is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from d3m_assets.addresses import masked
from d3m_assets.progress import Progress, ProgressEvent

SECONDS_BETWEEN_LINES = 5.0
"""Longest silence of a program at work whose output is no terminal."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, by convention 128 and the signal's number."""


def answer_interrupts() -> None:
    """Say at once that Ctrl-C was heard, however long what runs then takes to end; a second one ends the process.

    Python runs its own handlers between two of its instructions only, and libraries put theirs in the place of each other's:
    a thread that reads the numbers of signals from a pipe depends on neither.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        heard = 0
        while number := os.read(reading, 1):
            if number[0] != signal.SIGINT:
                continue
            heard += 1
            if heard == 2:
                print("d3m: ended at once; what was finished is kept", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
            print("\nd3m: stopping … (once more ends it at once)", file=sys.stderr, flush=True)

    threading.Thread(target=listen, name="interrupts", daemon=True).start()


def printable(value: Any, limit: int = 500) -> str:
    """A value on one line, without what could steer a terminal or reorder the line.

    Passwords in addresses are hidden, control characters, marks of direction and the like become escapes; long text is cut.
    """
    text = masked(str(value))
    shown = "".join(
        c if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" else _escape(c) for c in text[:limit]
    )
    return shown + ("…" if len(text) > limit else "")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar a stage with time left on a terminal; elsewhere a line when a stage begins, when it moves, and every few seconds.

    Where a stage says nothing for that long, its last line is repeated with the seconds since.
    """
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines() as line:
            yield line
        return
    bars: dict[str, Any] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:22}"),
        BarColumn(24),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Bars(*columns, console=console) as shown:

        def bar(event: ProgressEvent) -> None:
            if event.stage not in bars:
                for stage, task in bars.items():
                    total = shown.tasks[task].total
                    shown.update(task, completed=total, detail="") if stage != event.stage else None
                bars[event.stage] = shown.add_task(event.stage, total=event.total or None, detail="")
            detail = printable(event.detail)
            shown.update(bars[event.stage], completed=event.done, total=event.total or None, detail=detail)

        yield bar


@contextmanager
def _lines() -> Iterator[Progress]:
    """Progress as lines on stderr."""
    lock, ended = threading.Lock(), threading.Event()
    written = heard = time.monotonic()
    known: set[tuple[str, bool]] = set()
    newest = ""

    def write(text: str) -> None:
        nonlocal written
        written = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def line(event: ProgressEvent) -> None:
        nonlocal heard, newest
        with lock:
            heard = time.monotonic()
            share = f"{100 * event.done / event.total:3.0f} %" if event.total else ""
            newest = f"{event.stage:24} {share:6} {printable(event.detail)}".rstrip()
            if heard - written > SECONDS_BETWEEN_LINES or (event.stage, event.done > 0) not in known:
                known.add((event.stage, event.done > 0))
                write(newest)

    def repeat() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES / 10):
            with lock:
                now = time.monotonic()
                if newest and now - written > SECONDS_BETWEEN_LINES:
                    silent = f" (for {now - heard:.0f} s)" if now - heard > SECONDS_BETWEEN_LINES else ""
                    write(newest + silent)

    repeater = threading.Thread(target=repeat, name="progress", daemon=True)
    repeater.start()
    try:
        yield line
    finally:
        ended.set()
        repeater.join()
