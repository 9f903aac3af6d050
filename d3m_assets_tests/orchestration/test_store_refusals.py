"""A store that takes nothing, or does not answer, under runs of Dagster: they end at the first refusal, in a sentence."""

import errno
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.errors import StoreNotWritableError, StoreUnavailableError
from d3m_assets.orchestration.code_location import build_code_location
from d3m_assets.orchestration.launch import run_pending
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.settings import Settings
from d3m_assets.store_access import StoreFiles
from d3m_assets_tests.orchestration.runs import QUIET, counts
from d3m_assets_tests.planning import toys


@pytest.fixture
def context() -> toys.ToyContext:
    """Six classes."""
    return toys.ToyContext({letter: letter for letter in "abcdef"})


@pytest.fixture
def toy_settings(settings: Settings) -> Settings:
    """A store of their own."""
    changes = {"dataset": "/no/such/dataset", "storage": str(settings.home / "toys"), "budgets": ("small", "large")}
    return settings.model_copy(update=changes)


def full_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Let stores take so many files; the probe before the work on each asset is one."""
    put, written = StoreFiles.put, []

    def refuse(self: StoreFiles, path: str, data: bytes) -> None:
        written.append(path)
        if len(written) > files:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        put(self, path, data)

    monkeypatch.setattr(StoreFiles, "put", refuse)


def test_a_run_from_a_shell_ends_at_the_first_file_that_the_store_does_not_take(
    toy_settings: Settings, instance: dg.DagsterInstance, context: toys.ToyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = toys.opener(context)(toy_settings)
    full_after(monkeypatch, 3)
    with pytest.raises(StoreNotWritableError, match="No space left on device.*free some space"):
        run_pending(toy_settings, instance, planner)
    assert context.made == ["toy_word [a]", "toy_word [b]"]
    assert counts(instance, "toy_word") == {"a": 1}
    assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]


def test_a_run_of_assets_fails_every_step_without_work(
    toy_settings: Settings, instance: dg.DagsterInstance, context: toys.ToyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions = build_code_location(toys.GRAPH, toy_settings, toys.opener(context))
    instance.add_dynamic_partitions(CLASSES, list("abcdef"))
    full_after(monkeypatch, 0)
    run = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey("toy_word")],
        tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "f"},
        run_config=QUIET,
        raise_on_error=False,
    )
    assert not run.success
    assert context.made == []
    (step,) = run.get_step_failure_events()
    failure = step.step_failure_data.user_failure_data
    assert failure is not None
    assert str(failure.description).count("No space left on device") == 1
    assert "free some space" in str(failure.description)


def test_a_store_that_does_not_answer_leaves_no_run_and_redoes_nothing(
    toy_settings: Settings, instance: dg.DagsterInstance, context: toys.ToyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = toys.opener(context)(toy_settings)
    run_pending(toy_settings, instance, planner).raise_for_failures()
    context.made.clear()
    get = StoreFiles.get

    def busy(self: StoreFiles, path: str, *arguments: object) -> bytes:
        if Path(path).parent.name == "class=c":
            raise OSError(errno.EBUSY, "SlowDown", path)
        return get(self, path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreFiles, "get", busy)
    with pytest.raises(StoreUnavailableError, match="does not answer just now"):
        run_pending(toy_settings, instance, toys.opener(context)(toy_settings))
    assert context.made == []
    assert len(instance.get_runs()) == 1
