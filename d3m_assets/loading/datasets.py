"""The PyTorch datasets over a bundle: one by index, one as a stream."""

from __future__ import annotations

import logging
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.loading.chunks import ChunkReader
from d3m_assets.loading.order import ClassSamples, StreamOrder, blocks

Sample = dict[str, Any]
"""``{"pixel_values": tensor [C, H, W], "label": int}``."""

CACHE_BYTES = 8 * 2**30
MEMORY_BYTES = 512 * 2**20

_log = logging.getLogger(__name__)


class _Images:
    """What both datasets are made of: a bundle, its samples, and how a sample becomes what a model reads."""

    def __init__(
        self,
        bundle: Bundle | str | Path,
        foundation: str | Path,
        *,
        images_per_class: int | None,
        device: str,
        transform: Callable[[torch.Tensor], Any] | None,
        cache: str | Path | None,
        cache_bytes: int,
        memory_bytes: int,
        foundation_config: str | None,
        tiny_autoencoder: str | Path | None,
    ) -> None:
        if images_per_class is not None and images_per_class < 1:
            raise ValueError(f"images_per_class={images_per_class} is no number of images; give 1 or more, or None")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        if images_per_class is not None:
            self.bundle.check_images_per_class(images_per_class)
        self.classes = [c.prompts.class_name for c in self.bundle.classes]
        chunk_size = self.bundle.generation_settings().batch_size
        samples = [
            ClassSamples.of(
                self.bundle.training_numbers(c),
                self.bundle.first_fresh(c),
                images_per_class or self.bundle.training_images(c),
                chunk_size,
                self.bundle.training_images(c),
            )
            for c in self.bundle.classes
        ]
        if not self.bundle.generates:
            counts = [self.bundle.training_images(c) for c in self.bundle.classes]
            samples = [replace(s, limit=count) for s, count in zip(samples, counts, strict=True)]
        self.samples = samples
        self.transform = transform
        self.reader = ChunkReader(
            self.bundle,
            self.samples,
            foundation=foundation,
            foundation_config=foundation_config,
            tiny_autoencoder=tiny_autoencoder,
            device=device,
            cache=cache,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
        )

    def read(self, labels: np.ndarray, numbers: np.ndarray) -> list[Sample]:
        """Samples, by class and number."""
        images = self.reader.read(labels, numbers)
        return [self._sample(image, int(label)) for image, label in zip(images, labels, strict=True)]

    def _sample(self, image: np.ndarray, label: int) -> Sample:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {
            "pixel_values": pixels.float() / 255 if self.transform is None else self.transform(pixels),
            "label": label,
        }


class DistilledDataset(Dataset[Sample]):
    """A distilled dataset whose images are generated, or decoded where the bundle holds image codes, when they are first read.

    **Order.** Class after class as in the bundle; within a class the samples that the bundle selects, by rising number, then,
    where ``images_per_class`` asks for more, fresh ones. The order depends on nothing else.

    **Samples.** ``dataset[i]`` is ``{"pixel_values": tensor, "label": int}``. These are the names of image classifiers in
    transformers, whose Trainer takes the dataset as it is (its collator calls the labels of a batch ``labels``), and a dict is
    collated by plain loops and Lightning, too. ``label`` is the position of the class in ``classes``.

    **Cost.** The first sample of a chunk costs the whole chunk, ``generation.batch_size`` images of the recipe, since the size of
    a batch decides how sums round: pixels are those that `d3m regenerate` writes on the same kind of device. A shuffled epoch
    touches all chunks at once, so they should fit into ``memory_bytes``, or there should be a ``cache``.

    **Workers.** The model is loaded in each worker when it first has to generate, on a CPU for one thread. Workers that share a
    ``cache`` share the work; without one each generates what its own batches need, and forgets it when it ends. Forked workers
    cannot use CUDA: `DataLoader(..., multiprocessing_context="spawn")`.

    Args:
        bundle: A bundle or its file.
        foundation: "embedded", or path or hub id of the model that the bundle was made for; not looked at where all images
            are coded.
        images_per_class: Images of each class; None: the training set, which is what the bundle selects.
        device: Torch device to generate on; "auto": CUDA if there is any.
        transform: From a uint8 tensor ``[C, H, W]`` to ``pixel_values``; None: float32 in 0..1.
        cache: Folder for chunks of images, which several datasets and processes may share; None: none.
        cache_bytes: Most bytes in that folder.
        memory_bytes: Most bytes of chunks that each process keeps in memory.
        foundation_config: Of a single-file checkpoint, the folder of its configurations and tokenizers.
        tiny_autoencoder: Folder of the tiny autoencoder that the recipe names, where it does.

    Attributes:
        bundle: The bundle.
        classes: Names of the classes, by label.

    Raises:
        BundleError: There is no such bundle, the model or the autoencoder is not the bundle's, or all images are
            coded and there are fewer.
        FoundationError: There is no such model or device.
        StoreError: The cache cannot be written.
        ValueError: ``images_per_class`` is below 1.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        foundation: str | Path = "embedded",
        *,
        images_per_class: int | None = None,
        device: str = "auto",
        transform: Callable[[torch.Tensor], Any] | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        memory_bytes: int = MEMORY_BYTES,
        foundation_config: str | None = None,
        tiny_autoencoder: str | Path | None = None,
    ) -> None:
        self._images = _Images(
            bundle,
            foundation,
            images_per_class=images_per_class,
            device=device,
            transform=transform,
            cache=cache,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            foundation_config=foundation_config,
            tiny_autoencoder=tiny_autoencoder,
        )
        self.bundle, self.classes = self._images.bundle, self._images.classes
        self._ends = np.cumsum([len(samples.pool) for samples in self._images.samples])
        needed = len(self) * math.prod(self._images.reader.image_shape)
        if cache is None and needed > memory_bytes:
            _log.warning(
                "the images have %d bytes, more than memory_bytes=%d: read in random order, each chunk of %d is generated many "
                "times; give the dataset a folder as cache",
                needed,
                memory_bytes,
                self._images.reader.chunk_size,
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        """One sample; a negative index counts from the end.

        Raises:
            IndexError: There is no such sample.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, each chunk of which is generated once; a DataLoader fetches its batches so.

        Raises:
            IndexError: There is no such sample.
        """
        labels, numbers = [], []
        for index in indices:
            label, number = self.address(index)
            labels.append(label)
            numbers.append(number)
        return self._images.read(np.array(labels), np.array(numbers))

    def address(self, index: int) -> tuple[int, int]:
        """Label of a sample, and its number within its class.

        Raises:
            IndexError: There is no such sample.
        """
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of a dataset of {len(self)}")
        position %= len(self)
        label = int(np.searchsorted(self._ends, position, side="right"))
        pool = self._images.samples[label].pool
        return label, int(pool[position - int(self._ends[label]) + len(pool)])


class IterableDistilledDataset(IterableDataset[Sample]):
    """A distilled dataset as an endless stream of epochs, of fresh samples or of a fixed pool.

    **Order.** There is one stream of samples (:mod:`d3m_assets.loading.order`), which depends on the bundle, ``images_per_class``,
    ``fresh``, ``seed`` and ``mixed_chunks`` only. An iteration reads from the position on to the end of the position's epoch. An
    epoch has as many samples of each class as the training set, fresh ones that no other epoch has, or the fixed pool in an
    order of its own.

    **Ranks and workers** take turns, each ``batch_size`` consecutive samples: of the blocks from where the iteration begins,
    block ``k`` belongs to rank ``k % ranks`` and there to worker ``(k // ranks) % workers``. So the union of all is complete and
    without repeats, the ``k``-th step of all ranks together has the samples ``k * ranks * batch_size`` and following, and with a
    DataLoader of the same ``batch_size`` each batch has the same samples, in the same order, whatever the number of workers.
    The last blocks of an epoch may be missing on some ranks; ``drop_last`` leaves away what is not a full block for every rank.

    **State.** One integer, the position in the stream, the same on all ranks: a multiple of ``ranks * batch_size`` behind where the
    iteration began; without other ranks and without workers any number of samples. A training goes on with the same samples
    on any number of workers, and of ranks, too. The end of an epoch is the beginning of the next one. With workers the state is
    with whoever counts batches: :class:`~d3m_assets.loading.data_loader.DistilledDataLoader` does, and torchdata's
    StatefulDataLoader, which keeps a state of every worker and therefore takes its own state only for the same number of workers.
    For another number: ``dataset.load_state_dict({"position": batches * ranks * batch_size})``.

    **Epochs with workers.** Workers read a copy of the dataset, so whoever uses another loader than DistilledDataLoader with
    workers calls :meth:`set_epoch` before each epoch, as for PyTorch's DistributedSampler; otherwise all epochs are the first.

    Samples, cost, workers and CUDA are as in :class:`DistilledDataset`; of ``mixed_chunks`` chunks at a time all are needed at
    once, and ``memory_bytes`` is raised to hold them. Ranks on one machine, or on one file system, that share a ``cache`` share
    the work.

    Args:
        bundle: A bundle or its file.
        foundation: "embedded", or path or hub id of the model that the bundle was made for; not looked at where all images
            are coded.
        batch_size: Consecutive samples that a rank and worker takes; give it to the DataLoader, too.
        fresh: Whether every epoch has samples of its own, all of them generated; otherwise, as it has to be where all images
            are coded, all have the fixed pool.
        seed: Of the order.
        images_per_class: Images of each class in an epoch; None: as many as the training set has.
        mixed_chunks: Most chunks whose samples are mixed; None: one of each class, but 32 to 256.
        drop_last: Leave away samples at the end of an epoch that do not fill a block for every rank.
        rank: Of this process; None: that of torch.distributed, or of the environment variable RANK, or 0.
        world_size: Number of ranks; None: as for ``rank``. Give 0 and 1 where something else splits batches (accelerate does).
        device: Torch device to generate on; "auto": CUDA if there is any.
        transform: From a uint8 tensor ``[C, H, W]`` to ``pixel_values``; None: float32 in 0..1.
        cache: Folder for chunks of images; None: none. Fresh samples are read once, so it serves workers and ranks only.
        cache_bytes: Most bytes in that folder.
        memory_bytes: Most bytes of chunks that each process keeps in memory.
        foundation_config: Of a single-file checkpoint, the folder of its configurations and tokenizers.
        tiny_autoencoder: Folder of the tiny autoencoder that the recipe names, where it does.

    Attributes:
        bundle: The bundle.
        classes: Names of the classes, by label.
        batch_size: As given.
        epoch_length: Samples of an epoch, all ranks together.

    Raises:
        BundleError: There is no such bundle, the model or the autoencoder is not the bundle's, or all images are
            coded and there are fewer.
        FoundationError: There is no such model or device.
        StoreError: The cache cannot be written.
        ValueError: A number is out of its range, or fresh samples are asked for where all images are coded.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        foundation: str | Path = "embedded",
        *,
        batch_size: int = 64,
        fresh: bool = True,
        seed: int = 0,
        images_per_class: int | None = None,
        mixed_chunks: int | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        device: str = "auto",
        transform: Callable[[torch.Tensor], Any] | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        memory_bytes: int = MEMORY_BYTES,
        foundation_config: str | None = None,
        tiny_autoencoder: str | Path | None = None,
    ) -> None:
        if batch_size < 1 or (mixed_chunks is not None and mixed_chunks < 1) or seed < 0:
            raise ValueError(
                f"batch_size={batch_size} and mixed_chunks={mixed_chunks} must be at least 1, seed={seed} at least 0"
            )
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank={rank} and world_size={world_size}: give both or none")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is none of the {world_size} ranks from 0 on")
        self._images = _Images(
            bundle,
            foundation,
            images_per_class=images_per_class,
            device=device,
            transform=transform,
            cache=cache,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            foundation_config=foundation_config,
            tiny_autoencoder=tiny_autoencoder,
        )
        self.bundle, self.classes = self._images.bundle, self._images.classes
        if fresh and not self.bundle.generates:
            raise ValueError("this bundle holds coded real images, of which there are no fresh ones; give fresh=False")
        reader = self._images.reader
        self._order = StreamOrder(
            self._images.samples, reader.chunk_size, seed=seed, fresh=fresh, mixed_chunks=mixed_chunks
        )
        window_bytes = self._order.mixed_chunks * reader.chunk_size * math.prod(reader.image_shape)
        if window_bytes > reader.memory_bytes:
            _log.warning(
                "each process keeps up to %d MiB of images, more than memory_bytes=%d; mixed_chunks=%d would keep fewer",
                window_bytes >> 20,
                reader.memory_bytes,
                max(1, self._order.mixed_chunks // 2),
            )
            reader.memory_bytes = window_bytes
        self.batch_size, self.drop_last = batch_size, drop_last
        self._given_rank = None if rank is None or world_size is None else (rank, world_size)
        self.epoch_length = self._order.epoch_length
        # Workers that are already running see where the next iteration begins, and leave word of the last one they finished.
        self._shared = torch.tensor([0, -1]).share_memory_()
        # In a worker: its next sample and the end of its epoch, and the same as a state gave them for the next iteration.
        self._worker_place: tuple[int, int] | None = None
        self._loaded_place: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A process that is started anew may not know the rank that this one knows."""
        return {**vars(self), "_given_rank": self._known_rank()}

    @property
    def position(self) -> int:
        """Where in the stream the next iteration begins."""
        return int(self._shared[0])

    @position.setter
    def position(self, position: int) -> None:
        if position < 0:
            raise ValueError(f"position {position} is before the first sample")
        self._shared[0] = position

    @property
    def epoch(self) -> int:
        """The epoch of the position."""
        return self.position // self.epoch_length

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with an epoch, which is needed before each one where there are workers."""
        self.position = epoch * self.epoch_length

    def epoch_end(self, position: int) -> int:
        """Position behind the last sample of a position's epoch."""
        return (position // self.epoch_length + 1) * self.epoch_length

    def iteration_end(self, begin: int) -> int:
        """Position behind the last sample that an iteration from ``begin`` on reads; before the epoch's end if some are dropped."""
        end = self.epoch_end(begin)
        if not self.drop_last:
            return end
        _, ranks = self.rank_and_world_size()
        return end - (end - begin) % (ranks * self.batch_size)

    def following(self, position: int, begin: int) -> int:
        """The position after one more block of every rank; where no full one is left, the next epoch's first.

        Args:
            position: Before the blocks.
            begin: Where the iteration began.
        """
        _, ranks = self.rank_and_world_size()
        after = position + ranks * self.batch_size
        return self.epoch_end(begin) if after >= self.iteration_end(begin) else after

    def rank_and_world_size(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        return self._known_rank() or (0, 1)

    def _known_rank(self) -> tuple[int, int] | None:
        """Rank and number of ranks, where anything says so."""
        if self._given_rank is not None:
            return self._given_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return None

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank."""
        rank, ranks = self.rank_and_world_size()
        group = ranks * self.batch_size
        full, rest = divmod(self.epoch_length, group)
        partial = 0 if self.drop_last else min(max(rest - rank * self.batch_size, 0), self.batch_size)
        return full * self.batch_size + partial

    def state_dict(self) -> dict[str, int]:
        """The position; within a worker its own place and the end of its epoch, for StatefulDataLoader."""
        if get_worker_info() is not None and self._worker_place is not None:
            position, end = self._worker_place
            return {"position": position, "epoch_end": end}
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration where a state was taken.

        Raises:
            ValueError: It is no such state.
        """
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"{dict(state)} is no state of this dataset; it has a position, an integer from 0 on")
        if get_worker_info() is not None and "epoch_end" in state:
            self._worker_place = self._loaded_place = position, int(state["epoch_end"])
        else:
            self.position = position

    def __iter__(self) -> Iterator[Sample]:
        _, ranks = self.rank_and_world_size()
        if self.drop_last and self.epoch_length < ranks * self.batch_size:
            raise ValueError(
                f"an epoch has {self.epoch_length} samples, fewer than one batch of {self.batch_size} for each of {ranks} ranks, "
                "so drop_last leaves none; lower batch_size, raise images_per_class, or set drop_last=False"
            )
        worker = get_worker_info()
        return self._read_in_process() if worker is None else self._read_in_worker(worker.id, worker.num_workers)

    def _read_in_process(self) -> Iterator[Sample]:
        rank, ranks = self.rank_and_world_size()
        begin = self.position
        for start, stop in blocks(begin, self.iteration_end(begin), self.batch_size, rank, ranks):
            group = start - rank * self.batch_size
            for place, sample in enumerate(self._read(start, stop), start=start + 1):
                if place == stop:
                    self.position = self.following(group, begin)
                elif ranks == 1:
                    self.position = place
                yield sample
        self.position = self.epoch_end(begin)

    def _read_in_worker(self, worker: int, workers: int) -> Iterator[Sample]:
        rank, ranks = self.rank_and_world_size()
        begin, consumers = self.position, ranks * workers
        first, end = begin + (worker * ranks + rank) * self.batch_size, self.iteration_end(begin)
        if self._loaded_place is not None:
            first, end = self._loaded_place
            self._loaded_place = None
        elif worker == 0 and int(self._shared[1]) == begin:
            _log.warning(
                "epoch %d is read a second time: call set_epoch before each epoch, or use DistilledDataLoader",
                self.epoch,
            )
        self._worker_place = first, end
        for start, stop in blocks(first, end, self.batch_size, 0, consumers):
            for place, sample in enumerate(self._read(start, stop), start=start + 1):
                following = start + consumers * self.batch_size if place == stop else place
                self._worker_place = following, end
                yield sample
        self._worker_place = end, end
        self._shared[1] = begin

    def _read(self, start: int, stop: int) -> list[Sample]:
        return self._images.read(*self._order.samples(start, stop))
