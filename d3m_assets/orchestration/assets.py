"""Dagster assets, derived from the graph."""

from datetime import timedelta

import dagster as dg

from d3m_assets.orchestration.partitions import Partitions, mapping
from d3m_assets.orchestration.record import AssetConfig, run_asset
from d3m_assets.orchestration.resources import POOL, PipelineResource, device_request
from d3m_assets.planning.asset import Asset, Graph
from d3m_assets.planning.source import Source

OWNERS = ["team:d3m-assets"]


def build_assets(
    graph: Graph, partitions: Partitions, device: str, max_age_hours: float | None = None
) -> list[dg.AssetsDefinition]:
    """One Dagster asset for every asset of the graph.

    Args:
        graph: The assets.
        partitions: Their partitions definitions.
        device: ``settings.device``; with ``cpu``, no GPU is requested from Ray or Kubernetes.
        max_age_hours: ``settings.automation.max_age_hours``, for the assets that have a freshness policy; None: none has.
    """
    policy = None
    if max_age_hours is not None:
        policy = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=max_age_hours))
    return [_definition(asset, partitions, device, policy if asset.freshness_policy else None) for asset in graph]


def _definition(
    asset: Asset, partitions: Partitions, device: str, policy: dg.FreshnessPolicy | None
) -> dg.AssetsDefinition:
    above: list[type[Asset] | type[Source]] = [*asset.deps, *asset.sources]

    @dg.asset(
        name=asset.name,
        description=asset.description,
        group_name=asset.group,
        owners=OWNERS,
        kinds=set(asset.kinds),
        code_version=asset.code_version,
        deps=[dg.AssetDep(dep.name, partition_mapping=mapping(dep, asset)) for dep in above],
        partitions_def=partitions.definition(asset),
        freshness_policy=policy,
        # One run takes all partitions asked for: 0.1 s a class instead of 7 to 35 with a run for each.
        backfill_policy=dg.BackfillPolicy.single_run() if asset.partitions else None,
        pool=POOL if asset.device else None,
        op_tags=device_request(device) if asset.device else None,
        # For a step whose process was killed; failures of the work itself say that they are not to be retried.
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    def materialized(
        context: dg.AssetExecutionContext, config: AssetConfig, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.Output[None]:
        return run_asset(context, config, pipelines, asset)

    return materialized
