"""``raw_dataset[class]``: the real images of a class, by reference; the originals stay where they are."""

import dagster as dg

from d3m_assets.assets.stage import Stages


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The asset ``raw_dataset``."""
    return [stages.asset("raw_dataset", group="dataset")]
