"""Names of the rows of the table, their order, and what each is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d3m_assets.evaluation.settings import Baseline

D3M = "D3M"
D3M_FRESH = "D3M, fresh samples"
D3M_REJECTION = "D3M, off-class rejected"
D3M_EQUAL_IPC = "D3M, equal IPC"
RANDOM_REAL = "random real images"
HERDING = "real images by herding"
K_CENTER = "real images by k-center"
K_MEANS = "real images by k-means"
EL2N = "easiest real images (EL2N)"
COLLAGES = "collages of real patches"
LATENT_MEANS = "decoded latent means"
CLASS_NAMES = "class-name prompts"
CLASS_NAMES_EQUAL_IPC = "class-name prompts, equal IPC"
RENDERED = "rendered characters"
WHOLE_TRAIN = "whole train split"

BASELINES: dict[Baseline, str] = {
    "random": RANDOM_REAL,
    "herding": HERDING,
    "k-center": K_CENTER,
    "k-means": K_MEANS,
    "el2n": EL2N,
    "collages": COLLAGES,
    "latent-means": LATENT_MEANS,
}
"""Rows of equal bytes, by their names in ``evaluation.baselines``."""

VARIANTS: dict[str, str] = {
    D3M_FRESH: D3M,
    D3M_REJECTION: D3M,
    D3M_EQUAL_IPC: RANDOM_REAL,
    CLASS_NAMES_EQUAL_IPC: RANDOM_REAL,
}
"""Rows that change one thing about another, and what each is compared with."""

METHODS = (
    D3M,
    D3M_FRESH,
    D3M_REJECTION,
    D3M_EQUAL_IPC,
    *BASELINES.values(),
    CLASS_NAMES,
    CLASS_NAMES_EQUAL_IPC,
    RENDERED,
    WHOLE_TRAIN,
)
"""Rows of a report, in its order."""
