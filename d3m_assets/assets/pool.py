"""``synthetic_pool``, ``repeated_pools`` and ``pool_labels [class x budget]``: drawn images, and what a teacher says of them.

Caches, not distilled data: the embeddings can always draw them again.
"""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets ``synthetic_pool``, ``repeated_pools`` and ``pool_labels``."""
    return [
        stages.asset("synthetic_pool", group="distillation", model=True),
        stages.asset("repeated_pools", group="evaluation", model=True),
        stages.asset("pool_labels", group="evaluation", model=True),
    ]
