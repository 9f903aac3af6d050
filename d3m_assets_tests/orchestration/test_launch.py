"""Launching from a shell, with a real instance."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml

from d3m_assets.assets.graph import GRAPH
from d3m_assets.errors import DatasetError, StageError
from d3m_assets.orchestration.launch import (
    LAUNCHER_TAG,
    ensure_instance_home,
    fail_abandoned_runs,
    open_instance,
    run_pending,
)
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.orchestration.run_process import launcher_prefix
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets_tests.orchestration import fakes
from d3m_assets_tests.orchestration.runs import counts


def dataset(settings: Settings) -> Path:
    """Folder of the dataset."""
    return Path(settings.dataset)


def test_everything_is_made_and_recorded_in_one_run_and_nothing_the_second_time(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    first = run_pending(settings, instance, Pipeline(settings))
    second = run_pending(settings, instance, Pipeline(settings))

    assert first.done.failed == first.done.blocked == first.done.deferred == []
    assert Pipeline(settings).plan().pending() == []
    assert [run.run_id for run in instance.get_runs()] == [first.run_id]
    for asset in GRAPH.names:
        recorded = counts(instance, asset)
        assert len(recorded) == len(Pipeline(settings).keys(asset)), asset
        assert set(recorded.values()) <= {1}, asset
    assert second.run_id is None
    second.raise_for_failures()


def test_classes_come_change_and_go(settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers) -> None:
    run_pending(settings, instance, Pipeline(settings))
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "b", "c"]

    makers.made.clear()
    fakes.add_class(dataset(settings), "d", 9)
    for split in ("train", "test"):
        (dataset(settings) / split / "b").rename(dataset(settings).parent / f"gone-{split}")
    run_pending(settings, instance, Pipeline(settings))

    assert instance.get_dynamic_partitions(CLASSES) == ["a", "c", "d"]
    assert "inverted_embeddings [d, ipc-1]" in makers.made
    assert "inverted_embeddings [a, ipc-1]" not in makers.made
    assert "student_metrics [ipc-1]" in makers.made


def test_what_does_not_depend_on_a_failure_goes_on(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    makers.failing = {"inverted_embeddings [b, ipc-5]"}

    launched = run_pending(settings, instance, Pipeline(settings))

    assert [str(failure.key) for failure in launched.done.failed] == ["inverted_embeddings [b, ipc-5]"]
    assert [str(key) for key in launched.done.blocked] == [
        "synthetic_pool [b, ipc-5]",
        "sample_selection [b, ipc-5]",
        "distilled_bundle [ipc-5]",
        "student_metrics [ipc-5]",
        "pool_audit [ipc-5]",
        "distillation_report",
    ]
    assert "student_metrics [ipc-1]" in makers.made
    assert launched.run_id is not None
    run = instance.get_run_by_id(launched.run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE
    with pytest.raises(StageError, match=r"lower inversion.learning_rate\n6 artefacts that need them"):
        launched.raise_for_failures()

    makers.failing.clear()
    makers.made.clear()
    run_pending(settings, instance, Pipeline(settings)).raise_for_failures()
    assert len(makers.made) == 7


def test_a_limit_leaves_the_rest_for_the_next_run(settings: Settings, instance: dg.DagsterInstance) -> None:
    first = run_pending(settings, instance, Pipeline(settings), limit=4)
    second = run_pending(settings, instance, Pipeline(settings), limit=4)

    assert not first.done.failed
    assert [str(key) for key in first.done.deferred if key.asset == "inverted_embeddings"] == [
        "inverted_embeddings [b, ipc-5]",
        "inverted_embeddings [c, ipc-5]",
    ]
    assert second.done.deferred == []
    assert Pipeline(settings).plan().pending() == []


def test_a_broken_dataset_is_the_callers_error_and_leaves_no_run(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    for image in dataset(settings).glob("train/*/0.png"):
        image.write_bytes(b"")

    with pytest.raises(DatasetError, match=r"train/a/0\.png"):
        run_pending(settings, instance, Pipeline(settings))
    assert instance.get_runs() == []


def test_a_defect_reaches_the_caller_as_it_is(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    def defect(key: object) -> None:
        raise ZeroDivisionError("a defect")

    makers.before = defect

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_pending(settings, instance, Pipeline(settings))
    assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]


CHILD = """
import sys
from pathlib import Path
from d3m_assets.orchestration.launch import open_instance, run_pending
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets_tests.orchestration import fakes

makers = fakes.FakeMakers()
makers.install()
def wait(key):
    if str(key) == "inverted_embeddings [c, ipc-1]":
        print("waiting", flush=True)
        sys.stdin.read()
makers.before = wait
folder = Path(sys.argv[1])
settings = load_settings(
    dataset=str(folder / "dataset"), foundation=str(folder / "foundation"), home=folder / "home",
    budgets=("ipc-1", "ipc-5"), device="cpu", **fakes.FEW_ARTEFACTS,
)
with open_instance(settings) as instance:
    run_pending(settings, instance, Pipeline(settings))
"""


def start_child(settings: Settings) -> "subprocess.Popen[bytes]":
    """A `d3m distill` in the middle of its work."""
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(settings.home.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"waiting\n"
    return child


def test_a_killed_run_keeps_what_was_finished_and_is_carried_on(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    child = start_child(settings)
    try:
        assert counts(instance, "inverted_embeddings") == {"ipc-1|a": 1, "ipc-1|b": 1}
        assert fail_abandoned_runs(instance, settings) == [], "it is alive"
        with (
            pytest.raises(TimeoutError),
            PipelineResource(settings, Pipeline).device_lease(print, timeout=0),
        ):
            pytest.fail("the child holds the device")
    finally:
        child.kill()
        child.wait()

    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.STARTED, "nobody was left to say that it ended"
    assert fail_abandoned_runs(instance, settings) == [run.run_id]
    assert fail_abandoned_runs(instance, settings) == []

    run_pending(settings, instance, Pipeline(settings)).raise_for_failures()
    assert "inverted_embeddings [a, ipc-1]" not in makers.made
    assert "inverted_embeddings [c, ipc-1]" in makers.made


def test_runs_of_other_hosts_and_homes_are_left_alone(
    settings: Settings, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure prevented: one database for several hosts, and each marks the runs of the others as failed."""
    own = launcher_prefix(settings)
    elsewhere = launcher_prefix(settings.model_copy(update={"home": tmp_path / "elsewhere"}))
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "other-host")
        other = launcher_prefix(settings)
    assert len({own, elsewhere, other}) == 3

    runs = [
        instance.add_run(
            dg.DagsterRun("distill", status=dg.DagsterRunStatus.STARTED, tags={LAUNCHER_TAG: f"{prefix}0123"})
        )
        for prefix in (own, elsewhere, other)
    ]

    assert fail_abandoned_runs(instance, settings) == [runs[0].run_id]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_once(settings: Settings, instance: dg.DagsterInstance, stop: signal.Signals) -> None:
    """Failure prevented: waiting in a Dagster pool, a run in a shell answers neither Ctrl-C nor SIGTERM."""
    child = start_child(settings)
    started = time.monotonic()
    child.send_signal(stop)
    _, errors = child.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert errors.decode().rstrip().endswith("KeyboardInterrupt"), "what shells and our command line know"

    (run,) = instance.get_runs()
    assert run.is_finished
    assert counts(instance, "inverted_embeddings") == {"ipc-1|a": 1, "ipc-1|b": 1}


def test_the_instance_is_made_once_and_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    home = ensure_instance_home(settings)
    assert home == settings.home / "dagster"
    assert os.environ["DAGSTER_HOME"] == str(home)

    root = Path(__file__).resolve().parents[2]
    ours, shipped = (yaml.safe_load((folder / "workspace.yaml").read_text()) for folder in (root, home))
    del ours["load_from"][0]["python_module"]["working_directory"]
    assert shipped == ours

    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    assert ensure_instance_home(settings) == home
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    assert ensure_instance_home(settings) == tmp_path / "elsewhere"


def test_the_template_is_what_it_says(settings: Settings, instance: dg.DagsterInstance) -> None:
    assert instance.telemetry_enabled is False
    assert instance.nux_enabled is False
    assert instance.run_monitoring_enabled is True
    assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
    assert (settings.home / "dagster" / "event_log.db").is_file()
    with open_instance(settings) as again:
        assert again.get_dynamic_partitions(CLASSES) == []
