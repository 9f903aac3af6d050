"""The names that we use of Dagster's private modules, all in one place: what an upgrade of Dagster can break.

Read in 1.13.27; ``d3m_assets_tests/orchestration/test_dagster_private.py`` names the version and tries each of them.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.events import DagsterEventType
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.instance import InstanceRef
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.event_log import ConsolidatedSqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClassData

EVENTS_ALREADY_LOGGED = SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
"""Metadata of an output that makes no materialisation of its own, because the step has logged all of them."""


def instance_without_captured_output(home: Path) -> dg.DagsterInstance:
    """The instance in a folder, with the output of runs left on the terminal: capturing would take it from the progress."""
    nothing = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides={"compute_logs": nothing}))


class OutputInFiles(LocalComputeLogManager):
    """Output of runs in files, where the web page reads it.

    Dagster's own copies it to the terminal as well, by a ``tail`` and a watcher for each stream of a step; the ``tail`` of a
    killed run whose watcher is killed, too, never ends.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """The folder of the instance; files are where Dagster's own manager has them by default."""
        return {"home": dg.StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> OutputInFiles:
        """The manager of ``dagster.yaml``."""
        return cls(str(Path(config_value["home"]) / "storage"), inst_data=inst_data)

    @contextlib.contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        """Have standard output and error of this process in files, in the body."""
        out, err = (
            Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with redirect_to_file(sys.stdout, str(out)), redirect_to_file(sys.stderr, str(err)):
            yield CapturedLogContext(log_key)
        Path(self.complete_artifact_path(log_key)).touch()


def make_database(name: str, home: Path) -> None:
    """Make one of Dagster's SQLite databases with all its tables.

    Args:
        name: Its path below the folder of an instance.
        home: The folder.
    """
    from dagster._core.storage.event_log import SqliteEventLogStorage
    from dagster._core.storage.runs import SqliteRunStorage
    from dagster._core.storage.schedules import SqliteScheduleStorage

    folder = str((home / name).parent)
    makers: dict[str, Callable[[], Any]] = {
        "event_log.db": lambda: ConsolidatedSqliteEventLogStorage(folder),
        "runs.db": lambda: SqliteRunStorage.from_local(folder),
        "index.db": lambda: SqliteEventLogStorage(folder),
        "schedules.db": lambda: SqliteScheduleStorage.from_local(folder),
    }
    storage = makers[Path(name).name]()
    if hasattr(storage, "dispose"):
        storage.dispose()


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


@contextlib.contextmanager
def workspace_of(instance: dg.DagsterInstance, workspace: Path, *, read_only: bool) -> Iterator[Any]:
    """What Dagster's web server needs of a workspace file; ``read_only`` greys out what the page must not do."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    # As `dagster-webserver` by default: milliseconds of a statement, seconds of a connection, connections.
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3_600, max_overflow=20)
    target = WorkspaceFileTarget([str(workspace)])
    with WorkspaceProcessContext(instance, target, version=dg.__version__, read_only=read_only) as context:
        yield context


@contextlib.contextmanager
def code_servers(instance: dg.DagsterInstance, workspace: Path) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The code servers of a workspace file, as ``dagster dev`` runs them for all of its services; they are restarted.

    Yields:
        Entries of ``load_from`` for a workspace file that leads to them.
    """
    from dagster._cli.proxy_server_manager import ProxyServerManager
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    with ProxyServerManager(
        instance, WorkspaceFileTarget([str(workspace)]), code_server_log_level="WARNING"
    ) as servers:
        yield [dict(spec) for spec in servers.get_code_server_specs()]


def works_on(run: dg.DagsterRun, specs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of some code servers works on a run; a run of a shell or of another launcher has no address.

    Args:
        run: The run.
        specs: As :func:`code_servers` yields them.
    """
    address = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    place = address.get("socket"), address.get("port")
    return place != (None, None) and place in [
        (spec["grpc_server"].get("socket"), spec["grpc_server"].get("port")) for spec in specs
    ]


def latest_observed_versions(
    instance: dg.DagsterInstance, asset: str, *, partitioned: bool
) -> Mapping[str | None, str]:
    """The data version that was last observed of each partition of an external asset, in one query."""
    return _latest_versions(instance, asset, DagsterEventType.ASSET_OBSERVATION, partitioned)


def latest_materialized_versions(
    instance: dg.DagsterInstance, asset: str, *, partitioned: bool
) -> Mapping[str | None, str]:
    """The data version of the last materialisation of each partition of an asset, in one query."""
    return _latest_versions(instance, asset, DagsterEventType.ASSET_MATERIALIZATION, partitioned)


def _latest_versions(
    instance: dg.DagsterInstance, asset: str, event_type: DagsterEventType, partitioned: bool
) -> Mapping[str | None, str]:
    key = dg.AssetKey(asset)
    if partitioned:
        tags = instance.event_log_storage.get_latest_tags_by_partition(key, event_type, tag_keys=[DATA_VERSION_TAG])
        return {partition: found[DATA_VERSION_TAG] for partition, found in tags.items() if DATA_VERSION_TAG in found}
    if event_type == DagsterEventType.ASSET_OBSERVATION:
        records = instance.fetch_observations(key, limit=1).records
        event: dg.AssetObservation | dg.AssetMaterialization | None = records[0].asset_observation if records else None
    else:
        records = instance.fetch_materializations(key, limit=1).records
        event = records[0].asset_materialization if records else None
    version = (event.tags or {}).get(DATA_VERSION_TAG) if event else None
    return {None: version} if version else {}


def latest_check_evaluation(instance: dg.DagsterInstance, asset: str, check: str) -> dg.AssetCheckEvaluation | None:
    """The newest finished evaluation of a check; None: it was never evaluated."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), check)
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    event = record.event.dagster_event if record and record.event else None
    finished = event is not None and event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION
    return event.asset_check_evaluation_data if event and finished else None
