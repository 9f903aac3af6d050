"""Everything of a Dagster code location, derived from a graph and settings."""

from __future__ import annotations

import dagster as dg

from d3m_assets.addresses import masked
from d3m_assets.orchestration.alerts import build_failure_sensors
from d3m_assets.orchestration.assets import build_assets
from d3m_assets.orchestration.checks import build_checks
from d3m_assets.orchestration.executors import executor_of
from d3m_assets.orchestration.jobs import build_distill, build_verify
from d3m_assets.orchestration.partitions import Partitions
from d3m_assets.orchestration.resources import OpenPipeline, PipelineResource
from d3m_assets.orchestration.schedules import build_schedules
from d3m_assets.orchestration.sensors import build_sensor
from d3m_assets.orchestration.sources import build_sources
from d3m_assets.planning.asset import Graph
from d3m_assets.settings import Settings


def build_code_location(
    graph: Graph, settings: Settings, open_pipeline: OpenPipeline, executor: dg.ExecutorDefinition | None = None
) -> dg.Definitions:
    """All definitions, without reading the dataset or touching the store.

    Args:
        graph: The assets.
        settings: What to distill and how.
        open_pipeline: Opens the pipeline of a run.
        executor: Runs the steps of assets; None: the one that ``execution.executor`` names.

    Raises:
        SettingsError: The package of that executor is not installed.
    """
    automation = settings.automation
    executor = executor or executor_of(settings)
    distill, verify = build_distill(settings), build_verify(graph, automation)
    partitions = Partitions.of(settings.budgets)
    return dg.Definitions(
        assets=[*build_sources(graph, partitions), *build_assets(graph, partitions, settings, executor)],
        asset_checks=build_checks(graph),
        jobs=[distill, verify],
        sensors=[build_sensor(distill, settings), *build_failure_sensors(automation)],
        schedules=build_schedules(distill, verify, settings),
        resources={"pipelines": PipelineResource(settings, open_pipeline)},
        executor=executor,
        metadata={
            "dataset": masked(settings.dataset),
            "foundation": settings.foundation,
            "budgets": ", ".join(settings.budgets),
            "storage": masked(settings.storage_url),
        },
    )
