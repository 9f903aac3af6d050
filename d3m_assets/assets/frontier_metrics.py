"""``frontier_metrics``: what real images teach at numbers of bytes at which nothing is distilled."""

from __future__ import annotations

from typing import Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.encoded_images import encoded_baselines
from d3m_assets.assets.reference_metrics import ReferenceMetrics
from d3m_assets.ledger import Budget, holds_real_image


class FrontierMetrics(ReferenceMetrics):
    """Students trained on real images at further budgets, also below one vector: the rest of the frontier."""

    partitions = ()
    variants = ()

    def skip_reason(self, context: Context, item: Item) -> str:
        """It is not required where no further budget holds a real image."""
        if self.budgets(context, item):
            return ""
        return "evaluation.reference_budgets names no budget that holds a real image and is not measured anyway"

    def budgets(self, context: Context, item: Item) -> list[Budget]:
        """Budgets of the setting with other numbers of bytes than those that are distilled at."""
        shape = context.dataset.shape
        distilled = {budget.bytes(shape) for budget in context.budgets}
        further = {b.bytes(shape): b for b in map(Budget.parse, context.settings.evaluation.reference_budgets)}
        encoded = bool(encoded_baselines(context))
        return [
            budget
            for size, budget in sorted(further.items())
            if size not in distilled and (encoded or holds_real_image(budget, shape))
        ]

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Which budgets there are, beside what decides about the others."""
        shape = context.dataset.shape
        sizes = {budget.name: budget.bytes(shape) for budget in self.budgets(context, item)}
        return super().settings(context, item) | {"reference_budgets": sizes}
