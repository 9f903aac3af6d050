"""The joint: settings, graph, context and planner put together. The front doors open it.

Of the assets it names one file only: the stored catalog, which gives classes their ids before anything is planned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from d3m_assets import provenance
from d3m_assets.assets.class_catalog import stored_catalog
from d3m_assets.assets.context import Context
from d3m_assets.assets.graph import GRAPH
from d3m_assets.compute.devices import cores
from d3m_assets.datasets.dataset import Dataset
from d3m_assets.datasets.opening import open_dataset
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import find_foundation
from d3m_assets.foundation.model import Model
from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder, find_tiny_autoencoder
from d3m_assets.planning.asset import Asset, Graph
from d3m_assets.planning.planner import Planner
from d3m_assets.progress import Progress, silent
from d3m_assets.settings import Settings
from d3m_assets.store import Store


class Pipeline(Planner):
    """All artefacts of one dataset, foundation model and settings, as they are when it is opened.

    Args:
        settings: What to do.
        store: Where artefacts are kept; by default ``settings.storage_url``.
        progress: Told how far the work is.
        graph: The assets.
        dataset: Instead of the one that the settings name.
        model: Instead of the one that the settings name.
    """

    context: Context

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        progress: Progress = silent,
        graph: Graph = GRAPH,
        dataset: Dataset | None = None,
        model: Model | None = None,
    ) -> None:
        self.settings = settings
        store = store or Store.open(settings.storage_url, cache=settings.home.absolute() / "cache")
        dataset = dataset or Dataset(
            lambda: open_dataset(
                settings.dataset,
                home=settings.home,
                validation_fraction=settings.validation_fraction,
                images=settings.images,
                exclude=settings.exclude,
            ),
            settings.dataset_name,
            lambda scan: stored_catalog(store, scan),
            progress,
        )
        context = Context(settings, dataset, model or open_model(settings), store, progress)
        super().__init__(graph, context, store, self._made_here)

    def _made_here(self, asset: Asset) -> dict[str, Any]:
        # The device of what needs none is not asked for: that would load torch.
        if not asset.device:
            return provenance.of_process("cpu", cores())
        if self.settings.compute.engine == "ray" and self.settings.device != "cpu":
            return provenance.of_process(f"Ray workers ({self.settings.device})", cores())
        return provenance.of_process(self.context.device, cores())


def open_model(settings: Settings, find_files: Callable[..., FoundationFiles] = find_foundation) -> Model:
    """The foundation model that the settings name, not loaded and not even looked for yet.

    Args:
        settings: They name it.
        find_files: How its files are found.
    """
    # Weights that have not changed are not read again by every pipeline and every tick of a sensor.
    digests = settings.home / "cache" / "digests.json"

    def find() -> FoundationFiles:
        return find_files(
            settings.foundation,
            config=settings.foundation_config,
            revision=settings.foundation_revision,
            digests=digests,
        )

    def find_tiny(files: FoundationFiles) -> TinyAutoencoder | None:
        path = settings.generation.tiny_autoencoder
        return None if path is None else find_tiny_autoencoder(path, files, digests)

    return Model(settings.foundation, find, find_tiny, settings.device, settings.compile_unet)
