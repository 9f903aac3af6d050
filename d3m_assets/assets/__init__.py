"""The graph, one module a stage. Thin: keys in, library call, metadata out; what a stage does is in the library."""

from d3m_assets.assets import (
    audit,
    bundle,
    catalog,
    foundation,
    inversion,
    metrics,
    pool,
    prompts,
    raw,
    report,
    teacher,
)
from d3m_assets.assets.stage import Stages

MODULES = (catalog, raw, prompts, foundation, inversion, pool, bundle, teacher, metrics, audit, report)
"""Every module has ``define(stages)``, which returns its assets."""

__all__ = ["MODULES", "Stages"]
