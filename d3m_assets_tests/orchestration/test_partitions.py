"""Partition keys and what each partition is made from."""

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from d3m_assets.assets.graph import GRAPH
from d3m_assets.definitions import build_definitions
from d3m_assets.orchestration.partitions import CLASSES, artefact_key, partition_key, register_classes
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey


@pytest.mark.parametrize(
    ("key", "partition"),
    [
        (ArtefactKey("class_catalog"), None),
        (ArtefactKey("raw_dataset", "3"), "3"),
        (ArtefactKey("student_metrics", None, "ipc-1"), "ipc-1"),
        (ArtefactKey("synthetic_pool", "3", "ipc-1"), "ipc-1|3"),
    ],
)
def test_partition_keys_and_artefact_keys_are_one_to_one(key: ArtefactKey, partition: str | None) -> None:
    assert partition_key(key) == partition
    assert artefact_key(GRAPH[key.asset], partition_key(key)) == key


UPSTREAM = {
    ("class_catalog", "raw_dataset", "b"): None,
    ("raw_dataset", "class_prompts", "b"): {"b"},
    ("raw_dataset", "inverted_embeddings", "ipc-5|b"): {"b"},
    ("inverted_embeddings", "synthetic_pool", "ipc-5|b"): {"ipc-5|b"},
    ("synthetic_pool", "student_metrics", "ipc-5"): {"ipc-5|a", "ipc-5|b", "ipc-5|c"},
    ("raw_dataset", "student_metrics", "ipc-5"): {"a", "b", "c"},
    ("student_metrics", "distillation_report", None): {"ipc-1", "ipc-5"},
    ("synthetic_pool", "distillation_report", None): {f"{b}|{c}" for b in ("ipc-1", "ipc-5") for c in "abc"},
    ("raw_dataset", "whole_dataset_metrics", None): {"a", "b", "c"},
}


def test_each_partition_is_made_from_those_the_pipeline_reads(settings: Settings, instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(CLASSES, ["a", "b", "c"])
    graph = build_definitions(settings).resolve_asset_graph()
    with partition_loading_context(dynamic_partitions_store=instance):
        for (upstream, downstream, partition), expected in UPSTREAM.items():
            assert upstream in {dep.name for dep in GRAPH[downstream].deps}
            if expected is None:
                assert not graph.get(dg.AssetKey(upstream)).is_partitioned
                continue
            target = graph.get(dg.AssetKey(downstream)).partitions_def
            subset = target.subset_with_partition_keys([partition]) if target and partition else None
            source = graph.get(dg.AssetKey(upstream)).partitions_def
            assert source is not None
            mapping = graph.get_partition_mapping(dg.AssetKey(downstream), dg.AssetKey(upstream))
            found = mapping.get_upstream_mapped_partitions_result_for_partitions(subset, target, source)
            assert set(found.partitions_subset.get_partition_keys()) == expected, (upstream, downstream)


@pytest.mark.parametrize("name", GRAPH.names)
def test_dagster_maps_each_artefact_to_what_the_planner_makes_it_from(
    settings: Settings, instance: dg.DagsterInstance, name: str
) -> None:
    instance.add_dynamic_partitions(CLASSES, ["a", "b", "c"])
    planner, graph = Pipeline(settings), build_definitions(settings).resolve_asset_graph()
    target = graph.get(dg.AssetKey(name)).partitions_def
    with partition_loading_context(dynamic_partitions_store=instance):
        for key in planner.possible_keys(name):
            expected: dict[str, set[str]] = {}
            for upstream in planner.inputs(key):
                expected.setdefault(upstream.asset, set()).add(str(partition_key(upstream)))
            for upstream, partitions in expected.items():
                source = graph.get(dg.AssetKey(upstream)).partitions_def
                if source is None:
                    assert partitions == {"None"}
                    continue
                subset = target.subset_with_partition_keys([str(partition_key(key))]) if target else None
                mapping = graph.get_partition_mapping(dg.AssetKey(name), dg.AssetKey(upstream))
                found = mapping.get_upstream_mapped_partitions_result_for_partitions(subset, target, source)
                assert set(found.partitions_subset.get_partition_keys()) == partitions, (key, upstream)


def test_classes_are_registered_and_forgotten(instance: dg.DagsterInstance) -> None:
    register_classes(instance, ["a", "b"])
    register_classes(instance, ["c", "b"])
    assert instance.get_dynamic_partitions(CLASSES) == ["b", "c"]

    register_classes(instance, [])
    assert instance.get_dynamic_partitions(CLASSES) == []
