"""Which codec, at which quality, real images are coded with at a budget: chosen on the validation part.

In two steps. Every candidate encodes about as many images of each class as fit, and a support vector machine that is
trained on the decoded images, each also shifted by a pixel, is tested on validation images. Of the best, one student each
is trained by the recipe of the table; the one most accurate on the validation images wins, and of equals the one that the
machine prefers. The test split has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.datasets.labelled_images import LabelledImages, resize_to_square
from d3m_assets.errors import StageError
from d3m_assets.evaluation.baselines.encoded import EncodableClass, draft_images, labelled
from d3m_assets.evaluation.codecs import CODED, Codec
from d3m_assets.evaluation.students import evaluate, student_image_size, train_student
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    from d3m_assets.evaluation.settings import StudentSettings

CODE_VERSION = "1"
"""Raised whenever a change here changes which codec is chosen."""

FINALISTS = 4
"""Candidates of which a student is trained."""
MOST_CLASSES = 32
"""Classes that the first step looks at, evenly spread over all of them."""
_SIDE = 16
_MOST_ROWS = 3000
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class Candidate:
    """One codec and what was found of it, on validation images.

    Attributes:
        codec: The codec with its quality.
        images_per_class: Mean images that fit.
        proxy: Accuracy of the support vector machine.
        student: Accuracy of a student; None where none was trained.
    """

    codec: Codec
    images_per_class: float
    proxy: float
    student: float | None = None


def choose_codec(
    classes: Sequence[EncodableClass],
    validation: LabelledImages,
    allowed: int,
    settings: StudentSettings,
    *,
    label_bytes: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Candidate]:
    """Compare all lossy codecs at a number of bytes a class.

    Args:
        classes: Training images of the classes by position.
        validation: Images that choices may see, with the positions as labels.
        allowed: Bytes of a class.
        settings: Recipe of the students, whose first seed is taken.
        label_bytes: Bytes stored with each image for its soft label.
        device: Torch device of the students.
        progress: Told of every candidate.

    Returns:
        Every candidate that holds an image of each class, the best first; empty where none does.

    Raises:
        StageError: The validation images are test images.
    """
    if validation.split not in ("validation", "train"):
        raise StageError(f"codecs are chosen on validation images, not on those of the {validation.split} split")
    looked_at = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), MOST_CLASSES)).round().astype(int))
    some = [classes[i] for i in looked_at]
    judged = validation.subset(np.isin(validation.labels, looked_at))
    if not len(judged.labels):
        judged, looked_at, some = validation, np.arange(len(classes)), list(classes)
    seed = settings.seeds[0]
    suitable = [codec for codec in CODED if codec.suits(classes[0].shape, 1)]
    drafts = []
    for done, codec in enumerate(suitable):
        progress(ProgressEvent("codecs", done, len(suitable) + FINALISTS, codec.words))
        draft = draft_images(some, codec, allowed, seed, label_bytes=label_bytes)
        if draft is not None:
            drafts.append(Candidate(codec, _mean_count(draft), _proxy(labelled(draft, looked_at), judged)))
    drafts.sort(key=lambda candidate: -candidate.proxy)
    trained = []
    for done, candidate in enumerate(drafts[:FINALISTS]):
        progress(ProgressEvent("codecs", len(suitable) + done, len(suitable) + FINALISTS, candidate.codec.words))
        draft = draft_images(classes, candidate.codec, allowed, seed, label_bytes=label_bytes)
        if draft is not None:
            train = labelled(draft, np.arange(len(classes)))
            accuracy = _student(train, validation, settings, len(classes), device)
            trained.append(Candidate(candidate.codec, _mean_count(draft), candidate.proxy, accuracy))
    trained.sort(key=lambda candidate: -(candidate.student or 0.0))
    return [*trained, *drafts[FINALISTS:]]


def choice_words(candidates: Sequence[Candidate]) -> str:
    """What the codec was chosen among, for a report, such as "97.3 % on validation images; next WebP … 96.1 %"."""
    students = [c for c in candidates if c.student is not None]
    told = [f"{c.codec.words} {100 * c.student:.1f} %" for c in students if c.student is not None]
    return f"chosen on validation images among {len(candidates)} codecs and qualities: {', '.join(told)}"


def _mean_count(images: Sequence[np.ndarray]) -> float:
    return float(np.mean([len(of_class) for of_class in images]))


def _proxy(train: LabelledImages, validation: LabelledImages) -> float:
    """Accuracy of a support vector machine with the usual kernel, trained on decoded images and their shifts."""
    from sklearn.svm import SVC
    from threadpoolctl import threadpool_limits

    channels = validation.images.shape[3]
    side = min(_SIDE, *validation.images.shape[1:3])
    images = resize_to_square(train.images, side, channels)
    if len(images) > _MOST_ROWS:
        kept = np.linspace(0, len(images) - 1, _MOST_ROWS).astype(int)
        images, labels = images[kept], train.labels[kept]
    else:
        labels = train.labels
    shifts = _SHIFTS[: max(1, min(len(_SHIFTS), _MOST_ROWS // len(images)))]
    rows = np.concatenate([np.roll(images, shift, (1, 2)).reshape(len(images), -1) for shift in shifts]) / 255
    if len(np.unique(labels)) < 2:
        return float(np.mean(validation.labels == labels[0]))
    tested = resize_to_square(validation.images, side, channels)
    with threadpool_limits(1):
        machine = SVC(C=10.0, gamma="scale").fit(rows, np.tile(labels, len(shifts)))
        return float(machine.score(tested.reshape(len(tested), -1) / 255, validation.labels))


def _student(
    train: LabelledImages, validation: LabelledImages, settings: StudentSettings, n_classes: int, device: str
) -> float:
    """Accuracy of one student of the table's recipe."""
    height, width, channels = validation.images.shape[1:]
    side = student_image_size(settings, height, width)
    model = train_student(
        train.resized(side, channels), settings, n_classes=n_classes, seed=settings.seeds[0], device=device
    )
    return float((evaluate(model, validation.resized(side, channels)) == validation.labels).mean())
