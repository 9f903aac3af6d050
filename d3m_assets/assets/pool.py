"""``synthetic_pool[class x budget]``: labelled images drawn from the embeddings; a cache, not the distilled data."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``synthetic_pool``."""
    return [stages.asset("synthetic_pool", group="distillation", model=True)]
