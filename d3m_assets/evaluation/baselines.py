"""The baseline that needs no model: random real images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from d3m_assets.errors import DatasetError


def random_real(rows: pd.DataFrame, per_class: int, seed: int) -> pd.DataFrame:
    """Draw real training images of every class, without replacement, differently for every seed.

    The draw of a class depends on the seed, the class and its images only: other classes do not move it, nor
    does the order of the rows, and for one seed a smaller draw is part of every larger one.

    Args:
        rows: Image table with at least the columns ``class_id``, ``sha256`` and ``split``; only rows whose
            split is "train" are drawn from.
        per_class: Images of each class; a class that has fewer gives all it has.
        seed: Seed of the draw.

    Returns:
        The drawn rows, by class and then in the order drawn.

    Raises:
        DatasetError: If ``per_class`` is below 1, or a class of ``rows`` has no training image.
    """
    if per_class < 1:
        raise DatasetError(f"cannot draw {per_class} images of each class; give at least 1.")
    drawn = []
    for class_id in sorted(int(c) for c in rows["class_id"].unique()):
        train = rows[(rows["class_id"] == class_id) & (rows["split"] == "train")].sort_values("sha256")
        if train.empty:
            raise DatasetError(f"class_id {class_id} has no training image; add some to its train folder.")
        order = np.random.default_rng([seed, class_id]).permutation(len(train))
        drawn.append(train.iloc[order[:per_class]])
    if not drawn:
        raise DatasetError("the image table is empty, so nothing can be drawn; scan the dataset first.")
    return pd.concat(drawn, ignore_index=True)
