"""How the bytes of a class are shared out between its prompts and its image codes."""

from __future__ import annotations

from d3m_assets.assets.context import Context
from d3m_assets.distillation.budgets import split_bytes
from d3m_assets.distillation.settings import BOTH
from d3m_assets.ledger import Budget


def prompt_bytes(context: Context, budget: Budget) -> int:
    """Bytes of a class that vectors and selection may take: all, or what ``payload=both`` leaves to them."""
    return _split(context, budget)[0]


def code_bytes(context: Context, budget: Budget) -> int:
    """Bytes of a class that its image codes may take: all, or their share with ``payload=both``."""
    return _split(context, budget)[1]


def codes_beside_prompts(context: Context, budget: Budget) -> int:
    """Bytes of a class that are set aside for image codes where prompts are learned, too; 0 without codes."""
    return code_bytes(context, budget) if context.settings.payload == BOTH else 0


def _split(context: Context, budget: Budget) -> tuple[int, int]:
    allowed = budget.bytes(context.dataset.shape)
    if context.settings.payload != BOTH:
        return allowed, allowed
    return split_bytes(allowed, context.settings.codes_share)
