"""What all assets have in common."""

import json

import dagster as dg
import pytest

from d3m_assets.assets import MODULES, Stages
from d3m_assets.orchestration.partitions import Partitions
from d3m_assets.pipeline import ASSETS

MODELS = {
    "inverted_embeddings",
    "synthetic_pool",
    "repeated_pools",
    "pool_labels",
    "student_metrics",
    "reference_metrics",
    "whole_dataset_metrics",
    "foundation_metrics",
    "teacher_model",
    "pool_audit",
}


def assets(device: str) -> dict[str, dg.AssetsDefinition]:
    """All assets by name."""
    stages = Stages(Partitions.of(["ipc-1"]), device)
    return {asset.key.to_user_string(): asset for module in MODULES for asset in module.define(stages)}


def test_every_asset_of_the_pipeline_is_defined_once() -> None:
    defined = [asset for module in MODULES for asset in module.define(Stages(Partitions.of(["ipc-1"])))]
    assert sorted(asset.key.to_user_string() for asset in defined) == sorted(ASSETS)


def test_assets_that_run_a_model_queue_for_the_device() -> None:
    assert {name for name, asset in assets("auto").items() if asset.op.pool == "gpu"} == MODELS


@pytest.mark.parametrize(("device", "expected"), [("auto", MODELS), ("cuda:1", MODELS), ("cpu", set())])
def test_clusters_are_asked_for_a_gpu_when_one_is_used(device: str, expected: set[str]) -> None:
    tags = {name: asset.op.tags for name, asset in assets(device).items()}

    assert {name for name, found in tags.items() if "dagster-ray/config" in found} == expected
    for name in expected:
        assert json.loads(tags[name]["dagster-ray/config"]) == {"num_gpus": 1}
        limits = json.loads(tags[name]["dagster-k8s/config"])["container_config"]["resources"]["limits"]
        assert limits == {"nvidia.com/gpu": "1"}


def test_one_run_takes_all_partitions() -> None:
    for name, asset in assets("cpu").items():
        expected = dg.BackfillPolicy.single_run() if ASSETS[name].partitioned_by else None
        assert asset.backfill_policy == expected, name
