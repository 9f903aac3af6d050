"""The order of samples: numbers only, the same on every machine.

**Samples.** A class has a *fixed pool*, the first samples of :func:`~d3m_assets.distillation.selection.samples_in_order`, and
*fresh* samples: all numbers behind the pool and behind those that the pool was selected from, from the next whole chunk on.

**Stream.** An *epoch* has as many samples of each class as the pool. Over the fixed pool it is another order of the same
samples; over fresh ones epoch *e* has the numbers ``first_fresh + e * n`` to ``first_fresh + (e + 1) * n - 1`` of a class
with ``n`` samples, which no other epoch has. Epochs follow each other without end: *position* ``p`` is sample ``p % length`` of
epoch ``p // length``.

**Mixing.** A sample costs its whole chunk (:mod:`d3m_assets.distillation.generation`), so an epoch is not one permutation of its
samples: that would need all chunks at once. The chunks of all classes are put into a random order that spreads each class
evenly over the epoch, equal parts of at most ``mixed_chunks`` of them are its *windows*, and the samples of a window are put
into a random order that spreads each chunk evenly over the window. Samples leave a window before the next one begins.

Random numbers are raw words of numpy's Philox generator, whose stream NumPy promises not to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from d3m_assets.distillation.selection import samples_in_order

FEWEST_MIXED, MOST_MIXED = 32, 256
"""Chunks that are mixed unless it is said how many: one of each class within these bounds."""


@dataclass(frozen=True, eq=False)
class ClassSamples:
    """The samples of one class.

    Attributes:
        selected: Rising numbers of the bundle's training set, int64 ``[K]``; None: samples are taken as they come.
        candidates: Samples that it was selected from, and coded images behind them; 0 without a selection.
        pool: Rising numbers of the fixed pool, int64 ``[N]``.
        first_fresh: The first fresh sample; a multiple of the chunk size.
        limit: Samples that there are in all, of a class whose images are coded; None: any number.
    """

    selected: np.ndarray | None
    candidates: int
    pool: np.ndarray
    first_fresh: int
    limit: int | None = None

    @classmethod
    def of(
        cls, selected: np.ndarray | None, candidates: int, count: int, chunk_size: int, training: int = 0
    ) -> ClassSamples:
        """The samples of a class.

        Args:
            selected: Rising numbers of the samples that the bundle selects; None: there is no selection.
            candidates: That they were selected from.
            count: Images of the fixed pool.
            chunk_size: Samples that are generated together.
            training: Images of the training set, of which no fresh one may be.
        """
        if selected is None:
            candidates = 0
        pool = samples_in_order(selected, candidates, count).astype(np.int64)
        behind = max(candidates, int(pool[-1]) + 1, training)
        return cls(selected, candidates, pool, -(-behind // chunk_size) * chunk_size)

    def in_chunk(self, chunk: int, chunk_size: int) -> np.ndarray:
        """Rising numbers of a chunk's samples that a dataset can ask for: all but candidates that were not selected.

        Args:
            chunk: Number of the chunk: its samples begin at ``chunk * chunk_size``.
            chunk_size: Samples of a chunk.
        """
        numbers = np.arange(chunk * chunk_size, (chunk + 1) * chunk_size)
        if self.limit is not None:
            numbers = numbers[numbers < self.limit]
        if self.selected is None:
            return numbers
        return numbers[(numbers >= self.candidates) | np.isin(numbers, self.selected)]


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The chunks of an epoch in their order.

    Attributes:
        labels: Class of each chunk, int64 ``[G]``.
        begins: Where its samples begin within those that its class has in the epoch, int64 ``[G]``.
        sizes: How many they are, int64 ``[G]``.
        windows: Where each window ends, counted in chunks, int64 ``[W]``.
        window_ends: The same, counted in samples.
    """

    labels: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray
    windows: np.ndarray
    window_ends: np.ndarray


class StreamOrder:
    """Which sample stands at which position of the endless stream.

    Args:
        classes: Samples of each class, by label.
        chunk_size: Samples that are generated together.
        seed: Of the order.
        fresh: Whether every epoch has samples of its own.
        mixed_chunks: Most chunks whose samples are mixed; None: one of each class, but 32 to 256.
    """

    def __init__(
        self,
        classes: Sequence[ClassSamples],
        chunk_size: int,
        *,
        seed: int = 0,
        fresh: bool = False,
        mixed_chunks: int | None = None,
    ) -> None:
        self._classes, self._chunk_size, self._seed, self._fresh = classes, chunk_size, seed, fresh
        self.mixed_chunks = mixed_chunks or min(max(len(classes), FEWEST_MIXED), MOST_MIXED)
        self.epoch_length = sum(len(c.pool) for c in classes)
        self._epoch = lru_cache(2)(self._order_epoch)
        self._window = lru_cache(2)(self._order_window)

    def __getstate__(self) -> dict[str, object]:
        """Without what was computed: it is cheap, and its caches cannot be pickled."""
        return {name: value for name, value in vars(self).items() if name not in ("_epoch", "_window")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._epoch = lru_cache(2)(self._order_epoch)
        self._window = lru_cache(2)(self._order_window)

    def samples(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and numbers, int64 ``[stop - start]`` each, of the samples at positions ``start`` to ``stop - 1``."""
        parts = []
        while start < stop:
            epoch, inside = divmod(start, self.epoch_length)
            ends = self._epoch(epoch).window_ends
            window = int(np.searchsorted(ends, inside, side="right"))
            begin = int(ends[window - 1]) if window else 0
            last = min(int(ends[window]), inside + stop - start)
            parts.append(self._window(epoch, window)[:, inside - begin : last - begin])
            start += last - inside
        labels, numbers = np.concatenate(parts, axis=1) if parts else np.empty((2, 0), np.int64)
        return labels, numbers

    def _numbers(self, epoch: int, label: int) -> np.ndarray:
        """Rising numbers of the samples that a class has in an epoch."""
        samples = self._classes[label]
        if not self._fresh:
            return samples.pool
        first = samples.first_fresh + epoch * len(samples.pool)
        return np.arange(first, first + len(samples.pool))

    def _order_epoch(self, epoch: int) -> _Epoch:
        labels, begins, sizes = [], [], []
        for label in range(len(self._classes)):
            chunks = self._numbers(epoch, label) // self._chunk_size
            starts = np.flatnonzero(np.diff(chunks, prepend=-1))
            labels.append(np.full(len(starts), label))
            begins.append(starts)
            sizes.append(np.diff(starts, append=len(chunks)))
        order = _evenly_spread(np.array([len(part) for part in labels]), _random_words(self._seed, epoch))
        all_sizes = np.concatenate(sizes)[order]
        count = -(-len(order) // self.mixed_chunks)
        windows = np.arange(1, count + 1) * len(order) // count
        return _Epoch(
            np.concatenate(labels)[order],
            np.concatenate(begins)[order],
            all_sizes,
            windows,
            np.cumsum(all_sizes)[windows - 1],
        )

    def _order_window(self, epoch: int, window: int) -> np.ndarray:
        """Labels and numbers of a window's samples, int64 ``[2, N]``."""
        chunks = self._epoch(epoch)
        part = slice(chunks.windows[window - 1] if window else 0, chunks.windows[window])
        sizes = chunks.sizes[part]
        numbers = [
            self._numbers(epoch, int(label))[begin : begin + size]
            for label, begin, size in zip(chunks.labels[part], chunks.begins[part], sizes, strict=True)
        ]
        samples = np.stack([np.repeat(chunks.labels[part], sizes), np.concatenate(numbers)])
        return samples[:, _evenly_spread(sizes, _random_words(self._seed, epoch, window))]


def _random_words(seed: int, *key: int) -> np.random.Philox:
    """A stream of random words of its own for every seed and key."""
    return np.random.Philox(np.random.SeedSequence((seed, len(key), *key)))


def _evenly_spread(counts: np.ndarray, words: np.random.Philox) -> np.ndarray:
    """A random order of groups' members in which each group is spread evenly.

    A group's members are shuffled, and the j-th of n stands at a random place of the j-th n-th of the whole.

    Args:
        counts: Members of each group, int64 ``[G]``; members are numbered group after group.
        words: Random words.

    Returns:
        Numbers of the members, int64 ``[sum of counts]``.
    """
    group = np.repeat(np.arange(len(counts)), counts)
    shuffled = np.lexsort((words.random_raw(len(group)), group))
    rank = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    uniform = (words.random_raw(len(group)) >> np.uint64(11)) * 2.0**-53
    return shuffled[np.argsort((rank + uniform) / counts[group], kind="stable")]


def blocks(begin: int, end: int, size: int, consumer: int, consumers: int) -> Iterator[tuple[int, int]]:
    """The blocks of one of several consumers that take turns: ``(start, stop)``, rising.

    Args:
        begin: Where the first consumer's first block begins.
        end: Where the last block ends, which may be shorter than the others.
        size: Positions of a block.
        consumer: Whose turn, from 0.
        consumers: How many there are.
    """
    for start in range(begin + consumer * size, end, consumers * size):
        yield start, min(start + size, end)
