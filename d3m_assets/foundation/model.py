"""The foundation model that the settings name: found on disk at once, loaded only where it is used."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from d3m_assets.compute.devices import choose_device, own_device
from d3m_assets.errors import FoundationError
from d3m_assets.foundation.files import EMBEDDED, FoundationFiles, embedded_path
from d3m_assets.foundation.loading import Foundation, load_foundation
from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder, load_tiny_autoencoder

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny


@dataclass(frozen=True)
class ModelReference:
    """What a worker needs to load the foundation model.

    Attributes:
        files: Its files.
        device: The torch device that the settings name; a worker process may have been given another.
        compile_unet: Whether the U-Net is compiled.
        tiny_autoencoder: The autoencoder that decodes in place of the model's own; None: the model's own does.
    """

    files: FoundationFiles
    device: str
    compile_unet: bool = False
    tiny_autoencoder: TinyAutoencoder | None = None

    def load(self) -> Foundation:
        """The model, loaded once in each process."""
        return _loaded(_on_this_machine(self.files), own_device() or self.device, self.compile_unet)

    def load_autoencoder(self) -> AutoencoderTiny | None:
        """The tiny autoencoder, loaded once in each process; None: there is none."""
        return None if self.tiny_autoencoder is None else _loaded_autoencoder(self.tiny_autoencoder, self)


def _on_this_machine(files: FoundationFiles) -> FoundationFiles:
    """The files as a node of a cluster has them, which may have this package in another folder than the driver.

    Raises:
        FoundationError: The node does not have them.
    """
    if files.source.exists():
        return files
    if files.name == EMBEDDED:
        return replace(files, path=embedded_path())
    raise FoundationError(
        f"{files.source} does not exist on {platform.node()}; give every machine that computes the model at the same "
        "path, for example on a shared file system"
    )


@cache
def _loaded(files: FoundationFiles, device: str, compile_unet: bool) -> Foundation:
    return load_foundation(files, device, compile_unet=compile_unet)


@cache
def _loaded_autoencoder(files: TinyAutoencoder, model: ModelReference) -> AutoencoderTiny:
    return load_tiny_autoencoder(files, model.load())


class Model:
    """The foundation model of a pipeline, not loaded.

    Args:
        name: How the settings name it.
        find: Finds its files.
        find_tiny_autoencoder: Finds the autoencoder that decodes in place of the model's own, or returns None.
        device: The torch device that the settings name.
        compile_unet: Whether the U-Net is compiled.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], FoundationFiles],
        find_tiny_autoencoder: Callable[[FoundationFiles], TinyAutoencoder | None],
        device: str,
        compile_unet: bool = False,
    ) -> None:
        self.name = name.rstrip("/").rsplit("/", 1)[-1]
        self._find, self._find_tiny_autoencoder = find, find_tiny_autoencoder
        self._device, self._compile_unet = device, compile_unet

    @cached_property
    def files(self) -> FoundationFiles:
        """The model on disk.

        Raises:
            FoundationError: It is not usable.
        """
        return self._find()

    @cached_property
    def tiny_autoencoder(self) -> TinyAutoencoder | None:
        """The autoencoder that decodes in place of the model's own, on disk; None: the model's own does.

        Raises:
            FoundationError: It is not usable.
        """
        return self._find_tiny_autoencoder(self.files)

    @property
    def reference(self) -> ModelReference:
        """What a worker needs to load it."""
        return ModelReference(self.files, self._device, self._compile_unet, self.tiny_autoencoder)

    @cached_property
    def device(self) -> str:
        """The torch device that it runs on."""
        return str(choose_device(self._device))
