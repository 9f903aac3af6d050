import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import metrics

from d3m_assets.errors import StageError
from d3m_assets.evaluation import scores
from d3m_assets.evaluation.scores import (
    Coverage,
    augmentation_robust_score,
    class_coverage,
    confusion_counts,
    confusion_matrix,
    coverage_scores,
    label_robust_score,
)


def by_hand(real, synthetic, k):
    """The definitions, a pair at a time."""

    def ball(points, i):
        others = sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)
        return others[min(k, len(others)) - 1]

    real_balls = [ball(real, i) for i in range(len(real))]
    synthetic_balls = [ball(synthetic, j) for j in range(len(synthetic))]
    held = [[math.dist(r, s) <= radius for r, radius in zip(real, real_balls, strict=True)] for s in synthetic]
    recalled = [any(math.dist(r, s) <= b for s, b in zip(synthetic, synthetic_balls, strict=True)) for r in real]
    return Coverage(
        sum(any(h) for h in held) / len(synthetic),
        sum(recalled) / len(real),
        sum(map(sum, held)) / (k * len(synthetic)),
        sum(any(h[i] for h in held) for i in range(len(real))) / len(real),
    )


@pytest.mark.parametrize("k", [1, 3, 5, 40])
@pytest.mark.parametrize("piece", [4, 2048])
def test_scores_are_those_of_the_definitions(monkeypatch, k, piece):
    monkeypatch.setattr(scores, "_PIECE", piece)
    draw = np.random.default_rng(k)
    real, synthetic = draw.normal(size=(23, 3)), draw.normal(0.5, 0.8, (17, 3))
    synthetic[:2] = real[:2]
    real[5] = real[6]
    found = coverage_scores(real, synthetic, k=k)
    assert found == pytest.approx(by_hand(real.tolist(), synthetic.tolist(), k))
    assert 0 < found.precision <= 1


def test_four_points_on_a_line():
    """Radii for k = 1 are 1, 1, 2 (real) and 0.5, 0.5 (synthetic)."""
    real, synthetic = np.array([[0.0], [1], [3]]), np.array([[3.5], [4.0]])
    assert coverage_scores(real, synthetic, k=1) == Coverage(1.0, 1 / 3, 1.0, 1 / 3)
    assert coverage_scores(real, synthetic + 9, k=1) == Coverage(0.0, 0.0, 0.0, 0.0)
    assert coverage_scores(real, real, k=1) == Coverage(1.0, 1.0, 2.0, 1.0)


def test_a_collapsed_pool_is_precise_and_covers_little():
    draw = np.random.default_rng(0)
    real = draw.normal(size=(200, 4))
    found = coverage_scores(real, np.repeat(real[:1], 50, axis=0))
    assert found.precision == 1.0
    assert found.recall < 0.02 and found.coverage < 0.2
    same = coverage_scores(real, draw.normal(size=(200, 4)))
    assert min(same.precision, same.recall, same.coverage) > 0.8 and 0.8 < same.density < 1.2


def test_classes_are_scored_alone():
    draw = np.random.default_rng(0)
    real, synthetic = draw.normal(size=(30, 2)), draw.normal(size=(21, 2))
    labels, ours = np.arange(30) % 2, np.repeat([0, 1, 2], [10, 10, 1])
    found = class_coverage(real, labels, synthetic, ours, n_classes=3)
    assert found[1] == coverage_scores(real[1::2], synthetic[10:20])
    assert all(math.isnan(v) for v in vars(found[2]).values())
    with pytest.raises(StageError, match="at least 1"):
        coverage_scores(real, synthetic, k=0)
    with pytest.raises(StageError, match=r"\(30, 2\), \(21, 1\)"):
        coverage_scores(real, synthetic[:, :1])


def test_distances_of_equal_points_are_zero():
    points = np.random.default_rng(0).random((50, 30)).astype(np.float32) * 1e4
    assert (np.diag(scores._distances(points, points)) == 0).all()
    assert scores._distances(points, points) == pytest.approx(cdist(points, points))


def test_label_robust_score_of_the_figures_in_the_field_report():
    """HLR 36.5 and IOR 5 points give 0.207, HLR 10 and IOR 20 give 0.29; the released code gives -0.157 and 63."""
    found = label_robust_score(full_hard=0.9, synthetic_hard=0.535, synthetic_any=0.55, random_any=0.5)
    assert found.ingredients["hard_label_recovery"] == pytest.approx(0.365)
    assert found.ingredients["improvement_over_random"] == pytest.approx(0.05)
    assert found.gain == pytest.approx(0.5 * 0.05 - 0.5 * 0.365)
    assert found.score == pytest.approx(0.207, abs=5e-4)
    found = label_robust_score(full_hard=0.9, synthetic_hard=0.8, synthetic_any=0.8, random_any=0.6)
    assert found.score == pytest.approx(0.29, abs=5e-3)


def test_scores_run_from_zero_to_one():
    assert label_robust_score(full_hard=1, synthetic_hard=0, synthetic_any=0, random_any=1).score == pytest.approx(0)
    best = augmentation_robust_score(
        synthetic_augmented=1, random_augmented=0, synthetic_plain=1, random_plain=0, weight=0.3
    )
    assert (best.score, best.gain) == pytest.approx((1, 1))
    found = augmentation_robust_score(
        synthetic_augmented=0.7, random_augmented=0.6, synthetic_plain=0.5, random_plain=0.6
    )
    assert found.gain == pytest.approx(0)
    assert found.score == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    assert found.ingredients["improvement_without_augmentation"] == pytest.approx(-0.1)


def test_percentages_are_refused():
    with pytest.raises(StageError, match="full_hard is 90.*divide percentages by 100"):
        label_robust_score(full_hard=90, synthetic_hard=0.5, synthetic_any=0.5, random_any=0.5)
    with pytest.raises(StageError, match="random_plain is nan"):
        augmentation_robust_score(
            synthetic_augmented=0, random_augmented=0, synthetic_plain=0, random_plain=float("nan")
        )


def test_confusion_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(0, 4, 100), draw.integers(0, 5, 100)
    counts = confusion_counts(predictions, labels, 5)
    assert counts == sorted(counts) and all(type(v) is int for row in counts for v in row)
    expected = metrics.confusion_matrix(labels, predictions, labels=range(5))
    assert (confusion_matrix([counts], 5) == expected).all()
    assert (confusion_matrix([counts, counts], 5) == 2 * expected).all()
