import os
import time

import pytest

from d3m_assets.compute.devices import own_device
from d3m_assets.compute.workers import Workers
from d3m_assets.errors import BudgetError, StageError
from d3m_assets_tests.compute.work import (
    die,
    divide,
    leave,
    random_sum,
    report_and_compute,
    square,
    talk,
    which_device,
)


@pytest.fixture(scope="module")
def two():
    with Workers(2) as workers:
        yield workers


def unheard(index, event):
    pass


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


def test_numbers_do_not_depend_on_the_number_of_workers(two):
    seeds = list(range(5))
    with Workers(3) as three:
        one, other, more = (dict(w.run(random_sum, seeds, unheard)) for w in (Workers(1), two, three))
    assert one == other == more
    assert {threads for _, threads in one.values()} == {1}


def test_work_leaves_this_process_only_when_asked_to(two):
    assert {pid for _, pid in collect(Workers(1), [1, 2])[0].values()} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in collect(two, [1, 2])[0].values()}


def test_processes_are_kept_from_run_to_run(two):
    pids = {pid for _ in range(4) for _, pid in collect(two, [1, 2, 4, 5, 6])[0].values()}
    assert len(pids) <= 2


def test_what_a_run_that_was_given_up_still_says_is_not_heard_by_the_next(two):
    heard = []
    run = two.run(talk, range(2), lambda i, e: heard.append(e.stage))
    next(run)
    run.close()
    heard.clear()
    list(two.run(square, [1, 2], lambda i, e: heard.append(e.stage)))
    assert set(heard) == {"square"}


def test_workers_go_on_while_the_caller_is_busy_with_a_result(two):
    run = two.run(which_device, range(6), unheard)  # each takes 0.3 s
    next(run)
    time.sleep(2.5)
    started = time.monotonic()
    assert len(list(run)) == 5
    assert time.monotonic() - started < 0.3


def test_a_run_that_is_given_up_ends_its_work_at_once(two, tmp_path):
    run = two.run(report_and_compute, [str(tmp_path)] * 2, unheard)
    list(collect(two, [1, 2]))  # begun, but not yet giving anything: nothing is under way
    assert not list(tmp_path.glob("*.pid"))
    with pytest.raises(KeyboardInterrupt):
        for _ in two.run(report_or_square, [str(tmp_path), 2], unheard):
            raise KeyboardInterrupt  # as Dagster interrupts a step
    run.close()
    started = time.monotonic()
    assert [r[0] for _, r in sorted(two.run(square, [4, 5], unheard))] == [16, 25]
    assert time.monotonic() - started < 60


def report_or_square(item, progress):
    return report_and_compute(item, progress) if isinstance(item, str) else square(item, progress)


def test_a_second_run_takes_the_workers_from_one_that_is_not_finished(two):
    first = two.run(which_device, range(4), unheard)
    next(first)
    assert len(list(two.run(square, [1, 2], unheard))) == 2
    with pytest.raises(StageError, match="given other work"):
        list(first)
    assert len(list(two.run(square, [1, 2], unheard))) == 2


def test_a_killed_worker_is_an_error_with_a_way_out_and_the_next_run_works():
    with Workers(2) as workers:
        with pytest.raises(StageError, match="workers=1"):
            list(workers.run(die, [1, 2], unheard))
        assert collect(workers, [1, 2])[0].keys() == {0, 1}


def test_a_worker_that_ends_by_itself_is_told_from_a_killed_one():
    with Workers(2) as workers, pytest.raises(StageError, match=r"exit code 3.*__main__"):
        list(workers.run(leave, [1, 2], unheard))


def test_a_defect_is_raised_with_the_traceback_of_the_worker(two):
    with pytest.raises(ZeroDivisionError) as caught:
        list(two.run(divide, [1, 0], unheard))
    assert "return 1 / item" in "".join(caught.value.__notes__)
    assert collect(two, [1, 2])[0].keys() == {0, 1}


def test_what_does_not_pickle_is_an_error_and_not_a_wait(two):
    with pytest.raises(Exception, match="pickle"):
        list(two.run(divide, [1, lambda: None], unheard))
    assert collect(two, [1, 2])[0].keys() == {0, 1}


def test_closed_workers_start_again():
    workers = Workers(2)
    workers.close()
    before = {pid for _, pid in collect(workers, [1, 2])[0].values()}
    workers.close()
    workers.close()
    with workers:
        after = {pid for _, pid in collect(workers, [1, 2])[0].values()}
    assert not before & after


def test_every_process_drives_a_device_of_its_own():
    with Workers(2, ("cuda:0", "cuda:1")) as workers:
        found = [device for _, device in workers.run(which_device, list(range(8)), unheard)]
        assert set(found) == {"cuda:0", "cuda:1"}
        with pytest.raises(StageError):
            list(workers.run(die, [1, 2], unheard))
        found = [device for _, device in workers.run(which_device, list(range(8)), unheard)]
        assert set(found) == {"cuda:0", "cuda:1"}  # also after new ones were started
    assert own_device() is None
    with pytest.raises(StageError, match="2 processes for 1 devices"):
        Workers(2, ("cuda:0",))
