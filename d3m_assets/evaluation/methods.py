"""Names of the rows of the table, their order, and what each is compared with."""

from __future__ import annotations

from d3m_assets.evaluation import baselines

D3M = "D3M"
D3M_FRESH = "D3M, fresh samples"
D3M_REJECTION = "D3M, off-class rejected"
D3M_EQUAL_IPC = "D3M, equal IPC"
RANDOM_REAL = baselines.RANDOM_REAL.method
K_MEANS = baselines.BASELINES["k-means"].method
PACKED = baselines.ENCODED["packed"].method
CODED = baselines.ENCODED["coded"].method
CLASS_NAMES = "class-name prompts"
CLASS_NAMES_EQUAL_IPC = "class-name prompts, equal IPC"
RENDERED = "rendered characters"
WHOLE_TRAIN = "whole train split"

VARIANTS: dict[str, str] = {
    D3M_FRESH: D3M,
    D3M_REJECTION: D3M,
    D3M_EQUAL_IPC: RANDOM_REAL,
    CLASS_NAMES_EQUAL_IPC: RANDOM_REAL,
}
"""Rows that change one thing about another, and what each is compared with."""

HEADLINE = (CODED, PACKED, K_MEANS, RANDOM_REAL, CLASS_NAMES, RENDERED)
"""What a report's verdict compares D3M with, as far as it was measured; the first is what its first sentence is about."""

METHODS = (
    D3M,
    D3M_FRESH,
    D3M_REJECTION,
    D3M_EQUAL_IPC,
    *(baseline.method for baseline in baselines.BASELINES.values()),
    *(baseline.method for baseline in baselines.ENCODED.values()),
    CLASS_NAMES,
    CLASS_NAMES_EQUAL_IPC,
    RENDERED,
    WHOLE_TRAIN,
)
"""Rows of a report, in its order."""
