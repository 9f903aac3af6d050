"""Dagster assets, derived from the graph."""

from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from d3m_assets.orchestration.partitions import Partitions, mapping
from d3m_assets.orchestration.record import AssetConfig, run_asset
from d3m_assets.orchestration.resources import POOL, PipelineResource, device_request
from d3m_assets.planning.asset import Asset, Graph
from d3m_assets.planning.source import Source
from d3m_assets.settings import Settings

OWNERS = ["team:d3m-assets"]
NOT_MADE = "d3m/not_made"
"""Tag of assets that the settings do without, so that the UI can filter by it: ``not tag:"d3m/not_made"``."""


def build_assets(
    graph: Graph, partitions: Partitions, settings: Settings, executor: dg.ExecutorDefinition
) -> list[dg.AssetsDefinition]:
    """One Dagster asset for every asset of the graph.

    Args:
        graph: The assets.
        partitions: Their partitions definitions.
        settings: Which assets are made at all, whether steps ask Ray or Kubernetes for a GPU, how many partitions a run
            takes, and how old the assets with a freshness policy may be.
        executor: What will run them; see :func:`_step_options`.
    """
    options = _step_options(executor)
    return [_definition(asset, partitions, settings, options) for asset in graph]


def _description(asset: Asset, unused: str) -> str:
    """What an asset is. The UI calls one that is never made "missing", so here is the place to say that nothing is."""
    return f"Not made under these settings: {unused}. {asset.description}" if unused else asset.description


def _freshness_policy(asset: Asset, settings: Settings) -> dg.FreshnessPolicy | None:
    hours = settings.automation.max_age_hours
    if hours is None or not asset.freshness_policy:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))


def _backfill_policy(asset: Asset, settings: Settings) -> dg.BackfillPolicy | None:
    """One run takes all partitions asked for: 0.1 s a class instead of 7 to 35 with a run for each.

    Where each run gets a machine of its own, as on Kubernetes, device assets are split into several.
    """
    if not asset.partitions:
        return None
    if asset.device and settings.compute.partitions_per_run is not None:
        return dg.BackfillPolicy.multi_run(settings.compute.partitions_per_run)
    return dg.BackfillPolicy.single_run()


@dataclass(frozen=True)
class _StepOptions:
    """How steps queue and are tried again."""

    pool: str | None
    retry_policy: dg.RetryPolicy | None


def _step_options(executor: dg.ExecutorDefinition) -> _StepOptions:
    """Pool of the steps that use a device, and retry policy of all, under an executor.

    A step in a process of its own queues in the pool, and is tried again when its process was killed; failures of the
    work itself say that they are not to be retried.

    In the process of the run both do harm (1.13.27). A retry policy turns the interrupt by which a run is terminated
    into a retry, so that the run goes on computing. A run that waits for a slot of a pool does not hear the
    interrupt, and one that was killed keeps its slot until the daemon looks. The lease of the device, which the
    system frees, does the queueing, and a run that was killed is tried again as a whole.
    """
    if executor is dg.in_process_executor:
        return _StepOptions(pool=None, retry_policy=None)
    return _StepOptions(pool=POOL, retry_policy=dg.RetryPolicy(max_retries=1))


def _definition(asset: Asset, partitions: Partitions, settings: Settings, options: _StepOptions) -> dg.AssetsDefinition:
    above: list[type[Asset] | type[Source]] = [*asset.deps, *asset.sources]
    unused = asset.unused(settings)

    @dg.asset(
        name=asset.name,
        description=_description(asset, unused),
        tags={NOT_MADE: ""} if unused else None,
        group_name=asset.group,
        owners=OWNERS,
        kinds=set(asset.kinds),
        code_version=asset.code_version,
        deps=[dg.AssetDep(dep.name, partition_mapping=mapping(dep, asset)) for dep in above],
        partitions_def=partitions.definition(asset),
        freshness_policy=_freshness_policy(asset, settings),
        backfill_policy=_backfill_policy(asset, settings),
        pool=options.pool if asset.device else None,
        op_tags=device_request(settings) if asset.device else None,
        retry_policy=options.retry_policy,
    )
    def materialized(
        context: dg.AssetExecutionContext, config: AssetConfig, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.Output[None]:
        return run_asset(context, config, pipelines, asset)

    return materialized
