"""An image folder, ``<class>/00000.png``, generated from a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d3m_assets import provenance
from d3m_assets.compute.devices import one_thread
from d3m_assets.datasets.images import encode_png
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import Sample, generate
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.errors import BundleError
from d3m_assets.exports.image_record import KEY, METADATA, ImageRecord, image_name, precision_of
from d3m_assets.foundation.tiny_autoencoder import load_tiny_autoencoder

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderTiny

    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder


def regenerate(
    bundle: Bundle,
    foundation: Foundation,
    output: Path,
    *,
    per_class: int | None = None,
    on_class: Callable[[str, int, int], None] = lambda name, done, total: None,
    autoencoder: TinyAutoencoder | None = None,
) -> int:
    """Write an image folder ``output/<class>/00000.png`` from a bundle.

    Every image carries where it comes from in a text chunk, which leaves its pixels alone, and ``metadata.jsonl`` says the
    same of all of them in the layout of Hugging Face's ImageFolder. The samples that the bundle selects come first, in
    their order and under their numbers, then fresh ones, which are marked as not selected.

    Args:
        bundle: The distilled dataset.
        foundation: The model it was made for.
        output: The folder; must be empty or not exist, so that nothing of the user's is lost or mixed in.
        per_class: Images of each class; None: those that the bundle selects, and without a selection as many as the training
            set has.
        on_class: Told of every finished class: name, how many are done, how many there are.
        autoencoder: The tiny autoencoder of the recipe, where it has one.

    Returns:
        The number of images written.

    Raises:
        BundleError: Another foundation model or autoencoder, or a folder with files in it.
    """
    bundle.check_foundation(foundation.files.fingerprint, foundation.files.name)
    bundle.check_autoencoder(autoencoder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output} exists and is not empty; name another folder with --output, or empty it")
    decoder = None if autoencoder is None else load_tiny_autoencoder(autoencoder, foundation)
    output.mkdir(parents=True, exist_ok=True)
    written = 0
    with (output / METADATA).open("w", encoding="utf-8") as metadata:
        for done, c in enumerate(bundle.classes, start=1):
            selected = bundle.selected(c)
            numbers = bundle.samples(c, per_class or bundle.training_images(c))
            images, samples = generate_class(bundle, c, foundation, len(numbers), indices=numbers, autoencoder=decoder)
            written += len(numbers)
            fresh = frozenset() if selected is None else frozenset(numbers.tolist()) - frozenset(selected.tolist())
            folder = output / c.prompts.class_name
            folder.mkdir(parents=True)
            for image, sample in zip(images, samples, strict=True):
                record = image_record(bundle, foundation, c.prompts, sample, selected=sample.index not in fresh)
                name = image_name(sample.index)
                (folder / name).write_bytes(encode_png(image, {KEY: record.to_text()}))
                metadata.write(record.to_row(f"{c.prompts.class_name}/{name}"))
            on_class(c.prompts.class_name, done, len(bundle.classes))
    return written


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
