"""``inverted_embeddings[class x budget]``: textual inversion, many classes in one batch on one device."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``inverted_embeddings``."""
    return [stages.asset("inverted_embeddings", group="distillation", model=True)]
