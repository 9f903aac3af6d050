"""By the clock: what the daemon's ticks show, whom they tell, and what they leave alone."""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import filelock
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.errors import ScheduleExecutionError
from dagster._core.loader import LoadingContextForTest

from d3m_assets.errors import DatasetError, SettingsError, StoreUnavailableError
from d3m_assets.orchestration import alerts, launch, sensors
from d3m_assets.orchestration.dagster_private import latest_check_evaluation
from d3m_assets.orchestration.jobs import DISTILL, VERIFY
from d3m_assets.orchestration.launch import open_instance, run_pending
from d3m_assets.orchestration.resources import PipelineResource, locks
from d3m_assets.settings import AutomationSettings, Settings, load_settings
from d3m_assets_tests.orchestration.clockwork import Clockwork
from d3m_assets_tests.orchestration.runs import QUIET, counts, run_assets
from d3m_assets_tests.orchestration.runs import launch as launch_request

FRESH, STALE = StaleStatus.FRESH, StaleStatus.STALE
SECRET = "https-part-that-nobody-may-read"


@pytest.fixture
def open_clockwork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clockwork]]:
    """Opens the toys with settings of automation, in an instance of their own."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    with contextlib.ExitStack() as stack:

        def open_clockwork(**automation: Any) -> Clockwork:
            settings = load_settings(dataset="/no/such/dataset", home=tmp_path, automation=automation)
            return Clockwork(settings, stack.enter_context(open_instance(settings)))

        yield open_clockwork


@pytest.fixture
def clockwork(open_clockwork: Callable[..., Clockwork]) -> Clockwork:
    """The toys, with the defaults."""
    return open_clockwork()


@pytest.fixture
def webhook() -> Iterator[SimpleNamespace]:
    """A server that keeps what is posted to it, and answers with ``status``."""
    state = SimpleNamespace(posted=[], status=200)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/{SECRET}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def statuses(clockwork: Clockwork) -> dict[str, StaleStatus]:
    """What the UI shows of the toys."""
    graph, context = clockwork.definitions.resolve_asset_graph(), LoadingContextForTest(clockwork.instance)
    resolver = CachingStaleStatusResolver(clockwork.instance, graph, context)
    places = {"catalog": ("toy_catalog", None), "a": ("toy_word", "a"), "b": ("toy_word", "b")}
    return {place: resolver.get_status(dg.AssetKey(name), key) for place, (name, key) in places.items()}


def observations(clockwork: Clockwork) -> list[tuple[str, str | None]]:
    found = []
    for source in ("toy_dataset", "toy_text"):
        for record in clockwork.instance.fetch_observations(dg.AssetKey(source), limit=1000).records:
            assert record.asset_observation is not None
            found.append((source, record.asset_observation.partition))
    return sorted(found, key=str)


def shown(clockwork: Clockwork, asset: str, check: str) -> tuple[bool, str]:
    found = latest_check_evaluation(clockwork.instance, asset, check)
    assert found is not None
    return found.passed, str(found.description)


def test_a_change_in_the_data_is_stale_at_the_next_tick_before_any_run(clockwork: Clockwork) -> None:
    assert clockwork.follow().success
    assert statuses(clockwork) == {"catalog": FRESH, "a": FRESH, "b": FRESH}

    clockwork.context.texts["a"] = "ant"
    request = clockwork.sensor_tick().run_requests[0]
    assert statuses(clockwork) == {"catalog": STALE, "a": STALE, "b": FRESH}
    passed, description = shown(clockwork, "toy_report", "nothing_stale")
    assert not passed
    assert 'setting text "apple" -> "ant"' in description

    assert launch_request(clockwork.definitions, clockwork.instance, request).success
    assert statuses(clockwork) == {"catalog": FRESH, "a": FRESH, "b": FRESH}
    assert shown(clockwork, "toy_report", "nothing_stale") == (True, "no problem")


def test_ticks_without_a_change_leave_no_events(clockwork: Clockwork) -> None:
    """Failure prevented: an observation of each class each minute is 1.4 million rows a day for a thousand classes."""
    clockwork.follow()
    before = observations(clockwork)
    assert before == [("toy_dataset", None), ("toy_text", "a"), ("toy_text", "b")]
    for _ in range(3):
        assert clockwork.sensor_tick().asset_events == []
    assert observations(clockwork) == before

    clockwork.context.texts["b"] = "bat"
    assert len(clockwork.sensor_tick().asset_events) == 3  # the dataset, the class, and the check of staleness
    assert clockwork.sensor_tick().asset_events == []


def test_a_change_taken_back_is_fresh_again(clockwork: Clockwork) -> None:
    clockwork.follow()
    clockwork.context.texts["a"] = "ant"
    clockwork.sensor_tick()
    clockwork.context.texts["a"] = "apple"
    clockwork.sensor_tick()
    assert statuses(clockwork) == {"catalog": FRESH, "a": FRESH, "b": FRESH}
    assert shown(clockwork, "toy_report", "nothing_stale")[0]


def test_runs_tell_what_they_saw_so_that_staleness_needs_no_sensor(clockwork: Clockwork) -> None:
    run_pending(clockwork.settings, clockwork.instance, clockwork.open(clockwork.settings))
    assert statuses(clockwork) == {"catalog": FRESH, "a": FRESH, "b": FRESH}
    clockwork.context.texts["a"] = "ant"
    run_assets(clockwork.definitions, clockwork.instance, ["toy_word"], "a")
    assert statuses(clockwork) == {"catalog": FRESH, "a": FRESH, "b": FRESH}, "nobody looked at the catalog's source"
    clockwork.sensor_tick()
    assert statuses(clockwork) == {"catalog": STALE, "a": FRESH, "b": FRESH}


def test_a_person_can_have_a_source_looked_at(clockwork: Clockwork) -> None:
    clockwork.follow()
    clockwork.context.texts["a"] = "ant"
    job = clockwork.definitions.resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}
    for source, given in (("toy_dataset", {}), ("toy_text", tags)):
        selected = [dg.AssetKey(source)]
        assert job.execute_in_process(
            instance=clockwork.instance, asset_selection=selected, tags=given, run_config=QUIET
        ).success
    assert statuses(clockwork) == {"catalog": STALE, "a": STALE, "b": FRESH}
    assert observations(clockwork).count(("toy_text", "a")) == 2
    assert observations(clockwork).count(("toy_text", "b")) == 1


def test_what_is_being_made_is_not_called_stale(clockwork: Clockwork) -> None:
    clockwork.follow()
    clockwork.context.texts["a"] = "ant"
    job = clockwork.definitions.resolve_job_def(DISTILL)
    run = clockwork.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)

    clockwork.sensor_tick()
    assert shown(clockwork, "toy_report", "nothing_stale")[0]
    assert clockwork.schedule_tick("nightly_verify").skip_message.startswith(f"run {run.run_id} is making artefacts")

    verify = clockwork.definitions.resolve_job_def(VERIFY)
    assert verify.execute_in_process(instance=clockwork.instance, run_config=QUIET).success
    assert shown(clockwork, "toy_report", "nothing_stale")[0]

    clockwork.instance.report_run_failed(run, "gone")
    assert len(clockwork.schedule_tick("nightly_verify").run_requests) == 1
    assert verify.execute_in_process(instance=clockwork.instance, run_config=QUIET).success
    assert not shown(clockwork, "toy_report", "nothing_stale")[0]


def test_verify_is_one_step_and_does_not_keep_distill_from_starting(clockwork: Clockwork) -> None:
    verify = clockwork.definitions.resolve_job_def(VERIFY)
    assert [node.name for node in verify.nodes] == ["evaluate_checks"]
    clockwork.instance.create_run_for_job(verify, status=dg.DagsterRunStatus.STARTED)
    assert clockwork.sensor_tick().run_requests


def test_verify_stops_when_a_run_begins(clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.follow()
    clockwork.context.texts["a"] = "ant"
    job = clockwork.definitions.resolve_job_def(DISTILL)
    plan = clockwork.open

    def open_while_a_run_begins(settings: Settings, **given: Any) -> Any:
        clockwork.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTING)
        return plan(settings, **given)

    verify = clockwork.definitions.resolve_job_def(VERIFY)
    resources = {"pipelines": PipelineResource(clockwork.settings, open_while_a_run_begins)}
    result = verify.execute_in_process(instance=clockwork.instance, run_config=QUIET, resources=resources)
    assert result.success
    assert result.get_asset_check_evaluations() == []


def test_a_dataset_that_cannot_be_read_is_a_red_tick_and_somebody_is_told_once(
    open_clockwork: Callable[..., Clockwork], webhook: SimpleNamespace
) -> None:
    clockwork = open_clockwork(failure_webhook=webhook.url)
    clockwork.follow()
    cursor = clockwork.cursor

    def red_tick(message: str) -> None:
        clockwork.context.broken = message
        with pytest.raises(DatasetError, match=message):
            clockwork.sensor_tick()

    for copied in range(3):  # each look at a dataset that is being copied finds another file
        red_tick(f"{copied}.png is truncated")
    assert webhook.posted == []
    for _ in range(3):
        red_tick("2.png is truncated")
    assert [posted["text"] for posted in webhook.posted] == ["d3m-assets: nothing can be distilled: 2.png is truncated"]
    assert clockwork.cursor == cursor

    clockwork.context.broken = ""
    assert not clockwork.sensor_tick().run_requests
    red_tick("2.png is truncated")
    red_tick("2.png is truncated")
    assert len(webhook.posted) == 2, "it was mended and broke again"
    with pytest.raises(ScheduleExecutionError) as caught:
        clockwork.schedule_tick("nightly_distill")
    assert str(caught.value.user_exception) == "2.png is truncated"
    assert len(webhook.posted) == 2

    clockwork.context.broken = ""
    clockwork.schedule_tick("nightly_distill")
    clockwork.context.broken = "2.png is truncated"
    with pytest.raises(ScheduleExecutionError):
        clockwork.schedule_tick("nightly_distill")
    assert len(webhook.posted) == 3, "the schedule found it mended, and it broke again"


def test_somebody_is_told_of_a_defect_too(
    open_clockwork: Callable[..., Clockwork], webhook: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clockwork = open_clockwork(failure_webhook=webhook.url)

    def open_badly(settings: Settings, **given: Any) -> Any:
        raise TypeError("a defect")

    monkeypatch.setattr(clockwork, "open", open_badly)
    with pytest.raises(ScheduleExecutionError):
        clockwork.schedule_tick("nightly_distill")
    assert [posted["text"] for posted in webhook.posted] == ["d3m-assets: nothing can be distilled: a defect"]


def test_checks_of_what_cannot_be_read_fail_instead_of_keeping_the_last_result(clockwork: Clockwork) -> None:
    clockwork.follow()
    verify = clockwork.definitions.resolve_job_def(VERIFY)
    verify.execute_in_process(instance=clockwork.instance, run_config=QUIET)
    assert shown(clockwork, "toy_word", "readable") == (True, "no problem")

    clockwork.context.broken = "0.png is truncated"
    with pytest.raises(dg.Failure, match="nothing could be checked: 0.png is truncated"):
        verify.execute_in_process(instance=clockwork.instance, run_config=QUIET)
    for asset, check in (("toy_word", "readable"), ("toy_report", "nothing_stale")):
        assert shown(clockwork, asset, check) == (False, "could not be checked: 0.png is truncated")

    # One check by itself, as from the UI.
    clockwork.context.broken = "1.png is truncated"
    selection = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("toy_word"), "readable"))
    job = dg.define_asset_job("one", selection=selection)
    repository = dg.Definitions(
        assets=clockwork.definitions.assets,
        asset_checks=clockwork.definitions.asset_checks,
        jobs=[job],
        resources=clockwork.definitions.resources,
    )
    one = repository.resolve_job_def("one")
    assert one.execute_in_process(instance=clockwork.instance, run_config=QUIET).success
    assert shown(clockwork, "toy_word", "readable") == (False, "could not be checked: 1.png is truncated")


def test_a_failed_run_reaches_webhook_and_command_with_every_failed_artefact(
    open_clockwork: Callable[..., Clockwork], webhook: SimpleNamespace, tmp_path: Path
) -> None:
    heard = tmp_path / "heard with spaces.json"
    script = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    command = (sys.executable, "-c", script, str(heard))
    clockwork = open_clockwork(failure_webhook=webhook.url, failure_command=command, ui_url="http://ui:3000/")
    clockwork.context.failing = {"b"}
    result = clockwork.follow()
    assert not result.success

    sensor = clockwork.repository.get_sensor_def("run_failures")
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failures",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=clockwork.instance,
        dagster_run=result.dagster_run,
        partition_key=None,
    ).for_run_failure()
    sensor(context)

    (posted,) = webhook.posted
    assert posted["failed"] == ["toy_word [b]: a word that cannot be said"]
    assert posted["run_id"] == result.run_id
    assert posted["job"] == DISTILL
    assert posted["url"] == f"http://ui:3000/runs/{result.run_id}"
    assert "a word that cannot be said" in posted["text"]
    assert json.loads(heard.read_text()) == posted
    events = clockwork.instance.all_logs(result.run_id)
    assert SECRET not in str(events)


def test_without_a_hook_there_is_no_sensor_of_failures(clockwork: Clockwork) -> None:
    assert [sensor.name for sensor in clockwork.repository.sensor_defs] == ["dataset_classes"]


def test_hooks_that_fail_are_logged_without_the_address(
    webhook: SimpleNamespace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = logging.getLogger("alerts")
    webhook.status = 500
    fails = (sys.executable, "-c", "import sys; print('no printer'); sys.exit(3)")
    alerts.send(AutomationSettings(failure_webhook=webhook.url, failure_command=fails), alerts.Alert("x"), log)
    assert "it answered 500" in caplog.text
    assert "status 3: no printer" in caplog.text

    closed = f"http://127.0.0.1:9/{SECRET}"
    alerts.send(AutomationSettings(failure_webhook=closed, failure_command=("/no/such",)), alerts.Alert("x"), log)
    assert "ConnectionRefusedError" in caplog.text
    assert "/no/such" in caplog.text

    monkeypatch.setattr(alerts, "COMMAND_SECONDS", 1.0)
    child = tmp_path / "child"
    sleeps = f"sleep 60 & echo $! > {child}; wait"
    started = time.monotonic()
    alerts.send(AutomationSettings(failure_command=("/bin/sh", "-c", sleeps)), alerts.Alert("x"), log)
    assert time.monotonic() - started < 20
    assert "ran longer than 1 s" in caplog.text
    sleeping = Path(f"/proc/{child.read_text().strip()}/stat")
    until = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError):  # a killed process is gone a moment after the signal, not with it
        while sleeping.read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
            assert time.monotonic() < until
            time.sleep(0.05)
    assert SECRET not in caplog.text


def test_the_address_is_in_no_message_of_the_settings() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(automation={"failure_webhook": f"hooks.example/{SECRET}"})
    assert "automation.failure_webhook" in str(caught.value)
    assert SECRET not in str(caught.value)
    settings = load_settings(automation={"failure_webhook": f"https://hooks.example/{SECRET}"})
    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()


def test_the_report_has_a_freshness_policy_only_if_asked_and_verify_confirms_it(
    open_clockwork: Callable[..., Clockwork], clockwork: Clockwork
) -> None:
    def policies(opened: Clockwork) -> dict[str, Any]:
        nodes = opened.definitions.resolve_asset_graph().asset_nodes
        return {node.key.to_user_string(): node.freshness_policy for node in nodes if node.freshness_policy}

    assert policies(clockwork) == {}
    limited = open_clockwork(max_age_hours=36)
    (name, policy), *rest = policies(limited).items()
    assert (name, rest) == ("toy_report", [])
    assert policy.fail_window.to_timedelta().total_seconds() == 36 * 3600

    limited.follow()
    for opened, expected in ((clockwork, 1), (limited, 2)):
        verify = opened.definitions.resolve_job_def(VERIFY)
        assert verify.execute_in_process(instance=opened.instance, run_config=QUIET).success
        assert counts(limited.instance, "toy_report") == {None: expected}
    limited.context.texts["a"] = "ant"
    verify.execute_in_process(instance=limited.instance, run_config=QUIET)
    assert counts(limited.instance, "toy_report") == {None: 2}, "what is out of date is not confirmed"


def test_no_lock_file_stays_of_runs_that_stopped_or_were_killed(
    clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(key: object) -> None:
        raise KeyboardInterrupt

    clockwork.context.making = stop
    with pytest.raises(KeyboardInterrupt):
        run_pending(clockwork.settings, clockwork.instance, clockwork.open(clockwork.settings))
    folder = locks(clockwork.settings)
    assert not list(folder.glob("run-*.lock"))

    dead, living = (
        folder / f"run-{launch.launcher_prefix(clockwork.settings)}{name}.lock" for name in ("dead", "living")
    )
    dead.touch()
    with filelock.FileLock(living):
        launch.fail_abandoned_runs(clockwork.instance, clockwork.settings)
        assert list(folder.glob("run-*.lock")) == [living]


def test_a_lock_that_was_taken_for_that_of_a_dead_process_before_it_was_held_is_made_again(
    clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = filelock.FileLock.acquire
    removed: list[Path] = []

    def slow(lock: filelock.FileLock, *arguments: object, **given: object) -> object:
        acquired = acquire(lock, *arguments, **given)  # type: ignore[arg-type]
        if not removed:
            removed.append(Path(lock.lock_file))
            removed[0].unlink()
        return acquired

    monkeypatch.setattr(filelock.FileLock, "acquire", slow)
    with launch.run_lock(clockwork.settings) as tag:
        assert removed == [locks(clockwork.settings) / f"run-{tag}.lock"]
        assert removed[0].exists()
    assert not removed[0].exists()


def test_a_tick_records_what_the_store_has_and_dagster_lacks(clockwork: Clockwork) -> None:
    """Failure prevented: a run was killed between commit and event, and nothing is pending, so that no run ever comes."""

    def commit() -> None:
        planner = clockwork.open(clockwork.settings)
        planner.work_through(planner.plan())

    def recorded() -> dict[str, dict[str | None, int]]:
        return {asset: counts(clockwork.instance, asset) for asset in ("toy_catalog", "toy_word", "toy_report")}

    commit()
    once = {"toy_catalog": {None: 1}, "toy_word": dict.fromkeys(clockwork.context.texts, 1), "toy_report": {None: 1}}
    for _ in range(2):
        assert not clockwork.sensor_tick().run_requests
        assert recorded() == once
    # A version that Dagster does not know, of a partition that it knows.
    clockwork.context.texts["a"] += "!"
    commit()
    clockwork.sensor_tick()
    assert recorded() == {
        "toy_catalog": {None: 2},
        "toy_word": once["toy_word"] | {"a": 2},
        "toy_report": {None: 2},
    }


def test_a_tick_asks_for_runs_also_when_it_cannot_record(clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise StoreUnavailableError("SlowDown")

    monkeypatch.setattr(sensors, "recover", busy)
    assert clockwork.sensor_tick().run_requests


def test_a_run_closes_the_workers_that_it_opened_and_no_others(clockwork: Clockwork) -> None:
    clockwork.follow()
    assert clockwork.context.closed == 1
    run_assets(clockwork.definitions, clockwork.instance, ["toy_word"], "a")
    assert clockwork.context.closed >= 2
    closed = clockwork.context.closed
    clockwork.context.texts["a"] = "ant"
    run_pending(clockwork.settings, clockwork.instance, clockwork.open(clockwork.settings))
    assert clockwork.context.closed == closed, "the caller's pipeline is the caller's"
