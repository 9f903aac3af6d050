"""A real webserver and a real daemon on an instance of their own, and what a person does there, through GraphQL."""

import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
import pytest

import d3m_assets.orchestration
from d3m_assets_tests.processes import marked, new_mark, wait_until
from d3m_assets_tests.requirements import need

COMMANDS = [Path(sys.executable).with_name(name) for name in ("dagster-webserver", "dagster-daemon")]

needs_servers = need(
    "servers",
    find_spec("httpx") and all(command.exists() for command in COMMANDS),
    "dagster-webserver, dagster-daemon or httpx not installed; scripts/setup installs them with the extra `test`",
)

REPOSITORY = {"repositoryLocationName": "d3m_assets", "repositoryName": "__repository__"}
SERVERS = ("dagster api grpc", "dagster-webserver", "dagster-daemon", "multiprocessing.resource_tracker")

DAGSTER_YAML = Path(d3m_assets.orchestration.__file__).with_name("dagster.yaml").read_text()
"""The one that is shipped."""

WORKSPACE_YAML = """
load_from:
  - python_module: {module_name: d3m_assets.definitions, location_name: d3m_assets}
"""


class WebPage:
    """What a person does on the page of a web server of this machine.

    Args:
        port: Of the server.
    """

    def __init__(self, port):
        self.port = port

    def ask(self, query, **variables):
        """The answer to a GraphQL query."""
        import httpx

        url = f"http://127.0.0.1:{self.port}/graphql"
        answer = httpx.post(url, json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def loaded(self):
        """Whether the webserver has loaded the code location."""
        import httpx

        query = """{workspaceOrError {... on Workspace {locationEntries {
            locationOrLoadError {__typename ... on PythonError {message}}}}}}"""
        try:
            entries = self.ask(query)["workspaceOrError"]["locationEntries"]
        except httpx.HTTPError:
            return False
        found = [entry["locationOrLoadError"] for entry in entries if entry["locationOrLoadError"]]
        assert all(location["__typename"] == "RepositoryLocation" for location in found), found
        return bool(found)

    def register(self, class_keys):
        """Add classes as the UI does."""
        query = """mutation($repository: RepositorySelector!, $key: String!) {addDynamicPartition(
            repositorySelector: $repository, partitionsDefName: "d3m_classes", partitionKey: $key) {__typename}}"""
        for key in class_keys:
            answer = self.ask(query, repository=REPOSITORY, key=key)["addDynamicPartition"]
            assert answer["__typename"] == "AddDynamicPartitionSuccess", answer

    def launch(self, assets, first, last):
        """Materialise a range of partitions in one run, as a click in the UI does; gives its id."""
        query = """mutation($parameters: ExecutionParams!) {launchRun(executionParams: $parameters) {
            __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"""
        selection = [{"path": [asset]} for asset in assets]
        span = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        parameters = {
            "selector": REPOSITORY | {"jobName": "__ASSET_JOB", "assetSelection": selection, "assetCheckSelection": []},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in span.items()]},
        }
        answer = self.ask(query, parameters=parameters)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def launch_job(self, job):
        """Launch a job, as a click on *Launch run* does; gives the run's id."""
        query = """mutation($parameters: ExecutionParams!) {launchRun(executionParams: $parameters) {
            __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"""
        parameters = {"selector": REPOSITORY | {"jobName": job}, "runConfigData": {}}
        answer = self.ask(query, parameters=parameters)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def runs(self):
        """Ids of all runs, the newest first."""
        results = self.ask("{runsOrError {... on Runs {results {runId}}}}")["runsOrError"]["results"]
        return [run["runId"] for run in results]

    def status(self, run):
        """Status of a run."""
        query = "query($run: ID!) {runOrError(runId: $run) {... on Run {status}}}"
        return self.ask(query, run=run)["runOrError"]["status"]

    def messages(self, run):
        """The messages of a run's events, a line each."""
        query = """query($run: ID!) {logsForRun(runId: $run) {... on EventConnection {events {
            ... on MessageEvent {message}}}}}"""
        return "\n".join(event["message"] for event in self.ask(query, run=run)["logsForRun"]["events"] if event)

    def times(self, run):
        """When a run was created, started and ended, and the seconds of each of its steps."""
        query = """query($run: ID!) {runOrError(runId: $run) {... on Run {
            creationTime startTime endTime stepStats {stepKey startTime endTime}}}}"""
        found = self.ask(query, run=run)["runOrError"]
        steps = {step["stepKey"]: step["endTime"] - step["startTime"] for step in found.pop("stepStats")}
        return found | {"steps": steps}

    def wait_for_end(self, run, seconds):
        """Status of a run when it has ended or the time is over."""

        def ended():
            time.sleep(1)
            return self.status(run) in ("SUCCESS", "FAILURE", "CANCELED")

        wait_until(ended, seconds)
        return self.status(run)

    def terminate(self, run):
        """*Terminate* in the UI."""
        query = "mutation($run: String!) {terminateRun(runId: $run) {__typename ... on PythonError {message}}}"
        answer = self.ask(query, run=run)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer


class Servers(WebPage):
    """A webserver and a daemon on one instance.

    Args:
        folder: For the instance, and the logs of the servers.
        environment: What decides about dataset, store and settings.
    """

    def __init__(self, folder, environment):
        self.mark = new_mark()
        self.folder = folder / "dagster"
        self.folder.mkdir()
        (self.folder / "dagster.yaml").write_text(DAGSTER_YAML)
        (self.folder / "workspace.yaml").write_text(WORKSPACE_YAML)
        own = {"DAGSTER_HOME": str(self.folder), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
        self.environment = os.environ | environment | own | self.mark
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            super().__init__(probe.getsockname()[1])

    def __enter__(self):
        self.make_databases()
        for command in COMMANDS:
            self.start(command.name)
        assert wait_until(self.loaded, 240), self.logs()
        return self

    def start(self, name):
        """Start ``dagster-webserver`` or ``dagster-daemon``; it goes on with the log of one before it."""
        (command,) = (command for command in COMMANDS if command.name == name)
        more = ["-h", "127.0.0.1", "-p", str(self.port)] if name == "dagster-webserver" else ["run"]
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                [str(command), *more, "-w", str(self.folder / "workspace.yaml")],
                env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def __exit__(self, *error):
        # By the mark, since code servers, runs and workers are in groups of their own.
        def end():
            for pid in marked(self.mark):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            return not marked(self.mark)

        assert wait_until(end, 30)

    def make_databases(self):
        """Else the servers do, both at once, and one of them fails."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", str(self.folder))
            with dg.DagsterInstance.from_config(str(self.folder)) as instance:
                assert instance.run_storage and instance.event_log_storage and instance.schedule_storage
                assert instance.get_runs_count() == 0

    def logs(self):
        """The ends of the servers' logs, for the message of a failure."""
        return "\n".join(log.read_text()[-3000:] for log in self.folder.glob("*.log"))

    def working(self):
        """Runs, steps and their workers: all processes but the servers, by process id."""
        return {p: args for p, args in marked(self.mark).items() if not any(server in args for server in SERVERS)}

    def left_after(self, seconds):
        """What of :meth:`working` is still there after that time."""
        wait_until(lambda: not self.working(), seconds)
        return self.working()


def as_environment(settings):
    """Settings by dotted names as environment variables."""
    return {
        "D3M_" + name.upper().replace(".", "__"): value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }
