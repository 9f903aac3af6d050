"""``d3m ui``: Dagster's web page."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from d3m_assets.cli.app import app
from d3m_assets.cli.help import WORK, Command
from d3m_assets.errors import SettingsError
from d3m_assets.settings import FILE_VARIABLE, load_settings, settings_file


@app.command(cls=Command, rich_help_panel=WORK)
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web page.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which others may ask for the page. Repeatable."),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="A page that can change nothing, without a daemon.")
    ] = False,
) -> None:
    """Open Dagster's web UI and daemon on the same instance as `d3m distill`.

    Example: d3m ui --port 3001
    """
    from d3m_assets.orchestration.services import run_services
    from d3m_assets.orchestration.web_access import is_loopback

    if not is_loopback(host):
        if not allow_host:
            raise SettingsError(
                f"--host {host}: Dagster has no login, so whoever reaches the page can start and delete runs. Leave it at "
                "127.0.0.1 and come by `ssh -L 3000:localhost:3000`, or name who it answers to with --allow-host"
            )
        may = "see everything" if read_only else "start and delete runs"
        print(f"d3m: whoever reaches {host}:{port} can {may}: there is no login", file=sys.stderr)
    settings = load_settings()
    environment = {"DAGSTER_DISABLE_TELEMETRY": "1"}
    if (file := settings_file()) is not None:  # whatever folder the code server, the daemon and their runs are in
        environment[FILE_VARIABLE] = str(file.absolute())
    run_services(settings, environment, host=host, port=port, allowed_hosts=allow_host or (), read_only=read_only)
