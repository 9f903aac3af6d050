"""Soft labels: what is stored of them, and which labels a student is trained on.

A row is compared only with rows of the same kind of labels. Stored soft labels are charged to the class like any other
byte (:func:`d3m_assets.ledger.soft_label_bytes`); those of a teacher at training time are free but need the teacher,
which the ledger shows as a shared line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import TeacherError
from d3m_assets.evaluation.settings import LabelKind
from d3m_assets.evaluation.teacher import Teacher, labeller, probabilities

if TYPE_CHECKING:
    import torch

CODE_VERSION = "1"
"""Raised whenever a change here changes a soft label, or one in the ledger its bytes."""


def to_store(soft: np.ndarray, stored_classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of soft labels.

    Args:
        soft: float ``[N, K]``.
        stored_classes: Probabilities kept of each row; None or K: all.

    Returns:
        Probabilities, float16 ``[N, k]``, and the class positions they are of, int32 ``[N, k]``: all classes in their
        order, or the likeliest first.
    """
    kept = soft.astype(np.float16)
    if stored_classes is None or stored_classes >= soft.shape[1]:
        return kept, np.broadcast_to(np.arange(soft.shape[1], dtype=np.int32), soft.shape)
    # A stable sort, so that equal probabilities are kept in the order of the classes.
    order = np.argsort(-kept.astype(np.float32), axis=1, kind="stable")[:, :stored_classes]
    return np.take_along_axis(kept, order, axis=1), order.astype(np.int32)


def from_store(kept: np.ndarray, positions: np.ndarray, n_classes: int) -> np.ndarray:
    """Soft labels of all classes from what was kept of them.

    What the dropped classes had is spread evenly over them ("marginal smoothing" of Shen & Xing, "A Fast Knowledge
    Distillation Framework for Visual Recognition", arXiv 2112.01528).

    Args:
        kept: Probabilities ``[N, k]``, as :func:`to_store` gives them.
        positions: Class positions they are of ``[N, k]``.
        n_classes: Number of classes K.

    Returns:
        float32 ``[N, K]``, rows adding up to 1.
    """
    highest, dropped = kept.astype(np.float32), n_classes - kept.shape[1]
    soft = np.zeros((len(kept), n_classes), np.float32)
    if dropped:
        soft[:] = np.maximum(0, 1 - highest.sum(axis=1, keepdims=True)) / dropped
    np.put_along_axis(soft, positions.astype(np.int64), highest, axis=1)
    return soft / soft.sum(axis=1, keepdims=True)


def as_stored(soft: np.ndarray, stored_classes: int | None = None) -> np.ndarray:
    """Soft labels float32 ``[N, K]`` as they are read back after storing, from float ``[N, K]``."""
    return from_store(*to_store(soft, stored_classes), soft.shape[1])


@dataclass(frozen=True)
class Labelling:
    """How the training sets of a row are labelled.

    Attributes:
        kind: "hard", "soft stored" or "soft teacher".
        teacher: Gives soft labels.
        teacher_fingerprint: Names the teacher in the recipe.
        temperature: What its logits are divided by; None: the calibrated temperature.
        stored_classes: Highest probabilities that a stored label keeps; None: all.

    Raises:
        TeacherError: Soft labels without a teacher.
    """

    kind: LabelKind = "hard"
    teacher: Teacher | None = None
    teacher_fingerprint: str = ""
    temperature: float | None = None
    stored_classes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail in the middle of a run."""
        if self.kind != "hard" and self.teacher is None:
            raise TeacherError(f'labels of the kind "{self.kind}" need a teacher; give one, or use hard labels.')

    def recipe(self) -> dict[str, Any]:
        """What has to be the same for two rows of this kind to be comparable; empty for hard labels."""
        if self.kind == "hard" or self.teacher is None:
            return {}
        used = {"teacher": self.teacher_fingerprint, "temperature": self._temperature, "code_version": CODE_VERSION}
        stored = {"stored_classes": self.stored_classes or "all"} if self.kind == "soft stored" else {}
        return {"labels": {"kind": self.kind, **used, **stored}}

    def applied(self, train: LabelledImages) -> LabelledImages:
        """The training set with its soft labels, where they are to be stored with it and are not yet; else as it is."""
        if self.kind != "soft stored" or self.teacher is None or train.probabilities is not None:
            return train
        soft = probabilities(self.teacher, train.images, self._temperature)
        return replace(train, probabilities=as_stored(soft, self.stored_classes))

    def labeller(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What labels every augmented batch; None where labels come with the training set."""
        if self.kind != "soft teacher" or self.teacher is None:
            return None
        return labeller(self.teacher, self._temperature)

    @property
    def _temperature(self) -> float:
        assert self.teacher is not None
        return self.temperature or self.teacher.temperature


HARD = Labelling()
