"""``pool_labels``: what the teacher says of every selected sample, kept beside the images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.image_codes import ImageCodes
from d3m_assets.assets.payload_choice import PayloadChoice, read_distilled
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.synthetic_pool import SyntheticPool, pool_images
from d3m_assets.assets.teacher_model import TeacherModel, loaded_teacher, no_teacher, read_teacher
from d3m_assets.datasets.labelled_images import LabelledImages, resize_to_square
from d3m_assets.evaluation import labels
from d3m_assets.planning.asset import Asset, Made
from d3m_assets.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

FILE = "labels.parquet"


class PoolLabels(Asset):
    """What the teacher says of every distilled image: how likely its own class is, whether it agrees, and the soft label.

    Made only when there is a teacher.
    """

    group = "evaluation"
    partitions = ("class", "budget")
    replicated = True
    deps = (SyntheticPool, SampleSelection, ImageCodes, PayloadChoice, TeacherModel)
    kinds = frozenset({"pytorch", "parquet"})
    code_version = labels.CODE_VERSION
    device = True

    def unused(self, settings: Settings) -> str:
        """They are made only where a row of the table needs a teacher."""
        return no_teacher(settings)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """At which size the teacher sees the images, and what is kept of its answer."""
        return {
            "seen as": [*context.image_shape, context.settings.students.image_size],
            "temperature": context.settings.evaluation.temperature,
            "stored_classes": stored_classes(context),
            "device": context.device_kind,
        }

    def make_one(self, context: Context, item: Item) -> Made:
        """Ask the teacher about the images of a class at a budget, at the size students see them in.

        The table has a row an image, in the order of the pool: class_id, class_name, index, teacher_probability (of the
        image's own class), teacher_class (the likeliest), accepted (whether that is its own), and the soft label as it is
        charged: probabilities (fp16) and the ids of the classes that they are of.
        """
        import pandas as pd

        from d3m_assets.evaluation.labels import to_store
        from d3m_assets.evaluation.students import student_image_size
        from d3m_assets.evaluation.teacher import agreement, probabilities

        own, temperature = item.dataset_class, context.settings.evaluation.temperature
        teacher, shape = loaded_teacher(read_teacher(context), context.device), context.dataset.shape
        pool = read_distilled(context, own.key, item.budget.name, item.replicate)
        # As students see them, and as the images of all other rows are labelled.
        side = student_image_size(context.settings.students, shape.height, shape.width)
        images = resize_to_square(pool_images(pool), side, shape.channels)
        certainty, judged = agreement(teacher, images, np.full(len(images), own.position), temperature)
        kept, positions = to_store(probabilities(teacher, images, temperature), stored_classes(context))
        ids = np.array([c.class_id for c in context.dataset.classes])
        columns = {
            "class_id": pool["class_id"].to_numpy(),
            "class_name": pool["class_name"].to_numpy(),
            "index": pool["index"].to_numpy(),
            "teacher_probability": certainty,
            "teacher_class": np.array(context.dataset.class_names, dtype=object)[judged],
            "accepted": judged == own.position,
            "soft_label": list(kept),
            "soft_label_classes": list(ids[positions]),
        }
        table = pd.DataFrame(columns)
        metrics = {
            "images": len(table),
            "off_class": int((~table["accepted"]).sum()),
            "teacher_agrees": float(table["accepted"].mean()),
            "teacher_probability": float(table["teacher_probability"].mean()),
        }
        return Made(item.key, {FILE: to_parquet(table)}, metrics)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """Which classes the teacher sees."""
        table = from_parquet(context.inputs.read(item.key, FILE))
        return {"rows": len(table), "teacher's classes": table["teacher_class"].value_counts().reset_index()}


def stored_classes(context: Context) -> int | None:
    """Probabilities of a stored soft label; None for those of all classes."""
    asked = context.settings.evaluation.stored_classes
    return None if asked is None or asked >= len(context.dataset.classes) else asked


def read_labels(context: Context, budget: str, replicate: int = 0) -> pd.DataFrame:
    """What the teacher said of all classes at a budget, in the order of the training set of their pools."""
    import pandas as pd

    keys = context.inputs.keys(PoolLabels, budget=budget, replicate=replicate)
    return pd.concat([from_parquet(context.inputs.read(key, FILE)) for key in keys], ignore_index=True)


def with_soft_labels(context: Context, pool: LabelledImages, table: pd.DataFrame) -> LabelledImages:
    """A pool with the soft labels that were stored for it."""
    from d3m_assets.evaluation.labels import from_store

    ids = np.array([c.class_id for c in context.dataset.classes])
    kept, named = (np.stack(table[c].to_list()) for c in ("soft_label", "soft_label_classes"))
    return replace(pool, probabilities=from_store(kept, np.searchsorted(ids, named), len(ids)))


def without_off_class(pool: LabelledImages, table: pd.DataFrame) -> LabelledImages:
    """The images that the teacher takes for their class; of a class that it never sees, the likeliest image."""
    kept, probability = table["accepted"].to_numpy(bool).copy(), table["teacher_probability"].to_numpy()
    for label in np.setdiff1d(pool.labels, pool.labels[kept]):
        of_class = np.flatnonzero(pool.labels == label)
        kept[of_class[np.argmax(probability[of_class])]] = True
    return pool.subset(kept)


def agreement_rows(context: Context) -> list[dict[str, Any]]:
    """For every budget, how far the teacher agrees with the pool, and the class with which it does least."""
    rows = []
    for budget in dict.fromkeys(key.budget for key in context.inputs.keys(PoolLabels)):
        table = read_labels(context, str(budget))
        by_class = table.groupby("class_name", sort=False)["accepted"].mean()
        rows.append(
            {
                "budget": budget,
                "images": len(table),
                "off_class": int((~table["accepted"]).sum()),
                "agrees": float(table["accepted"].mean()),
                "probability": float(table["teacher_probability"].mean()),
                "least": float(by_class.min()),
                "least_class": str(by_class.idxmin()),
            }
        )
    return rows
