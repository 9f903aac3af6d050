"""One table row for each trained student, and the one door to the test split."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd

from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.labels import HARD, Labelling
from d3m_assets.evaluation.scores import confusion_counts
from d3m_assets.evaluation.students import (
    AUGMENTATION,
    CODE_VERSION,
    CROP,
    LabelledImages,
    class_accuracies,
    evaluate,
    student_image_size,
    train_student,
)
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    from d3m_assets.settings import Baseline, StudentSettings

D3M = "D3M"
RANDOM_REAL = "random real images"
HERDING = "real images by herding"
K_CENTER = "real images by k-center"
K_MEANS = "real images by k-means"
EL2N = "easiest real images (EL2N)"
COLLAGES = "collages of real patches"
LATENT_MEANS = "decoded latent means"
CLASS_NAMES = "class-name prompts"
RENDERED = "rendered characters"
WHOLE_TRAIN = "whole train split"
BASELINES: dict[Baseline, str] = {
    "random": RANDOM_REAL, "herding": HERDING, "k-center": K_CENTER, "k-means": K_MEANS, "el2n": EL2N,
    "collages": COLLAGES, "latent-means": LATENT_MEANS,
}  # fmt: skip
"""Rows of equal bytes, by their names in ``evaluation.baselines``."""
METHODS = (D3M, *BASELINES.values(), CLASS_NAMES, RENDERED, WHOLE_TRAIN)
"""Rows of a report, in its order."""

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
        "augmentation_limits": vars(AUGMENTATION).copy() if settings.augmentation == "affine" else CROP,
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
    device: str = "cpu",
    progress: Progress = silent,
) -> pd.DataFrame:
    """Train one student for each seed of the settings and evaluate its last weights.

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
        device: Torch device to train on.
        progress: Told of every fiftieth step, over all seeds.

    Returns:
        One row a student: method, budget, labels ("hard", "soft stored" or "soft teacher"), architecture, seed,
        accuracy (fraction), split, n_train_images, images_per_class, bytes_per_class, steps, n_evaluated,
        class_accuracy (list of K fractions, NaN where a class has no image), confusion (list of [class, taken for,
        count], see :func:`d3m_assets.evaluation.scores.confusion_counts`), recipe (JSON).

    Raises:
        DatasetError: If ``test`` is training data, or labels are out of range.
    """
    if test.split not in ("test", "validation"):
        raise DatasetError(f'students are evaluated on "test" or "validation" images, not on "{test.split}".')
    k = n_classes or int(test.labels.max()) + 1
    height, width, channels = test.images.shape[1:]
    side = student_image_size(settings, height, width)
    test = test.fitted(side, channels)
    used = json.dumps(recipe(settings, image_size=side, channels=channels, labelling=labelling), sort_keys=True)
    total = settings.steps * len(settings.seeds)
    rows = []
    for position, seed in enumerate(settings.seeds):
        train = labelling.applied(training_sets(seed).fitted(side, channels))

        def report(event: ProgressEvent, before: int = position * settings.steps, seed: int = seed) -> None:
            detail = " ".join(word for word in (method, budget, f"seed {seed}") if word)
            progress(ProgressEvent("students", before + event.done, total, detail))

        model = train_student(
            train, settings, n_classes=k, seed=seed, device=device, labeller=labelling.labeller(), progress=report
        )
        predictions = evaluate(model, test)
        rows.append(
            {
                "method": method,
                "budget": budget,
                "labels": labelling.kind,
                "architecture": settings.architecture,
                "seed": seed,
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
