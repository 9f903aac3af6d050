"""The front door for Dagster: everything of the code location, from settings.

Nothing imported here loads torch, diffusers or transformers: every Dagster process would pay 19 s and 415 MB for it.
"""

from typing import Any

import dagster as dg

from d3m_assets.assets import MODULES, Stages
from d3m_assets.orchestration.checks import build_checks
from d3m_assets.orchestration.jobs import build_distil, build_verify
from d3m_assets.orchestration.partitions import Partitions
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.orchestration.schedules import build_schedules
from d3m_assets.orchestration.sensors import build_sensor
from d3m_assets.settings import Settings, load_settings


def build_definitions(
    settings: Settings | None = None, *, executor: dg.ExecutorDefinition | None = None, **overrides: Any
) -> dg.Definitions:
    """All definitions for ``settings``, without reading the dataset or touching the store.

    Args:
        settings: What to distil and how; None reads environment and settings file.
        executor: Runs the steps of assets, for example that of dagster-ray or dagster-k8s; None: processes here.
        **overrides: Settings that win over environment and file, as for :func:`~d3m_assets.settings.load_settings`;
            only without ``settings``.

    Raises:
        SettingsError: A setting is unknown or impossible.
        TypeError: Both ``settings`` and ``overrides`` are given.
    """
    if settings is None:
        settings = load_settings(**overrides)
    elif overrides:
        raise TypeError(f"give either settings or {', '.join(overrides)}, not both")
    stages = Stages(Partitions.of(settings.budgets), settings.device)
    distil, verify = build_distil(settings), build_verify()
    return dg.Definitions(
        assets=[asset for module in MODULES for asset in module.define(stages)],
        asset_checks=build_checks(),
        jobs=[distil, verify],
        sensors=[build_sensor(distil, settings)],
        schedules=build_schedules(distil, verify, settings),
        resources={"pipelines": PipelineResource(settings)},
        executor=executor,
        metadata={
            "dataset": settings.dataset,
            "foundation": settings.foundation,
            "budgets": ", ".join(settings.budgets),
            "storage": settings.storage_url,
        },
    )


defs = build_definitions()
