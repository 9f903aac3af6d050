"""A process was killed between the commit of an artefact and its event: the next run of any kind records it, once."""

import dagster as dg
import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.definitions import build_definitions
from d3m_assets.errors import StoreUnavailableError
from d3m_assets.orchestration.jobs import DISTILL
from d3m_assets.orchestration.launch import run_pending
from d3m_assets.orchestration.partitions import partition_key
from d3m_assets.orchestration.recovery import STATE
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets_tests.orchestration.runs import QUIET, counts, events, run_assets

UP_TO_PROMPTS = ("class_catalog", "raw_dataset", "class_prompts", "foundation_model")


def commit(settings: Settings, *assets: str) -> None:
    """Make assets in the store without a word to Dagster."""
    pipeline = Pipeline(settings)
    for asset in assets:
        for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
            assert outcome.error is None


def recorded(instance: dg.DagsterInstance) -> dict[str, dict[str | None, int]]:
    return {asset: counts(instance, asset) for asset in GRAPH.names}


def expected(settings: Settings) -> dict[str, dict[str | None, int]]:
    """Every artefact once, as a run that nothing disturbs records them."""
    pipeline = Pipeline(settings)
    return {
        asset: {partition_key(key): 1 for key in pipeline.keys(asset) if not key.replicate} for asset in GRAPH.names
    }


def test_a_run_from_the_shell_records_what_was_not_and_only_that(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    commit(settings, *UP_TO_PROMPTS)
    run_pending(settings, instance, Pipeline(settings), limit=1)
    commit(settings, *GRAPH.names)  # the rest
    assert recorded(instance) != expected(settings)
    assert run_pending(settings, instance, Pipeline(settings)).run_id is None
    assert recorded(instance) == expected(settings)
    states = {event.partition: event.metadata["state"].value for event in events(instance, "inverted_embeddings")}
    assert states["ipc-1|a"] == "made by this run"
    assert states["ipc-5|c"] == STATE
    (catalog,) = events(instance, "class_catalog")
    assert catalog.metadata["loss"].value == 0.5, "with its preview"
    assert catalog.tags is not None
    assert catalog.tags["dagster/data_version"] == catalog.metadata["artefact fingerprint"].value


def test_nothing_is_recorded_without_its_preview_because_the_store_is_busy(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(settings, *UP_TO_PROMPTS, *GRAPH.names)

    def busy(*_: object) -> None:
        raise StoreUnavailableError("SlowDown")

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailableError):
        patch.setattr(Pipeline, "preview", busy)
        run_pending(settings, instance, Pipeline(settings))
    assert not any(recorded(instance).values())
    run_pending(settings, instance, Pipeline(settings))
    assert recorded(instance) == expected(settings)


def test_runs_of_the_daemon_record_it(settings: Settings, instance: dg.DagsterInstance) -> None:
    commit(settings, *UP_TO_PROMPTS)
    definitions = build_definitions(settings)
    job = definitions.resolve_job_def(DISTILL)
    assert job.execute_in_process(instance=instance, run_config=QUIET).success
    assert recorded(instance) == expected(settings)


def test_a_click_on_an_asset_records_it_too_and_its_own_partitions_once(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    commit(settings, *UP_TO_PROMPTS, "inverted_embeddings")
    instance.add_dynamic_partitions("d3m_classes", ["a", "b", "c"])
    run = run_assets(build_definitions(settings), instance, ["inverted_embeddings", "synthetic_pool"], "ipc-1|a")
    assert run.success
    for asset in (*UP_TO_PROMPTS, "inverted_embeddings"):
        assert counts(instance, asset) == expected(settings)[asset], asset
    assert counts(instance, "synthetic_pool") == {"ipc-1|a": 1}
