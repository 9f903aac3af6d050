"""``foundation_model``: the frozen text-to-image model, pinned by a fingerprint."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``foundation_model``."""
    return [stages.asset("foundation_model", group="distillation")]
