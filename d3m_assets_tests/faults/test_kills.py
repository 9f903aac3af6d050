"""The short form: some kills from a shell, one under a daemon."""

import pytest

from d3m_assets_tests.faults import kills
from d3m_assets_tests.orchestration.servers import needs_servers
from d3m_assets_tests.processes import needs_proc

pytestmark = [pytest.mark.long, needs_proc, pytest.mark.timeout(3600)]


def test_kills_of_a_command_leave_nothing_and_change_nothing() -> None:
    counts = kills.run(3, 1, "shell")
    assert counts["kills"] == 3
    assert kills.clean(counts), counts


@needs_servers
def test_a_kill_under_the_daemon_leaves_nothing_and_changes_nothing() -> None:
    counts = kills.run(1, 1, "daemon")
    assert counts["kills"] == 1
    assert kills.clean(counts), counts
