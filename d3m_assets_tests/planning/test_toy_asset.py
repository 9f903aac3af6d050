"""Adding an asset takes its class and one line of graph; planning and Dagster find the rest there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.graph import GRAPH
from d3m_assets.assets.raw_dataset import RawDataset, image_rows
from d3m_assets.orchestration.code_location import build_code_location
from d3m_assets.orchestration.launch import open_instance, run_pending
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.pipeline import Pipeline
from d3m_assets.planning.asset import Asset, Check, Finding, Graph, Made
from d3m_assets.progress import Progress, silent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.orchestration import fakes
from d3m_assets_tests.orchestration.runs import QUIET, counts, events, run_assets


class ClassSizes(Asset):
    """How many training images of a class a budget would have to stand for."""

    group = "dataset"
    partitions = ("class", "budget")
    deps = (RawDataset,)
    kinds = frozenset({"pandas"})
    code_version = "3"
    checks = (Check("not_empty", "Every class has training images."),)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The budget."""
        return {"budget": item.budget.name}

    def make_one(self, context: Context, item: Item) -> Made:
        """One number."""
        count = len(image_rows(context, "train", item.dataset_class.key))
        return Made(item.key, {"count.txt": str(count).encode()}, {"images": count})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """A sentence."""
        count = context.inputs.read(item.key, "count.txt").decode()
        return {"sentence_md": f"**{count}** images of {item.dataset_class.name} in {item.budget.name}"}

    def verify(self, context: Context, item: Item) -> Iterator[Finding]:
        """Not empty."""
        if context.inputs.read(item.key, "count.txt") == b"0":
            yield Finding("no images")


TOGETHER = Graph(*(type(asset) for asset in GRAPH), ClassSizes)
NAME = "class_sizes"


def open_pipeline(settings: Settings, *, progress: Progress = silent) -> Pipeline:
    """The pipeline of the longer graph."""
    return Pipeline(settings, progress=progress, graph=TOGETHER)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Three classes, two budgets."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    return fakes.make_settings(tmp_path)


@pytest.fixture
def definitions(settings: Settings) -> dg.Definitions:
    """The code location of the longer graph."""
    return build_code_location(TOGETHER, settings, open_pipeline)


def test_it_has_a_plan(settings: Settings) -> None:
    plan = open_pipeline(settings).plan()

    assert [str(entry.key) for entry in plan.of(NAME)] == [
        f"class_sizes [{c}, {b}]" for b in ("ipc-1", "ipc-5") for c in "abc"
    ]
    assert {entry.state for entry in plan.of(NAME)} == {"missing"}
    shorter = Pipeline(settings).plan()
    assert [e.key for e in plan.entries if e.key.asset != NAME] == [e.key for e in shorter.entries]
    specs = open_pipeline(settings).spec, Pipeline(settings).spec
    for entry in shorter.entries:
        assert specs[0](entry.key) == specs[1](entry.key), "a new asset changes nobody's fingerprint"


def test_it_is_a_dagster_asset_with_partitions_mapping_and_check(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    node = graph.get(dg.AssetKey(NAME))

    assert isinstance(node.partitions_def, dg.MultiPartitionsDefinition)
    assert {dimension.name for dimension in node.partitions_def.partitions_defs} == {"class", "budget"}
    assert (node.group_name, node.kinds, node.code_version) == ("dataset", {"pandas"}, "3")
    assert node.description == "How many training images of a class a budget would have to stand for."
    assert node.parent_keys == {dg.AssetKey("raw_dataset")}
    mapping = graph.get_partition_mapping(dg.AssetKey(NAME), dg.AssetKey("raw_dataset"))
    assert mapping == dg.MultiToSingleDimensionPartitionMapping("class")
    assert dg.AssetCheckKey(dg.AssetKey(NAME), "not_empty") in graph.asset_check_keys


def test_it_runs_and_shows_its_preview(definitions: dg.Definitions, settings: Settings) -> None:
    """With a real instance and the real makers of what it is made from."""
    with open_instance(settings) as instance:
        instance.add_dynamic_partitions(CLASSES, ["a", "b", "c"])
        assert run_assets(definitions, instance, ["raw_dataset"], "a", "c").success
        assert run_assets(definitions, instance, [NAME], "ipc-1|a", "ipc-5|c").success

        assert counts(instance, NAME) == {f"{b}|{c}": 1 for b in ("ipc-1", "ipc-5") for c in "abc"}
        (event,) = [event for event in events(instance, NAME) if event.partition == "ipc-5|b"]
        assert event.metadata["sentence"].value == "**3** images of b in ipc-5"
        assert event.metadata["images"].value == 3

        job = definitions.resolve_job_def("verify").execute_in_process(instance=instance, run_config=QUIET)
        (check,) = [c for c in job.get_asset_check_evaluations() if c.check_name == "not_empty"]
        assert check.passed
        manifest = open_pipeline(settings).store.manifest(ArtefactKey(NAME, "b", "ipc-5"))
        assert manifest is not None
        assert set(manifest.inputs) == {"raw_dataset [b]"}


def test_the_job_makes_it_with_the_rest(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fakes.FakeMakers()
    fake.install(monkeypatch.setattr, TOGETHER)
    with open_instance(settings) as instance:
        done = run_pending(settings, instance, open_pipeline(settings)).done
        assert (done.failed, done.blocked) == ([], [])
        assert [key for key in done.made if key.asset == NAME] == open_pipeline(settings).keys(NAME)
        assert run_pending(settings, instance, open_pipeline(settings)).run_id is None
