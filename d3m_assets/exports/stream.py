"""The images of a bundle as a stream: generated chunk after chunk, so that memory stays flat however many are asked for.

An image has a *position* in the stream: classes in the bundle's order, within a class its samples in the order of
:meth:`Bundle.samples <d3m_assets.distillation.bundle.Bundle.samples>`. A stream can begin at any position, and gives the
same pixels there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets import provenance
from d3m_assets.compute.devices import one_thread
from d3m_assets.datasets.images import encode_png
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import Sample, generate
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.exports.image_record import KEY, ImageRecord, precision_of

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from d3m_assets.foundation.loading import Foundation


@dataclass(frozen=True)
class GeneratedImage:
    """One image of a stream.

    Attributes:
        position: Its place in the stream, from 0.
        class_position: Place of its class in the bundle, from 0: its label.
        image: uint8 ``[H, W, channels]``.
        record: Where it comes from.
    """

    position: int
    class_position: int
    image: np.ndarray
    record: ImageRecord

    def png(self) -> bytes:
        """The image as a PNG file that carries its record: the same bytes in every format of export."""
        return encode_png(self.image, {KEY: self.record.to_text()})


class ImageStream:
    """The images that a bundle regenerates.

    Args:
        bundle: The distilled dataset.
        foundation: The model it was made for.
        per_class: Images of each class; None: the training set of each.
        autoencoder: The tiny autoencoder of the recipe, where it has one.
    """

    def __init__(
        self,
        bundle: Bundle,
        foundation: Foundation,
        *,
        per_class: int | None = None,
        autoencoder: AutoencoderTiny | None = None,
    ) -> None:
        self.bundle, self.foundation = bundle, foundation
        self._autoencoder = autoencoder
        self.counts = tuple(per_class or bundle.training_images(c) for c in bundle.classes)
        self._ends = list(itertools.accumulate(self.counts))

    def __len__(self) -> int:
        """Images of all classes."""
        return self._ends[-1]

    def images(self, start: int = 0) -> Iterator[GeneratedImage]:
        """Generate the images from a position on; no more than a chunk of ``generation.batch_size`` is held."""
        batch_size = self.bundle.generation_settings().batch_size
        for class_position, (c, count, end) in enumerate(
            zip(self.bundle.classes, self.counts, self._ends, strict=True)
        ):
            if end <= start:
                continue
            begin = max(0, start - (end - count))
            position = end - count + begin
            numbers = sample_numbers(self.bundle, c, begin, count)
            for _, group in itertools.groupby(numbers, lambda k: k // batch_size):
                chunk = list(group)
                images, samples = generate_class(
                    self.bundle, c, self.foundation, len(chunk), indices=chunk, autoencoder=self._autoencoder
                )
                for image, sample in zip(images, samples, strict=True):
                    record = image_record(
                        self.bundle,
                        self.foundation,
                        c.prompts,
                        sample,
                        selected=not c.selection or sample.index < self.bundle.recipe.candidates,
                    )
                    yield GeneratedImage(position, class_position, image, record)
                    position += 1


def sample_numbers(bundle: Bundle, distilled: DistilledClass, begin: int, end: int) -> Iterator[int]:
    """Rising numbers of the samples ``begin`` to ``end - 1`` of a class, in the order of ``bundle.samples``."""
    selected = bundle.selected(distilled)
    if selected is None:
        return iter(range(begin, end))
    fresh = [bundle.recipe.candidates + max(0, k - len(selected)) for k in (begin, end)]
    return itertools.chain(selected[begin:end].tolist(), range(*fresh))


def image_record(
    bundle: Bundle, foundation: Foundation, prompts: ClassPrompts, sample: Sample, *, selected: bool = True
) -> ImageRecord:
    """What an image that was generated from a bundle says of itself."""
    return ImageRecord(
        bundle=bundle.sha256,
        class_id=prompts.class_id,
        class_name=prompts.class_name,
        index=sample.index,
        prompt_index=sample.prompt_index,
        prompt=sample.prompt,
        seed=sample.seed,
        foundation=bundle.recipe.foundation_fingerprint,
        precision=precision_of(foundation),
        versions=provenance.versions(),
        selected=selected,
    )


def generate_class(
    bundle: Bundle,
    distilled: DistilledClass,
    foundation: Foundation,
    count: int,
    *,
    first: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    autoencoder: AutoencoderTiny | None = None,
) -> tuple[np.ndarray, list[Sample]]:
    """Generate images of a class as its pool was: the same pixels on the same kind of device.

    Args:
        bundle: The distilled dataset.
        distilled: One of its classes.
        foundation: The model it was made for.
        count: How many images.
        first: Number of the first one.
        indices: Rising numbers of ``count`` images, in place of those from ``first`` on.
        autoencoder: The tiny autoencoder of the recipe, where it has one.

    Returns:
        uint8 ``[count, H, W, channels]``, and where each image came from.
    """
    with one_thread():  # the number of threads decides how sums round
        return generate(
            foundation,
            distilled.prompts,
            bundle.generation_settings(),
            bundle.recipe.seed,
            count=count,
            first=first,
            indices=None if indices is None else [int(k) for k in indices],
            vectors=distilled.vectors,
            plan=distilled.plan,
            channels=bundle.recipe.channels,
            autoencoder=autoencoder,
        )
