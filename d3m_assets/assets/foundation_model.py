"""``foundation_model``: the frozen text-to-image model."""

from __future__ import annotations

from typing import Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.planning.asset import Asset, Made


class FoundationModel(Asset):
    """The frozen text-to-image diffusion model: where it is and the fingerprint of its weights."""

    group = "distillation"
    kinds = frozenset({"pytorch", "huggingface"})

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Its weights and configurations, by content."""
        return {"fingerprint": context.model.files.fingerprint}

    def make_one(self, context: Context, item: Item) -> Made:
        """What identifies it; the weights stay where they are."""
        files = context.model.files
        facts = {
            "name": files.name,
            "path": str(files.source),
            "fingerprint": files.fingerprint,
            "text_width": files.text_width,
            "text_length": files.text_length,
            "image_size": files.image_size,
            "bytes": files.weight_bytes,
        }
        return Made(item.key, {"foundation.json": to_json(facts)}, facts)
