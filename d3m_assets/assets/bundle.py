"""``distilled_bundle[budget]``: the distilled dataset, one file with the embeddings of all classes and the recipe."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``distilled_bundle``."""
    return [stages.asset("distilled_bundle", group="distillation")]
