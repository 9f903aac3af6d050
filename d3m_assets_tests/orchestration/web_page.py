"""The web page as `d3m ui` serves it, on an instance of its own, and requests to it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from d3m_assets.orchestration.launch import open_instance
from d3m_assets.settings import load_settings
from d3m_assets_tests.processes import wait_until

DELETE = 'mutation {deletePipelineRun(runId: "%s") {__typename}}'
"""Mutation that deletes a run."""


class Page:
    """A web server on an instance of its own without code locations.

    Args:
        folder: For the instance.
        options: Of the server, beside port and workspace.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", "")
            with open_instance(load_settings(home=folder)):
                self.home = folder / "dagster"
        (folder / "workspace.yaml").write_text("load_from: []\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = ["-m", "d3m_assets.orchestration.owned_process", "d3m_assets.orchestration.webserver", *options]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--port", str(self.port), "--workspace", str(folder / "workspace.yaml")],
                env=os.environ | {"DAGSTER_HOME": str(self.home)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        assert wait_until(self.answers, 120), (folder / "log").read_text()

    def answers(self) -> bool:
        """Whether it is up."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def request(self, method: str, path: str = "/graphql", **given: Any) -> Any:
        """Its answer, without following redirections."""
        import httpx

        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=60, **given)

    @contextlib.contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Its instance, opened here."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", str(self.home))
            with dg.DagsterInstance.get() as instance:
                yield instance

    def mutate(self, run: str, **headers: str) -> Any:
        """The answer to a request to delete a run, as the page sends it."""
        return self.request("POST", json={"query": DELETE % run}, headers=headers)

    def has(self, run: str) -> bool:
        """Whether the instance still has a run."""
        with self.instance() as instance:
            return instance.has_run(run)

    def add_run(self) -> str:
        """A run to delete."""
        with self.instance() as instance:
            return instance.add_run(dg.DagsterRun("distill", status=dg.DagsterRunStatus.FAILURE)).run_id
