"""One table row for each trained student, and the one door to the test split."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.augmentation import AUGMENTATION, CROP
from d3m_assets.evaluation.labels import HARD, Labelling
from d3m_assets.evaluation.scores import confusion_counts
from d3m_assets.evaluation.students import (
    CODE_VERSION,
    class_accuracies,
    evaluate,
    student_image_size,
    train_students,
)
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.settings import StudentSettings

COLUMNS = (
    "method",
    "budget",
    "labels",
    "architecture",
    "augmentation",
    "seed",
    "distillation",
    "accuracy",
    "split",
    "n_train_images",
    "images_per_class",
    "bytes_per_class",
    "steps",
    "n_evaluated",
    "class_accuracy",
    "confusion",
    "recipe",
)
"""Columns of a table of students, in the order in which they are stored."""
_log = logging.getLogger(__name__)
_reads: list[dict[str, object]] = []


def test_split(load: Callable[[], LabelledImages], *, reader: str) -> LabelledImages:
    """Load the test split and write down who asked for it.

    Choices may see the validation part only, so this is the one way to test images; what it returns is marked
    "test", and students refuse to train on it.

    Args:
        load: Loads the images; called once.
        reader: The reported row that reads them, for example ``"student_metrics [ipc-1]"``.

    Raises:
        DatasetError: If ``reader`` is empty.
    """
    if not reader.strip():
        raise DatasetError("the test split is read for a named purpose only; say which row needs it.")
    loaded = load()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _reads.append({"reader": reader, "images": len(loaded), "at": now})
    _log.info("test split of %d images read by %s", len(loaded), reader)
    return LabelledImages(loaded.images, loaded.labels, "test")


test_split.__test__ = False  # type: ignore[attr-defined]  # its name is no test of pytest's


def test_split_reads() -> pd.DataFrame:
    """Reads of the test split by this process, in order: columns reader, images, at (UTC)."""
    return pd.DataFrame(_reads, columns=["reader", "images", "at"])


test_split_reads.__test__ = False  # type: ignore[attr-defined]


def recipe(
    settings: StudentSettings, *, image_size: int, channels: int, labelling: Labelling = HARD
) -> dict[str, object]:
    """Everything that must be the same for two rows of students to be comparable.

    ``labels`` is in it for soft labels only, and must be the same within a kind of labels.
    """
    return {
        **labelling.recipe(),
        # The name of a recipe changes nothing that its values do not say.
        **settings.model_dump(exclude={"seeds", "recipe"}),
        "image_size": image_size,
        "channels": channels,
        "augmentation_limits": {"affine": vars(AUGMENTATION).copy(), "crop": CROP, "none": {}}[settings.augmentation],
        "code_version": CODE_VERSION,
    }


def student_metrics(
    method: str,
    training_sets: Callable[[int], LabelledImages],
    test: LabelledImages,
    settings: StudentSettings,
    *,
    budget: str = "",
    bytes_per_class: float = float("nan"),
    n_classes: int | None = None,
    labelling: Labelling = HARD,
    distillation: Callable[[int], int] = lambda seed: 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> pd.DataFrame:
    """Train one student for each seed of the settings and evaluate their last weights.

    Images of any size are first resized to the student's input, which follows from the test images (they are real, at the
    dataset's stored size) unless the settings fix it.

    Args:
        method: Name of the row, one of :data:`METHODS` or a new one.
        training_sets: Gives the training set for a seed, so that baselines can choose anew for every student.
        test: Real images to evaluate on, from :func:`test_split` or marked "validation".
        settings: Recipe, the same for every row of a report.
        budget: Name of the budget; empty for rows that have none.
        bytes_per_class: Bytes of a class actually charged; NaN for rows that have no such figure.
        n_classes: Number of classes K; by default the classes of ``test``.
        labelling: How the training sets are labelled; students of all kinds are tested on hard labels.
        distillation: Which distillation the training set of a seed is of, where there are several.
        device: Torch device to train on.
        progress: Told of every fiftieth step, over all seeds.

    Returns:
        One row a student with :data:`COLUMNS`. labels is "hard", "soft stored" or "soft teacher"; accuracy a fraction;
        class_accuracy a list of K fractions, NaN where a class has no image; confusion a list of [class, predicted class,
        count], see :func:`d3m_assets.evaluation.scores.confusion_counts`; recipe JSON.

    Raises:
        DatasetError: If ``test`` is training data, or labels are out of range.
    """
    if test.split not in ("test", "validation"):
        raise DatasetError(f'students are evaluated on "test" or "validation" images, not on "{test.split}".')
    k = n_classes or int(test.labels.max()) + 1
    height, width, channels = test.images.shape[1:]
    side = student_image_size(settings, height, width)
    test = test.resized(side, channels)
    common = {
        "method": method,
        "budget": budget,
        "labels": labelling.kind,
        "bytes_per_class": float(bytes_per_class),
        **settings.model_dump(include={"architecture", "augmentation", "steps"}),
        "recipe": _recipe_json(settings, side, channels, labelling),
    }
    row_progress = _labelled(progress, f"{method} {budget}".strip())
    rows = [
        common | {"seed": seed, "distillation": distillation(seed), **_measured(model, train, test, k)}
        for seed, train, model in _trained(training_sets, settings, labelling, side, channels, k, device, row_progress)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _recipe_json(settings: StudentSettings, side: int, channels: int, labelling: Labelling) -> str:
    return json.dumps(recipe(settings, image_size=side, channels=channels, labelling=labelling), sort_keys=True)


def _trained(
    training_sets: Callable[[int], LabelledImages],
    settings: StudentSettings,
    labelling: Labelling,
    side: int,
    channels: int,
    k: int,
    device: str,
    progress: Progress,
) -> Iterator[tuple[int, LabelledImages, torch.nn.Module]]:
    """Seed, prepared training set and trained student of K classes, one for each seed of the settings."""
    seeds = settings.seeds
    # A CPU is busy with one small student (`python -m benchmarks.students`); other devices take all of a row at once.
    at_once = 1 if device == "cpu" else len(seeds)
    for begin in range(0, len(seeds), at_once):
        together = seeds[begin : begin + at_once]
        sets = _prepared([training_sets(seed) for seed in together], labelling, side, channels)
        models = train_students(
            sets,
            settings,
            n_classes=k,
            seeds=together,
            device=device,
            labeller=labelling.labeller(),
            progress=_over_all_seeds(progress, settings, begin, len(together)),
        )
        yield from zip(together, sets, models, strict=True)


def _prepared(
    training_sets: Sequence[LabelledImages], labelling: Labelling, side: int, channels: int
) -> list[LabelledImages]:
    """Training sets at the students' size and labelled; one that several seeds share is prepared once."""
    distinct = {id(train): train for train in training_sets}
    prepared = {key: labelling.applied(train.resized(side, channels)) for key, train in distinct.items()}
    return [prepared[id(train)] for train in training_sets]


def _over_all_seeds(progress: Progress, settings: StudentSettings, before: int, count: int) -> Progress:
    """Progress of ``count`` students, trained together after ``before`` others, as that of the row's students."""
    total = settings.steps * len(settings.seeds)

    def report(event: ProgressEvent) -> None:
        done = settings.steps * before + round(event.done / event.total * settings.steps * count)
        progress(ProgressEvent("students", done, total, event.detail))

    return report


def _labelled(progress: Progress, row: str) -> Progress:
    """Progress with the name of a row before the details."""

    def report(event: ProgressEvent) -> None:
        progress(replace(event, detail=" ".join(word for word in (row, event.detail) if word)))

    return report


def _measured(model: torch.nn.Module, train: LabelledImages, test: LabelledImages, k: int) -> dict[str, object]:
    """What is measured of one student of K classes, and the numbers of images."""
    predictions = evaluate(model, test)
    return {
        "accuracy": float((predictions == test.labels).mean()),
        "split": test.split,
        "n_train_images": len(train),
        "images_per_class": len(train) / k,
        "n_evaluated": len(test),
        "class_accuracy": class_accuracies(predictions, test.labels, k),
        "confusion": confusion_counts(predictions, test.labels, k),
    }
