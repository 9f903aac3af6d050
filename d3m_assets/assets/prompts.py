"""``class_prompts[class]``: the class in words and its placeholder tokens."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``class_prompts``."""
    return [stages.asset("class_prompts", group="distillation")]
