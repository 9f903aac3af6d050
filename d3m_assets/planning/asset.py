"""What an asset is: one class that holds everything about one node of the graph.

``orchestration/assets.py`` hands its attributes to Dagster. ``deps`` are classes, so the imports of the asset modules are the
lineage of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from d3m_assets.errors import D3MError, StageError
from d3m_assets.planning.source import Source, one_line, snake_case
from d3m_assets.progress import ProgressEvent
from d3m_assets.store import ArtefactKey


@dataclass(frozen=True)
class Made:
    """One artefact, ready for the store; or why there is none.

    Attributes:
        key: Which.
        files: Contents by file name.
        metrics: JSON values about it, for people and tables.
        error: Why it could not be made.
        stored: Called when it is in the store: what was kept until then, such as the state of unfinished work, can go.
    """

    key: ArtefactKey
    files: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: D3MError | None = None
    stored: Callable[[], None] | None = None


@dataclass(frozen=True)
class Check:
    """A check on a whole asset.

    Attributes:
        name: As Dagster shows it.
        description: What holds when it passes.
        staleness: Whether it fails for what the plan finds missing or out of date, of the asset and everything upstream,
            rather than for what :meth:`Asset.verify` finds.
    """

    name: str
    description: str
    staleness: bool = False


@dataclass(frozen=True)
class Finding:
    """Something wrong with the content of a stored artefact.

    Attributes:
        text: What, for people.
        severity: "error" or "warning".
        check: The one of several checks of the asset that it is for; empty: for all of them.
    """

    text: str
    severity: str = "error"
    check: str = ""


@dataclass(frozen=True)
class Problem:
    """A finding, and the artefact it was found in."""

    key: ArtefactKey
    message: str
    severity: str = "error"
    check: str = ""


class Asset:
    """One node of the graph, described by its class: subclass it, and list the class in a :class:`Graph`.

    The name is that of the class in snake case, and the first sentence of its docstring the description. In the methods,
    ``context`` is what the graph's pipeline hands to its assets (a :class:`~d3m_assets.planning.planner.Context`), and an
    item is a key with everything resolved that it stands for; both may be more than is asked of them here.

    Attributes:
        group: Where Dagster's UI shows it.
        partitions: Dimensions among "class" and "budget".
        replicated: Whether the same is made again under other seeds; the replicate is a dimension of the store, and hidden
            from Dagster's partitions.
        deps: Assets it is made from.
        sources: What it reads from outside of the graph.
        kinds: What it is made with, for the UI.
        code_version: Raised whenever the code that makes it changes what is made; it covers the library modules it uses.
        device: Whether making it runs a model, so that it needs the compute device.
        checks: What is checked of it.
        freshness_policy: Whether it is shown as overdue when no run made or confirmed it for ``automation.max_age_hours``.
    """

    group: ClassVar[str]
    partitions: ClassVar[tuple[str, ...]] = ()
    replicated: ClassVar[bool] = False
    deps: ClassVar[tuple[type[Asset], ...]] = ()
    sources: ClassVar[tuple[type[Source], ...]] = ()
    kinds: ClassVar[frozenset[str]] = frozenset()
    code_version: ClassVar[str] = "1"
    device: ClassVar[bool] = False
    checks: ClassVar[tuple[Check, ...]] = ()
    freshness_policy: ClassVar[bool] = False
    name: ClassVar[str]
    description: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Name and describe the asset."""
        super().__init_subclass__(**options)
        cls.name, cls.description = snake_case(cls.__name__), one_line(cls.__doc__)

    def inputs(self, context: Any, item: Any) -> Sequence[type[Asset]]:
        """The ``deps`` that decide about the content of this artefact under the settings; by default all of them.

        A dependency that is left out is lineage only, or not used by these settings: its news do not make this artefact
        out of date, and making it may not read it.
        """
        return self.deps

    def replicates(self, context: Any, dep: type[Asset]) -> Sequence[int]:
        """Which replicates of a replicated dependency an artefact that is not replicated itself is made from."""
        return (0,)

    def unused(self, settings: Any) -> str:
        """Why the settings do without this asset altogether, whatever the dataset; empty if they do not."""
        return ""

    def skip_reason(self, context: Any, item: Any) -> str:
        """Why this artefact is not required under the current settings; empty if it is."""
        return self.unused(context.settings)

    def settings(self, context: Any, item: Any) -> dict[str, Any]:
        """What decides about the content beside inputs and code, as JSON values: part of the fingerprint."""
        return {}

    def explain(self, context: Any, item: Any, reasons: Sequence[str]) -> Sequence[str]:
        """Why this artefact is missing or out of date, for people.

        Args:
            context: It may read what is stored of this artefact, if anything is.
            item: The artefact.
            reasons: What comparing specs says, in which a digest is just another one; by default that is all.
        """
        return reasons

    def make(self, context: Any, items: Sequence[Any]) -> Iterator[Made]:
        """Make artefacts, yielding each as it finishes; a failure is yielded, and the others go on.

        By default :meth:`make_one` makes them one after the other.
        """
        for done, item in enumerate(items):
            context.progress(ProgressEvent(self.name, done, len(items), item.label))
            try:
                yield self.make_one(context.for_item(item), item)
            except D3MError as error:
                yield Made(item.key, error=error)

    def make_one(self, context: Any, item: Any) -> Made:
        """Make one artefact.

        Raises:
            D3MError: It cannot be made.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither make nor make_one")

    def preview(self, context: Any, item: Any) -> dict[str, Any]:
        """What the UI shows of a stored artefact beside its metrics: numbers, text, PNG bytes under ``*_png``, tables."""
        return {}

    def verify(self, context: Any, item: Any) -> Iterable[Finding]:
        """Read a stored artefact and say what is wrong with its content."""
        return ()


class Graph:
    """Assets in an order in which each follows what it is made from.

    Args:
        assets: Asset classes.

    Raises:
        StageError: A dependency is missing or stands behind what is made from it, or two assets or sources have one name.

    Attributes:
        sources: What its assets read from outside.
    """

    def __init__(self, *assets: type[Asset]) -> None:
        self._assets: dict[str, Asset] = {}
        listed: set[type[Asset]] = set()
        for asset in assets:
            if asset.name in self._assets:
                raise StageError(f"the graph has two assets called {asset.name}; rename one of the classes")
            if late := [dep.name for dep in asset.deps if dep not in listed]:
                raise StageError(f"{asset.name} is made from {', '.join(late)}; list that before it in the graph")
            listed.add(asset)
            self._assets[asset.name] = asset()
        self.sources = tuple(dict.fromkeys(source for asset in assets for source in asset.sources))
        names = [*self._assets, *(source.name for source in self.sources)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise StageError(
                f"the graph has two assets or sources called {', '.join(twice)}; rename one of the classes"
            )

    def __iter__(self) -> Iterator[Asset]:
        return iter(self._assets.values())

    def __len__(self) -> int:
        return len(self._assets)

    def __contains__(self, name: str) -> bool:
        return name in self._assets

    def __getitem__(self, name: str) -> Asset:
        return self._assets[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all assets, in order."""
        return tuple(self._assets)

    def with_upstream(self, name: str) -> frozenset[str]:
        """Names of an asset and of everything it is made from, directly or not."""
        found = {name}
        for dep in self._assets[name].deps:
            found |= self.with_upstream(dep.name)
        return frozenset(found)
