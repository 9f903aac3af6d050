"""Sensor and schedule, tick by tick, with real runs between the ticks."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest

from d3m_assets.definitions import build_definitions
from d3m_assets.errors import DatasetError
from d3m_assets.orchestration.launch import LAUNCHER_TAG
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.orchestration.run_process import launcher_prefix
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets_tests.orchestration import fakes
from d3m_assets_tests.orchestration.runs import launch


class Tick(NamedTuple):
    """What a tick came to."""

    requests: list[dg.RunRequest]
    reason: str | None


class Automation:
    """The daemon's part: evaluates ticks and launches what they request."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.definitions = build_definitions(settings)
        self.repository = self.definitions.get_repository_def()
        self.resources = {"pipelines": PipelineResource(settings, Pipeline)}
        self.instance = instance
        self.dataset = Path(settings.dataset)
        self.cursor: str | None = None

    def sensor_tick(self) -> Tick:
        """One tick of the sensor; partitions change at once, runs do not start."""
        with dg.build_sensor_context(
            self.instance, cursor=self.cursor, repository_def=self.repository, resources=self.resources
        ) as context:
            data = self.repository.get_sensor_def("dataset_classes").evaluate_tick(context)
        self.cursor = data.cursor
        for request in data.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(CLASSES, list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition(CLASSES, key)
        return Tick(list(data.run_requests or []), data.skip_message)

    def schedule_tick(self) -> Tick:
        """One tick of the schedule, always of the same day: requests and the reason for none."""
        with dg.build_schedule_context(
            self.instance,
            scheduled_execution_time=datetime(2026, 11, 3, tzinfo=UTC),
            repository_def=self.repository,
            resources=self.resources,
        ) as context:
            data = self.repository.get_schedule_def("nightly_distill").evaluate_tick(context)
        return Tick(list(data.run_requests or []), data.skip_message)

    def launch(self, request: dg.RunRequest) -> bool:
        """Run a request; a run key that was used before is dropped, as the daemon does."""
        if self.instance.get_runs(filters=dg.RunsFilter(tags={"dagster/run_key": str(request.run_key)})):
            return False
        launch(self.definitions, self.instance, request)
        return True


@pytest.fixture
def automation(settings: Settings, instance: dg.DagsterInstance) -> Automation:
    """Automation over the three classes."""
    return Automation(settings, instance)


def only(requests: Sequence[dg.RunRequest]) -> dg.RunRequest:
    """The single request of a tick."""
    assert len(requests) == 1
    return requests[0]


def test_the_sensor_follows_new_changed_and_vanished_classes(
    automation: Automation, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    first = automation.sensor_tick()
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "b", "c"]
    assert automation.launch(only(first.requests))
    assert str(automation.sensor_tick().reason) == "everything is up to date"

    makers.made.clear()
    fakes.write_image(automation.dataset / "train" / "a" / "new.png", 77)
    assert automation.launch(only(automation.sensor_tick().requests))
    assert "inverted_embeddings [a, ipc-1]" in makers.made
    assert "inverted_embeddings [b, ipc-1]" not in makers.made

    for split in ("train", "test"):
        (automation.dataset / split / "c").rename(automation.dataset.parent / f"gone-{split}")
    last = automation.sensor_tick()
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "b"]
    makers.made.clear()
    assert automation.launch(only(last.requests))
    assert "student_metrics [ipc-1]" in makers.made
    assert not automation.sensor_tick().requests


def test_the_sensor_asks_once_for_what_fails_and_again_when_it_changes(
    automation: Automation, makers: fakes.FakeMakers
) -> None:
    """Failure prevented: a condition that retries what failed launches a failing run at every tick, for ever."""
    makers.failing = {"inverted_embeddings [b, ipc-1]", "inverted_embeddings [b, ipc-5]"}
    assert automation.launch(only(automation.sensor_tick().requests))

    for _ in range(2):
        tick = automation.sensor_tick()
        assert not tick.requests
        assert "failed before" in str(tick.reason)

    makers.failing.clear()
    fakes.write_image(automation.dataset / "train" / "b" / "new.png", 77)
    assert automation.launch(only(automation.sensor_tick().requests))
    assert str(automation.sensor_tick().reason) == "everything is up to date"


def test_the_sensor_waits_for_the_run_it_started(automation: Automation, instance: dg.DagsterInstance) -> None:
    request = only(automation.sensor_tick().requests)
    job = automation.definitions.resolve_job_def("distill")
    run = instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED)

    fakes.add_class(automation.dataset, "d", 9)
    tick = automation.sensor_tick()
    assert f"run {run.run_id} is at it" in str(tick.reason)
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "b", "c", "d"]

    instance.report_run_failed(run, "killed")
    assert only(automation.sensor_tick().requests), "the new class was not asked for yet"


def test_a_dataset_that_is_being_copied_changes_nothing(automation: Automation, instance: dg.DagsterInstance) -> None:
    automation.sensor_tick()
    cursor = automation.cursor
    for folder in (automation.dataset / "train").iterdir():
        (folder / "half.png").write_bytes(b"\x89PNG")

    with pytest.raises(DatasetError, match="train/b/half.png"):  # a red tick, not a grey one like "up to date"
        automation.sensor_tick()

    assert automation.cursor == cursor
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "b", "c"]


def test_a_broken_class_is_tried_once_and_again_when_it_is_mended(
    automation: Automation, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    """Failure prevented: a truncated image stops every class, or retires its own, and someone has to start what waited."""
    half = automation.dataset / "train" / "b" / "half.png"
    half.write_bytes(b"\x89PNG")
    makers.failing = {"raw_dataset [b]"}
    assert automation.launch(only(automation.sensor_tick().requests))
    assert "synthetic_pool [a, ipc-1]" in makers.made
    assert "synthetic_pool [b, ipc-1]" not in makers.made
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "b", "c"]
    assert not automation.sensor_tick().requests

    half.unlink()
    makers.failing.clear()
    makers.made.clear()
    assert automation.launch(only(automation.sensor_tick().requests))
    assert "synthetic_pool [b, ipc-1]" in makers.made
    assert "synthetic_pool [a, ipc-1]" not in makers.made
    assert str(automation.sensor_tick().reason) == "everything is up to date"


def test_the_schedule_tries_again_what_failed_once_a_tick(automation: Automation, makers: fakes.FakeMakers) -> None:
    makers.failing = {"inverted_embeddings [b, ipc-1]"}
    keys = set()
    for _ in range(3):
        request = only(automation.schedule_tick().requests)
        assert automation.launch(request), "a used run key would be dropped in silence"
        keys.add(request.run_key)
    assert len(keys) == 3

    makers.failing.clear()
    assert automation.launch(only(automation.schedule_tick().requests))
    assert automation.schedule_tick() == ([], "everything is up to date")


def test_the_same_wish_is_not_launched_twice(automation: Automation) -> None:
    first = only(automation.schedule_tick().requests)
    second = only(automation.schedule_tick().requests)

    assert first.run_key == second.run_key
    assert automation.launch(first)
    assert not automation.launch(second)


def test_the_schedule_does_not_wait_for_the_dead(
    automation: Automation, instance: dg.DagsterInstance, settings: Settings
) -> None:
    job = automation.definitions.resolve_job_def("distill")
    started = dg.DagsterRunStatus.STARTED
    alive = instance.create_run_for_job(job, status=started)
    assert automation.schedule_tick() == ([], f"run {alive.run_id} is at it; 37 artefacts pending")
    instance.report_run_failed(alive, "done")

    dead = instance.create_run_for_job(job, status=started, tags={LAUNCHER_TAG: f"{launcher_prefix(settings)}0123"})
    assert automation.schedule_tick().requests
    found = instance.get_run_by_id(dead.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.FAILURE


def test_a_tick_asks_for_no_more_than_the_limit(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    limited = settings.model_copy(
        update={"automation": settings.automation.model_copy(update={"max_partitions_per_tick": 2})}
    )
    automation = Automation(limited, instance)

    rounds = 0
    while requests := automation.sensor_tick().requests:
        makers.made.clear()
        assert automation.launch(only(requests))
        assert sum(made.startswith("inverted_embeddings") for made in makers.made) <= 2
        rounds += 1

    assert rounds == 3
    assert Pipeline(settings).plan().pending() == []


def test_what_a_failure_kept_from_being_tried_is_asked_for_at_the_next_tick(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    """Failure prevented: a failed partition takes a place under the limit, and what it displaced is forgotten."""
    limited = settings.model_copy(
        update={"automation": settings.automation.model_copy(update={"max_partitions_per_tick": 2})}
    )
    automation = Automation(limited, instance)
    makers.failing = {"inverted_embeddings [a, ipc-1]"}

    for _ in range(12):
        if not (requests := automation.sensor_tick().requests):
            break
        assert automation.launch(only(requests))

    made = {made for made in makers.made if made.startswith("inverted_embeddings")}
    assert len(made) == 5


def limited_to(settings: Settings, limit: int) -> Settings:
    """The settings with at most so many artefacts of each asset in a run."""
    return settings.model_copy(
        update={"automation": settings.automation.model_copy(update={"max_partitions_per_tick": limit})}
    )


@pytest.mark.parametrize("by", ["sensor", "schedule"])
def test_broken_classes_do_not_keep_sound_ones_out(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers, by: str
) -> None:
    """Failure prevented: as many broken classes as the limit, first in the plan, and the sound ones are never made."""
    automation = Automation(limited_to(settings, 2), instance)
    makers.failing = {"raw_dataset [a]", "raw_dataset [b]"}

    for _ in range(6):
        requests = (automation.sensor_tick() if by == "sensor" else automation.schedule_tick()).requests
        if requests:
            automation.launch(only(requests))

    assert {"synthetic_pool [c, ipc-1]", "synthetic_pool [c, ipc-5]"} <= set(makers.made)
    assert "raw_dataset [a]" not in makers.made


def test_what_a_person_started_is_not_done_twice(automation: Automation, instance: dg.DagsterInstance) -> None:
    run = instance.add_run(dg.DagsterRun("__ASSET_JOB", status=dg.DagsterRunStatus.STARTED))

    for tick in (automation.sensor_tick(), automation.schedule_tick()):
        assert not tick.requests
        assert f"run {run.run_id} is at it" in str(tick.reason)
