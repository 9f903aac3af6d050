"""Students trained on the distilled data and on what it is compared with, all by the same recipe."""

import dagster as dg

from d3m_assets.assets.stage import Stages

NAMES = ("student_metrics", "reference_metrics", "whole_dataset_metrics", "foundation_metrics")


def define(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets ``student_metrics``, ``reference_metrics``, ``whole_dataset_metrics`` and ``foundation_metrics``."""
    return [stages.asset(name, group="evaluation", model=True) for name in NAMES]
