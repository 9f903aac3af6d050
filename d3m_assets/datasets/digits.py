"""The dataset that needs no download: scikit-learn's handwritten digits as an image folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from d3m_assets.errors import DatasetError


def ensure_digits(folder: Path) -> Path:
    """Write the digits once: 1,797 grey 8x8 PNG, 1,297 for train and 500 for test, stratified.

    The values 0..16 become 0..255 by ``round(v * 255 / 16)``. ``train/7/0123.png`` has index 123 in
    :func:`sklearn.datasets.load_digits` (Alpaydin & Kaynak, 1998: Optical Recognition of Handwritten Digits,
    UCI Machine Learning Repository).

    Args:
        folder: Where they are wanted. It appears complete or not at all, also when several processes ask.

    Returns:
        The absolute path of ``folder``.

    Raises:
        DatasetError: The folder holds something else, or cannot be written.
    """
    folder = folder.absolute()
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(made)
            made.chmod(0o755)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        if (folder / "train").is_dir() and (folder / "test").is_dir():  # another process was quicker
            return folder
        raise DatasetError(f"cannot write the digits to {folder}: {error}. Empty it, or set `home`.") from error
    return folder


def _write(folder: Path) -> None:
    # Imported here: scikit-learn takes a second, and the digits are mostly there already.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from d3m_assets.datasets.images import encode_png

    images, labels = load_digits(return_X_y=True)
    grey = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    for split, indices in (("train", train), ("test", test)):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        for index in indices:
            (folder / split / str(labels[index]) / f"{index:04d}.png").write_bytes(encode_png(grey[index]))
