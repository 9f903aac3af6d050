"""Partitions: classes (dynamic, they appear at run time), budgets (static, from the settings) and their product.

Classes are registered from the dataset, which is the source of truth; a wiped instance gets them back with the next
run or sensor tick.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from d3m_assets.pipeline import ASSETS
from d3m_assets.store import ArtefactKey

CLASSES = "d3m_classes"
"""Name of the dynamic partitions definition that holds the class keys."""


@dataclass(frozen=True)
class Partitions:
    """The three partitions definitions of the graph, by the names that ``ASSETS`` uses for them."""

    by: dict[str, dg.PartitionsDefinition]

    @classmethod
    def of(cls, budgets: Sequence[str]) -> "Partitions":
        """Partitions for these budgets and whatever classes are registered."""
        classes = dg.DynamicPartitionsDefinition(name=CLASSES)
        static = dg.StaticPartitionsDefinition(list(budgets))
        both = dg.MultiPartitionsDefinition({"class": classes, "budget": static})
        return cls({"class": classes, "budget": static, "class_budget": both})

    def definition(self, asset: str) -> dg.PartitionsDefinition | None:
        """Partitions definition of an asset, None when it has no partitions."""
        return self.by.get(ASSETS[asset].partitioned_by)


def mapping(upstream: str, downstream: str) -> dg.PartitionMapping | None:
    """Which partitions of ``upstream`` one partition of ``downstream`` is made from; None without partitions."""
    source, target = ASSETS[upstream].partitioned_by, ASSETS[downstream].partitioned_by
    if not source:
        return None
    if source == target:
        return dg.IdentityPartitionMapping()
    if "class_budget" in (source, target) and target:
        return dg.MultiToSingleDimensionPartitionMapping(target if source == "class_budget" else source)
    return dg.AllPartitionMapping()


def partition_key(key: ArtefactKey) -> str | None:
    """Partition key of an artefact. Dagster orders the parts by dimension name, so it must put them together."""
    if key.class_key is not None and key.budget is not None:
        return dg.MultiPartitionKey({"class": key.class_key, "budget": key.budget})
    return key.class_key if key.class_key is not None else key.budget


def artefact_key(asset: str, partition: str | None) -> ArtefactKey:
    """Undo :func:`partition_key` for a partition key as an execution context gives it."""
    if isinstance(partition, dg.MultiPartitionKey):
        parts = partition.keys_by_dimension
        return ArtefactKey(asset, class_key=parts["class"], budget=parts["budget"])
    if ASSETS[asset].partitioned_by == "budget":
        return ArtefactKey(asset, budget=partition)
    return ArtefactKey(asset, class_key=partition)


def class_changes(instance: dg.DagsterInstance, class_keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Class keys to register, in the order given, and registered ones that the dataset no longer has."""
    wanted, known = list(class_keys), instance.get_dynamic_partitions(CLASSES)
    return [key for key in wanted if key not in set(known)], [key for key in known if key not in set(wanted)]


def register_classes(instance: dg.DagsterInstance, class_keys: Iterable[str]) -> None:
    """Make the registered classes those of the dataset."""
    added, vanished = class_changes(instance, class_keys)
    if added:
        instance.add_dynamic_partitions(CLASSES, added)
    for key in vanished:
        instance.delete_dynamic_partition(CLASSES, key)
