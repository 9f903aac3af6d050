"""The image files, as Dagster sees them: outside of the graph, upstream of the assets that read them."""

from __future__ import annotations

from d3m_assets.assets.context import Context, Item
from d3m_assets.planning.source import Source


class DatasetFiles(Source):
    """All image files of the dataset, where their owner keeps them. Nothing here writes to them."""

    group = "dataset"

    def version(self, context: Context, item: Item) -> str:
        """Fingerprint of all files of all classes."""
        return context.dataset.scan.fingerprint


class ClassFiles(Source):
    """The image files of a class, where their owner keeps them. Nothing here writes to them."""

    group = "dataset"
    partitions = ("class",)

    def version(self, context: Context, item: Item) -> str:
        """Fingerprint of the files of the class."""
        return context.dataset.scan.classes[item.dataset_class.name].fingerprint
