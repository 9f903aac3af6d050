"""Worker processes end with whoever started them, however that one ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import resource_tracker

import pytest

from d3m_assets_tests.compute.work import child_that_computes, child_that_returns
from d3m_assets_tests.processes import left_after, needs_proc, new_mark, wait_until

pytestmark = needs_proc


@pytest.fixture
def mark(monkeypatch):
    resource_tracker.ensure_running()  # this process's own and unmarked, since it stays
    mark = new_mark()
    for name, value in mark.items():
        monkeypatch.setenv(name, value)
    return mark


@pytest.fixture
def start():
    """Start a ``multiprocessing`` child, as Dagster starts a step or a run."""
    started = []

    def start(target, *args):
        process = multiprocessing.get_context("spawn").Process(target=target, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def workers_at_work(folder):
    return wait_until(lambda: len(found := list(folder.glob("*.pid"))) == 2 and found, 120)


def test_a_child_that_returns_ends_with_its_workers(start, mark):
    child = start(child_that_returns)
    child.join(60)  # it takes seconds; with ProcessPoolExecutor, or loky, it would never end
    assert child.exitcode == 0
    assert not left_after(mark, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_in_mid_work_end_with_a_child_that_is_ended(start, mark, tmp_path, number):
    child = start(child_that_computes, str(tmp_path))
    assert workers_at_work(tmp_path)
    os.kill(child.pid, number)
    child.join(15)
    assert child.exitcode not in (None, 0)
    assert not left_after(mark, 15)


def test_workers_end_with_a_program_that_is_killed(mark, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "from d3m_assets_tests.compute.work import child_that_computes\n"
        f"if __name__ == '__main__':\n    child_that_computes({str(tmp_path)!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        assert workers_at_work(tmp_path)
    finally:
        parent.kill()
        parent.wait()
    assert not left_after(mark, 15)
