"""Public sets of hand-written digits as image folders: what the defaults are judged on after they were fixed.

    python -m benchmarks.handwriting FOLDER --semeion semeion.data
    python -m benchmarks.handwriting FOLDER --idx t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz
    python -m benchmarks.handwriting FOLDER --hdf5 usps.h5

Nothing is downloaded: the files are those that everybody has of MNIST and its kin (``--idx``), of Semeion (UCI, 1,593 digits of
16 x 16 pixels, black or white) and of USPS as HDF5 with the groups train and test (``--hdf5``, needs h5py). Written is
``FOLDER/{train,test}/digit N/NNNN.png``, of each class ``--train`` and ``--test`` images drawn from all of the file with seed 0.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def read_semeion(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, 16, 16]`` and labels int64 ``[N]``: lines of 256 pixels and ten flags."""
    numbers = file.read_text().split()
    if len(numbers) % 266:
        raise SystemExit(f"{file} is not the file of UCI, which has 266 numbers in a line")
    rows = np.array(numbers, float).reshape(-1, 266)
    return (rows[:, :256].reshape(-1, 16, 16) * 255).astype(np.uint8), rows[:, 256:].argmax(1)


def read_idx(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, H, W]`` and labels uint8 ``[N]`` of the format of MNIST, gzipped."""
    content = gzip.decompress(images.read_bytes())
    count, height, width = np.frombuffer(content, ">i4", count=3, offset=4)
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)
    return pixels, np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)


def read_hdf5(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, 16, 16]`` and labels int64 ``[N]`` of USPS, whose pixels are fractions."""
    import h5py

    with h5py.File(file) as stored:
        parts = [(stored[f"{part}/data"][:], stored[f"{part}/target"][:]) for part in ("train", "test")]
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return (pixels.reshape(-1, 16, 16) * 255).round().clip(0, 255).astype(np.uint8), labels


def write(folder: Path, images: np.ndarray, labels: np.ndarray, train: int, test: int) -> None:
    """Write an image folder."""
    rng = np.random.default_rng(0)
    for digit in np.unique(labels):
        for i, row in enumerate(rng.permutation(np.flatnonzero(labels == digit))[: train + test]):
            file = folder / ("train" if i < train else "test") / f"digit {digit}" / f"{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(file)


def main() -> None:
    """Read one set and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--semeion", type=Path)
    source.add_argument("--idx", type=Path, nargs=2)
    source.add_argument("--hdf5", type=Path)
    parser.add_argument("--train", type=int, default=300, help="images of a class in train")
    parser.add_argument("--test", type=int, default=100, help="images of a class in test")
    given = parser.parse_args()
    if given.semeion:
        images, labels = read_semeion(given.semeion)
    elif given.idx:
        images, labels = read_idx(*given.idx)
    else:
        images, labels = read_hdf5(given.hdf5)
    write(given.folder, images, labels, given.train, given.test)


if __name__ == "__main__":
    main()
