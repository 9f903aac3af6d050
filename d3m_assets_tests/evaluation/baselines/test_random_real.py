import numpy as np

from d3m_assets.evaluation.baselines.random_real import random_positions


def test_as_many_distinct_images_as_asked_for():
    chosen = random_positions(20, 5, 7, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 5
    assert chosen.dtype == np.int64
    assert set(chosen.tolist()) <= set(range(20))


def test_seeds_and_classes_differ_and_repeat():
    chosen = [tuple(random_positions(20, 3, class_id, seed)) for class_id in (0, 7) for seed in range(5)]
    assert len(set(chosen)) == 10
    assert tuple(random_positions(20, 3, 0, seed=0)) == chosen[0]


def test_fewer_images_are_part_of_more():
    many = random_positions(20, 10, 7, seed=2)
    assert random_positions(20, 4, 7, seed=2).tolist() == many[:4].tolist()


def test_every_image_is_as_likely_as_another():
    counts = np.bincount(np.concatenate([random_positions(10, 2, 3, seed) for seed in range(2000)]), minlength=10)
    assert counts.min() > 320 and counts.max() < 480  # 400 each on average, with a deviation of 18


def test_a_small_class_gives_all_it_has():
    assert sorted(random_positions(20, 100, 1, seed=0).tolist()) == list(range(20))
