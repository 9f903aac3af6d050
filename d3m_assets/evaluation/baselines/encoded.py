"""Packed and coded real images: as many images chosen by k-means as fit into a budget when they are encoded.

One byte a channel, the field's convention, is more than a real image costs. Here the training set is decoded from the
bytes that are charged, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import StageError
from d3m_assets.evaluation.baselines.k_means import k_means
from d3m_assets.evaluation.codecs import CODED, PACKED, Codec, decode_images, encode_images, payload_length
from d3m_assets.evaluation.codecs.reading import MOST_PIXELS

_SLACK = 4
"""Bytes by which the real payload may be shorter than a codec expects, as well as longer."""


@dataclass(frozen=True)
class EncodedBaseline:
    """Real images by k-means, encoded.

    Attributes:
        name: In ``evaluation.baselines``.
        method: Of the row in tables.
        codecs: Codecs and qualities that are tried.
        lossless: Whether each class takes the codec that is shortest for it; otherwise one codec is chosen for a training
            set, on the validation part.
        needs_teacher: k-means clusters the features that the teacher sees.
    """

    name: str
    method: str
    codecs: tuple[Codec, ...]
    lossless: bool
    needs_teacher: bool = True
    needs_foundation: bool = False


PACKED_IMAGES = EncodedBaseline("packed", "packed real images", PACKED, lossless=True)
CODED_IMAGES = EncodedBaseline("coded", "coded real images", CODED, lossless=False)


@dataclass(frozen=True)
class EncodableClass:
    """The real training images of a class, with the choices of k-means kept.

    Attributes:
        images: uint8 ``[N, H, W, C]``.
        features: What k-means clusters, float ``[N, F]``.
    """

    images: np.ndarray
    features: np.ndarray
    _chosen: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def positions(self, count: int, seed: int) -> np.ndarray:
        """Positions of ``count`` images by k-means, those of the largest clusters first."""
        if (count, seed) not in self._chosen:
            self._chosen[count, seed] = k_means(self.features, count, seed)
        return self._chosen[count, seed]

    def chosen(self, count: int, seed: int) -> np.ndarray:
        """The images at :meth:`positions`."""
        return self.images[self.positions(count, seed)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @property
    def most(self) -> int:
        """Images that one code may hold (:data:`~d3m_assets.evaluation.codecs.reading.MOST_PIXELS`)."""
        return min(len(self.images), max(1, MOST_PIXELS // int(np.prod(self.shape))))

    def count_that_fits(self, codec: Codec, allowed: int, seed: int, *, label_bytes: int = 0) -> int:
        """About as many images as fit: the largest count of a grid, each a fifth above the one before; 0: not even one."""
        fitting = 0
        for count in _counts(self.most):
            if not codec.suits(self.shape, count):
                break
            if self._expected(codec, count, seed) + count * label_bytes > allowed:
                break
            fitting = count
        return fitting

    def payload(self, codec: Codec, allowed: int, seed: int, *, start: int, label_bytes: int = 0) -> bytes | None:
        """The payload of as many images as fit.

        Args:
            codec: Encodes them.
            allowed: Bytes of the class.
            seed: Of k-means.
            start: A count that nearly fits, where the search begins.
            label_bytes: Bytes stored with each image for its soft label.

        Returns:
            At most ``allowed`` bytes with the labels; None: not one image fits.
        """

        def fits(count: int, slack: int = 0) -> bool:
            suits = codec.suits(self.shape, count)
            return suits and self._expected(codec, count, seed) + count * label_bytes <= allowed + slack

        fitting, beyond = 0, min(max(start, 1), self.most)
        while fits(beyond):
            fitting = beyond
            if beyond == self.most:
                break
            beyond = min(self.most, beyond + max(1, beyond // 8))
        while beyond - fitting > 1:
            middle = (fitting + beyond) // 2
            fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
        if beyond > fitting and fits(beyond, _SLACK):  # a codec may expect some bytes too many
            fitting = beyond
        for count in range(fitting, 0, -1):
            payload = encode_images(codec, self.chosen(count, seed))
            if len(payload) + count * label_bytes <= allowed:
                return payload
        return None

    def _expected(self, codec: Codec, count: int, seed: int) -> float:
        return payload_length(codec, self.chosen(count, seed))


def _counts(most: int) -> list[int]:
    counts, count = [], 1
    while count < most:
        counts.append(count)
        count = max(count + 1, count * 6 // 5)
    return [*counts, most]


@dataclass(frozen=True)
class EncodedSet:
    """A training set as payloads.

    Attributes:
        payloads: One a class, in the order of the classes.
        images: What they decode to, uint8 ``[N, H, W, C]`` of each class.
        words: Which codec, for a report.
    """

    payloads: tuple[bytes, ...]
    images: tuple[np.ndarray, ...]
    words: str

    @property
    def bytes_per_class(self) -> float:
        """Mean bytes of a class, every byte of its payload; labels apart."""
        return float(np.mean([len(payload) for payload in self.payloads]))

    @property
    def images_per_class(self) -> float:
        """Mean images of a class."""
        return float(np.mean([len(images) for images in self.images]))

    def labelled(self) -> LabelledImages:
        """The decoded images as a training set, with the positions of their classes as labels."""
        return labelled(self.images, np.arange(len(self.images)))

    @classmethod
    def of(cls, payloads: Sequence[bytes | None], shape: tuple[int, int, int], words: str) -> EncodedSet | None:
        """The set of some payloads; None where a class has none."""
        kept = tuple(payload for payload in payloads if payload is not None)
        if len(kept) < len(payloads):
            return None
        return cls(kept, tuple(decode_images(payload, shape) for payload in kept), words)


def encoded_sets(
    classes: Sequence[EncodableClass], codec: Codec, allowed: int, seeds: Sequence[int], *, label_bytes: int = 0
) -> list[EncodedSet] | None:
    """As many images of each class as fit with a codec, chosen anew for every seed; None where a class cannot hold one."""
    starts = [c.count_that_fits(codec, allowed, seeds[0], label_bytes=label_bytes) for c in classes]
    return _sets(classes, [(codec, start) for start in starts], allowed, seeds, codec.words, label_bytes)


def packed_sets(
    classes: Sequence[EncodableClass], allowed: int, seeds: Sequence[int], *, label_bytes: int = 0
) -> list[EncodedSet] | None:
    """As many images of each class as fit losslessly, each class with the codec that holds most of them.

    Returns:
        One set a seed; None where a class cannot hold one.
    """
    used = []
    for c in classes:
        counts = [c.count_that_fits(codec, allowed, seeds[0], label_bytes=label_bytes) for codec in PACKED]
        used.append((PACKED[int(np.argmax(counts))], max(counts)))
    words = " or ".join(sorted({codec.words for codec, _ in used}))
    return _sets(classes, used, allowed, seeds, words, label_bytes)


def _sets(
    classes: Sequence[EncodableClass],
    used: Sequence[tuple[Codec, int]],
    allowed: int,
    seeds: Sequence[int],
    words: str,
    label_bytes: int,
) -> list[EncodedSet] | None:
    """A set for every seed, with the codec of each class and the count near which its search begins."""
    sets = []
    for seed in seeds:
        payloads = [
            c.payload(codec, allowed, seed, start=start, label_bytes=label_bytes)
            for c, (codec, start) in zip(classes, used, strict=True)
        ]
        found = EncodedSet.of(payloads, _shape(classes), words)
        if found is None:
            return None
        sets.append(found)
    return sets


def draft_images(
    classes: Sequence[EncodableClass], codec: Codec, allowed: int, seed: int, *, label_bytes: int = 0
) -> list[np.ndarray] | None:
    """About what the sets of :func:`encoded_sets` hold, with counts of a coarse grid: what codecs are compared by.

    Returns:
        Images of each class as they would be decoded, uint8 ``[N, H, W, C]``; None where a class cannot hold one.
    """
    images = []
    for c in classes:
        count = c.count_that_fits(codec, allowed, seed, label_bytes=label_bytes)
        if not count:
            return None
        images.append(codec.approximation(c.chosen(count, seed)))
    return images


def labelled(images: Sequence[np.ndarray], positions: np.ndarray) -> LabelledImages:
    """Images of some classes as a training set, with the positions of these as labels."""
    labels = np.repeat(positions, [len(of_class) for of_class in images]).astype(np.int64)
    return LabelledImages(np.concatenate(list(images)), labels, "synthetic")


def set_words(sets: Sequence[EncodedSet]) -> str:
    """Codec and count of sets of one row, for a report, such as "12.4 images a class as pixels of 2 levels"."""
    count = float(np.mean([s.images_per_class for s in sets]))
    return f"{count:.1f} images a class as {sets[0].words}"


def _shape(classes: Sequence[EncodableClass]) -> tuple[int, int, int]:
    if not classes:
        raise StageError("no class to encode")
    return classes[0].shape
