"""Labelled images from a bundle, in one of the formats of :mod:`d3m_assets.exports.formats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from d3m_assets import provenance
from d3m_assets.compute.interface import WorkerPool
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.exports import croissant
from d3m_assets.exports.dataset_card import dataset_card
from d3m_assets.exports.export_folder import open_export, write_whole
from d3m_assets.exports.formats import FORMATS
from d3m_assets.exports.formats.writer import CARD, CROISSANT, ExportPlan
from d3m_assets.exports.image_record import precision_of
from d3m_assets.exports.stream import ImageStream, checked_models
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.foundation.model import ModelReference
    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder

ImageFormat = Literal["folder", "huggingface", "webdataset"]


def regenerate(
    bundle: Bundle,
    foundation: Foundation | None,
    output: Path,
    *,
    per_class: int | None = None,
    image_format: ImageFormat = "folder",
    with_croissant: bool = False,
    progress: Progress = silent,
    autoencoder: TinyAutoencoder | None = None,
    workers: WorkerPool | None = None,
    model: ModelReference | None = None,
) -> int:
    """Write the images of a bundle into a folder; an export that was stopped goes on and ends with the same bytes.

    Every image carries where it comes from in a text chunk, which leaves its pixels alone. The samples that the bundle
    selects come first, in their order and under their numbers, then fresh ones, which are marked as not selected.

    Args:
        bundle: The distilled dataset.
        foundation: The model it was made for; None: all its images are coded.
        output: The folder; must be empty, not exist, or hold the same export, complete or not, so that nothing of the
            user's is lost or mixed in.
        per_class: Images of each class; None: those that the bundle selects, and without a selection as many as the training
            set has.
        image_format: "folder": ``<class>/00000.png`` and ``metadata.jsonl``. "huggingface": parquet shards of a Hugging Face
            dataset repository. "webdataset": tar shards.
        with_croissant: Describe the files in ``croissant.json``.
        progress: Told of every image.
        autoencoder: The tiny autoencoder of the recipe, where it has one.
        workers: Share the work where it takes a minute or more; None: this process does all of it.
        model: What workers load the foundation model from; given with ``workers``.

    Returns:
        The number of images that are there.

    Raises:
        BundleError: Another foundation model or autoencoder or none, fewer coded images than are asked for, a folder with
            anything else in it, a class that the format cannot hold, or mlcroissant is needed and not installed.
    """
    foundation, decoder = checked_models(bundle, foundation, autoencoder)
    recipe = bundle.recipe
    size = (recipe.image_height, recipe.image_width) if foundation is None else (foundation.files.image_size,) * 2
    if with_croissant:
        croissant.check_installed()
    kind = FORMATS[image_format]
    stream = ImageStream(bundle, foundation, per_class=per_class, autoencoder=decoder, workers=workers, model=model)
    plan = ExportPlan(bundle, stream.counts, size, per_class, precision_of(foundation))
    kind.check(plan)
    description = {
        "bundle": bundle.sha256,
        "format": image_format,
        "images": plan.total,
        "per_class": per_class,
        "croissant": with_croissant,
        "precision": plan.precision,
        "versions": provenance.versions(),
    }
    with open_export(output, description, lambda path: kind.owns(path, plan)) as folder:
        writer = kind(output, plan)
        done = writer.resume()
        if folder.complete and done == plan.total:
            return plan.total
        progress(ProgressEvent("regenerate", done, plan.total, f"{done:,} of {plan.total:,} images were there"))
        for image in stream.images(done):
            writer.write(image)
            done += 1
            detail = f"image {done:,} of {plan.total:,}, class {printable(image.record.class_name)}"
            progress(ProgressEvent("regenerate", done, plan.total, detail))
        writer.finish()
        if with_croissant:
            write_whole(output / CROISSANT, croissant.describe(output, plan, writer))
        write_whole(output / CARD, dataset_card(plan, writer, image_format).encode())
    return plan.total
