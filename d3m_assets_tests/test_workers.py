import os
import signal
import subprocess
import sys
import time

import pytest

from d3m_assets.errors import BudgetError, StageError
from d3m_assets.progress import ProgressEvent
from d3m_assets.workers import Workers, own_device


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


@pytest.fixture(scope="module")
def two():
    workers = Workers(2)
    yield workers
    workers.close()


def collect(workers, items):
    heard = []
    results = dict(workers.run(square, items, lambda i, e: heard.append((i, e.done))))
    return results, heard


def test_processes_and_this_process_give_the_same(two):
    for workers in (Workers(1), two):
        results, heard = collect(workers, [1, 2, 3, 4])
        assert [results[i][0] for i in (0, 1, 3)] == [1, 4, 16]
        assert isinstance(results[2], BudgetError)  # one failure does not stop the others
        assert heard


def test_work_leaves_this_process_only_when_asked_to(two):
    assert {pid for _, pid in collect(Workers(1), [1, 2])[0].values()} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in collect(two, [1, 2])[0].values()}


def test_what_a_run_that_was_given_up_still_says_is_not_heard_by_the_next(two):
    heard = []
    run = two.run(talk, range(2), lambda i, e: heard.append(e.stage))
    next(run)
    run.close()
    time.sleep(1)  # what is under way says its last words
    heard.clear()
    list(two.run(square, [1, 2], lambda i, e: heard.append(e.stage)))
    assert set(heard) == {"square"}


def test_a_killed_worker_is_an_error_with_a_way_out():
    workers = Workers(2)
    with pytest.raises(StageError, match="workers=1"):
        list(workers.run(die, [1, 2], lambda i, e: None))


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    program = (
        "import time\nfrom pathlib import Path\nfrom d3m_assets_tests.test_workers import report_and_wait\n"
        "from d3m_assets.workers import Workers\n"
        f"if __name__ == '__main__':\n    list(Workers(2).run(report_and_wait, ['{tmp_path}'] * 2, lambda i, e: None))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(p.stem) for p in tmp_path.glob("*.pid")]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in workers)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def report_and_wait(folder, progress):
    from pathlib import Path

    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def which_device(item, progress):
    time.sleep(0.3)
    return own_device()


def test_every_process_drives_a_device_of_its_own():
    workers = Workers(2, ("cuda:0", "cuda:1"))
    try:
        found = [device for _, device in workers.run(which_device, list(range(8)), lambda i, e: None)]
    finally:
        workers.close()
    assert set(found) == {"cuda:0", "cuda:1"}
    assert own_device() is None
    with pytest.raises(StageError, match="2 processes for 1 devices"):
        Workers(2, ("cuda:0",))
