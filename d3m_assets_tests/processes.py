"""Finding the processes that a test started, whoever their parent is by now: by a mark in their environment."""

import os
import time
import uuid
from pathlib import Path

from d3m_assets_tests.requirements import need

MARK = "TEST_PROCESS_MARK"

needs_proc = need("proc", Path("/proc/self/environ").exists(), "finds processes through /proc")


def new_mark():
    """An environment variable and its value; hand it to what shall be found."""
    return {MARK: uuid.uuid4().hex}


def marked(mark, command=""):
    """Command lines, by process id, of the living processes with a mark; only those that contain ``command``."""
    ((name, value),) = mark.items()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{name}={value}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            args = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            dead = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
        except OSError:  # it has ended meanwhile, or is not ours
            continue
        if not dead and command in args and int(folder.name) != os.getpid():
            found[int(folder.name)] = args
    return found


def wait_until(condition, seconds):
    """The first true value of ``condition()``, or its last value when the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return value


def left_after(mark, seconds):
    """What is still alive of the processes with a mark after at most that time."""
    wait_until(lambda: not marked(mark), seconds)
    return marked(mark)


def alive(pid):
    """Whether a process runs; one that has ended and was not yet asked for does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
