import numpy as np
import pandas as pd
import pytest

from d3m_assets_tests.evaluation.conftest import student_rows

NAMES = ["<b>猫</b>", "dog & bone"]


@pytest.fixture
def metrics():
    return pd.concat(
        [
            student_rows("D3M", "ipc-1", [0.91, 0.91, 0.92], bytes_per_class=60, images=200),
            student_rows("D3M", "ipc-5", [0.938, 0.94, 0.942], bytes_per_class=300, images=200),
            student_rows("random real images", "ipc-1", [0.70, 0.72, 0.74], images=2),
            student_rows("random real images", "ipc-5", [0.98, 0.98, 0.99], bytes_per_class=320),
            student_rows("class-name prompts", "", [0.80, 0.81, 0.82], bytes_per_class=0, images=200),
            student_rows("whole train split", "", [0.99, 0.99, 1.0], bytes_per_class=8000, images=1000),
        ],
        ignore_index=True,
    )


@pytest.fixture
def ledger():
    return pd.DataFrame(
        [
            ("ipc-1", "embeddings", "class", "stored", 120),
            ("ipc-1", "pool", "class", "regenerable", 99_999),
            ("ipc-5", "embeddings", "class", "stored", 600),
            ("", "foundation model", "shared", "stored", 4_000_000),
            ("", "whole train split", "class", "reference", 83_008),
        ],
        columns=["budget", "item", "scope", "kind", "bytes"],
    )


@pytest.fixture
def samples():
    draw = np.random.default_rng(0)
    return {
        "real": {name: draw.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8) for name in NAMES},
        "distilled, ipc-1": {NAMES[0]: draw.integers(0, 256, (2, 100, 100, 3), dtype=np.uint8)},
    }
