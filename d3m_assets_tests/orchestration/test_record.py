"""Runs of assets: many partitions in one run, each recorded when it is finished."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.definitions import build_definitions
from d3m_assets.orchestration.launch import open_instance, run_pending
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.orchestration import fakes
from d3m_assets_tests.orchestration.runs import counts, events, failed_partitions, run_assets

BOTH = ["ipc-1|a", "ipc-1|b", "ipc-1|c", "ipc-5|a", "ipc-5|b", "ipc-5|c"]


@pytest.fixture
def definitions(settings: Settings, instance: dg.DagsterInstance) -> dg.Definitions:
    """Definitions with the classes registered and everything above the embeddings made."""
    instance.add_dynamic_partitions(CLASSES, ["a", "b", "c"])
    pipeline = Pipeline(settings)
    for asset in ("class_catalog", "raw_dataset", "class_prompts", "foundation_model"):
        assert all(outcome.error is None for outcome in pipeline.materialize(asset, pipeline.keys(asset)))
    return build_definitions(settings)


def test_one_run_takes_a_grid_of_partitions_through_two_assets(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    """Failure prevented: an asset that yields nothing makes Dagster skip the asset below in the same run."""
    run = run_assets(definitions, instance, ["inverted_embeddings", "synthetic_pool"], "ipc-1|a", "ipc-5|c")

    assert run.success
    assert counts(instance, "inverted_embeddings") == dict.fromkeys(BOTH, 1)
    assert counts(instance, "synthetic_pool") == dict.fromkeys(BOTH, 1)


def test_a_class_that_fails_does_not_hide_those_that_finished(
    definitions: dg.Definitions, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    makers.failing = {"inverted_embeddings [b, ipc-1]"}

    run = run_assets(definitions, instance, ["inverted_embeddings"], "ipc-1|a", "ipc-5|c")

    assert not run.success
    assert counts(instance, "inverted_embeddings") == {key: 1 for key in BOTH if key != "ipc-1|b"}
    assert failed_partitions(definitions, instance, "inverted_embeddings") == {"ipc-1|b"}
    (step,) = run.get_step_failure_events()
    failure = step.step_failure_data.user_failure_data
    assert failure is not None
    assert "lower inversion.learning_rate" in str(failure.description)
    assert sum(made.startswith("inverted_embeddings") for made in makers.made) == 5


def test_what_is_up_to_date_is_shown_but_not_made_again_unless_forced(
    definitions: dg.Definitions, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    makers.made.clear()
    run_assets(definitions, instance, ["inverted_embeddings"], "ipc-1|a")
    run_assets(definitions, instance, ["inverted_embeddings"], "ipc-1|a")
    run_assets(definitions, instance, ["inverted_embeddings"], "ipc-1|a", force=True)

    assert makers.made == ["inverted_embeddings [a, ipc-1]"] * 2
    states = [event.metadata["state"].value for event in events(instance, "inverted_embeddings")]
    assert states == ["made by this run", "was up to date, nothing done", "made by this run"]


def test_a_defect_in_the_middle_leaves_what_was_finished_recorded(
    definitions: dg.Definitions, instance: dg.DagsterInstance, makers: fakes.FakeMakers
) -> None:
    def defect(key: ArtefactKey) -> None:
        if key.class_key == "c":
            raise ZeroDivisionError

    makers.before = defect
    run = run_assets(definitions, instance, ["inverted_embeddings"], "ipc-1|a", "ipc-1|c")

    assert not run.success
    assert counts(instance, "inverted_embeddings") == {"ipc-1|a": 1, "ipc-1|b": 1}


def test_a_partition_of_a_vanished_class_is_refused_by_name(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions(CLASSES, ["gone"])

    run = run_assets(definitions, instance, ["raw_dataset"], "c", "gone")

    assert not run.success
    assert counts(instance, "raw_dataset") == {"a": 1, "b": 1, "c": 1}, "the others were in the store, and not recorded"
    assert "raw_dataset [gone] is not in the dataset" in str(run.get_step_failure_events())


def test_what_the_settings_do_without_is_passed_over(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    """Failure prevented: "materialize all" in the UI fails at a teacher that no row needs, and everything below it."""
    assert run_assets(definitions, instance, ["teacher_model"]).success
    assert counts(instance, "teacher_model") == {}


def test_metadata_and_data_version_name_the_artefact(
    definitions: dg.Definitions, instance: dg.DagsterInstance, settings: Settings
) -> None:
    run_assets(definitions, instance, ["inverted_embeddings"], "ipc-1|a")

    (event,) = events(instance, "inverted_embeddings")
    key = ArtefactKey("inverted_embeddings", "a", "ipc-1")
    manifest = Pipeline(settings).store.manifest(key)
    assert manifest is not None
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == manifest.fingerprint == event.metadata["artefact fingerprint"].value
    assert event.metadata["stored bytes"].value == manifest.files["data.parquet"].bytes
    assert event.metadata["dagster/partition_row_count"].value == 3
    assert str(event.metadata["dagster/uri"].value).endswith("inverted_embeddings/budget=ipc-1/class=a")


def test_a_preview_that_fails_does_not_fail_the_artefact(
    definitions: dg.Definitions, instance: dg.DagsterInstance, makers: fakes.FakeMakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(context: object, item: object) -> dict[str, object]:
        raise ValueError("no such picture")

    monkeypatch.setattr(GRAPH["foundation_model"], "preview", broken)

    assert run_assets(definitions, instance, ["foundation_model"]).success
    (event,) = events(instance, "foundation_model")
    assert "stored bytes" in event.metadata
    assert "loss" not in event.metadata


def test_the_real_makers_leave_something_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assets that need no model, unfaked."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings = fakes.make_settings(tmp_path)
    with open_instance(settings) as instance:
        instance.add_dynamic_partitions(CLASSES, ["a", "b", "c"])
        assert run_assets(build_definitions(settings), instance, ["class_catalog", "foundation_model"]).success
        assert run_assets(build_definitions(settings), instance, ["raw_dataset", "class_prompts"], "a", "c").success

        picture = events(instance, "raw_dataset")[0].metadata["real images"]
        assert isinstance(picture, dg.MarkdownMetadataValue)
        assert str(picture.value).startswith("![real images](data:image/png;base64,iVBOR")
        assert events(instance, "class_catalog")[0].metadata["dagster/row_count"].value == 3
        assert counts(instance, "class_prompts") == {"a": 1, "b": 1, "c": 1}


def test_dagsters_staleness_agrees_with_the_plan(
    definitions: dg.Definitions, instance: dg.DagsterInstance, settings: Settings
) -> None:
    def status(asset: str, partition: str) -> StaleStatus:
        graph, context = definitions.resolve_asset_graph(), LoadingContextForTest(instance)
        resolver = CachingStaleStatusResolver(instance, graph, context)
        return resolver.get_status(dg.AssetKey(asset), partition)

    for asset, first, last in [
        ("class_catalog", None, None),
        ("foundation_model", None, None),
        ("raw_dataset", "a", "c"),
        ("class_prompts", "a", "c"),
        ("inverted_embeddings", "ipc-1|a", "ipc-5|c"),
    ]:
        assert run_assets(definitions, instance, [asset], first, last).success
    assert status("inverted_embeddings", "ipc-1|a") == StaleStatus.FRESH
    assert status("synthetic_pool", "ipc-1|a") == StaleStatus.MISSING

    run_assets(definitions, instance, ["raw_dataset"], "a", force=True)
    assert status("inverted_embeddings", "ipc-1|a") == StaleStatus.FRESH, "the same content again is no news"

    fakes.write_image(settings.home.parent / "dataset" / "train" / "a" / "new.png", 77)
    run_assets(definitions, instance, ["raw_dataset"], "a")
    assert status("inverted_embeddings", "ipc-1|a") == StaleStatus.STALE
    assert status("inverted_embeddings", "ipc-5|a") == StaleStatus.STALE
    assert status("inverted_embeddings", "ipc-1|b") == StaleStatus.FRESH
    assert status("class_prompts", "a") == StaleStatus.FRESH, "lineage only: the images do not change the words"


def test_an_asset_that_is_not_needed_makes_nothing_stale(settings: Settings, instance: dg.DagsterInstance) -> None:
    run_pending(settings, instance, Pipeline(settings))

    graph, context = build_definitions(settings).resolve_asset_graph(), LoadingContextForTest(instance)
    resolver = CachingStaleStatusResolver(instance, graph, context)
    for asset, partition in (
        ("student_metrics", "ipc-1"),
        ("reference_metrics", "ipc-1"),
        ("whole_dataset_metrics", None),
    ):
        causes = [cause.reason for cause in resolver.get_stale_causes(dg.AssetKey(asset), partition)]
        assert resolver.get_status(dg.AssetKey(asset), partition) == StaleStatus.FRESH, (asset, causes)
