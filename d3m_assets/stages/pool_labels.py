"""The stage of the pool's labels: what the teacher says of every distilled image, kept beside the images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.pipeline import Pipeline
from d3m_assets.stages.artefacts import Made, read_table, required, to_parquet
from d3m_assets.stages.distillation import pool_images
from d3m_assets.stages.teacher import loaded_teacher, stored_teacher
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages


def pool_labels(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """Ask the teacher about the images of a class at a budget, of every distillation, at the size students see them in.

    ``labels.parquet`` has a row an image, in the order of the pools: class_id, class_name, distillation, index,
    teacher_probability (of the image's own class), teacher_class (the likeliest), accepted (whether that is its own), and
    the soft label as it is charged: probabilities (fp16) and the ids of the classes that they are of.
    """
    from d3m_assets.datasets.labelled_images import resize_to_square
    from d3m_assets.evaluation.labels import to_store
    from d3m_assets.evaluation.students import student_image_size
    from d3m_assets.evaluation.teacher import agreement, probabilities

    catalog, chosen = pipeline.catalog(), pipeline.settings.evaluation
    position = list(catalog["class_key"]).index(key.class_key)
    teacher = loaded_teacher(stored_teacher(pipeline), pipeline.device)
    scan, tables = pipeline.scan(), []
    side = student_image_size(pipeline.settings.students, scan.image_height, scan.image_width)
    for distillation in range(pipeline.settings.distillations):
        pool = pool_of(pipeline, required(key.class_key), required(key.budget), distillation)
        # As students see them, and as the images of all other rows are labelled.
        images = resize_to_square(pool_images(pool), side, pipeline.scan().channels)
        sure, judged = agreement(teacher, images, np.full(len(images), position), chosen.temperature)
        kept, positions = to_store(probabilities(teacher, images, chosen.temperature), pipeline.stored_classes)
        ids = catalog["class_id"].to_numpy()
        columns = {
            "class_id": pool["class_id"].to_numpy(), "class_name": pool["class_name"].to_numpy(),
            "distillation": distillation, "index": pool["index"].to_numpy(), "teacher_probability": sure,
            "teacher_class": catalog["class_name"].to_numpy()[judged], "accepted": judged == position,
            "soft_label": list(kept), "soft_label_classes": list(ids[positions]),
        }  # fmt: skip
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    metrics = {"images": len(table), "off_class": int((~table["accepted"]).sum()),
               "teacher_agrees": float(table["accepted"].mean()),
               "teacher_probability": float(table["teacher_probability"].mean())}  # fmt: skip
    return Made(key, {"labels.parquet": to_parquet(table)}, metrics)


def pool_of(pipeline: Pipeline, class_key: str, budget: str, distillation: int) -> pd.DataFrame:
    """The stored pool of a class at a budget, of one of several distillations."""
    if distillation == 0:
        return read_table(pipeline, ArtefactKey("synthetic_pool", class_key, budget), "pool.parquet")
    table = read_table(pipeline, ArtefactKey("repeated_pools", class_key, budget), "pools.parquet")
    return table[table["distillation"] == distillation].reset_index(drop=True)


def stored_labels(pipeline: Pipeline, budget: str, distillation: int) -> pd.DataFrame:
    """What the teacher said of all classes at a budget, in the order of the training set of their pools."""
    keys = [ArtefactKey("pool_labels", class_key, budget) for class_key in pipeline.catalog()["class_key"]]
    table = pd.concat([read_table(pipeline, key, "labels.parquet") for key in keys], ignore_index=True)
    return table[table["distillation"] == distillation].reset_index(drop=True)


def with_soft_labels(pipeline: Pipeline, pool: LabelledImages, labels: pd.DataFrame) -> LabelledImages:
    """A pool with the soft labels that were stored for it."""
    from d3m_assets.evaluation.labels import from_store

    ids = pipeline.catalog()["class_id"].to_numpy()
    kept, named = (np.stack(labels[c].to_list()) for c in ("soft_label", "soft_label_classes"))
    return replace(pool, probabilities=from_store(kept, np.searchsorted(ids, named), len(ids)))


def without_off_class(pool: LabelledImages, labels: pd.DataFrame) -> LabelledImages:
    """The images that the teacher takes for their class; of a class that it never sees, the likeliest image."""
    kept, probability = labels["accepted"].to_numpy(bool).copy(), labels["teacher_probability"].to_numpy()
    for label in np.setdiff1d(pool.labels, pool.labels[kept]):
        own = np.flatnonzero(pool.labels == label)
        kept[own[np.argmax(probability[own])]] = True
    return pool.subset(kept)


def agreement_rows(pipeline: Pipeline) -> list[dict[str, Any]]:
    """For every budget, how far the teacher agrees with the pool, and the class with which it does least."""
    rows = []
    for budget in dict.fromkeys(required(key.budget) for key in pipeline.keys("pool_labels")):
        labels = stored_labels(pipeline, budget, 0)
        by_class = labels.groupby("class_name", sort=False)["accepted"].mean()
        rows.append(
            {"budget": budget, "images": len(labels), "off_class": int((~labels["accepted"]).sum()),
             "agrees": float(labels["accepted"].mean()), "probability": float(labels["teacher_probability"].mean()),
             "least": float(by_class.min()), "least_class": str(by_class.idxmin())}
        )  # fmt: skip
    return rows
