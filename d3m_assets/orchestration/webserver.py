"""Dagster's web server behind :mod:`~d3m_assets.orchestration.web_access`: ``python -m d3m_assets.orchestration.webserver``.

``d3m ui`` starts it, and so does ``deploy/compose.yaml``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import uvicorn
from dagster_webserver.webserver import DagsterWebserver
from graphql import ASTValidationRule, GraphQLError, OperationDefinitionNode, OperationType

from d3m_assets.orchestration.dagster_private import workspace_of
from d3m_assets.orchestration.web_access import LOOPBACK_NAMES, guarded, names_for

SECONDS_TO_CLOSE = 3
"""The page holds websockets open for ever, which the end of the server must not wait for."""


class NoMutations(ASTValidationRule):
    """Refuses GraphQL documents that would change anything. Dagster's own ``read_only`` lets some mutations pass."""

    def enter_operation_definition(self, node: OperationDefinitionNode, *_: Any) -> None:
        """Look at one operation of the document."""
        if node.operation is OperationType.MUTATION:
            self.report_error(
                GraphQLError("this server is read-only: nothing can be started, stopped or deleted", node)
            )


class ReadOnlyWebserver(DagsterWebserver[Any, Any]):
    """Dagster's web server, which executes no mutation."""

    def build_graphql_validation_rules(self) -> Collection[type[ASTValidationRule]]:
        """GraphQL's rules, and ours."""
        return [*super().build_graphql_validation_rules(), NoMutations]


def serve(
    workspace: Path, *, host: str, port: int, allowed_hosts: Sequence[str] = LOOPBACK_NAMES, read_only: bool = False
) -> None:
    """Serve the page of the instance that ``DAGSTER_HOME`` names, until SIGINT or SIGTERM.

    Args:
        workspace: File that names the code locations.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Names that requests may have in ``Host``; all others are refused.
        read_only: Whether no mutation is executed.
    """
    with dg.DagsterInstance.get() as instance, workspace_of(instance, workspace, read_only=read_only) as context:
        kind = ReadOnlyWebserver if read_only else DagsterWebserver[Any, Any]
        server: DagsterWebserver[Any, Any] = kind(context, live_data_poll_rate=2000)
        app = guarded(server.create_asgi_app(), allowed_hosts)
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_CLOSE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--workspace", type=Path, required=True, help="workspace.yaml")
    parser.add_argument(
        "--allow-host", action="append", default=[], help="another name that requests may have in Host; repeatable"
    )
    parser.add_argument("--read-only", action="store_true", help="execute no mutation")
    arguments = parser.parse_args()
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    serve(
        arguments.workspace,
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=names_for(arguments.host, arguments.allow_host),
        read_only=arguments.read_only,
    )


if __name__ == "__main__":
    main()
