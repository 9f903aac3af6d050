"""A graph of three assets over a dataset that is a dictionary, and the daemon's part in turning it, tick by tick."""

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import dagster as dg

from d3m_assets.errors import DatasetError, StageError
from d3m_assets.orchestration.code_location import build_code_location
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.planning.asset import Asset, Check, Finding, Graph, Made
from d3m_assets.planning.planner import Planner
from d3m_assets.planning.source import Source
from d3m_assets.progress import silent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey, Store
from d3m_assets_tests.orchestration.runs import launch


class ToyDataset(Source):
    """All texts."""

    group = "toys"

    def version(self, context: Any, item: Any) -> str:
        return str(sorted(context.texts.items()))


class ToyText(Source):
    """The text of a class."""

    group = "toys"
    partitions = ("class",)

    def version(self, context: Any, item: Any) -> str:
        return str(context.texts[item.key.class_key])


class ToyCatalog(Asset):
    """Which classes there are."""

    group = "toys"
    sources = (ToyDataset,)

    def settings(self, context: Any, item: Any) -> dict[str, Any]:
        return {"texts": context.texts}

    def make_one(self, context: Any, item: Any) -> Made:
        return Made(item.key, {"classes.txt": " ".join(context.texts).encode()})


class ToyWord(Asset):
    """The text of a class, taken over."""

    group = "toys"
    partitions = ("class",)
    sources = (ToyText,)
    checks = (Check("readable", "Every word can be read."),)

    def settings(self, context: Any, item: Any) -> dict[str, Any]:
        return {"text": context.texts[item.key.class_key]}

    def make_one(self, context: Any, item: Any) -> Made:
        if item.key.class_key in context.failing:
            raise StageError(f"{item.key}: a word that cannot be said")
        context.making(item.key)
        return Made(item.key, {"word.txt": context.texts[item.key.class_key].encode()})

    def verify(self, context: Any, item: Any) -> list[Finding]:
        return [Finding("empty")] if not context.inputs.read(item.key, "word.txt") else []


class ToyReport(Asset):
    """All words."""

    group = "toys"
    deps = (ToyWord,)
    freshness_policy = True
    checks = (Check("nothing_stale", "Nothing is out of date.", staleness=True),)

    def make_one(self, context: Any, item: Any) -> Made:
        words = [context.inputs.read(key, "word.txt") for key in context.inputs.keys(ToyWord)]
        return Made(item.key, {"report.txt": b" ".join(words)})


GRAPH = Graph(ToyCatalog, ToyWord, ToyReport)


class Item(NamedTuple):
    """A key."""

    key: ArtefactKey
    label: str = ""


class ToyContext:
    """The dataset is ``texts``; with ``broken`` it cannot be read."""

    progress = staticmethod(silent)
    settings: Any = None
    device = "cpu"
    inputs: Any = None

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        self.broken = ""
        self.failing: set[str] = set()
        self.making = lambda key: None
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def values(self, dimension: str) -> Sequence[Any]:
        if dimension != "class":
            return [0] if dimension == "replicate" else []
        if self.broken:
            raise DatasetError(self.broken)
        return list(self.texts)

    def item(self, key: ArtefactKey) -> Item:
        return Item(key)

    def reading(self, inputs: Any, *, force: bool = False) -> Any:
        found = copy.copy(self)
        found.inputs = inputs
        return found

    def for_item(self, item: Any) -> Any:
        return self.reading(self.inputs.of(item.key))


class Clockwork:
    """Definitions over the toys, and what the daemon does with them."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance
        self.context = ToyContext({"a": "apple", "b": "bee"})
        self.definitions = build_code_location(GRAPH, settings, self.open)
        self.repository = self.definitions.get_repository_def()
        self.cursor: str | None = None

    def open(self, settings: Settings, *, progress: Any = silent) -> Planner:
        return Planner(GRAPH, self.context, Store.open(settings.storage_url))

    def sensor_tick(self) -> Any:
        """A tick of ``dataset_classes``, with what the daemon does about it except for runs."""
        with dg.build_sensor_context(
            self.instance,
            cursor=self.cursor,
            repository_def=self.repository,
            resources={"pipelines": PipelineResource(self.settings, self.open)},
        ) as context:
            data = self.repository.get_sensor_def("dataset_classes").evaluate_tick(context)
        self.cursor = data.cursor
        for request in data.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(CLASSES, list(request.partition_keys))
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return data

    def schedule_tick(self, name: str) -> Any:
        """A tick of a schedule."""
        with dg.build_schedule_context(
            self.instance,
            scheduled_execution_time=datetime(2026, 11, 25, tzinfo=UTC),
            repository_def=self.repository,
            resources={"pipelines": PipelineResource(self.settings, self.open)},
        ) as context:
            return self.repository.get_schedule_def(name).evaluate_tick(context)

    def follow(self) -> dg.ExecuteInProcessResult | None:
        """A tick and the run that it requests, if any."""
        requests = self.sensor_tick().run_requests
        return launch(self.definitions, self.instance, requests[0]) if requests else None
