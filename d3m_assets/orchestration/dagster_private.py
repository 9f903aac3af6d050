"""The names that we use of Dagster's private modules, all in one place: what an upgrade of Dagster can break.

Read in 1.13.27; ``d3m_assets_tests/orchestration/test_dagster_private.py`` names the version and tries each of them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.instance import InstanceRef
from dagster._core.storage.event_log import ConsolidatedSqliteEventLogStorage

EVENTS_ALREADY_LOGGED = SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
"""Metadata of an output that makes no materialisation of its own, because the step has logged all of them."""


def instance_without_captured_output(home: Path) -> dg.DagsterInstance:
    """The instance in a folder, with the output of runs left on the terminal: capturing would take it from the progress."""
    nothing = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides={"compute_logs": nothing}))


@contextlib.contextmanager
def event_log_kept_open(instance: dg.DagsterInstance) -> Iterator[None]:
    """Keep a connection to the event log of our ``dagster.yaml`` open while events are recorded.

    Dagster opens and closes a connection for each of the four statements of an event, and SQLite writes its write-ahead
    log back and deletes it whenever the last connection closes. Nothing happens for other storages.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, ConsolidatedSqliteEventLogStorage):
        yield
        return
    with contextlib.closing(sqlite3.connect(storage.get_db_path())) as connection:
        # A connection counts as open from its first read on; the result is fetched, so that no transaction stays.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        yield
