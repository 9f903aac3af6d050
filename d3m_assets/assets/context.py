"""What an asset gets: resolved items, the settings, dataset and model, workers, and its declared inputs; nothing else."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from d3m_assets.compute.engine import open_workers
from d3m_assets.compute.interface import Work, WorkerPool
from d3m_assets.datasets.dataset import Dataset, DatasetClass
from d3m_assets.errors import StageError
from d3m_assets.foundation.model import Model
from d3m_assets.ledger import Budget
from d3m_assets.planning.planner import Inputs
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An artefact to make, with everything resolved that its key stands for.

    Attributes:
        key: Its key in the store.
        seed: Root of the random numbers of its replicate.
    """

    key: ArtefactKey
    seed: int
    _dataset_class: DatasetClass | None = None
    _budget: Budget | None = None

    @property
    def dataset_class(self) -> DatasetClass:
        """Its class.

        Raises:
            StageError: The asset is not partitioned by class.
        """
        if self._dataset_class is None:
            raise StageError(f"{self.key} is of no class; the asset has to be partitioned by class")
        return self._dataset_class

    @property
    def budget(self) -> Budget:
        """Its budget.

        Raises:
            StageError: The asset is not partitioned by budget.
        """
        if self._budget is None:
            raise StageError(f"{self.key} is of no budget; the asset has to be partitioned by budget")
        return self._budget

    @property
    def replicate(self) -> int:
        """Which of several artefacts that differ by their seed."""
        return self.key.replicate

    @property
    def label(self) -> str:
        """Budget, class and replicate, for a progress line."""
        parts = [self._budget.name] if self._budget else []
        parts += [f"class {self._dataset_class.key}"] if self._dataset_class else []
        parts += [f"replicate {self.replicate}"] if self.replicate else []
        return " ".join(parts)


def replicate_seed(seed: int, replicate: int) -> int:
    """Root of the random numbers of a replicate; replicate 0 has the seed of the settings."""
    if replicate == 0:
        return seed
    digest = hashlib.sha256(f"{seed} distillation {replicate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Records(Protocol):
    """Small results that are kept under the hash of what they were made from."""

    def record(self, kind: str, digest: str) -> dict[str, Any] | None:
        """A kept result; None: there is none."""

    def keep_record(self, kind: str, digest: str, value: Mapping[str, Any]) -> None:
        """Keep a result."""


class Context:
    """What makers, previews and checks may use.

    Attributes:
        settings: All settings; what is read of them for content has to be in :meth:`Asset.settings`, which a test checks.
        dataset: The dataset as it is now.
        model: The foundation model, not loaded.
        records: Results of single students, kept under the hash of what they were made from.
        progress: Told how far the work is.
        inputs: What the artefacts at hand are made from; empty outside of making, previewing and verifying.
        force: Whether students that are known are to be trained again.
    """

    inputs: Inputs
    force: bool = False

    def __init__(
        self, settings: Settings, dataset: Dataset, model: Model, records: Records, progress: Progress = silent
    ) -> None:
        self.settings, self.dataset, self.model, self.progress = settings, dataset, model, progress
        self.records = records
        self._budgets = {name: Budget.parse(name) for name in settings.budgets}
        self._kept: dict[Hashable, Any] = {}
        self._workers: list[WorkerPool] = []

    def values(self, dimension: str) -> Sequence[Any]:
        """Every value that a dimension has now: "class" keys, "budget" names, "replicate" numbers."""
        if dimension == "class":
            return [c.key for c in self.dataset.classes]
        return list(self._budgets) if dimension == "budget" else range(self.settings.distillations)

    def item(self, key: ArtefactKey) -> Item:
        """A key with everything resolved that it stands for.

        Raises:
            StageError: Its class or budget is none of this dataset and these settings.
        """
        dataset_class = budget = None
        if key.class_key is not None and (dataset_class := self.dataset.class_by_key.get(key.class_key)) is None:
            raise StageError(f"{key} is not in the dataset and settings any more")
        if key.budget is not None and (budget := self._budgets.get(key.budget)) is None:
            raise StageError(f"{key} is not in the dataset and settings any more")
        return Item(key, replicate_seed(self.settings.seed, key.replicate), dataset_class, budget)

    def reading(self, inputs: Inputs, *, force: bool = False) -> Context:
        """The same context with what may be read."""
        context = copy.copy(self)
        context.inputs, context.force = inputs, force
        return context

    def for_item(self, item: Item) -> Context:
        """The context of one of the items at hand, which refuses the inputs of the others."""
        return self.reading(self.inputs.of(item.key), force=self.force)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """All budgets, in the order of the settings."""
        return tuple(self._budgets.values())

    @property
    def device(self) -> str:
        """The torch device that this process computes on, resolved; where Ray does the work, this process needs no GPU."""
        return "cpu" if self.settings.compute.engine == "ray" else self.model.device

    @property
    def device_kind(self) -> str:
        """The kind of device that the settings name, for fingerprints.

        "auto" stays "auto": an artefact is not out of date because another machine looks at it.
        """
        return self.settings.device.split(":")[0]

    @property
    def image_shape(self) -> list[int]:
        """Stored height, width and channels of the dataset's images, for fingerprints."""
        shape = self.dataset.shape
        return [shape.height, shape.width, shape.channels]

    @property
    def cache(self) -> Path:
        """Folder of what may be deleted at any time, on this machine."""
        return self.settings.home.absolute() / "cache"

    @property
    def workers(self) -> WorkerPool:
        """They share the work: processes on the cores or GPUs of this machine, or actors of a Ray cluster."""
        if not self._workers:
            settings = self.settings
            self._workers.append(open_workers(settings.compute, settings.device, settings.workers))
        return self._workers[0]

    @property
    def states(self) -> Path:
        """Folder of unfinished inversions."""
        given = self.settings.compute.state_dir
        return self.cache / "inversion" if given is None else given.expanduser().absolute()

    def close(self) -> None:
        """End the workers; they are started again when they are needed."""
        for workers in self._workers:
            workers.close()

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """The result of ``make``, computed once for the life of the pipeline."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def forget(self, name: Hashable) -> None:
        """Let go of a result of :meth:`once`."""
        self._kept.pop(name, None)

    def map_in_workers(
        self, stage: str, work: Work, jobs: Sequence[Any], labels: Sequence[str]
    ) -> Iterator[tuple[int, Any]]:
        """Apply ``work`` to every job in the workers, reporting overall progress.

        Args:
            stage: What is running, for the progress line.
            work: A function of a module.
            jobs: What to work on; they must pickle.
            labels: What each job is about, for the progress line.

        Yields:
            Position and result of each job as it finishes; a :class:`~d3m_assets.errors.D3MError` is a result.
        """
        fractions = [0.0] * len(jobs)

        def report(index: int, event: ProgressEvent) -> None:
            fractions[index] = event.done / event.total if event.total else fractions[index]
            detail = f"{labels[index]} step {event.done}/{event.total} {event.detail}".rstrip()
            self.progress(ProgressEvent(stage, round(1000 * sum(fractions)), 1000 * len(jobs), detail))

        self.progress(ProgressEvent(stage, 0, 1000 * len(jobs), "starting"))
        for index, result in self.workers.run(work, jobs, report):
            fractions[index] = 1.0
            self.progress(ProgressEvent(stage, round(1000 * sum(fractions)), 1000 * len(jobs), labels[index]))
            yield index, result
