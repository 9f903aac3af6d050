"""The code location as a whole."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.definitions import build_definitions
from d3m_assets.errors import SettingsError
from d3m_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]

LINEAGE = """\
class_catalog [] <- dataset_files
raw_dataset [class] <- class_catalog class_files
foundation_model [] <-
class_prompts [class] <- raw_dataset
inverted_embeddings [budget|class] <- class_prompts foundation_model raw_dataset
selection_model [] <- raw_dataset
codec_choice [budget] <- raw_dataset selection_model
image_codes [budget|class] <- codec_choice raw_dataset selection_model
synthetic_pool [budget|class] <- class_prompts foundation_model image_codes inverted_embeddings
sample_selection [budget|class] <- raw_dataset selection_model synthetic_pool
payload_choice [budget] <- image_codes raw_dataset sample_selection synthetic_pool
distilled_bundle [budget] <- class_prompts codec_choice foundation_model image_codes inverted_embeddings payload_choice \
sample_selection
teacher_model [] <- raw_dataset
pool_labels [budget|class] <- image_codes payload_choice sample_selection synthetic_pool teacher_model
reference_metrics [budget] <- foundation_model raw_dataset teacher_model
frontier_metrics [] <- foundation_model raw_dataset teacher_model
whole_dataset_metrics [] <- raw_dataset teacher_model
foundation_metrics [] <- class_prompts foundation_model raw_dataset teacher_model
student_metrics [budget] <- class_prompts codec_choice foundation_model image_codes inverted_embeddings payload_choice \
pool_labels raw_dataset sample_selection synthetic_pool teacher_model
pool_audit [budget] <- image_codes payload_choice raw_dataset sample_selection synthetic_pool
distillation_report [] <- distilled_bundle foundation_metrics frontier_metrics image_codes payload_choice pool_audit \
pool_labels raw_dataset reference_metrics sample_selection student_metrics synthetic_pool teacher_model \
whole_dataset_metrics
"""

PROPERTIES = """\
class_catalog in dataset: pandas !images_are_sound
raw_dataset in dataset: pandas !every_class_present
foundation_model in distillation: huggingface pytorch !draws_such_images
class_prompts in distillation: python
inverted_embeddings in distillation: pytorch device !finite_and_within_budget
selection_model in distillation: pytorch safetensors device
codec_choice in distillation: pytorch scikitlearn device
image_codes in distillation: scikitlearn device !decodable_and_within_budget
synthetic_pool in distillation: parquet pytorch device !complete_and_of_the_right_classes
sample_selection in distillation: pytorch scikitlearn device !readable_and_within_budget
payload_choice in distillation: pytorch device
distilled_bundle in distillation: safetensors
teacher_model in evaluation: pytorch safetensors device !knows_the_classes
pool_labels in evaluation: parquet pytorch device
reference_metrics in evaluation: pytorch device
frontier_metrics in evaluation: pytorch device
whole_dataset_metrics in evaluation: pytorch device
foundation_metrics in evaluation: pytorch device
student_metrics in evaluation: pytorch device
pool_audit in evaluation: pytorch scikitlearn device !not_memorised !no_near_duplicates !of_their_class \
!no_class_collapsed
distillation_report in evaluation: html !nothing_stale
"""
"""What the UI and the queue see of each asset; code versions are in the golden fingerprints."""


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
    for name in GRAPH.names:
        node = graph.get(dg.AssetKey(name))
        above = " ".join(sorted(key.to_user_string() for key in node.parent_keys))
        lines.append(f"{name} [{partitioned_by(node.partitions_def)}] <- {above}".rstrip())
    assert "\n".join(lines) + "\n" == LINEAGE


def test_the_properties_of_each_asset_are_those_that_were_agreed() -> None:
    definitions = build_definitions(executor=dg.multiprocess_executor)
    graph = definitions.resolve_asset_graph()
    checks = [
        (key.asset_key.to_user_string(), key.name) for c in definitions.asset_checks or () for key in c.check_keys
    ]
    lines = []
    for name in GRAPH.names:
        node = graph.get(dg.AssetKey(name))
        words = sorted(node.kinds)
        words += ["device"] if definitions.resolve_assets_def(name).op.pool == "gpu" else []
        words += [f"!{check}" for asset, check in checks if asset == name]
        lines.append(f"{name} in {node.group_name}: {' '.join(words)}")
    assert "\n".join(lines) + "\n" == PROPERTIES
    assert graph.materializable_asset_keys == {dg.AssetKey(name) for name in GRAPH.names}
    assert all(graph.get(dg.AssetKey(name)).owners == ["team:d3m-assets"] for name in GRAPH.names)


def test_every_asset_is_described_by_a_sentence() -> None:
    graph = build_definitions().resolve_asset_graph()
    for name in GRAPH.names:
        description = graph.get(dg.AssetKey(name)).description or ""
        assert description.endswith("."), name
        assert len(description.split()) >= 5, name
    shown = graph.get(dg.AssetKey("raw_dataset")).description
    assert shown == (
        "The real images of a class: where they are, their hashes, and their split into train, validation and test. "
        "The images stay where they are."
    )


@pytest.mark.parametrize(("enabled", "status"), [(False, "STOPPED"), (True, "RUNNING")])
def test_automation_starts_only_when_it_is_switched_on(enabled: bool, status: str) -> None:
    definitions = build_definitions(automation={"enabled": enabled, "cron": "0 4 * * *"})

    repository = definitions.get_repository_def()
    assert {sensor.default_status.value for sensor in repository.sensor_defs} == {status}
    assert {schedule.default_status.value for schedule in repository.schedule_defs} == {status}
    assert {schedule.name: schedule.cron_schedule for schedule in repository.schedule_defs} == {
        "nightly_distill": "0 4 * * *",
        "nightly_verify": "0 5 * * *",  # not at the same minute: it would meet the other one every night
    }


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
