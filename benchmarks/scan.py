"""How long does it take to scan a dataset of many small images, and which requests does a remote one cost?

    python -m benchmarks.scan

An image folder of ``--images`` grey PNG files of 8x8 random pixels in ``--classes`` classes, on a local disk: seconds of the
first scan, which reads and decodes every image, and of a second one, which finds all in the index of the first. Then a
smaller one of ``--remote-images`` on a store in memory that counts the requests S3 would be sent, scanned twice.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.counting import PROTOCOL, counted, reset
from benchmarks.record import surroundings, write_result


def image_files(images: int, classes: int) -> Iterator[tuple[str, bytes]]:
    """Paths below the dataset and contents of PNG files; a tenth of each class is its test split."""
    rng = np.random.default_rng(0)
    for number in range(images):
        place, of_class = divmod(number, classes)
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "PNG")
        split = "test" if place % 10 == 9 else "train"
        yield f"{split}/class {of_class:04d}/{place:06d}.png", file.getvalue()


def scan_seconds(url: str, home: Path, images: int) -> float:
    """Seconds of a scan by a source that was just opened."""
    from d3m_assets.datasets.opening import open_dataset

    begun = time.perf_counter()
    scan = open_dataset(url, home=home, validation_fraction=0.1).scan()
    seconds = time.perf_counter() - begun
    found = sum(len(c.images) for c in scan.classes.values())
    if found != images:
        raise AssertionError(f"{found} of {images} images were found; {scan.problems[:3]}")
    return seconds


def main() -> None:
    """Measure and print."""
    import fsspec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--remote-images", type=int, default=2_000)
    parser.add_argument("--output", type=Path, default=None, help="result file; by default in benchmarks/results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        for name, content in image_files(given.images, given.classes):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        seconds = [scan_seconds(str(folder), Path(scratch) / "home", given.images) for _ in range(2)]
        print(f"{given.images:,} images in {given.classes} classes: {seconds[0]:.1f} s, again {seconds[1]:.1f} s")

        reset(files=True)
        fs = fsspec.filesystem(PROTOCOL)
        for name, content in image_files(given.remote_images, given.classes):
            fs.pipe_file(f"/bucket/images/{name}", content)
        asked = []
        for _ in range(2):
            reset()
            scan_seconds(f"{PROTOCOL}://bucket/images", Path(scratch) / "remote home", given.remote_images)
            asked.append(dict(counted()))
            print(f"{given.remote_images:,} images on a counting store: {asked[-1]}")
    result = surroundings("cpu") | {
        "settings": vars(given) | {"output": str(given.output)},
        "seconds": seconds,
        "requests": asked,
    }
    print(write_result("scan", result, given.output))


if __name__ == "__main__":
    main()
