"""What ``d3m ui`` runs: one code server, Dagster's web server and its daemon, each ended by whoever started it.

``dagster dev`` does the same, but its web server takes requests of any site (see
:mod:`~d3m_assets.orchestration.web_access`), and what it started outlives it when it is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from d3m_assets.errors import InstanceError
from d3m_assets.orchestration.dagster_private import code_servers, works_on
from d3m_assets.orchestration.instance_errors import explained
from d3m_assets.orchestration.launch import ensure_instance_home, fail_abandoned_runs, usable_databases
from d3m_assets.orchestration.unfinished import UNFINISHED
from d3m_assets.settings import Settings

SECONDS_TO_END = 20.0


def run_services(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
    read_only: bool = False,
) -> None:
    """Serve the instance until Ctrl-C or SIGTERM.

    Args:
        settings: Whose instance it is.
        environment: Of the services, beside this process's own.
        host: Address of the web page.
        port: Its port.
        allowed_hosts: Names under which others may ask for it.
        read_only: The page can change nothing, and no daemon is started.

    Raises:
        InstanceError: The port is in use, the instance's database cannot be used, or a service ended by itself.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all services have ended.
    """
    _check_port(host, port)
    home = ensure_instance_home(settings)
    print(f"http://{host}:{port}  (instance in {home}; Ctrl-C stops it)", flush=True)
    os.environ.update(environment)
    with (
        explained(home),
        usable_databases(home),
        dg.DagsterInstance.from_config(str(home)) as instance,
        _termination_as_interrupt(),
    ):
        # All storages are opened here once: services that make their tables at the same time fail.
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
        fail_abandoned_runs(instance, settings)
        with (
            code_servers(instance, home / "workspace.yaml") as specs,
            _written(_workspace_file(home, host, port), yaml.safe_dump({"load_from": specs})) as workspace,
        ):
            allowed = [word for name in allowed_hosts for word in ("--allow-host", name)]
            page = ["d3m_assets.orchestration.webserver", "--host", host, "--port", str(port), *allowed]
            commands = {"web server": [*page, *(["--read-only"] if read_only else []), "--workspace", str(workspace)]}
            if not read_only:
                commands["daemon"] = ["dagster._daemon", "run", "--workspace", str(workspace)]
            with _runs_end_with(instance, specs), contextlib.ExitStack() as stack:
                started = {name: stack.enter_context(_owned(command)) for name, command in commands.items()}
                while True:
                    time.sleep(0.5)
                    for name, process in started.items():
                        if process.poll() is not None:
                            raise InstanceError(
                                f"Dagster's {name} ended by itself with status {process.returncode}; the lines above say why"
                            )


def _workspace_file(home: Path, host: str, port: int) -> Path:
    """Where the web server and the daemon read where the code servers are.

    Named by what only one ``d3m ui`` has at a time, so that the next one writes over the file of one that was killed.
    """
    place = re.sub(r"[^\w.-]", "_", f"{socket.gethostname()}-{host}-{port}")
    return home / f".ui-{place}.yaml"


@contextlib.contextmanager
def _written(file: Path, text: str) -> Iterator[Path]:
    """A file for the time of the body."""
    file.write_text(text)
    try:
        yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            if file.read_text() == text:  # and not that of another process, which took the port first
                file.unlink()


@contextlib.contextmanager
def _runs_end_with(instance: dg.DagsterInstance, specs: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Terminate the runs of these code servers afterwards: they would go on for hours without a page to stop them by."""
    try:
        yield
    finally:
        ending = [run for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) if works_on(run, specs)]
        for run in ending:
            print(f"d3m: ending run {run.run_id[:8]}; what it finished is kept", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):  # it has just ended, or its server has
                instance.run_launcher.terminate(run.run_id)
        deadline = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < deadline and not _all_finished(instance, ending):
            time.sleep(0.5)


def _all_finished(instance: dg.DagsterInstance, runs: Sequence[dg.DagsterRun]) -> bool:
    found = [instance.get_run_by_id(run.run_id) for run in runs]
    return all(run is None or run.is_finished for run in found)


@contextlib.contextmanager
def _owned(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs a module and is ended afterwards, also when this one is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "d3m_assets.orchestration.owned_process", *command],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is ours, which ends it in order
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt in the body, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_port(host: str, port: int) -> None:
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InstanceError(
            f"{host} is no address of this machine: {error.strerror or error}; correct --host"
        ) from error
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InstanceError(
            f"port {port} of {host} cannot be used: {error.strerror or error}; name another one with --port"
        ) from error
