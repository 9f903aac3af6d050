"""``teacher_model``: the classifier of the real data that gives soft labels and features; only when a row needs it."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``teacher_model``."""
    return [stages.asset("teacher_model", group="evaluation", model=True)]
