"""``d3m ui``: Dagster's web page."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from d3m_assets.cli.app import app
from d3m_assets.cli.help import WORK, Command
from d3m_assets.settings import FILE_VARIABLE, load_settings, settings_file


@app.command(cls=Command, rich_help_panel=WORK)
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web page.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open Dagster's web UI and daemon on the same instance as `d3m distill`.

    Example: d3m ui --port 3001
    """
    import subprocess

    from d3m_assets.orchestration.launch import ensure_instance_home

    home = ensure_instance_home(load_settings())
    workspace = str(home / "workspace.yaml")
    command = [sys.executable, "-m", "dagster", "dev", "-w", workspace, "-h", host, "-p", str(port)]
    print(f"http://{host}:{port}  (instance in {home}; Ctrl-C stops it)", flush=True)
    environment = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"}
    if (file := settings_file()) is not None:  # whatever folder the code server, the daemon and their runs are in
        environment[FILE_VARIABLE] = str(file.absolute())
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
