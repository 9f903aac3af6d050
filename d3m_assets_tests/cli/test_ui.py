"""``d3m ui``: what it refuses, and that what it starts ends with it."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from d3m_assets.cli import app
from d3m_assets.errors import InstanceError, SettingsError
from d3m_assets_tests.orchestration.servers import REPOSITORY, needs_servers
from d3m_assets_tests.processes import left_after, marked, needs_proc, new_mark, wait_until


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("D3M_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_it_listens_to_others_only_when_their_names_are_given(home):
    done = CliRunner().invoke(app, ["ui", "--host", "0.0.0.0"])  # noqa: S104
    assert isinstance(done.exception, SettingsError)
    assert "--allow-host" in str(done.exception)
    assert not home.exists()


def test_a_port_that_is_in_use_is_a_sentence(home):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(app, ["ui", "--port", str(port)])
    assert isinstance(done.exception, InstanceError)
    assert f"port {port} of 127.0.0.1 cannot be used" in str(done.exception)
    assert "--port" in str(done.exception)


@pytest.mark.long
@needs_proc
@needs_servers
@pytest.mark.timeout(1800)
def test_a_run_in_progress_ends_with_it(home, tmp_path, image_folder):
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    mark = new_mark()
    settings = {"D3M_DATASET": str(image_folder()), "D3M_INVERSION__STEPS": "100000", "D3M_WORKERS": "2"}
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "d3m_assets.cli", "ui", "--port", str(port)],
            env=os.environ | mark | settings | {"DAGSTER_HOME": ""}, cwd=tmp_path, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def ask(query, **variables):
        answer = httpx.post(
            f"http://localhost:{port}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        return answer.json()["data"]

    def launched():
        query = """mutation($parameters: ExecutionParams!) {launchRun(executionParams: $parameters) {__typename}}"""
        try:
            answer = ask(query, parameters={"selector": REPOSITORY | {"jobName": "distill"}, "runConfigData": {}})
        except httpx.HTTPError:
            return False
        return answer["launchRun"]["__typename"] == "LaunchRunSuccess"

    def inverting():
        runs = ask("{runsOrError {... on Runs {results {status}}}}")["runsOrError"]["results"]
        # Prompts are what inversion begins with.
        return {run["status"] for run in runs} == {"STARTED"} and list(
            home.glob("store/*/class_prompts/**/manifest.json")
        )

    try:
        assert wait_until(launched, 300), (tmp_path / "log").read_text()
        assert wait_until(lambda: ask("{runsOrError {... on Runs {results {status}}}}"), 60)
        assert wait_until(inverting, 300), (tmp_path / "log").read_text()
        os.kill(started.pid, signal.SIGINT)
        started.wait(120)
        assert "ending run" in (tmp_path / "log").read_text()
        assert not left_after(mark, 60)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        started.wait(30)
    from d3m_assets.orchestration.launch import open_instance
    from d3m_assets.settings import load_settings

    with open_instance(load_settings()) as instance:
        assert [run.status.value for run in instance.get_runs()] == ["CANCELED"]


@pytest.mark.long
@needs_proc
@needs_servers
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_everything_ends_with_it_and_a_damaged_database_is_put_aside_at_its_start(home, tmp_path, stop):
    import httpx

    from d3m_assets.orchestration.launch import open_instance
    from d3m_assets.settings import load_settings

    with open_instance(load_settings()):
        database = home / "dagster" / "event_log.db"
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    mark = new_mark()
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "d3m_assets.cli", "ui", "--port", str(port)],
            env=os.environ | mark | {"DAGSTER_HOME": ""}, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def loaded():
        query = "{workspaceOrError {... on Workspace {locationEntries {locationOrLoadError {__typename}}}}}"
        try:
            answer = httpx.post(f"http://localhost:{port}/graphql", json={"query": query}, timeout=60).json()
        except httpx.HTTPError:
            return False
        entries = answer["data"]["workspaceOrError"]["locationEntries"]
        return [entry["locationOrLoadError"]["__typename"] for entry in entries if entry["locationOrLoadError"]]

    try:
        assert wait_until(loaded, 300) == ["RepositoryLocation"], (tmp_path / "log").read_text()
        assert "event_log.db was damaged" in (tmp_path / "log").read_text()
        assert wait_until(lambda: marked(mark, "dagster._daemon"), 10)
        os.kill(started.pid, stop)
        started.wait(120)
        # Of one that was killed, the code server ends when nobody has asked for it for 45 s.
        assert not left_after(mark, 120)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        started.wait(30)
