"""A small autoencoder (AutoencoderTiny of diffusers, such as TAESD) that decodes in place of the model's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.errors import FoundationError
from d3m_assets.foundation.digests import file_digests

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from d3m_assets.foundation.files import FoundationFiles
    from d3m_assets.foundation.loading import Foundation

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TinyAutoencoder:
    """A diffusers folder of an AutoencoderTiny, not loaded.

    Attributes:
        path: The folder.
        digests: Cache of file digests (:func:`~d3m_assets.foundation.digests.file_digests`); None: none is kept.
    """

    path: Path
    digests: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Last part of its path."""
        return self.path.resolve().name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of its configuration and weights."""
        digest = hashlib.sha256()
        names = (_CONFIG, _WEIGHTS)
        for name, content in zip(names, file_digests([self.path / n for n in names], self.digests), strict=True):
            digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()

    @property
    def weight_bytes(self) -> int:
        """Size of its weights on disk."""
        return (self.path / _WEIGHTS).stat().st_size


def find_tiny_autoencoder(path: Path, foundation: FoundationFiles, digests: Path | None = None) -> TinyAutoencoder:
    """Find the autoencoder that ``generation.tiny_autoencoder`` names, and see that it decodes the model's latents.

    Args:
        path: Its folder.
        foundation: The model.
        digests: Cache file of content digests, so that weights are not read again for the fingerprint.

    Raises:
        FoundationError: It is no AutoencoderTiny in safetensors, or for latents of another shape.
    """
    files = TinyAutoencoder(path.expanduser(), digests)
    named = f"generation.tiny_autoencoder={path}"
    try:
        config: dict[str, Any] = json.loads((files.path / _CONFIG).read_text(encoding="utf-8"))
        kind = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoundationError(
            f"{named} holds no readable {_CONFIG} of an AutoencoderTiny: {error}. Give the folder that its "
            "`save_pretrained` wrote"
        ) from error
    if kind != "AutoencoderTiny":
        raise FoundationError(
            f"{named} is a {kind}, not an AutoencoderTiny; leave the setting away to use the model's own"
        )
    if not (files.path / _WEIGHTS).is_file():
        raise FoundationError(
            f"{named} holds no {_WEIGHTS}; pickled weights are not loaded. Write them with "
            "`save_pretrained(path, safe_serialization=True)`"
        )
    own = foundation.config("vae")
    # What configurations leave out has diffusers' default.
    channels = int(config.get("latent_channels", 4))
    levels = len(config.get("decoder_block_out_channels", (64,) * 4)) - 1
    scale = int(config.get("upsampling_scaling_factor", 2)) ** levels
    wanted_channels, wanted_scale = int(own.get("latent_channels", 4)), 2 ** (len(own["block_out_channels"]) - 1)
    if (channels, scale) != (wanted_channels, wanted_scale):
        raise FoundationError(
            f"{named} decodes latents of {channels} channels to {scale} times their size, but {foundation.name} has "
            f"{wanted_channels} channels and {wanted_scale} times; name the one made for this model"
        )
    return files


def load_tiny_autoencoder(files: TinyAutoencoder, foundation: Foundation) -> AutoencoderTiny:
    """Load an autoencoder, frozen, where the model is and in its number format.

    Raises:
        FoundationError: Its files cannot be loaded.
    """
    import torch
    from diffusers import AutoencoderTiny

    try:
        loaded = AutoencoderTiny.from_pretrained(
            files.path,
            dtype=foundation.vae.dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:  # diffusers raises many kinds
        raise FoundationError(f"{files.path} cannot be loaded as an AutoencoderTiny: {error}") from error
    loaded.to(foundation.device, foundation.vae.dtype).eval().requires_grad_(False)
    if foundation.device.type == "cuda":
        loaded.to(memory_format=torch.channels_last)
    return loaded
