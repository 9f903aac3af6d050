"""Where a few distilled images come from, for the page: the image, its prompt and vectors, and real images behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3m_assets.evaluation.report.samples import picture
from d3m_assets.evaluation.report.tables import MAX_CLASSES


@dataclass(frozen=True)
class Origin:
    """The chain behind one distilled image.

    Attributes:
        image: uint8 ``[H, W, C]``.
        budget: Name of the budget.
        index: Number of the image within its class.
        prompt: As text.
        seed: Name of its noise.
        vectors: Which version of the vectors, and how they were learned, in lines.
        made: When and where, in lines.
        real: A few of the real images that its prompt was learned from, uint8 ``[N, H, W, C]``; N may be 0.
        real_count: How many there are; None: it was not recorded.
        real_paths: Paths of those shown, below the dataset.
        command: Shows the whole chain in a shell.
    """

    image: np.ndarray
    budget: str
    index: int
    prompt: str
    seed: str
    vectors: Sequence[str]
    made: Sequence[str]
    real: np.ndarray
    real_count: int | None
    real_paths: Sequence[str]
    command: str


def origin_rows(origins: Mapping[str, Sequence[Origin]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Variables of the template: a group a class that has origins, with an anchor for links to it.

    Args:
        origins: Chains by class name.
        class_names: The classes in their order.
    """
    groups = []
    for position, name in enumerate(class_names[:MAX_CLASSES]):
        rows = [
            {
                "image": picture(origin.image),
                "real": [
                    {"image": picture(image), "path": path}
                    for image, path in zip(origin.real, origin.real_paths, strict=True)
                ],
                "origin": origin,
            }
            for origin in origins.get(name, ())
        ]
        if rows:
            groups.append({"name": name, "anchor": f"origin-{position}", "rows": rows})
    return groups
