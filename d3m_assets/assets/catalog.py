"""``class_catalog``: which classes the dataset has, with ids that are given once and never reused."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``class_catalog``."""
    return [stages.asset("class_catalog", group="dataset")]
