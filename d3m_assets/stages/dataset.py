"""Stages of the real data: the catalog of classes, and the images of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import load_images
from d3m_assets.errors import DatasetError
from d3m_assets.pipeline import Pipeline
from d3m_assets.stages.artefacts import Made, read_table, required, to_parquet
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages


def class_catalog(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """The table of classes, retired ones included."""
    table = pipeline.full_catalog()
    active = table[table["active"]]
    metrics = {"classes": len(active), "retired": len(table) - len(active), "images": int(active["n_train"].sum())}
    return Made(key, {"catalog.parquet": to_parquet(table)}, metrics)


def raw_dataset(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """The image files of a class, with their hashes and splits."""
    prompts = pipeline.prompts(required(key.class_key))
    rows = pipeline.scan().classes[prompts.class_name].table(prompts.class_id)
    counts = {split: int((rows["split"] == split).sum()) for split in ("train", "validation", "test")}
    return Made(key, {"images.parquet": to_parquet(rows)}, {**counts, "bytes": int(rows["bytes"].sum())})


def image_table(pipeline: Pipeline, split: str, class_key: str | None = None) -> pd.DataFrame:
    """Rows of ``raw_dataset`` of one split, of one class or of all, by class id.

    Raises:
        DatasetError: The test split was asked for, which :func:`test_images` alone opens.
    """
    if split == "test":
        raise DatasetError("nothing may be chosen by the test split; rows that are reported read it with test_images.")
    return _rows(pipeline, split, class_key)


def test_images(pipeline: Pipeline, reader: str) -> LabelledImages:
    """The test split, for a row that is reported; who read it is written down.

    Args:
        pipeline: Of which dataset.
        reader: The artefact that reports it.
    """
    from d3m_assets.evaluation.metrics import test_split

    return test_split(lambda: labelled_images(pipeline, _rows(pipeline, "test", None), "test"), reader=reader)


test_images.__test__ = False  # type: ignore[attr-defined]  # its name is no test of pytest's


def _rows(pipeline: Pipeline, split: str, class_key: str | None) -> pd.DataFrame:
    keys = [ArtefactKey("raw_dataset", class_key)] if class_key else pipeline.keys("raw_dataset")
    rows = pd.concat([read_table(pipeline, k, "images.parquet") for k in keys], ignore_index=True)
    # Where an image is may change (a moved clone, another machine) while what it is does not: the scan knows the place.
    rows = rows[rows["split"] == split].reset_index(drop=True)
    found = zip(rows["relative_path"], rows["uri"], strict=True)
    return rows.assign(uri=[pipeline.place(path) or uri for path, uri in found])


def labelled_images(pipeline: Pipeline, rows: pd.DataFrame, split: Any) -> LabelledImages:
    """Images of some rows of ``raw_dataset``, at their stored size, labelled by position in the catalog."""
    from d3m_assets.datasets.labelled_images import LabelledImages

    scan = pipeline.scan()
    images = load_images(list(rows["uri"]), size=(scan.image_height, scan.image_width), channels=scan.channels)
    position = {class_id: i for i, class_id in enumerate(pipeline.catalog()["class_id"])}
    return LabelledImages(images, rows["class_id"].map(position).to_numpy(np.int64), split)
