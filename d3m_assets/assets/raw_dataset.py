"""``raw_dataset``: the real images of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.class_catalog import ClassCatalog
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.dataset_files import ClassFiles
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.datasets.images import contact_sheet, load_images
from d3m_assets.datasets.labelled_images import LabelledImages, Split
from d3m_assets.errors import DamagedError, DatasetError
from d3m_assets.planning.asset import Asset, Check, Made

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.datasets.source import ImageRecord

FILE = "images.parquet"
PREVIEW_IMAGES = 30
PREVIEW_SIDE = 64
"""Longest side of an image on a contact sheet, in px."""
MOST_NAMED = 5
"""Changed, added or removed images that one reason names."""
DIGEST_CHANGED = "setting images "
"""Beginning of the reason that names two digests of images."""


class RawDataset(Asset):
    """The real images of a class: where they are, their hashes, and their split into train, validation and test.

    The images stay where they are.
    """

    group = "dataset"
    partitions = ("class",)
    deps = (ClassCatalog,)
    sources = (ClassFiles,)
    kinds = frozenset({"pandas"})
    checks = (Check("every_class_present", "Every class of the dataset is recorded as it is now.", staleness=True),)

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """None: the catalog is lineage, and a new class must not redo the others."""
        return ()

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The images of the class, its names, and how they are split."""
        dataset_class = item.dataset_class
        return {
            "class_id": dataset_class.class_id,
            "class_name": dataset_class.name,
            "images": context.dataset.scan.classes[dataset_class.name].fingerprint,
            "validation_fraction": context.settings.validation_fraction,
        }

    def explain(self, context: Context, item: Item, reasons: Sequence[str]) -> Sequence[str]:
        """What is wrong with the images of the class, or which of them changed since they were recorded."""
        images = context.dataset.scan.classes[item.dataset_class.name]
        if images.errors:
            return [images.problem]
        if not any(reason.startswith(DIGEST_CHANGED) for reason in reasons):
            return reasons
        try:
            recorded = from_parquet(context.inputs.read(item.key, FILE))
        except (DamagedError, OSError, ValueError):
            return reasons
        marks = zip(recorded["sha256"].tolist(), recorded["split"].tolist(), strict=True)
        before = dict(zip(recorded["relative_path"].tolist(), marks, strict=True))
        named = _image_changes(before, {i.relative_path: (i.sha256, i.split) for i in images.images})
        return [named if named and reason.startswith(DIGEST_CHANGED) else reason for reason in reasons]

    def make_one(self, context: Context, item: Item) -> Made:
        """One row an image.

        Raises:
            DatasetError: The class has to be mended first.
        """
        dataset_class = item.dataset_class
        images = context.dataset.scan.classes[dataset_class.name]
        if images.errors:
            raise DatasetError(f"class {dataset_class.name!r} cannot be used: {images.problem}")
        rows = images.table(dataset_class.class_id)
        counts = {split: int((rows["split"] == split).sum()) for split in ("train", "validation", "test")}
        return Made(item.key, {FILE: to_parquet(rows)}, {**counts, "bytes": int(rows["bytes"].sum())})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """A contact sheet of training images."""
        rows = from_parquet(context.inputs.read(item.key, FILE))
        train = rows[rows["split"] == "train"].sort_values("sha256").head(PREVIEW_IMAGES)
        shape = context.dataset.shape
        factor = min(1.0, PREVIEW_SIDE / max(shape.height, shape.width))
        size = (max(1, round(shape.height * factor)), max(1, round(shape.width * factor)))
        images = real_images(context, train, size)
        return {"rows": len(rows), "real_images_png": contact_sheet(images, 10, 4)}


def _image_changes(before: Mapping[str, tuple[str, str]], now: Mapping[str, tuple[str, str]]) -> str:
    """Which images differ, in words: ``{path: (sha256, split)}`` before and now; empty if none."""
    parts = []
    for verb, paths in (
        ("changed", [path for path in now if path in before and now[path][0] != before[path][0]]),
        ("added", [path for path in now if path not in before]),
        ("removed", [path for path in before if path not in now]),
        ("in another split", [p for p in now if p in before and now[p][0] == before[p][0] and now[p] != before[p]]),
    ):
        if paths:
            more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
            parts.append(f"{verb}: {', '.join(sorted(paths)[:MOST_NAMED])}{more}")
    return f"images {'; '.join(parts)}" if parts else ""


def image_rows(context: Context, split: Split, class_key: str | None = None) -> pd.DataFrame:
    """Rows of one split, of one class or of all by class id.

    Raises:
        DatasetError: The test split was asked for, which :func:`test_images` alone opens.
    """
    if split == "test":
        raise DatasetError("nothing may be chosen by the test split; rows that are reported read it with test_images.")
    return _rows(context, split, class_key)


def test_images(context: Context, reader: str) -> LabelledImages:
    """The test split, for a row that is reported; who read it is written down.

    Args:
        context: Of the asset that reports it.
        reader: The artefact that reports it.
    """
    from d3m_assets.evaluation.metrics import test_split

    def load() -> LabelledImages:
        return labelled_images(context, _rows(context, "test", None), "test")

    # Decoded once for all rows that report it; each is written down.
    return test_split(lambda: context.once("test images", load), reader=reader)


test_images.__test__ = False  # type: ignore[attr-defined]  # its name is no test of pytest's


def real_images(context: Context, rows: pd.DataFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """Images of some rows, uint8 ``[N, H, W, C]``.

    Args:
        context: Of the asset that shows or uses them.
        rows: Rows of :func:`image_rows`.
        size: Height and width in pixels; None: as the dataset stores them.

    Raises:
        DatasetError: One cannot be read any more, or has changed since it was recorded; the message names it and its class.
    """
    dataset = context.dataset
    height_width = size or (dataset.shape.height, dataset.shape.width)
    class_of = dict(zip(rows["relative_path"].tolist(), rows["class_name"].tolist(), strict=True))

    def read(image: ImageRecord) -> bytes:
        try:
            return dataset.source.read(image)
        except DatasetError as error:
            raise DatasetError(f"class {class_of[image.relative_path]!r} cannot be used: {error}") from error

    return load_images(read, dataset.records(rows), size=height_width, channels=dataset.scan.channels)


def labelled_images(context: Context, rows: pd.DataFrame, split: Split) -> LabelledImages:
    """Images of some rows, at their stored size, labelled by the position of their class."""
    images = real_images(context, rows)
    position = {c.class_id: c.position for c in context.dataset.classes}
    return LabelledImages(images, rows["class_id"].map(position).to_numpy(np.int64), split)


def _rows(context: Context, split: Split, class_key: str | None) -> pd.DataFrame:
    import pandas as pd

    parts = {} if class_key is None else {"class_key": class_key}
    keys = context.inputs.keys(RawDataset, **parts)
    rows = pd.concat([from_parquet(context.inputs.read(key, FILE)) for key in keys], ignore_index=True)
    return rows[rows["split"] == split].reset_index(drop=True)
