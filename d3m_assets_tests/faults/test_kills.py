"""The short form: some kills from a shell, one under a daemon, one of `d3m ui`; and at which moments."""

import random

import pytest

from d3m_assets_tests.faults import kills
from d3m_assets_tests.orchestration.servers import needs_servers
from d3m_assets_tests.processes import needs_proc

of_processes = [pytest.mark.long, needs_proc, pytest.mark.timeout(3600)]


def long(test):
    for mark in of_processes:
        test = mark(test)
    return test


def test_moments_are_in_the_order_of_one_job_and_cover_all_of_it() -> None:
    timeline = kills.Timeline(commits=(10.0, 30.0, 31.0, 32.0), end=40.0)
    assert timeline.moment(9.0) == kills.Moment(0, 9.0)
    assert timeline.moment(30.5) == kills.Moment(2, 0.5)
    stored = set()
    for seed in range(50):
        found = kills.moments(timeline, 10, random.Random(seed))
        assert len(found) == 10
        later = [(moment.stored, moment.seconds) for moment in found if moment.stored]
        assert later == sorted(later)
        stored |= {moment.stored for moment in found}
    assert stored == {0, 1, 2, 3, 4}


@long
def test_kills_of_a_command_leave_nothing_and_change_nothing() -> None:
    counts = kills.run(3, 1, "shell")
    assert counts["kills"] == 3
    assert kills.clean(counts), counts


@long
@needs_servers
def test_a_kill_under_the_daemon_leaves_nothing_and_changes_nothing() -> None:
    counts = kills.run(1, 1, "daemon")
    assert counts["kills"] == 1
    assert kills.clean(counts), counts


@long
@needs_servers
def test_a_kill_of_the_page_leaves_nothing_and_changes_nothing() -> None:
    counts = kills.run(1, 1, "ui")
    assert counts["kills"] == 1
    assert kills.clean(counts), counts
