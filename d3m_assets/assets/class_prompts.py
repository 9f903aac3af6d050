"""``class_prompts``: how a class is put into words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.assets.raw_dataset import RawDataset
from d3m_assets.distillation.prompts import ClassPrompts as Prompts
from d3m_assets.planning.asset import Asset, Made

FILE = "prompts.json"


class ClassPrompts(Asset):
    """How a class is put into words: templates, initializer and placeholder token."""

    group = "distillation"
    partitions = ("class",)
    deps = (RawDataset,)
    kinds = frozenset({"python"})

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """None: the images are lineage, and do not change the words."""
        return ()

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The words themselves."""
        return prompts_of(context, item).to_json()

    def make_one(self, context: Context, item: Item) -> Made:
        """The words as JSON."""
        prompts = prompts_of(context, item)
        metrics = {
            "prompt": prompts.learned(0),
            "class-name prompt": prompts.by_name(),
            "initializer": prompts.initializer,
        }
        return Made(item.key, {FILE: to_json(prompts.to_json())}, metrics)


def prompts_of(context: Context, item: Item) -> Prompts:
    """The words of an item's class by the rules of the settings."""
    settings, dataset_class = context.settings.prompts, item.dataset_class
    return Prompts.of(
        dataset_class.class_id,
        dataset_class.key,
        dataset_class.name,
        templates=settings.templates,
        initializer=settings.initializer,
        keep_class_name=settings.keep_class_name,
    )


def read_prompts(context: Context, class_key: str) -> Prompts:
    """The stored words of a class."""
    (key,) = context.inputs.keys(ClassPrompts, class_key=class_key)
    return Prompts.from_json(json.loads(context.inputs.read(key, FILE)))
