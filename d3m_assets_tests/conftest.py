"""What tests of several rooms share: the embedded model, loaded once, and settings that keep everything in a folder."""

import os

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def foundation():
    from d3m_assets.foundation.loading import FoundationFiles, embedded_path, load_foundation

    return load_foundation(FoundationFiles("embedded", embedded_path()), "cpu")


@pytest.fixture(scope="session")
def characters():
    """Drawn characters: ``characters("7", 5)`` gives uint8 [5, 32, 32, 1]."""
    from d3m_assets.foundation.characters import render

    def draw(character: str, count: int, seed: int = 0) -> np.ndarray:
        return render(count, 700_000_000 + seed, characters=character).images[..., None]

    return draw


@pytest.fixture
def image_folder(tmp_path, characters):
    """Writes ``<tmp>/images/{train,test}/<class>/NNN.png`` of drawn characters, 8x8 grey, and returns the folder."""
    from PIL import Image

    def write(names=("0", "1", "7"), train=12, test=6, folder=None):
        root = folder or tmp_path / "images"
        for k, name in enumerate(names):
            drawn = characters("0123456789abc"[k], train + test, seed=k)[..., 0]
            for i, image in enumerate(drawn):
                target = root / ("train" if i < train else "test") / name / f"{i:03d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).resize((8, 8), Image.Resampling.BOX).save(target)
        return root

    return write
