"""What all Dagster assets have in common, and what the graph of the package says of each."""

import json

import dagster as dg
import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.orchestration.assets import build_assets
from d3m_assets.orchestration.partitions import Partitions
from d3m_assets.planning.asset import Asset, Graph
from d3m_assets.settings import load_settings
from d3m_assets_tests.planning import toys


def assets(
    graph: Graph, device: str = "auto", executor: dg.ExecutorDefinition = dg.multiprocess_executor
) -> dict[str, dg.AssetsDefinition]:
    """All assets of a graph by name."""
    defined = build_assets(graph, Partitions.of(["small", "large"]), load_settings(device=device), executor)
    return {asset.key.to_user_string(): asset for asset in defined}


def test_an_asset_says_of_itself_what_its_class_says() -> None:
    defined = assets(toys.GRAPH)["toy_image"]

    spec = defined.get_asset_spec()
    assert spec.group_name == "toys"
    assert spec.description == "Grey squares of a class, in several replicates."
    assert spec.kinds == {"python", "parquet"}
    assert spec.code_version == "7"
    assert spec.owners == ["team:d3m-assets"]
    assert {dep.asset_key.to_user_string() for dep in spec.deps} == {"toy_word"}


def test_every_asset_of_the_graph_is_defined_once_and_in_its_order() -> None:
    assert list(assets(GRAPH)) == list(GRAPH.names)


def test_steps_in_processes_of_their_own_queue_for_the_device_and_are_tried_again() -> None:
    defined = assets(toys.GRAPH)
    pools = {name: asset.op.pool for name, asset in defined.items()}
    assert pools == {"toy_word": None, "toy_image": "gpu", "toy_score": None}
    assert {asset.op.retry_policy for asset in defined.values()} == {dg.RetryPolicy(max_retries=1)}


def test_steps_in_the_process_of_the_run_can_be_interrupted() -> None:
    ops = [asset.op for asset in assets(toys.GRAPH, executor=dg.in_process_executor).values()]
    assert {op.pool for op in ops} == {None}, "waiting for a slot they would not hear the interrupt"
    assert {op.retry_policy for op in ops} == {None}, "an interrupted step would be tried again in the same process"


@pytest.mark.parametrize(("device", "expected"), [("auto", {"toy_image"}), ("cuda:1", {"toy_image"}), ("cpu", set())])
def test_clusters_are_asked_for_a_gpu_when_one_is_used(device: str, expected: set[str]) -> None:
    tags = {name: asset.op.tags for name, asset in assets(toys.GRAPH, device).items()}

    assert {name for name, found in tags.items() if "dagster-ray/config" in found} == expected
    for name in expected:
        assert json.loads(tags[name]["dagster-ray/config"]) == {"num_gpus": 1}
        limits = json.loads(tags[name]["dagster-k8s/config"])["container_config"]["resources"]["limits"]
        assert limits == {"nvidia.com/gpu": "1"}


def test_one_run_takes_all_partitions() -> None:
    class Alone(Asset):
        """Without partitions."""

        group = "toys"

    policies = {name: asset.backfill_policy for name, asset in assets(Graph(*toys.CLASSES, Alone)).items()}
    several = dg.BackfillPolicy.single_run()
    assert policies == {"toy_word": several, "toy_image": several, "toy_score": several, "alone": None}
