"""``foundation_model``: the frozen text-to-image model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.datasets.problems import DatasetProblem
from d3m_assets.foundation.files import EMBEDDED
from d3m_assets.ledger import ImageShape
from d3m_assets.planning.asset import Asset, Check, Finding, Made

LARGEST_CHARACTER = 64
"""Side in pixels up to which grey images may well be single characters, which is all that the embedded model draws."""


class FoundationModel(Asset):
    """The frozen text-to-image diffusion model: where it is and the fingerprint of its weights."""

    group = "distillation"
    kinds = frozenset({"pytorch", "huggingface"})
    checks = (Check("draws_such_images", "The model is not the embedded one where images are no single characters."),)

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
        if files.commit:  # a tag or branch may be moved
            facts["commit"] = files.commit
        return Made(item.key, {"foundation.json": to_json(facts)}, facts)

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Whether it can be expected to draw images such as the dataset's."""
        for problem in model_problems(context):
            yield Finding(str(problem), "warning")


def model_problems(context: Context) -> list[DatasetProblem]:
    """What is told of the model beside the problems in the data."""
    return problems_of_model(context.model.name, context.dataset.shape)


def problems_of_model(name: str, shape: ImageShape) -> list[DatasetProblem]:
    """That the embedded model is used for other than characters.

    Args:
        name: Setting ``foundation``.
        shape: Of the dataset's images.
    """
    colour, large = shape.channels == 3, max(shape.height, shape.width) > LARGEST_CHARACTER
    if name != EMBEDDED or not (colour or large):
        return []
    what = (
        "draws single characters in grey at 32x32 pixels and knows nothing else, but the images are "
        f"{'in colour' if colour else 'grey'} at {shape.height}x{shape.width} pixels"
    )
    remedy = "name a text-to-image model for photographs with --foundation, unless they do show characters"
    return [DatasetProblem("", "the embedded model", what, remedy, "warning")]
