"""Scores of the field: how a pool lies among real images, and what distillation is worth beside labels and augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d3m_assets.errors import StageError

CODE_VERSION = "1"
"""Raised whenever a change here changes a score."""

NEIGHBOURS = 5
"""k of all four scores, as in Naeem et al.; Kynkäänniemi et al. use 3 for precision and recall."""

_PIECE = 2048


@dataclass(frozen=True)
class Coverage:
    """How synthetic images lie among real ones, each real (or synthetic) image with a ball to its k-th nearest other.

    Attributes:
        precision: Share of synthetic images in the ball of some real one (Kynkäänniemi et al., "Improved Precision and
            Recall Metric for Assessing Generative Models", NeurIPS 2019, equations 1 and 2).
        recall: Share of real images in the ball of some synthetic one (the same).
        density: Mean number of real balls that a synthetic image lies in, over k (Naeem et al., "Reliable Fidelity and
            Diversity Metrics for Generative Models", ICML 2020, equation 3); may exceed 1.
        coverage: Share of real images whose ball holds a synthetic one (the same, equation 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage_scores(real: np.ndarray, synthetic: np.ndarray, *, k: int = NEIGHBOURS) -> Coverage:
    """Precision, recall, density and coverage of synthetic points among real ones.

    A ball holds its rim. Where there are fewer than k other points, the radius is the distance to the farthest of them.

    Args:
        real: Any number type ``[N, F]``.
        synthetic: ``[M, F]``.
        k: Which neighbour a ball reaches to.

    Returns:
        Fractions, density apart; all NaN with fewer than two points on a side, which have no ball.

    Raises:
        StageError: ``k`` is below 1, or the points have different numbers of features.
    """
    if k < 1 or real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise StageError(
            f"scores take k of at least 1 and [N, F] beside [M, F], not {k}, {real.shape}, {synthetic.shape}"
        )
    if min(len(real), len(synthetic)) < 2:
        return Coverage(*[math.nan] * 4)
    real_radii, synthetic_radii = _radii(real, k), _radii(synthetic, k)
    balls_holding = np.zeros(len(synthetic))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for begin in range(0, len(synthetic), _PIECE):
        piece = slice(begin, begin + _PIECE)
        distances = _distances(real, synthetic[piece])
        inside = distances <= real_radii[:, None]
        balls_holding[piece] = inside.sum(0)
        covered |= inside.any(1)
        recalled |= (distances <= synthetic_radii[piece]).any(1)
    return Coverage(
        float((balls_holding > 0).mean()),
        float(recalled.mean()),
        float(balls_holding.mean() / k),
        float(covered.mean()),
    )


def class_coverage(
    real: np.ndarray,
    real_labels: np.ndarray,
    synthetic: np.ndarray,
    labels: np.ndarray,
    *,
    n_classes: int,
    k: int = NEIGHBOURS,
) -> list[Coverage]:
    """:func:`coverage_scores` of every class by itself, in the order of the classes."""
    return [coverage_scores(real[real_labels == c], synthetic[labels == c], k=k) for c in range(n_classes)]


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of every point to its k-th nearest other."""
    k = min(k, len(points) - 1)
    radii = np.empty(len(points))
    for begin in range(0, len(points), _PIECE):
        distances = _distances(points[begin : begin + _PIECE], points)
        # A point is its own nearest.
        distances[np.arange(len(distances)), begin + np.arange(len(distances))] = -1.0
        radii[begin : begin + _PIECE] = np.partition(distances, k, axis=1)[:, k]
    return radii


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Pair by pair by scipy. NearestNeighbors of scikit-learn, as in the audit, computes squares and products, whose
    # rounding would lose points on a rim.
    from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

    return cdist(a.astype(np.float64), b.astype(np.float64))


@dataclass(frozen=True)
class RobustScore:
    """A score of DD-Ranking with what it is made of, all as fractions.

    Attributes:
        score: In 0..1; e^x of the gain, scaled so that a gain of -1 is 0 and one of 1 is 1. No gain is about 0.27.
        gain: What the score is of.
        ingredients: Name to fraction: the accuracies and differences that make the gain.
    """

    score: float
    gain: float
    ingredients: dict[str, float]


def label_robust_score(
    *, full_hard: float, synthetic_hard: float, synthetic_any: float, random_any: float, weight: float = 0.5
) -> RobustScore:
    """DD-Ranking's label-robust score (LRS), computed by its formula on fractions.

    HLR = full_hard - synthetic_hard, IOR = synthetic_any - random_any, α = weight · IOR - (1 - weight) · HLR, and
    LRS = (e^α - e^-1) / (e - e^-1). (NUS-HPC-AI-Lab, DD-Ranking 0.2.0; its code puts percentages into this formula.)

    Args:
        full_hard: Accuracy of students of the whole train split, hard labels.
        synthetic_hard: Accuracy of students of the distilled images, hard labels.
        synthetic_any: Their accuracy with the labels the method is used with.
        random_any: Accuracy of students of random real images with labels of that kind. DD-Ranking takes as many images as
            the distilled set has; the report gives it images of equal bytes, so its values compare budgets here and not
            with published ones.
        weight: Weight of the gain over random images, 0 to 1.

    Raises:
        StageError: A value is not a fraction.
    """
    values = {
        "full_hard": full_hard,
        "synthetic_hard": synthetic_hard,
        "synthetic_any": synthetic_any,
        "random_any": random_any,
    }
    _refuse_percentages(values | {"weight": weight})
    recovery, over_random = full_hard - synthetic_hard, synthetic_any - random_any
    gain = weight * over_random - (1 - weight) * recovery
    return RobustScore(
        _normalized(gain), gain, values | {"hard_label_recovery": recovery, "improvement_over_random": over_random}
    )


def augmentation_robust_score(
    *,
    synthetic_augmented: float,
    random_augmented: float,
    synthetic_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> RobustScore:
    """DD-Ranking's augmentation-robust score (ARS), computed by its formula on fractions.

    β = weight · (synthetic_augmented - random_augmented) + (1 - weight) · (synthetic_plain - random_plain), normalised as
    the label-robust score is.

    Args:
        synthetic_augmented: Accuracy of students of the distilled images, trained with augmentation.
        random_augmented: The same of as many random real images.
        synthetic_plain: Accuracy of students of the distilled images, trained without augmentation.
        random_plain: The same of as many random real images.
        weight: Weight of the students trained with augmentation, 0 to 1.

    Raises:
        StageError: A value is not a fraction.
    """
    values = {
        "synthetic_augmented": synthetic_augmented,
        "random_augmented": random_augmented,
        "synthetic_plain": synthetic_plain,
        "random_plain": random_plain,
    }
    _refuse_percentages(values | {"weight": weight})
    augmented, plain = synthetic_augmented - random_augmented, synthetic_plain - random_plain
    gain = weight * augmented + (1 - weight) * plain
    differences = {"improvement_with_augmentation": augmented, "improvement_without_augmentation": plain}
    return RobustScore(_normalized(gain), gain, values | differences)


def _normalized(gain: float) -> float:
    return (math.exp(gain) - math.exp(-1)) / (math.e - math.exp(-1))


def _refuse_percentages(values: dict[str, float]) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise StageError(f"{name} is {value}, not a fraction from 0 to 1; divide percentages by 100")


def confusion_counts(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> list[list[int]]:
    """Count how often each class was predicted for each.

    Args:
        predictions: Predicted class positions, integer ``[N]``.
        labels: True class positions, integer ``[N]``.
        n_classes: Number of classes K.

    Returns:
        ``[class, predicted class, count]`` for every pair that occurs, in order: at most N rows, where a matrix of a thousand
        classes would have a million.
    """
    pairs, counts = np.unique(labels.astype(np.int64) * n_classes + predictions, return_counts=True)
    return [[int(p // n_classes), int(p % n_classes), int(c)] for p, c in zip(pairs, counts, strict=True)]


def confusion_matrix(students: Sequence[Sequence[Sequence[int]]], n_classes: int) -> np.ndarray:
    """Add up the :func:`confusion_counts` of some students.

    Returns:
        int64 ``[K, K]``: images of the class of the row that were predicted as the class of the column.
    """
    matrix = np.zeros((n_classes, n_classes), np.int64)
    for counts in students:
        for true, predicted, count in counts:
            matrix[true, predicted] += count
    return matrix
