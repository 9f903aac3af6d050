"""The code location as a whole."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.definitions import build_definitions
from d3m_assets.errors import SettingsError
from d3m_assets.pipeline import ASSETS
from d3m_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]

GRAPH = """\
class_catalog [] <-
raw_dataset [class] <- class_catalog
foundation_model [] <-
class_prompts [class] <- raw_dataset
inverted_embeddings [budget|class] <- class_prompts foundation_model raw_dataset
synthetic_pool [budget|class] <- class_prompts foundation_model inverted_embeddings
repeated_pools [budget|class] <- class_prompts foundation_model raw_dataset
distilled_bundle [budget] <- class_prompts foundation_model inverted_embeddings
teacher_model [] <- raw_dataset
pool_labels [budget|class] <- repeated_pools synthetic_pool teacher_model
reference_metrics [budget] <- foundation_model raw_dataset teacher_model
whole_dataset_metrics [] <- raw_dataset teacher_model
foundation_metrics [] <- class_prompts foundation_model raw_dataset teacher_model
student_metrics [budget] <- pool_labels raw_dataset repeated_pools synthetic_pool teacher_model
pool_audit [budget] <- raw_dataset synthetic_pool
distillation_report [] <- distilled_bundle foundation_metrics pool_audit pool_labels raw_dataset reference_metrics \
student_metrics synthetic_pool teacher_model whole_dataset_metrics
"""


def partitioned_by(definition: dg.PartitionsDefinition | None) -> str:
    """Short name of a partitions definition."""
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return "|".join(dimension.name for dimension in definition.partitions_defs)
    names = {dg.DynamicPartitionsDefinition: "class", dg.StaticPartitionsDefinition: "budget", type(None): ""}
    return names[type(definition)]


def test_everything_loads() -> None:
    dg.Definitions.validate_loadable(build_definitions())


def test_the_graph_is_the_one_that_was_agreed() -> None:
    graph = build_definitions().resolve_asset_graph()
    lines = []
    for name in ASSETS:
        node = graph.get(dg.AssetKey(name))
        above = " ".join(sorted(key.to_user_string() for key in node.parent_keys))
        lines.append(f"{name} [{partitioned_by(node.partitions_def)}] <- {above}".rstrip())
    assert "\n".join(lines) + "\n" == GRAPH


def test_every_asset_says_whose_and_what_it_is() -> None:
    graph = build_definitions().resolve_asset_graph()
    assert graph.materializable_asset_keys == {dg.AssetKey(name) for name in ASSETS}
    for name, info in ASSETS.items():
        node = graph.get(dg.AssetKey(name))
        assert node.owners, name
        assert node.group_name in {"dataset", "distillation", "evaluation"}, name
        assert node.description == info.description, name
        assert node.code_version == info.code_version, name
        assert node.kinds == set(info.kinds), name


@pytest.mark.parametrize(("enabled", "status"), [(False, "STOPPED"), (True, "RUNNING")])
def test_automation_starts_only_when_it_is_switched_on(enabled: bool, status: str) -> None:
    definitions = build_definitions(automation={"enabled": enabled, "cron": "0 4 * * *"})

    repository = definitions.get_repository_def()
    assert {sensor.default_status.value for sensor in repository.sensor_defs} == {status}
    assert {schedule.default_status.value for schedule in repository.schedule_defs} == {status}
    assert {schedule.cron_schedule for schedule in repository.schedule_defs} == {"0 4 * * *"}


def test_settings_reach_the_definitions() -> None:
    definitions = build_definitions(budgets=("ipc-2", "4KiB"))

    partitions = definitions.resolve_assets_def("student_metrics").partitions_def
    assert partitions is not None
    assert list(partitions.get_partition_keys()) == ["ipc-2", "4KiB"]
    with pytest.raises(SettingsError, match="budget"):
        build_definitions(budgetss=("ipc-1",))
    with pytest.raises(TypeError, match="not both"):
        build_definitions(load_settings(), seed=1)


def test_the_executor_can_be_another_one() -> None:
    definitions = build_definitions(executor=dg.in_process_executor)
    assert definitions.resolve_implicit_global_asset_job_def().executor_def == dg.in_process_executor


def test_importing_the_definitions_loads_no_model_library() -> None:
    """Failure prevented: every Dagster process pays 19 s and 415 MB for an import of diffusers."""
    code = (
        "import sys, d3m_assets.definitions\n"
        "heavy = ('pandas', 'torch', 'diffusers', 'transformers', 'sklearn', 'matplotlib', 'scipy', 'safetensors')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_workspace_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(ROOT / "workspace.yaml")]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr[-2000:]
    assert "Validation successful for code location d3m_assets" in run.stdout + run.stderr
