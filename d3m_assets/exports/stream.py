"""The images of a bundle as a stream: generated or decoded chunk after chunk, so that memory stays flat.

An image has a *position* in the stream: classes in the bundle's order, within a class its samples in the order of
:meth:`Bundle.samples <d3m_assets.distillation.bundle.Bundle.samples>`. A stream can begin at any position, and gives the
same pixels there.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets import provenance
from d3m_assets.compute.devices import one_thread
from d3m_assets.compute.interface import WorkerPool
from d3m_assets.datasets.images import encode_png
from d3m_assets.datasets.labelled_images import resize_to_square
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import Sample, coded_sample, generate
from d3m_assets.errors import BundleError, D3MError
from d3m_assets.exports.image_record import CODED, GENERATED, KEY, ImageRecord, precision_of
from d3m_assets.foundation.tiny_autoencoder import load_tiny_autoencoder
from d3m_assets.progress import Progress, silent

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.foundation.model import ModelReference
    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder

WORTH_WORKERS = 60.0
"""Seconds of work that are left from which on workers are started."""


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


@dataclass(frozen=True)
class ChunkJob:
    """Samples of one class that are generated together, by this process or a worker.

    Attributes:
        model: Of the foundation model.
        bundle: The distilled dataset with that class alone.
        numbers: Rising numbers of the samples, all of one chunk of ``generation.batch_size``.
    """

    model: ModelReference
    bundle: Bundle
    numbers: tuple[int, ...]


def generate_chunk(job: ChunkJob, progress: Progress = silent) -> tuple[np.ndarray, list[Sample]]:
    """The images of a job, as :func:`generate_class` gives them; what workers do."""
    autoencoder = job.model.load_autoencoder() if job.bundle.recipe.autoencoder else None
    return generate_class(
        job.bundle,
        job.bundle.classes[0],
        job.model.load(),
        len(job.numbers),
        indices=job.numbers,
        autoencoder=autoencoder,
    )


@dataclass(frozen=True)
class _Chunk:
    """Place of a chunk in a stream: position of its first image and of its class, and the numbers of its samples."""

    position: int
    class_position: int
    numbers: tuple[int, ...]


class ImageStream:
    """The images that a bundle regenerates.

    Args:
        bundle: The distilled dataset.
        foundation: The model it was made for; None: all its images are coded.
        per_class: Images of each class; None: the training set of each.
        autoencoder: The tiny autoencoder of the recipe, where it has one.
        workers: Share the chunks where there are several and what is left takes a minute or more; None: this process
            generates everything.
        model: What workers load the foundation model from; given with ``workers``.

    Raises:
        BundleError: All images are coded, and a class has fewer.
    """

    def __init__(
        self,
        bundle: Bundle,
        foundation: Foundation | None,
        *,
        per_class: int | None = None,
        autoencoder: AutoencoderTiny | None = None,
        workers: WorkerPool | None = None,
        model: ModelReference | None = None,
    ) -> None:
        if per_class is not None:
            bundle.check_images_per_class(per_class)
        self.bundle, self.foundation = bundle, foundation
        self._autoencoder = autoencoder
        self._workers, self._model = workers, model
        self._batch_size = bundle.generation_settings().batch_size
        self.counts = tuple(per_class or bundle.training_images(c) for c in bundle.classes)
        self._ends = list(itertools.accumulate(self.counts))

    def __len__(self) -> int:
        """Images of all classes."""
        return self._ends[-1]

    def images(self, start: int = 0) -> Iterator[GeneratedImage]:
        """Generate the images from a position on.

        No more than a chunk of ``generation.batch_size`` is held, and with workers two for each.
        """
        for chunk, (images, samples) in self._generated(self._chunks(start)):
            c = self.bundle.classes[chunk.class_position]
            for offset, (image, sample) in enumerate(zip(images, samples, strict=True)):
                record = image_record(self.bundle, self.foundation, c, sample)
                yield GeneratedImage(chunk.position + offset, chunk.class_position, image, record)

    def _chunks(self, start: int) -> Iterator[_Chunk]:
        for class_position, (c, count, end) in enumerate(
            zip(self.bundle.classes, self.counts, self._ends, strict=True)
        ):
            if end <= start:
                continue
            begin = max(0, start - (end - count))
            position = end - count + begin
            numbers = sample_numbers(self.bundle, c, begin, count)
            for _, group in itertools.groupby(numbers, lambda k: k // self._batch_size):
                chunk = _Chunk(position, class_position, tuple(group))
                yield chunk
                position += len(chunk.numbers)

    def _generated(self, chunks: Iterator[_Chunk]) -> Iterator[tuple[_Chunk, tuple[np.ndarray, list[Sample]]]]:
        """Every chunk with its images, in order."""
        workers, model = self._workers, self._model
        for chunk in chunks:
            begun = time.monotonic()
            generated = self._generate_here(chunk)
            seconds = (time.monotonic() - begun) / len(chunk.numbers)
            yield chunk, generated
            left = len(self) - chunk.position - len(chunk.numbers)
            # To start workers takes seconds, and the first images should not wait for them.
            if workers is not None and model is not None and not workers.in_process and left * seconds > WORTH_WORKERS:
                yield from self._generate_in_workers(chunks, workers, model)

    def _generate_here(self, chunk: _Chunk) -> tuple[np.ndarray, list[Sample]]:
        return generate_class(
            self.bundle,
            self.bundle.classes[chunk.class_position],
            self.foundation,
            len(chunk.numbers),
            indices=chunk.numbers,
            autoencoder=self._autoencoder,
        )

    def _generate_in_workers(
        self, chunks: Iterator[_Chunk], workers: WorkerPool, model: ModelReference
    ) -> Iterator[tuple[_Chunk, tuple[np.ndarray, list[Sample]]]]:
        while window := list(itertools.islice(chunks, 2 * workers.count)):
            jobs = [
                ChunkJob(model, replace(self.bundle, classes=(self.bundle.classes[c.class_position],)), c.numbers)
                for c in window
            ]
            early: dict[int, tuple[np.ndarray, list[Sample]]] = {}
            done = 0
            for index, result in workers.run(generate_chunk, jobs, lambda index, event: None):
                if isinstance(result, D3MError):
                    raise result
                early[index] = result
                while done in early:
                    yield window[done], early.pop(done)
                    done += 1


def checked_models(
    bundle: Bundle, foundation: Foundation | None, autoencoder: TinyAutoencoder | None
) -> tuple[Foundation | None, AutoencoderTiny | None]:
    """The model and the loaded autoencoder that a bundle's images are made with; none where all are coded.

    Args:
        bundle: The distilled dataset.
        foundation: The model at hand.
        autoencoder: Files of the tiny autoencoder at hand.

    Raises:
        BundleError: They are not the bundle's, or there is no model.
    """
    if not bundle.generates:
        return None, None
    if foundation is None:
        raise _without_model(bundle)
    bundle.check_foundation(foundation.files.fingerprint, foundation.files.name)
    bundle.check_autoencoder(autoencoder)
    return foundation, None if autoencoder is None else load_tiny_autoencoder(autoencoder, foundation)


def _without_model(bundle: Bundle) -> BundleError:
    return BundleError(f"the images of this bundle are generated by {bundle.recipe.foundation!r}, which is not given")


def sample_numbers(bundle: Bundle, distilled: DistilledClass, begin: int, end: int) -> Iterator[int]:
    """Rising numbers of the samples ``begin`` to ``end - 1`` of a class, in the order of ``bundle.samples``."""
    selected = bundle.training_numbers(distilled)
    if selected is None:
        return iter(range(begin, end))
    first_fresh = bundle.first_fresh(distilled)
    fresh = [first_fresh + max(0, k - len(selected)) for k in (begin, end)]
    return itertools.chain(selected[begin:end].tolist(), range(*fresh))


def image_record(
    bundle: Bundle, foundation: Foundation | None, distilled: DistilledClass, sample: Sample
) -> ImageRecord:
    """What an image of a bundle says of itself."""
    prompts, codes = distilled.prompts, bundle.code_numbers(distilled)
    coded = sample.index in codes
    return ImageRecord(
        bundle=bundle.sha256,
        class_id=prompts.class_id,
        class_name=prompts.class_name,
        index=sample.index,
        prompt_index=sample.prompt_index,
        prompt=sample.prompt,
        seed=sample.seed,
        foundation="" if coded else bundle.recipe.foundation_fingerprint,
        precision="" if coded else precision_of(foundation),
        versions=provenance.versions(),
        selected=not distilled.selection or sample.index < codes.stop,
        origin=CODED if coded else GENERATED,
    )


def generate_class(
    bundle: Bundle,
    distilled: DistilledClass,
    foundation: Foundation | None,
    count: int,
    *,
    first: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    autoencoder: AutoencoderTiny | None = None,
) -> tuple[np.ndarray, list[Sample]]:
    """Images of a class as its pool has them: generated, the same pixels on the same kind of device; or decoded.

    Beside generated images, decoded ones have their size.

    Args:
        bundle: The distilled dataset.
        distilled: One of its classes.
        foundation: The model it was made for; None: all its images are coded.
        count: How many images.
        first: Number of the first one.
        indices: Rising numbers of ``count`` images, in place of those from ``first`` on.
        autoencoder: The tiny autoencoder of the recipe, where it has one.

    Returns:
        uint8 ``[count, H, W, channels]``, and where each image came from.

    Raises:
        BundleError: The class has no such coded image; or images are to be generated, and there is no model.
    """
    numbers = list(range(first, first + count)) if indices is None else [int(k) for k in indices]
    if not bundle.generates:
        bundle.samples(distilled, max(numbers, default=-1) + 1)
        return bundle.coded_images(distilled)[numbers], [coded_sample(k) for k in numbers]
    if foundation is None:
        raise _without_model(bundle)
    codes = bundle.code_numbers(distilled)
    generated = [k for k in numbers if k not in codes]
    size = foundation.files.image_size
    images: np.ndarray = np.empty((0, size, size, bundle.recipe.channels), np.uint8)
    samples: list[Sample] = []
    if generated:
        with one_thread():  # the number of threads decides how sums round
            images, samples = generate(
                foundation,
                distilled.prompts,
                bundle.generation_settings(),
                bundle.recipe.seed,
                count=len(generated),
                indices=generated,
                vectors=distilled.vectors,
                plan=distilled.plan,
                channels=bundle.recipe.channels,
                autoencoder=autoencoder,
            )
    if len(generated) == len(numbers):
        return images, samples
    coded = [k for k in numbers if k in codes]
    decoded = bundle.coded_images(distilled)[[k - codes.start for k in coded]]
    images = np.concatenate([images, resize_to_square(decoded, size, bundle.recipe.channels)])
    order = np.argsort([*generated, *coded], kind="stable")  # the numbers rise
    samples += [coded_sample(k) for k in coded]
    return images[order], [samples[i] for i in order]
