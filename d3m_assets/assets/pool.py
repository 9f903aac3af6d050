"""``synthetic_pool`` and ``repeated_pools [class x budget]``: images drawn from embeddings; caches, not distilled data."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets ``synthetic_pool`` and ``repeated_pools``."""
    return [
        stages.asset("synthetic_pool", group="distillation", model=True),
        stages.asset("repeated_pools", group="evaluation", model=True),
    ]
