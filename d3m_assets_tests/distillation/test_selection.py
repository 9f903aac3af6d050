from itertools import combinations

import numpy as np
import pytest

from d3m_assets.distillation.selection import (
    CRITERIA,
    Candidates,
    decode_selection,
    encode_selection,
    most_candidates,
    samples_in_order,
    selection_bytes,
)
from d3m_assets.errors import BundleError, StageError


@pytest.mark.parametrize("candidates", range(1, 9))
def test_every_small_selection_has_a_code_of_its_own_and_comes_back(candidates):
    for kept in range(1, candidates + 1):
        codes = set()
        subsets = [s for size in range(1, kept + 1) for s in combinations(range(candidates), size)]
        for subset in subsets:
            code = encode_selection(subset, candidates, kept)
            assert len(code) == selection_bytes(candidates, kept)
            assert decode_selection(code, candidates, kept).tolist() == list(subset)
            codes.add(code)
        assert len(codes) == len(subsets)
        assert selection_bytes(candidates, kept) <= (candidates + 7) // 8  # never longer than a mask


@pytest.mark.parametrize(("candidates", "kept"), [(300, 100), (257, 1), (1000, 999), (1000, 1000), (5000, 700)])
def test_large_selections_come_back(candidates, kept):
    random = np.random.default_rng(candidates)
    for size in sorted({1, kept // 2 or 1, kept}):
        subset = np.sort(random.choice(candidates, size, replace=False))
        code = encode_selection(random.permutation(subset), candidates, kept)
        assert np.array_equal(decode_selection(code, candidates, kept), subset)


@pytest.mark.parametrize("subset", [range(100), range(200, 300), [299], [0]])
def test_the_first_and_last_selections_come_back(subset):
    assert decode_selection(encode_selection(subset, 300, 100), 300, 100).tolist() == list(subset)


def test_a_hundred_of_three_hundred_cost_less_than_a_mask():
    assert selection_bytes(300, 100) == 35
    assert selection_bytes(300, 300) == 38


@pytest.mark.parametrize("bad", [[], [1, 1], [-1], [10], list(range(6))])
def test_what_is_no_selection_is_refused(bad):
    with pytest.raises(StageError, match="1 to 5 different samples of 0 to 9"):
        encode_selection(bad, 10, 5)


def test_a_code_that_no_selection_has_is_refused():
    code = encode_selection([1, 2], 10, 5)
    for damaged in (b"\xff" * len(code), code + b"\0", b""):
        with pytest.raises(BundleError, match="no selection of at most 5 of 10 samples"):
            decode_selection(damaged, 10, 5)


def test_as_many_candidates_as_the_bytes_allow():
    for allowed in (5, 20, 32, 34, 35, 60):
        found = most_candidates(100, allowed, 300)
        assert found == 100 or selection_bytes(found, 100) <= allowed
        assert found == 300 or selection_bytes(found + 1, 100) > allowed
    assert most_candidates(100, 0, 300) == 100


def test_selected_samples_come_first_and_fresh_ones_follow_behind_all_candidates():
    selected = np.array([3, 5, 9])
    assert samples_in_order(selected, 10, 2).tolist() == [3, 5]
    assert samples_in_order(selected, 10, 6).tolist() == [3, 5, 9, 10, 11, 12]
    assert samples_in_order(None, 0, 3).tolist() == [0, 1, 2]


def two_groups(**changes):
    """Twelve candidates in two groups, of which the second is not recognised; real features near the first and one far."""
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0, 0.1, (6, 2)), random.normal(5, 0.1, (6, 2))])
    recognised = np.arange(12) < 6
    values = {
        "features": features,
        "probabilities": np.linspace(0.9, 0.1, 12),
        "recognised": recognised,
        "real_features": np.concatenate([random.normal(0, 0.1, (20, 2)), [[5.0, 5.0]]]),
        "seed": 0,
    }
    return Candidates(**(values | changes))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prefers_recognised_samples_and_repeats_itself(criterion):
    selected = CRITERIA[criterion](two_groups(), 5)
    assert (selected < 6).all()
    assert np.array_equal(selected, np.unique(selected))
    assert np.array_equal(selected, CRITERIA[criterion](two_groups(), 5))


def test_centres_take_the_nearest_of_each_cluster():
    points = np.array([[0.0, 0], [10, 0], [0, 10]])
    features = np.concatenate([points + 0.5, points + 0.1, points + 3.0])
    data = two_groups(
        features=features, probabilities=np.ones(9), recognised=np.ones(9, bool), real_features=np.repeat(points, 4, 0)
    )
    assert CRITERIA["centres"](data, 3).tolist() == [3, 4, 5]
    # More are kept than there are clusters: they choose again.
    assert len(CRITERIA["centres"](data, 7)) == 7


@pytest.mark.parametrize("criterion", ["centres", "herding"])
def test_where_too_few_are_recognised_others_fill_the_places(criterion):
    selected = CRITERIA[criterion](two_groups(), 8)
    assert len(selected) == 8
    assert set(range(6)) < set(selected.tolist())
    assert len(CRITERIA[criterion](two_groups(), 12)) == 12


def test_recognised_keeps_no_other_and_at_least_one():
    assert CRITERIA["recognised"](two_groups(), 8).tolist() == list(range(6))
    assert CRITERIA["recognised"](two_groups(recognised=np.zeros(12, bool)), 8).tolist() == [0]


def test_herding_comes_nearer_to_the_real_mean_than_the_first_samples():
    random = np.random.default_rng(1)
    features, real = random.normal(0.5, 1, (60, 4)), random.normal(0, 1, (200, 4))
    data = two_groups(features=features, probabilities=np.ones(60), recognised=np.ones(60, bool), real_features=real)
    selected = CRITERIA["herding"](data, 10)
    gap = np.linalg.norm(features[selected].mean(0) - real.mean(0))
    assert gap < 0.5 * np.linalg.norm(features[:10].mean(0) - real.mean(0))
