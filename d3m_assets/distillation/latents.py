"""Latents of a class's images: encoded once, kept on disk for every budget and every run."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from d3m_assets.datasets.images import load_images

if TYPE_CHECKING:
    from d3m_assets.datasets.source import ImageReader, ImageRecord
    from d3m_assets.foundation.loading import Foundation

_log = logging.getLogger(__name__)

CODE_VERSION = "2"
"""Raised whenever a change here, or in how images are loaded, changes the latents of an image."""

_ABANDONED_AFTER = 86_400.0
"""Age in seconds of a half-written file beyond which its process must have been killed."""


def encode(foundation: Foundation, images: np.ndarray) -> np.ndarray:
    """Latents of images.

    Args:
        foundation: Its autoencoder encodes.
        images: uint8 ``[N, H, W, 1 or 3]`` at the foundation's size.

    Returns:
        float16 ``[N, C, h, w]``, scaled as the U-Net wants them; the posterior's mean.
    """
    import torch

    parts = []
    for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(50):  # as floats they are four times as large
        pixels = (part.float() / 127.5 - 1).expand(-1, 3, -1, -1)
        parts.append(foundation.encode_images(pixels).half().cpu())
    # In C order, in which the cache's hash is taken: convolutions may leave channels last.
    return np.ascontiguousarray(torch.cat(parts).numpy())


@dataclass(frozen=True)
class ImageFiles:
    """The images of a class, to be read when its turn comes.

    Attributes:
        source: Reads them.
        images: Which they are.
        channels: 1 to read them as grey, 3 as RGB.
        flip: Whether every image is also mirrored.
    """

    source: ImageReader
    images: tuple[ImageRecord, ...]
    channels: Literal[1, 3]
    flip: bool = False

    @property
    def sha256(self) -> tuple[str, ...]:
        """Hex digest of each file."""
        return tuple(image.sha256 for image in self.images)

    def load(self, size: int) -> np.ndarray:
        """uint8 ``[N, size, size, channels]``; with ``flip`` the mirrored ones follow, 2 N in all.

        Raises:
            DatasetError: An image cannot be read, or is another than was scanned.
        """
        images = load_images(self.source.read, self.images, size=size, channels=self.channels)
        return np.concatenate([images, images[:, :, ::-1]]) if self.flip else images


@dataclass(frozen=True)
class LatentCache:
    """Latents on local disk, one safetensors file a class, addressed by what they were made from.

    A damaged file is noticed by its hash and made again. When the folder outgrows ``max_bytes``, the files that were
    used longest ago are removed. A folder that cannot be written costs time, not the run.

    Attributes:
        folder: Where the files lie; made when needed.
        max_bytes: 0 keeps nothing.
    """

    folder: Path
    max_bytes: int

    def get(self, foundation: Foundation, files: ImageFiles) -> np.ndarray:
        """Latents of a class, float16 ``[N, C, h, w]``, from the cache or encoded now.

        Raises:
            DatasetError: An image cannot be read.
        """
        size = foundation.files.image_size
        inputs = [
            CODE_VERSION,
            foundation.files.fingerprint,
            str(foundation.vae.dtype),
            foundation.device.type,
            str(size),
            str(files.channels),
            str(files.flip),
            *files.sha256,
        ]
        path = self.folder / f"{hashlib.sha256(' '.join(inputs).encode()).hexdigest()[:32]}.safetensors"
        latents = self._read(path) if self.max_bytes else None
        if latents is None:
            latents = encode(foundation, files.load(size))
            self._write(path, latents)
        return latents

    def _read(self, path: Path) -> np.ndarray | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as stored:
                latents, expected = stored.get_tensor("latents"), (stored.metadata() or {}).get("sha256")
            if _digest(latents) == expected:
                with contextlib.suppress(OSError):
                    os.utime(path)
                return latents
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            pass
        _log.warning("the cached latents %s are damaged; they are encoded again", path)
        return None

    def _write(self, path: Path, latents: np.ndarray) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        if latents.nbytes > self.max_bytes:
            return
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"latents": latents}, part, metadata={"sha256": _digest(latents)})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            _log.warning("latents cannot be kept in %s: %s", self.folder, error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        self.trim(keep=path)

    def trim(self, keep: Path | None = None) -> None:
        """Remove what was used longest ago until the rest fits, and what killed processes left half-written.

        Args:
            keep: This file stays.
        """
        sizes = {}
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")):
            with contextlib.suppress(OSError):  # another process made room
                sizes[file] = file.stat()
        for file in [f for f in sizes if f.suffix == ".part"]:
            if time.time() - sizes.pop(file).st_mtime > _ABANDONED_AFTER:
                _remove(file)
        total = sum(s.st_size for s in sizes.values())
        for file in sorted(sizes, key=lambda f: sizes[f].st_mtime_ns):
            if total <= self.max_bytes:
                return
            if file != keep:
                _remove(file)
                total -= sizes[file].st_size


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def _digest(latents: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(latents).tobytes()).hexdigest()
