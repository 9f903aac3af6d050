"""What all assets of the graph have in common."""

from dataclasses import dataclass

import dagster as dg

from d3m_assets.orchestration.partitions import Partitions, mapping
from d3m_assets.orchestration.record import StageConfig, run_asset
from d3m_assets.orchestration.resources import POOL, PipelineResource, device_request
from d3m_assets.pipeline import ASSETS

OWNERS = ["team:d3m-assets"]


@dataclass(frozen=True)
class Stages:
    """Makes the assets of one code location.

    Attributes:
        partitions: Their partitions definitions.
        device: ``settings.device``; with ``cpu``, no GPU is requested from Ray or Kubernetes.
    """

    partitions: Partitions
    device: str = "auto"

    def asset(self, name: str, *, group: str, model: bool = False) -> dg.AssetsDefinition:
        """Asset ``name`` of ``ASSETS``, which says what it depends on, is partitioned by and is about.

        Args:
            name: Stage.
            group: Where the UI shows it.
            model: Whether it runs a model, so that it needs the device.
        """
        info = ASSETS[name]

        @dg.asset(
            name=name,
            description=info.description,
            group_name=group,
            owners=OWNERS,
            kinds=set(info.kinds),
            code_version=info.code_version,
            deps=[dg.AssetDep(dep, partition_mapping=mapping(dep, name)) for dep in info.deps],
            partitions_def=self.partitions.definition(name),
            # One run takes all partitions asked for: 0.1 s a class instead of 7 to 35 with a run for each.
            backfill_policy=dg.BackfillPolicy.single_run() if info.partitioned_by else None,
            pool=POOL if model else None,
            op_tags=device_request(self.device) if model else None,
            # For a step whose process was killed; failures of the work itself say that they are not to be retried.
            retry_policy=dg.RetryPolicy(max_retries=1),
        )
        def stage(
            context: dg.AssetExecutionContext, config: StageConfig, pipelines: dg.ResourceParam[PipelineResource]
        ) -> dg.Output[None]:
            return run_asset(context, config, pipelines, needs_device=model)

        return stage
