"""Soft labels: what one that is stored weighs, what is lost of it, and what a student is told.

A row is compared only with rows of the same kind of labels. Stored soft labels are charged to the class like any other
byte; those of a teacher at training time weigh nothing but need the teacher, which the ledger shows as a shared line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.errors import TeacherError
from d3m_assets.evaluation.students import LabelledImages
from d3m_assets.evaluation.teacher import Teacher, labeller, probabilities
from d3m_assets.settings import LabelKind

if TYPE_CHECKING:
    import torch

CODE_VERSION = "1"
"""Raised whenever a change here changes a soft label or what it weighs."""


def label_bytes(n_classes: int, stored_classes: int | None = None) -> int:
    """Bytes of one stored soft label: fp16 probabilities and, when not all are kept, the position of each.

    Args:
        n_classes: Number of classes K.
        stored_classes: Highest probabilities kept; None or K: all, whose positions need not be stored.
    """
    if stored_classes is None or stored_classes >= n_classes:
        return 2 * n_classes
    return stored_classes * (2 + (1 if n_classes <= 256 else 2 if n_classes <= 65536 else 4))


def as_stored(soft: np.ndarray, stored_classes: int | None = None) -> np.ndarray:
    """Soft labels as they are read back after storing: fp16, and only the highest probabilities.

    What the dropped classes had is spread evenly over them ("marginal smoothing" of Shen & Xing, "A Fast Knowledge
    Distillation Framework for Visual Recognition", arXiv 2112.01528).

    Args:
        soft: float ``[N, K]``.
        stored_classes: Probabilities kept of each row; None or K: all.

    Returns:
        float32 ``[N, K]``, rows adding up to 1.
    """
    n, k = soft.shape
    kept = soft.astype(np.float16).astype(np.float32)
    if stored_classes is not None and stored_classes < k:
        # A stable sort, so that equal probabilities are kept in the order of the classes.
        order = np.argsort(-kept, axis=1, kind="stable")
        rest = order[:, stored_classes:]
        highest = np.take_along_axis(kept, order[:, :stored_classes], axis=1)
        share = np.maximum(0, 1 - highest.sum(axis=1, keepdims=True)) / (k - stored_classes)
        np.put_along_axis(kept, rest, np.broadcast_to(share, rest.shape), axis=1)
    return kept / kept.sum(axis=1, keepdims=True)


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
        """The training set with its soft labels, if they are stored with it; otherwise as it is."""
        if self.kind != "soft stored" or self.teacher is None:
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
