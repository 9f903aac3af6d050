"""Images of a bundle's samples: from memory, from the disk cache, or generated in whole chunks.

A process that needs several chunks makes those that no other one is making, and then takes the others' from the disk
cache: workers and ranks that share a cache share the work, whoever reads what.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets import provenance
from d3m_assets.compute.devices import choose_device
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.generation import CODE_VERSION
from d3m_assets.errors import FoundationError
from d3m_assets.exports.stream import generate_class
from d3m_assets.foundation.loading import find_foundation
from d3m_assets.foundation.model import ModelReference
from d3m_assets.foundation.tiny_autoencoder import find_tiny_autoencoder
from d3m_assets.loading.chunk_cache import ChunkCache
from d3m_assets.loading.order import ClassSamples

if TYPE_CHECKING:
    from d3m_assets.foundation.files import FoundationFiles
    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder


_MOST_OPEN = 512
"""Chunks kept in memory at most: of those in the cache each is an open file, of which a process has 1,024."""


@dataclass(frozen=True)
class _Chunk:
    """Address of a chunk.

    Attributes:
        label: Position of its class in the bundle.
        number: Its samples begin at ``number * chunk_size``.
    """

    label: int
    number: int


class ChunkReader:
    """Images of a bundle's samples.

    It can be pickled, and then takes along where the model is, not the model: each process loads it once, when it first generates.

    Args:
        bundle: The distilled dataset.
        samples: Those of each class, by label.
        foundation: "embedded", path or hub id of the model that the bundle was made for.
        foundation_config: Of a single-file checkpoint, the folder of its configurations and tokenizers.
        tiny_autoencoder: Folder of the recipe's tiny autoencoder, where it has one.
        device: Torch device to generate on.
        cache: Folder of the disk cache; None: chunks are kept in memory only.
        cache_bytes: Most bytes in that folder.
        memory_bytes: Most bytes of chunks that this process keeps in memory.

    Raises:
        BundleError: The model or the autoencoder is not the bundle's.
        FoundationError: There is no such model, autoencoder or device.
        StoreError: The cache cannot be written.
    """

    def __init__(
        self,
        bundle: Bundle,
        samples: Sequence[ClassSamples],
        *,
        foundation: str | Path,
        foundation_config: str | None,
        tiny_autoencoder: str | Path | None,
        device: str,
        cache: str | Path | None,
        cache_bytes: int,
        memory_bytes: int,
    ) -> None:
        self._bundle, self._samples = bundle, samples
        self.chunk_size = bundle.generation_settings().batch_size
        self.cache = None if cache is None else ChunkCache(Path(cache), cache_bytes)
        # With a cache, a model of gigabytes is not read again for its fingerprint by every training.
        digests = None if self.cache is None else self.cache.folder / "digests.json"
        self._files: FoundationFiles | None = None
        self._tiny_files: TinyAutoencoder | None = None
        if bundle.generates:
            self._files = find_foundation(str(foundation), config=foundation_config, digests=digests)
            bundle.check_foundation(self._files.fingerprint, self._files.name)
            if tiny_autoencoder is not None:
                self._tiny_files = find_tiny_autoencoder(Path(tiny_autoencoder), self._files, digests)
            bundle.check_autoencoder(self._tiny_files)
        self._device = choose_device(device)
        # Another version may round otherwise; the name of a GPU would have to be asked of CUDA, which is not begun here.
        words = [provenance.versions()[package] for package in ("torch", "diffusers", "transformers")]
        self._computed_by = hashlib.sha256("/".join(words).encode()).hexdigest()[:8]
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[_Chunk, np.ndarray] = OrderedDict()
        self._used = 0
        self.generated_chunks = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without the chunks in memory."""
        return {**vars(self), "_memory": OrderedDict(), "_used": 0}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        recipe = self._bundle.recipe
        if self._files is None:
            return recipe.image_height, recipe.image_width, recipe.channels
        return self._files.image_size, self._files.image_size, recipe.channels

    def read(self, labels: Sequence[int] | np.ndarray, numbers: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The images of samples, uint8 ``[H, W, channels]`` each.

        Args:
            labels: Class of each.
            numbers: Of each within its class.

        Raises:
            FoundationError: The model cannot be loaded, or not on this device in this process.
            StageError: A single image does not fit into the device's memory.
        """
        wanted: dict[_Chunk, list[int]] = {}
        for position, (label, number) in enumerate(zip(labels, numbers, strict=True)):
            wanted.setdefault(_Chunk(int(label), int(number) // self.chunk_size), []).append(position)
        images: list[np.ndarray] = [np.empty(0)] * len(labels)

        def take(chunk: _Chunk, pixels: np.ndarray) -> None:
            inside = self._samples[chunk.label].in_chunk(chunk.number, self.chunk_size)
            for position in wanted[chunk]:
                images[position] = np.array(pixels[np.searchsorted(inside, numbers[position])])

        missing = []
        for chunk in wanted:
            if (pixels := self._kept(chunk)) is None:
                missing.append(chunk)
            else:
                take(chunk, pixels)
        others = []
        for chunk in missing:
            pixels = self._make(chunk, wait=False)
            if pixels is None:
                others.append(chunk)
            else:
                take(chunk, pixels)
        for chunk in others:
            pixels = self._make(chunk, wait=True)
            assert pixels is not None
            take(chunk, pixels)
        return images

    def _key(self, chunk: _Chunk) -> str:
        # load_foundation chooses the number format by the kind of device.
        number_format = "float32" if self._device.type == "cpu" else "bfloat16"
        precision = f"{number_format}-{self._device.type}"
        return f"{self._bundle.sha256}/{precision}-{CODE_VERSION}-{self._computed_by}/{chunk.label}/{chunk.number}"

    def _kept(self, chunk: _Chunk) -> np.ndarray | None:
        """A chunk that is in memory or on disk; None: it is not."""
        if chunk in self._memory:
            self._memory.move_to_end(chunk)
            return self._memory[chunk]
        if self.cache is None:
            return None
        pixels = self.cache.get(self._key(chunk))
        shape = (len(self._samples[chunk.label].in_chunk(chunk.number, self.chunk_size)), *self.image_shape)
        if pixels is None or pixels.shape != shape or pixels.dtype != np.uint8:
            return None
        self._remember(chunk, pixels)
        return pixels

    def _make(self, chunk: _Chunk, *, wait: bool) -> np.ndarray | None:
        """Generate a chunk, unless another process has done so meanwhile; None: one is doing so, and not to be waited for."""
        key = self._key(chunk)
        claim: AbstractContextManager[bool] = nullcontext(True)
        if self.cache is not None:
            claim = self.cache.claim(key, wait=wait)
        with claim as claimed:
            if not claimed:
                return None
            if self.cache is not None and (pixels := self._kept(chunk)) is not None:
                return pixels
            pixels = self._generate(chunk)
            if self.cache is not None:
                self.cache.put(key, pixels)
        self._remember(chunk, pixels)
        return pixels

    def _generate(self, chunk: _Chunk) -> np.ndarray:
        numbers = self._samples[chunk.label].in_chunk(chunk.number, self.chunk_size)
        distilled = self._bundle.classes[chunk.label]
        if self._files is None:
            return generate_class(self._bundle, distilled, None, len(numbers), indices=numbers)[0]
        if self._device.type == "cuda" and isinstance(multiprocessing.current_process(), ForkProcess):
            raise FoundationError(
                f"images are generated on {self._device}, which a process that was forked cannot use: give the DataLoader "
                "multiprocessing_context='spawn', or num_workers=0, or the dataset device='cpu'"
            )
        model = ModelReference(self._files, str(self._device), tiny_autoencoder=self._tiny_files)
        pixels, _ = generate_class(
            self._bundle,
            distilled,
            model.load(),
            len(numbers),
            indices=numbers,
            autoencoder=model.load_autoencoder(),
        )
        self.generated_chunks += 1
        return pixels

    def _remember(self, chunk: _Chunk, pixels: np.ndarray) -> None:
        """Keep a chunk in memory, and forget those that were not used for longest.

        A memory map is counted like an array, though its pages are the operating system's: so many stay open at most.
        """
        self._memory[chunk] = pixels
        self._used += pixels.nbytes
        most = len(self._memory) if self.cache is None else _MOST_OPEN
        while len(self._memory) > 1 and (self._used > self.memory_bytes or len(self._memory) > most):
            _, forgotten = self._memory.popitem(last=False)
            self._used -= forgotten.nbytes
