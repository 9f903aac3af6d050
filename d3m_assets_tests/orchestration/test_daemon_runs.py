"""Runs under a real webserver and a real daemon: they succeed or are terminated, and leave no process behind.

A run under the daemon is a ``multiprocessing`` child of a code server, and a step is a child of the run, which at its end
waits for its children. So these are the runs that hang for ever, or compute on, when workers outlive their step.
"""

import os
from pathlib import Path

import pytest

from d3m_assets_tests import small_runs
from d3m_assets_tests.orchestration.servers import Servers, as_environment, needs_servers
from d3m_assets_tests.processes import needs_proc, wait_until

pytestmark = [needs_proc, needs_servers]

UPSTREAM = ("class_catalog", "raw_dataset", "foundation_model", "class_prompts")
ASSETS = ("inverted_embeddings", "synthetic_pool")
BUDGETS = ("ipc-1", "ipc-3")


def processor_seconds(pid):
    """What a process has computed so far."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def serve(image_folder, tmp_path):
    """Start servers for two classes whose prompts are ready; gives them and all partitions of class and budget."""
    folder, started = image_folder(("0", "1")), []

    def serve(**changes):
        pipeline = small_runs.open_pipeline(tmp_path, folder, **changes)
        small_runs.run(pipeline, UPSTREAM)
        classes = list(pipeline.context.values("class"))
        settings = small_runs.QUICK | {"dataset": str(folder), "home": str(tmp_path / "home"), "workers": 2} | changes
        instance = tmp_path / f"servers {len(started)}"
        instance.mkdir()
        servers = Servers(instance, as_environment(settings))
        started.append(servers)
        servers.__enter__()
        servers.register(classes)
        return servers, [f"{budget}|{key}" for budget in BUDGETS for key in classes]

    yield serve
    for servers in started:
        servers.__exit__()


@pytest.mark.timeout(1200)
def test_a_run_in_steps_of_their_own_processes_succeeds_and_leaves_none(serve, tmp_path):
    servers, partitions = serve()
    run = servers.launch(ASSETS, partitions[0], partitions[-1])
    assert servers.wait_for_end(run, 600) == "SUCCESS", (servers.working(), servers.logs())
    assert not servers.left_after(15)
    for asset in ASSETS:
        assert len(list((tmp_path / "home").rglob(f"{asset}/**/manifest.json"))) == 4


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("executor", ["in-process", "processes"])
def test_a_run_that_is_terminated_takes_its_workers_along(serve, executor):
    servers, partitions = serve(**{"inversion.steps": 100_000, "execution.executor": executor})
    run = servers.launch(ASSETS, partitions[0], partitions[-1])

    def workers_compute():
        """The run, its step if that is a process, and two workers are there, and these, the youngest, compute."""
        processes = sorted(servers.working())
        return len(processes) >= (3 if executor == "in-process" else 4) and all(
            processor_seconds(pid) > 15 for pid in processes[-2:]
        )

    assert wait_until(workers_compute, 400), (servers.status(run), servers.working(), servers.logs())
    servers.terminate(run)
    assert not servers.left_after(15)
    assert servers.wait_for_end(run, 120) == "CANCELED", servers.logs()


@pytest.mark.timeout(1200)
def test_a_run_that_waits_for_the_device_is_terminated_and_the_other_goes_on(serve):
    servers, partitions = serve(**{"inversion.steps": 100_000})
    first = servers.launch(ASSETS[:1], partitions[0], partitions[1])

    def all_of_first_are_there():
        """The run, what captures its output, and two workers, which come last and compute."""
        processes = sorted(servers.working())
        return len(processes) >= 3 and all(processor_seconds(pid) > 10 for pid in processes[-2:])

    assert wait_until(all_of_first_are_there, 400), (servers.working(), servers.logs())
    of_first = set(servers.working())
    second = servers.launch(ASSETS[:1], partitions[2], partitions[3])
    waiting = "waiting for device"
    assert wait_until(lambda: waiting in servers.messages(second), 120), (servers.working(), servers.logs())

    servers.terminate(second)
    assert wait_until(lambda: set(servers.working()) <= of_first, 15), servers.working()
    assert servers.wait_for_end(second, 60) == "CANCELED"
    assert servers.status(first) == "STARTED"
    servers.terminate(first)
    assert not servers.left_after(15)
