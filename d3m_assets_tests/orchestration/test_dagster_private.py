"""The names of Dagster's private modules that we use, each tried, and the version in which they were read."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

import d3m_assets
from d3m_assets.orchestration.dagster_private import EVENTS_ALREADY_LOGGED, instance_without_captured_output
from d3m_assets.orchestration.launch import ensure_instance_home
from d3m_assets.settings import Settings

PACKAGE = Path(d3m_assets.__file__).parent


def private_imports(path: Path) -> set[str]:
    """Private modules of Dagster that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0].startswith("dagster") and "._" in name}


def test_the_version_is_one_that_was_tried() -> None:
    """Read orchestration/dagster_private.py again in a new version, then name it here."""
    assert dg.__version__.startswith("1.13.")


def test_one_file_imports_private_names() -> None:
    users = {path.relative_to(PACKAGE).as_posix(): private_imports(path) for path in PACKAGE.rglob("*.py")}
    assert {file: names for file, names in users.items() if names} == {
        "orchestration/dagster_private.py": {
            "dagster._cli.proxy_server_manager.ProxyServerManager",
            "dagster._core.definitions.data_version.DATA_VERSION_TAG",
            "dagster._core.storage.tags.GRPC_INFO_TAG",
            "dagster._core.definitions.source_asset.SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION",
            "dagster._core.events.DagsterEventType",
            "dagster._core.execution.compute_logs.redirect_to_file",
            "dagster._core.instance.InstanceRef",
            "dagster._core.storage.compute_log_manager.CapturedLogContext",
            "dagster._core.storage.compute_log_manager.ComputeIOType",
            "dagster._core.storage.local_compute_log_manager.IO_TYPE_EXTENSION",
            "dagster._core.storage.local_compute_log_manager.LocalComputeLogManager",
            "dagster._serdes.ConfigurableClassData",
            "dagster._core.storage.event_log.ConsolidatedSqliteEventLogStorage",
            "dagster._core.storage.event_log.SqliteEventLogStorage",
            "dagster._core.storage.runs.SqliteRunStorage",
            "dagster._core.storage.schedules.SqliteScheduleStorage",
            "dagster._core.workspace.context.WorkspaceProcessContext",
            "dagster._core.workspace.load_target.WorkspaceFileTarget",
        }
    }


def test_an_output_with_the_mark_makes_no_event_of_its_own() -> None:
    def asset(metadata: dict[str, bool]) -> dg.AssetsDefinition:
        @dg.asset(name="marked")
        def body(context: dg.AssetExecutionContext) -> dg.Output[None]:
            context.log_event(dg.AssetMaterialization("marked", metadata={"ours": True}))
            return dg.Output(None, metadata=metadata)

        return body

    def materializations(metadata: dict[str, bool]) -> int:
        with dg.DagsterInstance.ephemeral() as instance:
            dg.materialize([asset(metadata)], instance=instance)
            return len(instance.fetch_materializations(dg.AssetKey("marked"), limit=10).records)

    assert materializations({EVENTS_ALREADY_LOGGED: True}) == 1
    assert materializations({}) == 2, "the mark is needed no more: take it out"


def test_output_of_runs_stays_on_the_terminal(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    @dg.op
    def speak() -> None:
        print("a line of progress", flush=True)

    @dg.job
    def speaking() -> None:
        speak()

    home = ensure_instance_home(settings)
    with instance_without_captured_output(home) as instance:
        assert speaking.execute_in_process(instance=instance).success
        assert instance.root_directory == str(home)
    assert "a line of progress" in capfd.readouterr().out


def test_output_of_runs_under_the_daemon_is_in_files_and_no_process_copies_it(
    settings: Settings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.op
    def speak() -> None:
        print("a line of output", flush=True)
        print("a line of an error", file=sys.stderr, flush=True)

    @dg.job
    def speaking() -> None:
        speak()

    def refuse(*command: object, **options: object) -> None:
        raise AssertionError(f"{command} was started")

    with dg.DagsterInstance.from_config(str(ensure_instance_home(settings))) as instance:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        finished = speaking.execute_in_process(instance=instance)
        (event,) = [event for event in finished.all_events if event.event_type == dg.DagsterEventType.LOGS_CAPTURED]
        key = [finished.run_id, "compute_logs", event.logs_captured_data.file_key]
        found = instance.compute_log_manager.get_log_data(key)
        assert instance.compute_log_manager.is_capture_complete(key)
    assert found.stdout == b"a line of output\n"
    assert b"a line of an error" in (found.stderr or b"")
    assert "a line of" not in "".join(capfd.readouterr())


def test_the_class_that_the_shipped_configuration_names_is_there() -> None:
    shipped = yaml.safe_load((PACKAGE / "orchestration" / "dagster.yaml").read_text())
    named = {name: entry for name, entry in shipped.items() if isinstance(entry, dict) and "module" in entry}
    assert {entry["module"] for entry in named.values() if "._" in entry["module"]} == {
        "dagster._core.storage.event_log"
    }
    for entry in named.values():
        assert isinstance(getattr(importlib.import_module(entry["module"]), entry["class"]), type)
