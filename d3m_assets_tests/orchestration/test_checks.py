"""Asset checks: in their own runs, and at the end of the job ``distill``."""

import dagster as dg
import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.definitions import build_definitions
from d3m_assets.orchestration.checks import checks_of
from d3m_assets.orchestration.jobs import VERIFY
from d3m_assets.orchestration.launch import run_pending
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.orchestration import fakes
from d3m_assets_tests.orchestration.runs import QUIET

CHECKS = [(asset.name, check.name) for asset, check in checks_of(GRAPH)]
MADE = set(GRAPH.names) - {"teacher_model", "image_codes"}  # no row of these settings needs them


def verify(settings: Settings, instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    """Run the job ``verify``."""
    job = build_definitions(settings).resolve_job_def(VERIFY)
    run = job.execute_in_process(instance=instance, run_config=QUIET)
    return {evaluation.check_name: evaluation for evaluation in run.get_asset_check_evaluations()}


def latest(instance: dg.DagsterInstance) -> dict[str, str]:
    """What the UI shows of each check."""
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), check) for asset, check in CHECKS]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return {key.name: record.status.value for key, record in records.items()}


def test_all_pass_after_everything_was_made(settings: Settings, instance: dg.DagsterInstance) -> None:
    run_pending(settings, instance, Pipeline(settings))

    assert latest(instance) == dict.fromkeys((check for asset, check in CHECKS if asset in MADE), "SUCCEEDED")
    assert all(evaluation.passed for evaluation in verify(settings, instance).values())


def test_before_anything_was_made_only_what_is_missing_is_said(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    found = verify(settings, instance)

    failed = {name: evaluation for name, evaluation in found.items() if not evaluation.passed}
    assert set(failed) == {check for asset, check in CHECKS if asset in MADE}
    assert {evaluation.severity for evaluation in failed.values()} == {dg.AssetCheckSeverity.WARN}
    assert found["every_class_present"].metadata["problems"].value == 4


@pytest.mark.parametrize(
    ("asset", "check"),
    [
        ("inverted_embeddings", "finite_and_within_budget"),
        ("synthetic_pool", "complete_and_of_the_right_classes"),
    ],
)
def test_damage_fails_the_check_by_name(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers, asset: str, check: str
) -> None:
    run_pending(settings, instance, Pipeline(settings))
    makers.damaged = {f"{asset} [b, ipc-1]"}

    found = verify(settings, instance)[check]

    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.ERROR
    assert found.description == f"{asset} [b, ipc-1]: not finite"


def test_the_standing_check_names_what_is_stale_and_why(settings: Settings, instance: dg.DagsterInstance) -> None:
    run_pending(settings, instance, Pipeline(settings))
    pipeline = Pipeline(settings)
    pipeline.store.delete(ArtefactKey("distillation_report"))
    changed = settings.model_copy(update={"seed": 1})

    assert verify(settings, instance)["nothing_stale"].description == "distillation_report is missing: not stored"
    shown = str(verify(changed, instance)["nothing_stale"].metadata["shown"].value)
    assert "inverted_embeddings [a, ipc-1] is out of date: setting seed 0 -> 1" in shown


def test_a_failure_leaves_its_mark_on_the_checks(
    settings: Settings, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    makers.failing = {"inverted_embeddings [b, ipc-5]"}
    run_pending(settings, instance, Pipeline(settings))

    assert latest(instance)["nothing_stale"] == "FAILED"
    assert latest(instance)["every_class_present"] == "SUCCEEDED"
