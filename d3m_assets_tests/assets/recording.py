"""Pipelines that write down which settings an asset reads while it is planned and while it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from d3m_assets.assets.context import Context, Item
from d3m_assets.datasets.dataset import Dataset
from d3m_assets.foundation.model import Model, ModelReference
from d3m_assets.pipeline import Pipeline
from d3m_assets.store import ArtefactKey


class Log:
    """Dotted names of settings that are read while it listens."""

    def __init__(self) -> None:
        self._listening: set[str] | None = None

    def add(self, name: str) -> None:
        """A setting was read."""
        if self._listening is not None:
            self._listening.add(name)

    @contextmanager
    def into(self, names: set[str] | None) -> Iterator[None]:
        """Write what is read into ``names``; None: nowhere."""
        before, self._listening = self._listening, names
        try:
            yield
        finally:
            self._listening = before


def recorded(model: Any, log: Log, prefix: str = "") -> Any:
    """The same settings, which tell the log what is read of them: single values, and the keys of a dump."""
    cls, fields = type(model), frozenset(type(model).model_fields)

    class Recorded(cls):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name in fields and not isinstance(value, BaseModel):
                log.add(prefix + name)
            return value

        def model_dump(self, **options: Any) -> dict[str, Any]:
            dumped = super().model_dump(**options)
            for name in dumped:
                log.add(prefix + name)
            return dumped

    values = {
        name: recorded(value, log, f"{prefix}{name}.") if isinstance(value, BaseModel) else value
        for name, value in model.__dict__.items()
    }
    copied = model.model_copy()
    object.__setattr__(copied, "__dict__", values)
    object.__setattr__(copied, "__class__", Recorded)
    return copied


def _telling(base: type, log: Log, names: dict[str, str]) -> type:
    """A class whose objects tell the log which settings stand behind their attributes."""

    class Telling(base):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                log.add(names[name])
            return super().__getattribute__(name)

    return Telling


SCANNED = ("scan", "shape", "full_catalog", "catalog", "classes", "class_by_key", "class_names")
MODEL = {
    "files": "foundation", "name": "foundation", "tiny_autoencoder": "generation.tiny_autoencoder", "device": "device",
    "devices": "device", "on_cpu": "device",
}  # fmt: skip
REFERENCE = {
    "load": "foundation", "compile_unet": "compile_unet", "load_autoencoder": "generation.tiny_autoencoder",
}  # fmt: skip


class RecordingPipeline:
    """A pipeline that makes artefacts one by one, and says for each what it read.

    Args:
        pipeline: A pipeline that nothing was asked of yet; its settings, context, dataset and model are made to tell.

    Attributes:
        declared: For each artefact, what its plan and those of everything that it is made from read.
        used: For each artefact, what making it read.
        problems: What :meth:`Asset.verify` found.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, log = pipeline, Log()
        self._log = log
        self.declared: dict[ArtefactKey, set[str]] = {}
        self.used: dict[ArtefactKey, set[str]] = {}
        self.problems: list[str] = []
        context = pipeline.context
        context.settings = recorded(context.settings, log)
        context.dataset.__class__ = _telling(Dataset, log, dict.fromkeys(SCANNED, "dataset") | {"name": "name"})
        # The tiny autoencoder travels with every reference; who loads it decodes with it.
        telling_reference = _telling(ModelReference, log, REFERENCE)

        class RecordingModel(_telling(Model, log, MODEL)):  # type: ignore[misc]
            @property
            def reference(self) -> ModelReference:
                with log.into(None):
                    reference = super().reference
                    object.__setattr__(reference, "__class__", telling_reference)
                return reference

        context.model.__class__ = RecordingModel
        telling_item = _telling(Item, log, {"seed": "seed"})

        class RecordingContext(Context):
            def item(self, key: ArtefactKey) -> Item:
                with log.into(None):
                    item = super().item(key)
                    object.__setattr__(item, "__class__", telling_item)
                return item

            def values(self, dimension: str) -> Any:
                if dimension == "budget":
                    log.add("budgets")
                return super().values(dimension)

            @property
            def budgets(self) -> Any:
                log.add("budgets")
                return super().budgets

            def once(self, name: Any, make: Any) -> Any:
                return make()  # what is kept would hide who reads it next

        context.__class__ = RecordingContext

    def declare(self, key: ArtefactKey) -> set[str]:
        """What is read to plan an artefact and everything that it is made from."""
        if key not in self.declared:
            names: set[str] = set()
            node, context = self.pipeline.graph[key.asset], self.pipeline.context
            inputs = self.pipeline.inputs(key)
            with self._log.into(names):
                node.skip_reason(context, context.item(key))
                for dep in node.inputs(context, context.item(key)):
                    if dep.replicated and not node.replicated:
                        node.replicates(context, dep)
                node.settings(context, context.item(key))
            self.declared[key] = names.union(*(self.declare(k) for k in inputs))
        return self.declared[key]

    def make(self, *assets: str) -> None:
        """Make what is pending of some assets, by default of all, each artefact by itself; then show and check it."""
        pipeline = self.pipeline
        wanted = [e.key for e in pipeline.plan().pending() if not assets or e.key.asset in assets]
        for key in wanted:
            node, names = pipeline.graph[key.asset], set()
            context, item = pipeline.reading(key), pipeline.context.item(key)
            with self._log.into(names):
                (made,) = node.make(context, [item])
            assert made.error is None, made.error
            pipeline.store.write(key, pipeline.spec(key), made.files, made.metrics)
            if made.stored is not None:
                made.stored()
            self.used[key] = names
            assert pipeline.preview(key)
            own = pipeline.reading(key, own=True)
            self.problems += [finding.text for finding in node.verify(own, item)]

    def undeclared(self, harmless: dict[str, str]) -> dict[str, set[str]]:
        """By asset, settings that making an artefact read and that would not bring it up to date when they change."""
        found: dict[str, set[str]] = {}
        for key, names in self.used.items():
            if missing := names - self.declare(key) - harmless.keys():
                found.setdefault(key.asset, set()).update(missing)
        return found
