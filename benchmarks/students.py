"""How much faster are students trained side by side than one after another, and are they the same?

    python -m benchmarks.students --architecture convnet-3 --seeds 4 --repeats 3

Trains the same students (one for each seed, on 100 training images of each digit) in turn
- one after another, as PyTorch does it by default (all threads),
- one after another on one thread,
- stacked, on one thread, as the pipeline does it on a GPU,
- one after another in as many processes as there are cores, as the pipeline does it on a processor.

With ``--device cuda`` the first three are run on the GPU. Prints students an hour, medians of the repeats, and how far the
stacked students' logits and answers on the validation part are from those of students trained alone. Writes a dated JSON file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks.record import surroundings, synchronise, write_result
from d3m_assets.compute.devices import cores
from d3m_assets.compute.workers import Workers
from d3m_assets.progress import Progress

if TYPE_CHECKING:
    import torch

    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.settings import StudentSettings

PER_CLASS = 100
Item: TypeAlias = "tuple[LabelledImages, StudentSettings, str]"
"""Training images, recipe with the seeds of all students, and the device."""


def digits() -> tuple[LabelledImages, LabelledImages]:
    """Training images, 100 of each digit, and the validation part; the test split is not opened."""
    import pandas as pd

    from d3m_assets.assets.raw_dataset import labelled_images
    from d3m_assets.pipeline import Pipeline
    from d3m_assets.settings import load_settings

    context = Pipeline(load_settings(dataset="digits")).context
    scanned = context.dataset.scan.classes
    rows = pd.concat([scanned[c.name].table(c.class_id) for c in context.dataset.classes])
    train = rows[rows["split"] == "train"].groupby("class_id").head(PER_CLASS)
    validation = rows[rows["split"] == "validation"]
    return labelled_images(context, train, "train"), labelled_images(context, validation, "validation")


@contextmanager
def usual_way() -> Iterator[None]:
    """Students as PyTorch trains them by default, with all threads."""
    from d3m_assets.evaluation import students

    threads = students.one_thread
    students.one_thread = nullcontext  # type: ignore[assignment]
    try:
        yield
    finally:
        students.one_thread = threads


def one_after_another(item: Item, progress: Progress) -> list[torch.nn.Module]:
    """Train the students of all seeds, each alone."""
    import torch

    from d3m_assets.evaluation.students import train_student

    train, settings, device = item
    trained = [
        train_student(train, settings, n_classes=10, seed=seed, device=device, progress=progress)
        for seed in settings.seeds
    ]
    synchronise(torch.device(device))
    return trained


def side_by_side(item: Item, progress: Progress) -> list[torch.nn.Module]:
    """Train the students of all seeds stacked."""
    import torch

    from d3m_assets.evaluation.students import train_students

    train, settings, device = item
    seeds = settings.seeds
    trained = train_students(
        [train] * len(seeds), settings, n_classes=10, seeds=seeds, device=device, progress=progress
    )
    synchronise(torch.device(device))
    return trained


def in_processes(workers: Workers, item: Item) -> None:
    """Train as many students in every process as there are seeds, one after another."""
    for _, result in workers.run(_trained, [item] * workers.count, lambda index, event: None):
        if isinstance(result, Exception):
            raise result


def _trained(item: Item, progress: Progress) -> int:
    return len(one_after_another(item, progress))  # modules stay where they are


def differences(
    alone: Sequence[torch.nn.Module], stacked: Sequence[torch.nn.Module], images: LabelledImages
) -> dict[str, float]:
    """How far stacked students are from those trained alone: in logits, and in the share of images answered otherwise."""
    import torch

    from d3m_assets.evaluation.architectures import as_tensor

    shown = as_tensor(images.images).to(next(alone[0].parameters()).device)
    with torch.inference_mode():
        pairs = [(a(shown), b(shown)) for a, b in zip(alone, stacked, strict=True)]
    return {
        "largest_logit": max(float(a.abs().max()) for a, _ in pairs),
        "largest_difference": max(float((a - b).abs().max()) for a, b in pairs),
        "answers_that_differ": float(np.mean([float((a.argmax(1) != b.argmax(1)).float().mean()) for a, b in pairs])),
    }


def main() -> None:
    """Measure and print."""
    from d3m_assets.evaluation.settings import StudentSettings
    from d3m_assets.evaluation.students import student_image_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="convnet-3", choices=["convnet-3", "resnet-18"])
    parser.add_argument("--seeds", type=int, default=4, help="students that are trained together")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="result file; by default in benchmarks/results")
    given = parser.parse_args()
    train, validation = digits()
    settings = StudentSettings(architecture=given.architecture, steps=given.steps, seeds=tuple(range(given.seeds)))
    side = student_image_size(settings, *train.images.shape[1:3])
    train, validation = train.resized(side, 1), validation.resized(side, 1)
    item, workers = (train, settings, given.device), Workers(cores())

    def usual() -> object:
        with usual_way():
            return one_after_another(item, print_nothing)

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "one after another, PyTorch's defaults": (given.seeds, usual),
        "one after another, one thread": (given.seeds, lambda: one_after_another(item, print_nothing)),
        "stacked, one thread": (given.seeds, lambda: side_by_side(item, print_nothing)),
        f"one after another, {workers.count} processes": (
            given.seeds * workers.count, lambda: in_processes(workers, item)
        ),
    }  # fmt: skip
    if given.device != "cpu":  # a GPU has one process
        ways = {name: way for name, way in ways.items() if "processes" not in name}
    short = (train, settings.model_copy(update={"steps": 5}), given.device)
    one_after_another(short, print_nothing)
    side_by_side(short, print_nothing)
    if given.device == "cpu":
        in_processes(workers, short)  # starts them
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats):
        for name, (count, work) in ways.items():
            begun = time.perf_counter()
            work()
            rates[name].append(3600 * count / (time.perf_counter() - begun))
            print(f"round {repeat + 1}: {name:40} {rates[name][-1]:8,.0f} students an hour", flush=True)
    workers.close()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    first = next(iter(medians.values()))
    exact = differences(one_after_another(item, print_nothing), side_by_side(item, print_nothing), validation)
    print(f"\n{given.architecture}, {given.steps} steps, {given.seeds} students together")
    for name, rate in medians.items():
        print(f"{name:40} {rate:8,.0f} students an hour   {rate / first:4.1f} x")
    print(f"stacked against alone: {exact}")
    result: dict[str, Any] = surroundings(given.device) | {
        "settings": vars(given) | {"output": str(given.output)}, "students_an_hour": rates, "medians": medians,
        "against_alone": exact,
    }  # fmt: skip
    print(write_result(f"students-{given.architecture}", result, given.output))


def print_nothing(event: object) -> None:
    """Progress of single students is not told."""


if __name__ == "__main__":
    main()
