"""All of orchestration on a graph of three toy assets: nothing in it is of this package's assets, dataset or model."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from d3m_assets.orchestration.code_location import build_code_location
from d3m_assets.orchestration.jobs import VERIFY
from d3m_assets.orchestration.launch import run_pending
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.planning.asset import Graph
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.orchestration.runs import QUIET, counts, events, launch, run_assets
from d3m_assets_tests.planning import toys

SMALL_AND_LARGE = ["large|a", "large|odd", "small|a", "small|odd"]


@pytest.fixture
def context() -> toys.ToyContext:
    """Two classes, two budgets, two replicates."""
    return toys.ToyContext({"a": "apple", "odd": "bee"})


@pytest.fixture
def toy_settings(settings: Settings) -> Settings:
    """A store of their own, and a place where there is no dataset."""
    changes = {"dataset": "/no/such/dataset", "storage": str(settings.home / "toys")}
    # Budgets of the package are parsed; what the toys call theirs is their own affair.
    return settings.model_copy(update=changes | {"budgets": ("small", "large")})


@pytest.fixture
def planner(context: toys.ToyContext, toy_settings: Settings) -> toys.ToyPlanner:
    """Over the toys."""
    opened = toys.opener(context)(toy_settings)
    assert isinstance(opened, toys.ToyPlanner)
    return opened


@pytest.fixture
def definitions(context: toys.ToyContext, toy_settings: Settings) -> dg.Definitions:
    """The code location of the toys."""
    return build_code_location(toys.GRAPH, toy_settings, toys.opener(context))


def observations(instance: dg.DagsterInstance, asset: str) -> list[dg.AssetObservation]:
    """Observations of an asset, oldest first."""
    records = instance.fetch_observations(dg.AssetKey(asset), limit=1000, ascending=True).records
    return [found for record in records if (found := record.event_log_entry.asset_observation)]


def test_the_code_location_loads_and_names_the_toys(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    assert graph.materializable_asset_keys == {dg.AssetKey(name) for name in toys.GRAPH.names}
    assert {key.name for key in graph.asset_check_keys} == {"nothing_behind", "grey", "square"}
    upstream = {
        name: {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys} for name in toys.GRAPH.names
    }
    assert upstream == {"toy_word": set(), "toy_image": {"toy_word"}, "toy_score": {"toy_image", "toy_word"}}


def test_everything_is_made_and_recorded_in_one_run_and_nothing_the_second_time(
    toy_settings: Settings, instance: dg.DagsterInstance, planner: toys.ToyPlanner
) -> None:
    first = run_pending(toy_settings, instance, planner)
    second = run_pending(toy_settings, instance, planner)

    first.raise_for_failures()
    assert len(first.done.made) == len(planner.context.made) == 2 + 8 + 2
    assert second.run_id is None
    assert [run.run_id for run in instance.get_runs()] == [first.run_id]
    assert instance.get_dynamic_partitions(CLASSES) == ["a", "odd"]
    assert counts(instance, "toy_word") == {"a": 1, "odd": 1}
    assert counts(instance, "toy_image") == dict.fromkeys(SMALL_AND_LARGE, 1)
    assert counts(instance, "toy_score") == {"small": 1, "large": 1}


def test_a_replicate_is_an_observation_and_the_version_of_the_partition_stays_that_of_replicate_0(
    definitions: dg.Definitions, toy_settings: Settings, instance: dg.DagsterInstance, planner: toys.ToyPlanner
) -> None:
    run_pending(toy_settings, instance, planner)

    seen = observations(instance, "toy_image")
    assert sorted(str(observation.partition) for observation in seen) == SMALL_AND_LARGE
    assert {observation.metadata["replicate"].value for observation in seen} == {1}
    for observation in seen:
        assert "dagster/data_version" not in (observation.tags or {})
    (second,) = [observation for observation in seen if observation.partition == "small|a"]
    of_second = planner.store.manifest(ArtefactKey("toy_image", "a", "small", 1))
    assert of_second is not None
    assert second.metadata["artefact fingerprint"].value == of_second.fingerprint

    of_first = planner.store.manifest(ArtefactKey("toy_image", "a", "small"))
    assert of_first is not None
    assert of_first.fingerprint != of_second.fingerprint
    resolver = CachingStaleStatusResolver(instance, definitions.resolve_asset_graph(), LoadingContextForTest(instance))
    assert resolver.get_current_data_version(dg.AssetKey("toy_image"), "small|a").value == of_first.fingerprint
    for key, partition in (("toy_image", "small|a"), ("toy_score", "small")):
        assert resolver.get_status(dg.AssetKey(key), partition) == StaleStatus.FRESH
    (made,) = [event for event in events(instance, "toy_image") if event.partition == "small|a"]
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == of_first.fingerprint
    assert "replicate" not in made.metadata


def test_one_partition_of_the_ui_makes_all_its_replicates(
    definitions: dg.Definitions, instance: dg.DagsterInstance, context: toys.ToyContext
) -> None:
    instance.add_dynamic_partitions(CLASSES, ["a", "odd"])
    assert run_assets(definitions, instance, ["toy_word"], "a", "odd").success
    context.made.clear()

    assert run_assets(definitions, instance, ["toy_image"], "small|a").success
    assert context.made == ["toy_image [a, small]", "toy_image [a, small, replicate 1]"]
    assert counts(instance, "toy_image") == {"small|a": 1}


def test_a_failed_replicate_fails_the_run_and_keeps_the_first(
    definitions: dg.Definitions, instance: dg.DagsterInstance, context: toys.ToyContext
) -> None:
    instance.add_dynamic_partitions(CLASSES, ["a", "odd"])
    assert run_assets(definitions, instance, ["toy_word"], "a", "odd").success
    context.failing = {"toy_image [a, small, replicate 1]"}

    run = run_assets(definitions, instance, ["toy_image"], "small|a")

    assert not run.success
    assert "told to fail" in str(run.get_step_failure_events())
    assert counts(instance, "toy_image") == {"small|a": 1}
    assert observations(instance, "toy_image") == []


def test_failures_block_limits_defer(
    toy_settings: Settings, instance: dg.DagsterInstance, planner: toys.ToyPlanner
) -> None:
    planner.context.failing = {"toy_word [odd]"}
    done = run_pending(toy_settings, instance, planner, limit=2).done

    assert [str(outcome.key) for outcome in done.failed] == ["toy_word [odd]"]
    assert [str(key) for key in done.made] == ["toy_word [a]", "toy_image [a, small]"]
    assert {str(key) for key in done.blocked} == {
        *(f"toy_image [odd, {b}{r}]" for b in ("small", "large") for r in ("", ", replicate 1")),
        "toy_score [small]",
        "toy_score [large]",
    }
    assert {str(key) for key in done.deferred} == {
        "toy_image [a, large]",
        "toy_image [a, small, replicate 1]",
        "toy_image [a, large, replicate 1]",
    }


def test_checks_preview_and_lineage_reach_the_ui(
    definitions: dg.Definitions, toy_settings: Settings, instance: dg.DagsterInstance, planner: toys.ToyPlanner
) -> None:
    run_pending(toy_settings, instance, planner)

    run = definitions.resolve_job_def(VERIFY).execute_in_process(instance=instance, run_config=QUIET)
    found = {evaluation.check_name: evaluation for evaluation in run.get_asset_check_evaluations()}
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        "nothing_behind": True,
        "grey": True,
        "square": False,
    }
    assert found["square"].metadata["problems"].value == 2
    assert str(found["square"].description).startswith("toy_image [odd, small, replicate 1]: not square")

    word = next(event for event in events(instance, "toy_word") if event.partition == "a")
    assert (word.metadata["word"].value, word.metadata["letters"].value) == ("apple", 5)
    image = events(instance, "toy_image")[0]
    assert str(image.metadata["square"].value).startswith("![square](data:image/png;base64,")
    score = events(instance, "toy_score")[0]
    assert score.tags is not None
    assert score.tags["dagster/input_event_pointer/toy_word"] == "NULL", "lineage only"
    assert score.tags["dagster/input_event_pointer/toy_image"].isdecimal()


def test_the_sensor_follows_the_toys(
    definitions: dg.Definitions, toy_settings: Settings, instance: dg.DagsterInstance, context: toys.ToyContext
) -> None:
    repository = definitions.get_repository_def()
    resources = {"pipelines": PipelineResource(toy_settings, toys.opener(context))}
    cursor: str | None = None

    def tick() -> Iterator[dg.RunRequest]:
        nonlocal cursor
        with dg.build_sensor_context(
            instance, cursor=cursor, repository_def=repository, resources=resources
        ) as sensor_context:
            data = repository.get_sensor_def("dataset_classes").evaluate_tick(sensor_context)
        cursor = data.cursor
        yield from data.run_requests or []

    (request,) = tick()
    assert launch(definitions, instance, request).success
    assert list(tick()) == []

    context.words["new"] = "cherry"
    context.made.clear()
    (request,) = tick()
    assert launch(definitions, instance, request).success
    assert "toy_image [new, small]" in context.made
    assert "toy_image [a, small]" not in context.made
    assert "toy_score [small]" in context.made


def test_each_run_opens_a_pipeline_and_closes_that_of_the_run_before(
    toy_settings: Settings, context: toys.ToyContext
) -> None:
    resource = PipelineResource(toy_settings, toys.opener(context))
    first = resource.of_run("one")
    assert resource.of_run("one") is first
    assert context.closed == 0
    assert resource.of_run("two") is not first
    assert context.closed == 1
    assert resource.fresh() is not resource.of_run("two")


def test_the_graph_of_the_package_is_not_touched(toy_settings: Settings, context: toys.ToyContext) -> None:
    """Two graphs live in one process: another graph is an argument, not a patch."""
    one = build_code_location(Graph(toys.ToyWord), toy_settings, toys.opener(context, Graph(toys.ToyWord)))
    two = build_code_location(toys.GRAPH, toy_settings, toys.opener(context))
    assert len(one.resolve_asset_graph().materializable_asset_keys) == 1
    assert len(two.resolve_asset_graph().materializable_asset_keys) == 3
    assert not Path("/no/such/dataset").exists()
