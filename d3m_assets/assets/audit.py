"""``pool_audit[budget]``: what is wrong with the images that students are trained on."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``pool_audit``."""
    return [stages.asset("pool_audit", group="evaluation", model=True)]
