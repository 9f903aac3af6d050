"""The one place that decides what is up to date, and that makes what is not.

``plan`` compares, for every artefact, the fingerprint of what it should be made from (inputs, settings, code version) with
the fingerprint it was stored under. The command line, the schedule, the sensor and the standing check all ask it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from d3m_assets.errors import (
    D3MError,
    DamagedError,
    StageError,
    StoreError,
    StoreNotWritableError,
    StoreUnavailableError,
    UndeclaredReadError,
)
from d3m_assets.planning.asset import Asset, Finding, Graph, Made, Problem
from d3m_assets.planning.compare import State, Status, compare_all, status
from d3m_assets.planning.source import Source
from d3m_assets.planning.versions import Version, stored_version
from d3m_assets.progress import Progress
from d3m_assets.store import ArtefactKey, Manifest, Spec, Store, Stored

SEEN_SECONDS = 60.0
"""For how long a look at what is stored saves another one before it is replaced."""


class Context(Protocol):
    """What a pipeline hands to its assets; planning and orchestration need this of it, assets may find more."""

    @property
    def progress(self) -> Progress:
        """Told how far the work is."""

    @property
    def settings(self) -> Any:
        """What :meth:`Asset.unused` looks at."""

    @property
    def device(self) -> str:
        """The torch device that models run on, resolved, such as ``"cpu"`` or ``"cuda:0"``."""

    def close(self) -> None:
        """End what was started for the work: processes, connections."""

    def values(self, dimension: str) -> Sequence[Any]:
        """Every value that a dimension has now: "class" keys, "budget" names, "replicate" numbers."""

    def item(self, key: ArtefactKey) -> Any:
        """A key with everything resolved that it stands for: an object with ``key``, and ``label`` for a progress line."""

    def reading(self, inputs: Inputs, *, force: bool = False) -> Any:
        """The same context for making, previewing and verifying artefacts.

        Args:
            inputs: What may be read, to be found as ``inputs``.
            force: Whether what was kept beside the store's artefacts is to be made again, too.
        """

    def for_item(self, item: Any) -> Any:
        """The context of one of the items at hand, which refuses the inputs of the others."""


@dataclass(frozen=True)
class PlanEntry:
    """One artefact that should exist, and whether it does."""

    key: ArtefactKey
    state: State
    reasons: list[str]


@dataclass(frozen=True)
class Plan:
    """What should exist now.

    Attributes:
        entries: Every artefact, in dependency order.
        extra: Stored artefacts that the dataset, the settings or the graph have no place for any more.
    """

    entries: list[PlanEntry]
    extra: list[ArtefactKey]

    def pending(self) -> list[PlanEntry]:
        """What is missing or out of date, in dependency order."""
        return [entry for entry in self.entries if entry.state != "up to date"]

    def of(self, asset: str) -> list[PlanEntry]:
        """The entries of one asset."""
        return [entry for entry in self.entries if entry.key.asset == asset]

    def to_json(self) -> str:
        """The plan as JSON text."""
        entries = [
            {
                "asset": entry.key.asset,
                "class": entry.key.class_key,
                "budget": entry.key.budget,
                "replicate": entry.key.replicate,
                "state": entry.state,
                "reasons": entry.reasons,
            }
            for entry in self.entries
        ]
        return json.dumps({"entries": entries, "extra": [str(k) for k in self.extra]}, indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class Outcome:
    """What became of one artefact: made, skipped because it was up to date, or failed."""

    key: ArtefactKey
    manifest: Manifest | None
    skipped: bool = False
    error: D3MError | None = None


@dataclass
class Tally:
    """What became of a plan.

    Attributes:
        made: Artefacts made, in order.
        unchanged: Those that another process had made in the meantime.
        failed: Those that failed, with the reason.
        blocked: Those not tried because an input failed.
        deferred: Those left for another run by the limit.
    """

    made: list[ArtefactKey] = field(default_factory=list)
    unchanged: list[ArtefactKey] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    blocked: list[ArtefactKey] = field(default_factory=list)
    deferred: list[ArtefactKey] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.error is not None:
            self.failed.append(outcome)
        else:
            (self.unchanged if outcome.skipped else self.made).append(outcome.key)

    def replace(self, keys: Collection[ArtefactKey], later: Tally) -> None:
        """Count instead of what became of some artefacts at first what became of them, and of others, later."""
        self.failed = [outcome for outcome in self.failed if outcome.key not in keys] + later.failed
        # What another failure blocks is deferred by work that leaves this failure out.
        self.blocked = [key for key in self.blocked if key not in keys or key in later.deferred] + later.blocked
        self.made += later.made
        self.unchanged += later.unchanged
        self.deferred += [key for key in later.deferred if key not in {*self.deferred, *self.blocked}]

    @property
    def assets(self) -> frozenset[str]:
        """Assets of which something was made or failed."""
        return frozenset(key.asset for key in [*self.made, *(outcome.key for outcome in self.failed)])


class Inputs:
    """What the artefacts at hand are made from, and nothing else.

    Args:
        store: Where artefacts are kept.
        allowed: What may be read for each artefact at hand.
        purpose: What it is read for, for messages.
        remembered: Commit record of an artefact that was just looked at; None: it is read.
        expected: Fingerprint that an artefact has to have; None: any will do, as for looking at what is out of date.
    """

    def __init__(
        self,
        store: Store,
        allowed: Mapping[ArtefactKey, Iterable[ArtefactKey]],
        purpose: str,
        remembered: Callable[[ArtefactKey], Manifest | None] = lambda key: None,
        expected: Callable[[ArtefactKey], str] | None = None,
    ) -> None:
        self._store, self._purpose, self._remembered, self._expected = store, purpose, remembered, expected
        self._by_artefact = allowed
        self._allowed: dict[str, list[ArtefactKey]] = {}
        self._index: dict[tuple[str, ...], dict[tuple[Any, ...], list[ArtefactKey]]] = {}
        for key in dict.fromkeys(itertools.chain.from_iterable(allowed.values())):
            self._allowed.setdefault(key.asset, []).append(key)
        self._sets = {asset: frozenset(keys) for asset, keys in self._allowed.items()}

    def of(self, key: ArtefactKey) -> Inputs:
        """What one of the artefacts at hand is made from; the inputs of the others are refused."""
        if len(self._by_artefact) == 1:
            return self
        return Inputs(self._store, {key: self._by_artefact[key]}, str(key), self._remembered, self._expected)

    def keys(self, asset: type[Asset] | str, **parts: Any) -> list[ArtefactKey]:
        """The declared inputs of one asset, in order; only those with the given class_key, budget or replicate."""
        name = asset if isinstance(asset, str) else asset.name
        index = (name, *sorted(parts))
        if index not in self._index:
            # Made once for the work on thousands of artefacts, each of which asks for its own inputs.
            by_values = self._index.setdefault(index, {})
            for key in self._allowed.get(name, ()):
                by_values.setdefault(tuple(getattr(key, part) for part in index[1:]), []).append(key)
        return list(self._index[index].get(tuple(parts[part] for part in index[1:]), ()))

    def read(self, key: ArtefactKey, name: str) -> bytes:
        """Contents of one file of an input.

        Raises:
            UndeclaredReadError: It is no declared input of what is being made.
            StoreError: It is missing or damaged, or another process has replaced it by another version.
            StoreUnavailableError: It cannot be read just now.
        """
        self._check(key)
        # What is made of another version must not be stored under the fingerprint that names this one.
        expected = None if self._expected is None else self._expected(key)
        return self._store.read(key, name, self._remembered(key), fingerprint=expected)

    def manifest(self, key: ArtefactKey) -> Manifest | None:
        """Commit record of an input; None: it is not stored.

        Raises:
            UndeclaredReadError: It is no declared input of what is being made.
        """
        self._check(key)
        return self._remembered(key) or self._store.manifest(key)

    def version(self, key: ArtefactKey) -> Version | None:
        """The stored version of an input; None: it is not stored.

        What the version was made from can be reached through it without being declared: it cannot change unless the input
        does, too.

        Raises:
            UndeclaredReadError: It is no declared input of what is being made.
        """
        self._check(key)
        return stored_version(self._store, key)

    def uri(self, key: ArtefactKey, name: str | None = None) -> str:
        """Where an input, or one of its files, is, for people."""
        self._check(key)
        return self._store.uri(key, name)

    def _check(self, key: ArtefactKey) -> None:
        if key not in self._sets.get(key.asset, ()):
            raise UndeclaredReadError(
                f"{key} was read for {self._purpose}, which does not declare it as an input; a changed {key.asset} would "
                "not bring it up to date. Add it to `deps` and `inputs` of that asset"
            )


class Planner:
    """Plans and makes the artefacts of a graph.

    Args:
        graph: The assets.
        context: Resolves keys and is handed to the assets.
        store: Where artefacts are kept.
        provenance: JSON values that tell where this process makes the artefacts of an asset.

    Attributes:
        run_id: Of the Dagster run that the work is for; None: there is none. It is written into what is made.
    """

    def __init__(
        self,
        graph: Graph,
        context: Context,
        store: Store,
        provenance: Callable[[Asset], Mapping[str, Any]] = lambda asset: {},
    ) -> None:
        self.graph, self.context, self.store, self.provenance = graph, context, store, provenance
        self.run_id: str | None = None
        self._keys: dict[str, dict[ArtefactKey, None]] = {}
        self._specs: dict[ArtefactKey, Spec] = {}
        self._inputs_of: dict[ArtefactKey, list[ArtefactKey]] = {}
        self._statuses: dict[ArtefactKey, Status] = {}
        self._plan: Plan | None = None

    def keys(self, asset: str) -> list[ArtefactKey]:
        """Every artefact of an asset that should exist now."""
        return list(self._known(asset))

    def possible_keys(self, asset: str) -> list[ArtefactKey]:
        """Every artefact of an asset that classes, budgets and replicates allow, required or not."""
        node = self.graph[asset]
        classes = self.context.values("class") if "class" in node.partitions else [None]
        budgets = self.context.values("budget") if "budget" in node.partitions else [None]
        replicates = self.context.values("replicate") if node.replicated else [0]
        every = itertools.product(replicates, budgets, classes)
        return [ArtefactKey(asset, class_key, budget, replicate) for replicate, budget, class_key in every]

    def source_versions(self, source: type[Source]) -> dict[ArtefactKey, str]:
        """Version of every partition of a source as it is now.

        Raises:
            D3MError: It cannot be read.
        """
        classes, budgets = (self.context.values(d) if d in source.partitions else [None] for d in ("class", "budget"))
        keys = [ArtefactKey(source.name, c, b) for b, c in itertools.product(budgets, classes)]
        return {key: source().version(self.context, self.context.item(key)) for key in keys}

    def _known(self, asset: str) -> dict[ArtefactKey, None]:
        if asset not in self._keys:
            self._keys[asset] = {key: None for key in self.possible_keys(asset) if not self.skip_reason(key)}
        return self._keys[asset]

    def skip_reason(self, key: ArtefactKey) -> str:
        """Why an artefact that the graph has is not required under the current settings; empty if it is."""
        return self.graph[key.asset].skip_reason(self.context, self.context.item(key))

    def inputs(self, key: ArtefactKey) -> list[ArtefactKey]:
        """What an artefact is made from."""
        if key not in self._inputs_of:
            node = self.graph[key.asset]
            found: list[ArtefactKey] = []
            for dep in node.inputs(self.context, self.context.item(key)):
                known, upstream = self._known(dep.name), self.graph[dep.name]
                replicates = [0]
                if upstream.replicated:
                    replicates = [key.replicate] if node.replicated else list(node.replicates(self.context, dep))
                classes: Sequence[str | None] = [None]
                if "class" in upstream.partitions:
                    classes = [key.class_key] if key.class_key else self.context.values("class")
                budgets: Sequence[str | None] = [None]
                if "budget" in upstream.partitions:
                    budgets = [key.budget] if key.budget else self.context.values("budget")
                every = itertools.product(replicates, budgets, classes)
                expected = (ArtefactKey(dep.name, c, b, r) for r, b, c in every)
                found += [k for k in expected if k in known]
            self._inputs_of[key] = found
        return self._inputs_of[key]

    def spec(self, key: ArtefactKey) -> Spec:
        """Everything that determines an artefact, known before anything is made.

        Raises:
            StageError: The key is none of this dataset's and settings'.
        """
        if key not in self._specs:
            if key.asset not in self.graph or key not in self._known(key.asset):
                raise StageError(f"{key} is not part of the dataset and settings; `d3m status` lists what is")
            node = self.graph[key.asset]
            inputs = {str(k): self.spec(k).fingerprint for k in self.inputs(key)}
            settings = node.settings(self.context, self.context.item(key))
            self._specs[key] = Spec(inputs, settings, node.code_version)
        return self._specs[key]

    def plan(self) -> Plan:
        """Compare everything that should exist with the store.

        Raises:
            D3MError: The dataset, the settings or the store cannot be used.
        """
        specs = {key: self.spec(key) for node in self.graph for key in self._known(node.name)}
        listing = self.store.listing()
        self._statuses = compare_all(self.store, specs, listing)
        extra = [key for key in listing.artefacts() if key not in specs]
        self._plan = Plan(self._explained(self._statuses), extra)
        return self._plan

    def _explained(self, states: Mapping[ArtefactKey, Status]) -> list[PlanEntry]:
        """Entries of a plan, with reasons in the words of the assets that have words of their own."""

        def reasons(key: ArtefactKey) -> list[str]:
            node, status = self.graph[key.asset], states[key]
            if status.state == "up to date" or type(node).explain is Asset.explain:
                return status.reasons
            context = self.reading(key, own=True)
            return list(node.explain(context, self.context.item(key), status.reasons))

        if self.store.is_local:  # faster without threads
            found = list(map(reasons, states))
        else:
            with ThreadPoolExecutor(max_workers=16) as pool:
                found = list(pool.map(reasons, states))
        return [PlanEntry(key, states[key].state, why) for key, why in zip(states, found, strict=True)]

    def last_plan(self) -> Plan:
        """The plan as it was last made, with what this object has made or found changed since; made now when there is none."""
        if self._plan is None:
            return self.plan()
        entries = []
        for entry in self._plan.entries:
            status = self._statuses[entry.key]
            same = status.state == entry.state
            entries.append(entry if same else PlanEntry(entry.key, status.state, status.reasons))
        return Plan(entries, self._plan.extra)

    def _is_current(self, key: ArtefactKey) -> bool:
        """Whether this object has seen an artefact to be up to date."""
        return key in self._statuses and self._statuses[key].state == "up to date"

    def materialize(self, asset: str, keys: Sequence[ArtefactKey], *, force: bool = False) -> Iterator[Outcome]:
        """Make artefacts of one asset, each committed to the store as it finishes.

        Args:
            asset: Which.
            keys: Which of its artefacts.
            force: Also make what is up to date.

        Yields:
            One outcome for each key. An artefact that fails is yielded with its error; the others go on.

        Raises:
            StoreNotWritableError: The store takes nothing: the others would fail after the same hours of work.
            StoreUnavailableError: The store cannot be read just now.
        """
        ready = []
        stored: dict[ArtefactKey, Stored] = {}
        for key, found, state in self._compare(keys):
            if not force and state.state == "up to date":
                yield Outcome(key, found.manifest, skipped=True)
            else:
                stored[key] = found
        unseen = {k: None for key in stored for k in self.inputs(key) if not self._is_current(k)}
        states = {key: state.state for key, _, state in self._compare(unseen) if state.state != "up to date"}
        for key in stored:
            if behind := [f"{k}, which is {states[k]}" for k in self.inputs(key) if k in states]:
                reason = f"{key} needs {'; '.join(behind[:3])}{' …' if len(behind) > 3 else ''}"
                yield Outcome(key, None, error=StageError(f"{reason}. `d3m distill` makes everything in order"))
            else:
                ready.append(key)
        if not ready:
            return
        self.store.probe()  # before the work, not after it
        context = self._reading(asset, ready, force=force, strict=True)
        looked_at, unfinished = time.monotonic(), dict.fromkeys(ready)
        provenance = {"run": self.run_id, **self.provenance(self.graph[asset])}
        with contextlib.closing(self._made(asset, context, ready, unfinished)) as all_made:
            for made in all_made:
                unfinished.pop(made.key, None)
                # What was seen long ago may have been replaced since: then the store looks again.
                replaces = stored.get(made.key) if time.monotonic() - looked_at < SEEN_SECONDS else None
                yield self._stored(made, provenance, replaces)

    def _stored(self, made: Made, provenance: Mapping[str, Any], replaces: Stored | None) -> Outcome:
        """Store what was made, or tell why there is none."""
        try:
            if made.error is not None:
                raise made.error
            manifest = self.store.write(
                made.key, self.spec(made.key), made.files, made.metrics, provenance, replaces=replaces
            )
        except D3MError as error:
            _stop_without_store(error)
            return Outcome(made.key, None, error=error)
        self._statuses[made.key] = Status("up to date", [])
        if made.stored is not None:
            made.stored()
        return Outcome(made.key, manifest)

    def _made(
        self, asset: str, context: Any, keys: Sequence[ArtefactKey], unfinished: Mapping[ArtefactKey, None]
    ) -> Generator[Made, None, None]:
        """What the maker of an asset yields; when it gives up as a whole, what it had not yielded yet has failed."""
        try:
            yield from self.graph[asset].make(context, [self.context.item(key) for key in keys])
        except D3MError as error:
            for key in list(unfinished):
                yield Made(key, error=error)

    def _compare(self, keys: Iterable[ArtefactKey]) -> Iterator[tuple[ArtefactKey, Stored, Status]]:
        """Look at artefacts, many of an asset with one listing, and keep what was seen."""
        chosen = list(keys)
        for asset in dict.fromkeys(key.asset for key in chosen):
            of_asset = [key for key in chosen if key.asset == asset]
            if len(of_asset) == 1:
                looked: Iterable[tuple[ArtefactKey, Stored]] = [(of_asset[0], self.store.look(of_asset[0]))]
            else:
                looked = self.store.look_all(of_asset, self.store.listing(asset))
            for key, stored in looked:
                self._statuses[key] = status(stored, self.spec(key))
                yield key, stored, self._statuses[key]

    def _remembered(self, key: ArtefactKey) -> Manifest | None:
        """Commit record of an artefact that this object saw to be up to date, if it is at hand."""
        manifest = self.store.remembered(key) if self._is_current(key) else None
        return manifest if manifest is not None and manifest.fingerprint == self.spec(key).fingerprint else None

    def pending(self, keys: Iterable[ArtefactKey]) -> list[ArtefactKey]:
        """Those of some artefacts that are missing or out of date."""
        unseen = [key for key in keys if not self._is_current(key)]
        return [key for key, _, found in self._compare(unseen) if found.state != "up to date"]

    def reading(self, key: ArtefactKey, *, own: bool = False) -> Any:
        """The context in which an artefact is made, to read what it is made from; with ``own``, also what it holds."""
        return self._reading(str(key), [key], own=own)

    def _reading(
        self,
        purpose: str,
        keys: Sequence[ArtefactKey],
        *,
        own: bool = False,
        force: bool = False,
        strict: bool = False,
    ) -> Any:
        allowed = {key: [*self.inputs(key), *([key] if own else [])] for key in keys}
        expected = (lambda key: self.spec(key).fingerprint) if strict else None
        inputs = Inputs(self.store, allowed, purpose, self._remembered, expected)
        return self.context.reading(inputs, force=force)

    def work_through(
        self,
        plan: Plan,
        *,
        limit: int | None = None,
        selected: Collection[str] | None = None,
        materialize: Callable[[str, Sequence[ArtefactKey]], Iterable[Outcome]] | None = None,
        before: Callable[[Asset], AbstractContextManager[object]] = lambda asset: nullcontext(),
    ) -> Tally:
        """Make what a plan lists, asset by asset; what does not depend on a failure goes on.

        An input whose file is found to be damaged in the middle is made again, and then what has failed for want of it.

        Args:
            plan: From :meth:`plan`.
            limit: Most artefacts of each asset, None for no limit.
            selected: Artefacts to work on, as ``str(key)``; None: all that are pending.
            materialize: Makes artefacts of an asset, by default :meth:`materialize`.
            before: Entered around the work on an asset, for example to hold the compute device.

        Raises:
            StoreNotWritableError: The store takes nothing; what was finished before is kept.
            StoreUnavailableError: The store cannot be read just now.
        """
        pending = plan.pending()
        wanted = [entry for entry in pending if selected is None or str(entry.key) in selected]
        chosen = {entry.key for entry in first_of_each_asset(wanted, limit)}
        make = materialize or self.materialize
        tally = self._work_through(pending, chosen, make, before)
        known, repaired = {entry.key for entry in pending}, set[ArtefactKey]()
        while failed := {outcome.key for outcome in tally.failed if _is_of_damage(outcome.error)}:
            pending = self.plan().pending()
            inputs = {name for key in failed for name in self.inputs(key)}
            damaged = {entry.key for entry in pending if entry.key in inputs} - known - repaired
            if not damaged:  # a disk that damages what was just written needs a person
                break
            repaired |= damaged
            again = failed | set(tally.blocked)
            tally.replace(again, self._work_through(pending, damaged | again, make, before))
        return tally

    def _work_through(
        self,
        pending: Sequence[PlanEntry],
        chosen: Collection[ArtefactKey],
        materialize: Callable[[str, Sequence[ArtefactKey]], Iterable[Outcome]],
        before: Callable[[Asset], AbstractContextManager[object]],
    ) -> Tally:
        """Make the chosen ones of what is pending, in the order of the graph."""
        tally = Tally()
        unready = {str(entry.key) for entry in pending}
        unavailable: set[str] = set()
        for asset in self.graph:
            ready = []
            for key in (entry.key for entry in pending if entry.key.asset == asset.name):
                inputs = self.spec(key).inputs.keys()
                if key in chosen and not unready & inputs:
                    ready.append(key)
                elif unavailable & inputs:
                    unavailable.add(str(key))
                    tally.blocked.append(key)
                else:
                    tally.deferred.append(key)
            if not ready:
                continue
            with before(asset):
                for outcome in materialize(asset.name, ready):
                    tally.add(outcome)
                    (unavailable.add if outcome.error else unready.discard)(str(outcome.key))
        return tally

    def preview(self, key: ArtefactKey) -> dict[str, Any]:
        """What is worth showing of a stored artefact: numbers, text, PNG bytes under ``*_png``, tables."""
        manifest = self._remembered(key) or self.store.manifest(key)
        if manifest is None:
            return {}
        shown = {name: value for name, value in manifest.metrics.items() if value is not None}
        return shown | self.graph[key.asset].preview(self.reading(key, own=True), self.context.item(key))

    def verify(self, asset: str) -> list[Problem]:
        """Read the stored artefacts of an asset and say what is wrong with them."""
        problems = []
        try:
            looked = list(self.store.look_all(self.keys(asset), self.store.listing(asset)))
        except StoreError as error:
            return [Problem(ArtefactKey(asset), f"{asset} cannot be read: {error}")]
        for key, stored in looked:
            try:
                if stored.unreadable:
                    problems.append(Problem(key, f"{key} cannot be read: {stored.unreadable}"))
                    continue
                if stored.manifest is None:
                    problems.append(Problem(key, f"{key} is missing; `d3m distill` makes it", "warning"))
                    continue
                found: Iterable[Finding] = self.graph[asset].verify(self.reading(key, own=True), self.context.item(key))
                problems += [Problem(key, f"{key}: {f.text}", f.severity, f.check) for f in found]
            except (D3MError, OSError, ValueError, KeyError) as error:
                problems.append(Problem(key, f"{key} cannot be read: {error}"))
        return problems

    def stale(self, assets: Iterable[str]) -> list[Problem]:
        """What the last plan found missing or out of date of some assets."""
        chosen = frozenset(assets)
        return [
            Problem(entry.key, f"{entry.key} is {entry.state}: {', '.join(entry.reasons)}", "warning")
            for entry in self.last_plan().pending()
            if entry.key.asset in chosen
        ]


def _stop_without_store(error: BaseException | None) -> None:
    """Raise what makes all further work useless: an error of the whole store, or one that it has caused."""
    while error is not None:
        if isinstance(error, StoreNotWritableError | StoreUnavailableError):
            raise error
        error = error.__cause__


def _is_of_damage(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, a file of the store that is damaged."""
    while error is not None:
        if isinstance(error, DamagedError):
            return True
        error = error.__cause__
    return False


def first_of_each_asset(pending: Sequence[PlanEntry], limit: int | None) -> list[PlanEntry]:
    """The first ``limit`` entries of each asset; the order of keys is the same in all, so that they fit together."""
    if limit is None:
        return list(pending)
    counts: dict[str, int] = {}
    selected = []
    for entry in pending:
        counts[entry.key.asset] = counts.get(entry.key.asset, 0) + 1
        if counts[entry.key.asset] <= limit:
            selected.append(entry)
    return selected
