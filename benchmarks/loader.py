"""How fast is a dataset that regenerates its images, beside the same images as a folder of PNG files?

    python -m benchmarks.loader

Ten classes of random vectors of the embedded model (which vectors does not matter for speed), by index, shuffled, in
batches of 64, with 0, 1 and 2 workers that stay between epochs:
- *PNG folder*: files that `d3m regenerate` writes, opened by Pillow;
- *cold*: the first epoch with an empty cache on disk, the start of workers included, but not the loading of the model;
- *memory*: later epochs of a process that holds the chunks;
- *disk*: later epochs of a process that may hold one chunk only, with a full cache on disk.

Prints images a second, medians of ``--repeats`` rounds in which the ways take turns, and writes a dated JSON file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import surroundings, write_result

if TYPE_CHECKING:
    from d3m_assets.distillation.bundle import Bundle

CLASSES = "0123456789"


def random_bundle(images_per_class: int) -> Bundle:
    """A bundle of ten classes with one int8 vector each, without a selection."""
    from d3m_assets.distillation.budgets import EmbeddingPlan
    from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
    from d3m_assets.distillation.prompts import ClassPrompts
    from d3m_assets.distillation.settings import GenerationSettings
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    files = FoundationFiles("embedded", embedded_path())
    width = load_foundation(files, "cpu").layout.width
    plan, rng = EmbeddingPlan(1, 1, "int8", width), np.random.default_rng(0)
    templates = ("a photo of a {}",)
    classes = tuple(
        DistilledClass(
            ClassPrompts.of(i, name, name, templates=templates, initializer=None, keep_class_name=True),
            plan,
            rng.integers(-127, 128, (1, 1, width)).astype(np.int8),
        )
        for i, name in enumerate(CLASSES)
    )
    generation = GenerationSettings(images_per_class=images_per_class).fingerprint()
    recipe = Recipe(
        f"{width}B", width, "digits", 8, 8, 1, "embedded", files.fingerprint, 0, generation, "", 0, templates, True
    )
    return Bundle(recipe, classes)


def png_folder(folder: Path, classes: list[str]) -> Any:
    """The images of a folder as a dataset like :class:`~d3m_assets.DistilledDataset`."""
    import torch
    from PIL import Image
    from torch.utils.data import Dataset

    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).glob("*.png"))]

    class Folder(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> dict[str, Any]:
            path, label = files[index]
            with Image.open(path) as image:
                pixels = np.array(image)
            pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
            return {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255, "label": label}

    return Folder()


def epoch_rates(dataset: Any, workers: int, epochs: int) -> list[float]:
    """Images a second of each epoch, from the request for the first batch to the last one."""
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=workers, persistent_workers=bool(workers))
    rates = []
    for _ in range(epochs):
        begun = time.perf_counter()
        count = sum(len(batch["label"]) for batch in loader)
        assert count == len(dataset)
        rates.append(count / (time.perf_counter() - begun))
    return rates


def round_of(bundle: Bundle, folder: Path, workers: int, epochs: int) -> dict[str, float]:
    """Images a second of every way, once."""
    from d3m_assets import DistilledDataset

    with tempfile.TemporaryDirectory() as cache:
        rates: dict[str, float] = {}
        png = epoch_rates(png_folder(folder, list(CLASSES)), workers, 1 + epochs)
        rates["PNG folder, first epoch"], rates["PNG folder"] = png[0], statistics.median(png[1:])
        made = epoch_rates(DistilledDataset(bundle, device="cpu", cache=cache), workers, 1 + epochs)
        rates["cold"], rates["memory"] = made[0], statistics.median(made[1:])
        disk = epoch_rates(DistilledDataset(bundle, device="cpu", cache=cache, memory_bytes=1), workers, 1 + epochs)
        rates["disk, first epoch"], rates["disk"] = disk[0], statistics.median(disk[1:])
    return rates


def main() -> None:
    """Measure and print."""
    import torch

    from d3m_assets import DistilledDataset
    from d3m_assets.exports.images import regenerate
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="later epochs of each round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="result file; by default in benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = random_bundle(given.images_per_class)
    rates: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "png"
        regenerate(bundle, load_foundation(FoundationFiles("embedded", embedded_path()), "cpu"), folder)
        DistilledDataset(bundle, device="cpu")[0]  # loads the model, which forked workers then have
        png_bytes = sum(path.stat().st_size for path in folder.rglob("*.png"))
        for repeat in range(given.repeats):
            for workers in given.workers:
                for name, rate in round_of(bundle, folder, workers, given.epochs).items():
                    rates.setdefault(name, {}).setdefault(str(workers), []).append(rate)
                    print(f"round {repeat + 1}, {workers} workers: {name:24} {rate:8,.0f} images/s", flush=True)
    medians = {name: {w: statistics.median(r) for w, r in by_workers.items()} for name, by_workers in rates.items()}
    print(f"\n| images/s | {' | '.join(f'{workers} workers' for workers in given.workers)} |")
    print(f"|---|{'---|' * len(given.workers)}")
    for name, by_workers in medians.items():
        print(f"| {name} | {' | '.join(f'{rate:,.0f}' for rate in by_workers.values())} |")
    result: dict[str, Any] = surroundings("cpu") | {
        "settings": vars(given) | {"output": str(given.output)},
        "images": given.images_per_class * len(CLASSES),
        "png_bytes": png_bytes,
        "bundle_bytes": len(bundle.to_bytes()),
        "images_a_second": rates,
        "medians": medians,
    }
    print(write_result("loader", result, given.output))


if __name__ == "__main__":
    main()
