"""Runs of the daemon whose process and code server were killed are ended by the next tick."""

import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.orchestration.launch import fail_abandoned_runs
from d3m_assets.orchestration.run_process import PROCESS_TAG, launcher_prefix, name_process, process_is_gone
from d3m_assets.settings import Settings, load_settings
from d3m_assets_tests.processes import needs_proc, wait_until

pytestmark = needs_proc


@dg.op(required_resource_keys={"settings"})
def naming(context: dg.OpExecutionContext) -> None:
    name_process(context, context.resources.settings)


def job_of(executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    nothing = {"settings": dg.ResourceDefinition.none_resource()}
    return dg.GraphDefinition(name="distill", node_defs=[naming]).to_job(resource_defs=nothing, executor_def=executor)


def run_of(instance: dg.DagsterInstance, tags: dict[str, str] | None = None) -> dg.DagsterRun:
    job = job_of(dg.in_process_executor)
    return instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)


def tag(settings: Settings, run: dg.DagsterRun, pid: int, started: str) -> dict[str, str]:
    return {PROCESS_TAG: f"{launcher_prefix(settings)}{run.run_id}-{pid}-{started}"}


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


def test_a_run_is_failed_when_its_process_has_ended_and_not_before(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        run = run_of(instance)
        instance.add_run_tags(run.run_id, tag(settings, run, child.pid, started(child.pid)))
        assert fail_abandoned_runs(instance, settings) == [], "it is alive"
    finally:
        child.kill()  # and stays a zombie: nobody has asked for it yet
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is None:
        pass
    assert fail_abandoned_runs(instance, settings) == [run.run_id]
    child.communicate()
    assert fail_abandoned_runs(instance, settings) == []


def test_a_number_that_another_process_has_by_now_does_not_keep_a_run_alive(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    run = run_of(instance)
    instance.add_run_tags(run.run_id, tag(settings, run, os.getpid(), "1"))
    assert fail_abandoned_runs(instance, settings) == [run.run_id]


def test_runs_of_other_hosts_and_tags_of_the_run_before_say_nothing(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    before = run_of(instance)
    run_of(instance, tag(settings, before, 1, "0"))  # tried again, and not yet started
    run_of(instance, {PROCESS_TAG: f"elsewhere-0123-{before.run_id}-1-0"})
    assert fail_abandoned_runs(instance, settings) == []


def steps_in_processes() -> dg.JobDefinition:
    """A job whose step runs in a process of its own."""
    resources = {"settings": dg.ResourceDefinition.hardcoded_resource(load_settings())}
    graph = dg.GraphDefinition(name="distill", node_defs=[naming])
    return graph.to_job(resource_defs=resources, executor_def=dg.multiprocess_executor)


def test_a_run_is_named_by_the_process_that_starts_those_of_its_steps(instance: dg.DagsterInstance) -> None:
    settings = load_settings()
    with dg.execute_job(dg.reconstructable(steps_in_processes), instance) as finished:
        assert finished.success
        run = instance.get_run_by_id(finished.run_id)
    assert run is not None
    assert tag(settings, run, os.getpid(), started(os.getpid())).items() <= run.tags.items()
    assert not process_is_gone(run, settings)


@dg.op(required_resource_keys={"settings"})
def staying(context: dg.OpExecutionContext) -> None:
    name_process(context, context.resources.settings)
    Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
    time.sleep(300)


def a_step_that_stays() -> dg.JobDefinition:
    """A job whose step does not come to its end."""
    resources = {"settings": dg.ResourceDefinition.hardcoded_resource(load_settings())}
    graph = dg.GraphDefinition(name="distill", node_defs=[staying])
    return graph.to_job(resource_defs=resources, executor_def=dg.multiprocess_executor)


@pytest.mark.long
def test_a_step_ends_with_the_process_that_started_it(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    program = (
        f"import dagster as dg; from {__name__} import a_step_that_stays\n"
        "with dg.DagsterInstance.get() as instance:\n"
        "    dg.execute_job(dg.reconstructable(a_step_that_stays), instance)"
    )
    environment = os.environ | {"PID_FILE": str(file), "DAGSTER_HOME": str(instance.root_directory)}
    executor = subprocess.Popen([sys.executable, "-c", program], env=environment)
    assert wait_until(lambda: file.exists() and file.read_text(), 60)
    step = int(file.read_text())
    executor.kill()
    executor.wait()
    assert wait_until(lambda: not Path(f"/proc/{step}").exists(), 10)


def test_a_run_is_named_by_its_process_where_all_steps_run_in_it(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    class Context:
        job_def = job_of(dg.in_process_executor)

    context = Context()
    context.instance, context.run = instance, run_of(instance)  # type: ignore[attr-defined]
    name_process(context, settings)  # type: ignore[arg-type]
    named = instance.get_run_by_id(context.run.run_id)  # type: ignore[attr-defined]
    assert named is not None
    assert tag(settings, named, os.getpid(), started(os.getpid())).items() <= named.tags.items()
    assert not process_is_gone(named, settings)
