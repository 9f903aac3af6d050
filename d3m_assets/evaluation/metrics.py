"""One table row for each trained student, and the one door to the test split."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
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
    from d3m_assets.evaluation.settings import StudentSettings

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

    Training and test images of any size are first fitted to the student's input, which follows from the test
    images (they are real, at the dataset's stored size) unless the settings fix it.

    Args:
        method: Name of the row, one of :data:`METHODS` or a new one.
        training_sets: Gives the training set for a seed, so that baselines can draw anew for every student.
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
        One row a student: method, budget, labels ("hard", "soft stored" or "soft teacher"), architecture,
        augmentation, seed, distillation, accuracy (fraction), split, n_train_images, images_per_class,
        bytes_per_class, steps, n_evaluated, class_accuracy (list of K fractions, NaN where a class has no image),
        confusion (list of [class, taken for, count], see
        :func:`d3m_assets.evaluation.scores.confusion_counts`), recipe (JSON).

    Raises:
        DatasetError: If ``test`` is training data, or labels are out of range.
    """
    if test.split not in ("test", "validation"):
        raise DatasetError(f'students are evaluated on "test" or "validation" images, not on "{test.split}".')
    k = n_classes or int(test.labels.max()) + 1
    height, width, channels = test.images.shape[1:]
    side = student_image_size(settings, height, width)
    test = test.resized(side, channels)
    used = json.dumps(recipe(settings, image_size=side, channels=channels, labelling=labelling), sort_keys=True)
    total, seeds, rows = settings.steps * len(settings.seeds), settings.seeds, []
    # A processor is busy with one small student (`python -m benchmarks.students`); other devices take all of a row at once.
    at_once = 1 if device == "cpu" else len(seeds)
    for begin in range(0, len(seeds), at_once):
        together = seeds[begin : begin + at_once]
        given = {seed: training_sets(seed) for seed in together}
        # What is one set for several seeds is fitted and labelled once.
        distinct = {id(train): train for train in given.values()}
        ready = {key: labelling.applied(train.resized(side, channels)) for key, train in distinct.items()}
        sets = [ready[id(given[seed])] for seed in together]

        def report(event: ProgressEvent, before: int = begin, count: int = len(together)) -> None:
            done = settings.steps * before + round(event.done / event.total * settings.steps * count)
            detail = " ".join(word for word in (method, budget, event.detail) if word)
            progress(ProgressEvent("students", done, total, detail))

        models = train_students(
            sets, settings, n_classes=k, seeds=together, device=device, labeller=labelling.labeller(), progress=report
        )
        for seed, train, model in zip(together, sets, models, strict=True):
            predictions = evaluate(model, test)
            rows.append(
                {
                    "method": method,
                    "budget": budget,
                    "labels": labelling.kind,
                    "architecture": settings.architecture,
                    "augmentation": settings.augmentation,
                    "seed": seed,
                    "distillation": distillation(seed),
                    "accuracy": float((predictions == test.labels).mean()),
                    "split": test.split,
                    "n_train_images": len(train),
                    "images_per_class": len(train) / k,
                    "bytes_per_class": float(bytes_per_class),
                    "steps": settings.steps,
                    "n_evaluated": len(test),
                    "class_accuracy": class_accuracies(predictions, test.labels, k),
                    "confusion": confusion_counts(predictions, test.labels, k),
                    "recipe": used,
                }
            )
    return pd.DataFrame(rows)
