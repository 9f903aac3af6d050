"""The front door for Dagster: everything of the code location, from settings.

Nothing imported here loads torch, diffusers or transformers: every Dagster process would pay 19 s and 415 MB for it.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from d3m_assets.assets.graph import GRAPH
from d3m_assets.orchestration.code_location import build_code_location
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import Settings, load_settings


def build_definitions(
    settings: Settings | None = None, *, executor: dg.ExecutorDefinition | None = None, **overrides: Any
) -> dg.Definitions:
    """All definitions for ``settings``, without reading the dataset or touching the store.

    Args:
        settings: What to distill and how; None reads environment and settings file.
        executor: Runs the steps of assets, in place of the one that ``execution.executor`` names.
        **overrides: Settings that win over environment and file, as for :func:`~d3m_assets.settings.load_settings`;
            only without ``settings``.

    Raises:
        SettingsError: A setting is unknown or impossible.
        TypeError: Both ``settings`` and ``overrides`` are given.
    """
    if settings is None:
        settings = load_settings(**overrides)
    elif overrides:
        raise TypeError(f"give either settings or {', '.join(overrides)}, not both")
    return build_code_location(GRAPH, settings, Pipeline, executor)


defs = build_definitions()
"""What Dagster needs around the graph: partitions, recording, checks, automation, and launching from a shell."""
