import hashlib
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.selection import (
    CHOICES,
    CROPS,
    Described,
    collages,
    crops,
    easiest,
    el2n,
    herding,
    k_center,
    k_means,
    latent_means,
    select_real,
)


@pytest.fixture
def points():
    return np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)


def test_herding_takes_at_every_step_what_brings_the_mean_nearest(points):
    chosen = herding(points, 6)
    assert len(set(chosen)) == 6
    mean = points.mean(0)
    for step in range(6):
        left = [i for i in range(12) if i not in chosen[:step]]
        gaps = {i: np.linalg.norm(mean - points[[*chosen[:step], i]].mean(0)) for i in left}
        assert gaps[chosen[step]] == pytest.approx(min(gaps.values()), abs=1e-6)
    drawn = np.random.default_rng(0)
    random = np.mean([np.linalg.norm(mean - points[drawn.permutation(12)[:6]].mean(0)) for _ in range(200)])
    assert np.linalg.norm(mean - points[chosen].mean(0)) < random / 2


def test_k_center_is_farthest_first_and_within_twice_the_best_radius(points):
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)

    def radius(centres):
        return distances[:, list(centres)].min(1).max()

    best = min(radius(centres) for centres in combinations(range(12), 4))
    for seed in range(5):
        chosen = k_center(points, 4, seed)
        for step in range(1, 4):
            gaps = distances[:, chosen[:step]].min(1)
            assert gaps[chosen[step]] == pytest.approx(gaps.max())
        assert radius(chosen) <= 2 * best + 1e-6
    assert len({int(k_center(points, 1, seed)[0]) for seed in range(20)}) > 3


def test_k_means_takes_one_image_of_each_cluster_near_its_middle():
    draw = np.random.default_rng(0)
    middles = np.array([[0, 0], [50, 0], [0, 50]])
    points = np.concatenate([m + draw.normal(size=(n, 2)) for m, n in zip(middles, (20, 10, 5), strict=True)])
    chosen = k_means(points, 3, seed=1)
    assert [int(i >= 20) + int(i >= 30) for i in chosen] == [0, 1, 2]  # the largest cluster first
    for cluster, i in zip((points[:20], points[20:30], points[30:]), chosen, strict=True):
        assert np.linalg.norm(points[i] - cluster.mean(0)) == pytest.approx(
            np.linalg.norm(cluster - cluster.mean(0), axis=1).min()
        )


@pytest.mark.parametrize("choice", list(CHOICES))
def test_choices_repeat_are_distinct_and_bear_copies_and_small_classes(choice, points):
    copies = np.repeat(points[:2], 4, axis=0)
    for features, count in ((points, 5), (copies, 6), (points[:3], 10), (points[:1], 1)):
        known = Described(features, np.linalg.norm(features, axis=1))
        chosen = CHOICES[choice](known, count, 0)
        assert chosen.dtype == np.int64
        assert len(chosen) == len(set(chosen.tolist())) == min(count, len(features))
        assert (chosen == CHOICES[choice](known, count, 0)).all()


def test_el2n_is_the_distance_from_the_label():
    soft = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], np.float32)
    scores = el2n(soft, np.array([0, 0, 0]))
    np.testing.assert_allclose(scores, [0, np.sqrt(2), np.sqrt(0.5)])
    assert easiest(scores, 2).tolist() == [0, 2]
    assert soft[0].tolist() == [1, 0, 0]


@pytest.fixture
def rows():
    return pd.DataFrame(
        {
            "class_id": class_id,
            "sha256": hashlib.sha256(f"{class_id}/{i}".encode()).hexdigest(),
            "split": "train" if i < 8 else "validation" if i < 10 else "test",
        }
        for class_id in (0, 7)
        for i in range(12)
    )


def _described(rows, order=1):
    train = rows[rows["split"] == "train"]
    return {
        int(c): Described(np.arange(len(g), dtype=float)[:, None], order * np.arange(len(g), dtype=float))
        for c, g in train.groupby("class_id")
    }


def test_only_training_images_are_chosen_in_the_order_of_their_hashes(rows):
    chosen = select_real(rows, 3, 0, "el2n", _described(rows))
    assert set(chosen["split"]) == {"train"}
    for class_id in (0, 7):
        hashes = sorted(rows[(rows["class_id"] == class_id) & (rows["split"] == "train")]["sha256"])
        assert chosen[chosen["class_id"] == class_id]["sha256"].tolist() == hashes[:3]
    shuffled = rows.sample(frac=1, random_state=0)
    assert select_real(shuffled, 3, 0, "herding", _described(rows))["sha256"].tolist() == (
        select_real(rows, 3, 0, "herding", _described(rows))["sha256"].tolist()
    )
    hardest = select_real(rows, 3, 0, "el2n", _described(rows, -1))
    assert not set(hardest["sha256"]) & set(chosen["sha256"])


def test_impossible_choices_are_refused(rows):
    few = {k: Described(d.features[:2], d.errors[:2]) for k, d in _described(rows).items()}
    with pytest.raises(DatasetError, match="2 images of class_id 0 are described, but it has 8"):
        select_real(rows, 3, 0, "herding", few)
    with pytest.raises(DatasetError, match="class_id 7 has no training image"):
        select_real(rows[(rows["class_id"] != 7) | (rows["split"] != "train")], 1, 0, "herding", _described(rows))


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 8, 12, 3), (9, 7, 7, 1)])
def test_collages_are_made_of_the_crops_with_the_lowest_loss(shape):
    """Images of one brightness each; the teacher is surest of dark ones."""
    images = np.broadcast_to((20 * np.arange(9, dtype=np.uint8))[:, None, None, None], shape).copy()
    losses = crops(images, seed=0).mean((2, 3, 4))
    made = collages(images, losses, 2, seed=0)
    assert made.shape == (2, *shape[1:]) and made.dtype == np.uint8
    height, width = shape[1:3]
    corners = made[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert corners.tolist() == [[0, 20, 40, 60], [80, 100, 120, 140]]
    assert (made[0, : height // 2, : width // 2] == 0).all()
    many = collages(images, losses, 5, seed=0)
    assert many[2, 0, 0, 0] == 160 and many[2, 0, -1, 0] == 0  # then the second-best crops
    detailed = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    a, b, c = (collages(detailed, crops(detailed, s).std((2, 3, 4)), 2, seed=s) for s in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_crops_are_squares_of_at_least_half_the_area():
    """A gradient tells where and how large a crop was."""
    gradient = np.broadcast_to(np.arange(0, 64, 2, dtype=np.uint8)[None, None, :, None], (5, 32, 32, 1)).copy()
    made = crops(gradient, seed=0)
    assert made.shape == (5, CROPS, 32, 32, 1)
    spans = made[:, :, 0, -1, 0].astype(int) - made[:, :, 0, 0, 0]
    assert spans.min() >= 62 * np.sqrt(0.5) - 4 and spans.max() <= 62
    assert len(np.unique(made[:, :, 0, 0, 0])) > 5


def test_latent_means_are_the_middles_of_clusters():
    draw = np.random.default_rng(0)
    latents = np.concatenate([draw.normal(m, 0.1, (10, 2, 3, 3)) for m in (-5, 5)]).astype(np.float16)
    means = latent_means(latents, 2, seed=0)
    assert means.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(sorted(means.mean((1, 2, 3))), [-5, 5], atol=0.05)
    assert (latent_means(latents, 50, seed=0) == latents).all()
