"""Distilled datasets as Dagster assets: real images in, kilobytes of text-to-image embeddings out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d3m_assets.loading.data_loader import DistilledDataLoader
    from d3m_assets.loading.datasets import DistilledDataset, IterableDistilledDataset

__version__ = "0.1.0"
__all__ = ["DistilledDataLoader", "DistilledDataset", "IterableDistilledDataset", "__version__"]


def __getattr__(name: str) -> Any:
    """The datasets that need PyTorch, imported when they are first asked for."""
    if name in ("DistilledDataset", "IterableDistilledDataset"):
        from d3m_assets.loading import datasets

        return getattr(datasets, name)
    if name == "DistilledDataLoader":
        from d3m_assets.loading.data_loader import DistilledDataLoader

        return DistilledDataLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
