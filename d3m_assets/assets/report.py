"""``distillation_report``: the verdict in words, with tables, curves and pictures; one HTML file."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``distillation_report``."""
    return [stages.asset("distillation_report", group="evaluation")]
