from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.images import encode_png


def png(seed: int, height: int = 8, width: int = 8, channels: int = 1) -> bytes:
    """A PNG of noise, different for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return encode_png(noise)


@pytest.fixture
def make_folder(tmp_path) -> Callable[..., Path]:
    """Writes ``train/<name>`` with 6 and ``test/<name>`` with 2 distinct images for each class name."""

    def make(*names: str, root: Path = tmp_path / "images", **shape: int) -> Path:
        for c, name in enumerate(names):
            for split, count in (("train", 6), ("test", 2)):
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    (folder / f"{i}.png").write_bytes(png(1000 * c + 10 * i + (split == "test"), **shape))
        return root

    return make


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """The digits, written once for all tests; not to be changed."""
    return ensure_digits(tmp_path_factory.mktemp("home") / "data" / "digits")
