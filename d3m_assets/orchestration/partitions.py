"""Partitions: classes (dynamic, they appear at run time), budgets (static, from the settings) and their product.

Classes are registered from the dataset, which is the source of truth; a wiped instance gets them back with the next
run or sensor tick. Replicates are no partitions: Dagster keeps class x budget, the store keeps the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from d3m_assets.planning.asset import Asset
from d3m_assets.planning.source import Source
from d3m_assets.store import ArtefactKey

CLASSES = "d3m_classes"
"""Name of the dynamic partitions definition that holds the class keys."""


@dataclass(frozen=True)
class Partitions:
    """The partitions definitions of a graph, by the dimensions of its assets."""

    by: dict[frozenset[str], dg.PartitionsDefinition]

    @classmethod
    def of(cls, budgets: Sequence[str]) -> Partitions:
        """Partitions for these budgets and whatever classes are registered."""
        classes = dg.DynamicPartitionsDefinition(name=CLASSES)
        static = dg.StaticPartitionsDefinition(list(budgets))
        both = dg.MultiPartitionsDefinition({"class": classes, "budget": static})
        return cls({frozenset({"class"}): classes, frozenset({"budget"}): static, frozenset({"class", "budget"}): both})

    def definition(self, asset: type[Asset] | Asset) -> dg.PartitionsDefinition | None:
        """Partitions definition of an asset, None when it has no partitions."""
        return self.of_dimensions(asset.partitions)

    def of_dimensions(self, dimensions: Sequence[str]) -> dg.PartitionsDefinition | None:
        """Partitions definition of some dimensions, None without any."""
        return self.by[frozenset(dimensions)] if dimensions else None


def mapping(upstream: type[Asset] | type[Source], downstream: type[Asset] | Asset) -> dg.PartitionMapping | None:
    """Which partitions of ``upstream`` one partition of ``downstream`` is made from; None without partitions."""
    source, target = frozenset(upstream.partitions), frozenset(downstream.partitions)
    if not source:
        return None
    if source == target:
        return dg.IdentityPartitionMapping()
    if shared := source & target:
        return dg.MultiToSingleDimensionPartitionMapping(*shared)
    return dg.AllPartitionMapping()


def partition_key(key: ArtefactKey) -> str | None:
    """Partition key of an artefact. Dagster orders the parts by dimension name, so it must put them together."""
    if key.class_key is not None and key.budget is not None:
        return dg.MultiPartitionKey({"class": key.class_key, "budget": key.budget})
    return key.class_key if key.class_key is not None else key.budget


def artefact_key(asset: Asset, partition: str | None) -> ArtefactKey:
    """Undo :func:`partition_key` for a partition key as an execution context gives it; of replicate 0."""
    if isinstance(partition, dg.MultiPartitionKey):
        parts = partition.keys_by_dimension
        return ArtefactKey(asset.name, class_key=parts["class"], budget=parts["budget"])
    if "budget" in asset.partitions:
        return ArtefactKey(asset.name, budget=partition)
    return ArtefactKey(asset.name, class_key=partition)


def class_changes(instance: dg.DagsterInstance, class_keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Class keys to register, in the order given, and registered ones that the dataset no longer has."""
    # As dictionaries, which keep the order and find a key without looking through all.
    expected, known = dict.fromkeys(class_keys), dict.fromkeys(instance.get_dynamic_partitions(CLASSES))
    return [key for key in expected if key not in known], [key for key in known if key not in expected]


def register_classes(instance: dg.DagsterInstance, class_keys: Iterable[str]) -> None:
    """Make the registered classes those of the dataset."""
    added, vanished = class_changes(instance, class_keys)
    if added:
        instance.add_dynamic_partitions(CLASSES, added)
    for key in vanished:
        instance.delete_dynamic_partition(CLASSES, key)
