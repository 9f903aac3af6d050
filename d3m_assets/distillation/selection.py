"""Selection: which of the candidate samples of a class its training set keeps, and how that is stored.

A sample is addressed by its number, so a selection costs bytes for numbers only. Criteria choose by features and answers of a
network that was trained on the train split; neither is needed to regenerate. The numbers are stored as the rank of the subset
among all subsets of the candidates that are no larger than planned, in the combinatorial number system (Knuth, TAOCP 4A,
7.2.1.3): an exact code, never longer than a bit mask, whose length follows from the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from d3m_assets.errors import BundleError, StageError

CODE_VERSION = "1"
"""Raised whenever a change here changes a selection or its code."""
MOST_CANDIDATES = 100_000
"""Of a class, that a bundle may name: numbers of so many bits are added and divided thousands of times."""


@dataclass(frozen=True)
class SelectionPlan:
    """How many samples are generated and how many of them are kept.

    Attributes:
        candidates: Samples 0 to ``candidates - 1`` of a class are generated.
        kept: Most of them that the training set has.
        bytes: Charged to a class for their numbers; 0: nothing is selected, all candidates are kept.
    """

    candidates: int
    kept: int
    bytes: int = 0


def selection_bytes(candidates: int, kept: int) -> int:
    """Bytes that store any choice of at most ``kept`` of ``candidates`` samples."""
    return ((_subsets(candidates, kept) - 1).bit_length() + 7) // 8


def most_candidates(kept: int, allowed: int, limit: int) -> int:
    """Most candidates, up to ``limit``, of which a selection of ``kept`` fits into ``allowed`` bytes; at least ``kept``."""
    low, high = kept, max(kept, limit)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if selection_bytes(middle, kept) <= allowed else (low, middle - 1)
    return low


def encode_selection(indices: Sequence[int] | np.ndarray, candidates: int, kept: int) -> bytes:
    """Store a selection.

    Args:
        indices: Distinct numbers of samples, each below ``candidates``; at least one and at most ``kept``.
        candidates: Samples that there were to choose from.
        kept: Most that a selection of the plan may have.

    Returns:
        :func:`selection_bytes` bytes.

    Raises:
        StageError: The numbers are no such selection.
    """
    numbers = sorted(int(index) for index in indices)
    inside = bool(numbers) and numbers[0] >= 0 and numbers[-1] < candidates
    if not inside or len(set(numbers)) < len(numbers) or len(numbers) > kept:
        raise StageError(f"a selection is of 1 to {kept} different samples of 0 to {candidates - 1}, not of {numbers}")
    rank = _subsets(candidates, len(numbers) - 1) if len(numbers) > 1 else 0
    rank += sum(math.comb(number, position) for position, number in enumerate(numbers, start=1))
    return rank.to_bytes(selection_bytes(candidates, kept), "big")


def check_selection(code: bytes, candidates: int, kept: int) -> None:
    """Refuse what :func:`decode_selection` cannot decode, without decoding it: that takes time for thousands of classes.

    Raises:
        BundleError: No selection of the plan has this code.
    """
    if len(code) != selection_bytes(candidates, kept) or int.from_bytes(code, "big") >= _subsets(candidates, kept):
        shown = code[:16].hex() + ("…" if len(code) > 16 else "")
        raise BundleError(f"{shown} is no selection of at most {kept} of {candidates} samples; get it again")


def decode_selection(code: bytes, candidates: int, kept: int) -> np.ndarray:
    """Undo :func:`encode_selection`: rising numbers of samples, int64 ``[1..kept]``.

    Raises:
        BundleError: No selection of the plan has this code.
    """
    check_selection(code, candidates, kept)
    rank = int.from_bytes(code, "big")
    size, of_size = 1, candidates
    while rank >= of_size:
        rank -= of_size
        of_size = of_size * (candidates - size) // (size + 1)
        size += 1
    numbers = np.empty(size, np.int64)
    # The largest number whose binomial still fits into the rank, from the last position down to the first.
    number, binomial = candidates, math.comb(candidates, size)
    for position in range(size, 0, -1):
        while binomial > rank:
            # comb(n - 1, k) = comb(n, k) (n - k) / n
            binomial = binomial * (number - position) // number
            number -= 1
        numbers[position - 1] = number
        rank -= binomial
        # comb(n, k - 1) = comb(n, k) k / (n - k + 1); where comb(n, k) is 0, n is k - 1 and comb(n, k - 1) is 1.
        binomial = binomial * position // (number - position + 1) if binomial else 1
    return numbers


@lru_cache(maxsize=16)  # a number of as many bits as there are candidates, the same for all classes
def _subsets(candidates: int, kept: int) -> int:
    """How many subsets of 1 to ``kept`` of ``candidates`` there are."""
    total, of_size = 0, 1
    for size in range(1, kept + 1):
        of_size = of_size * (candidates - size + 1) // size
        total += of_size
    return total


def samples_in_order(training: np.ndarray | None, first_fresh: int, count: int) -> np.ndarray:
    """Numbers of the first ``count`` samples of a class: its training set, then fresh ones that nobody chose from.

    Args:
        training: Rising numbers, int ``[K]``; None: nothing was selected, and samples are taken as they come.
        first_fresh: Behind all candidates and coded images.
        count: How many.
    """
    if training is None:
        return np.arange(count)
    fresh = np.arange(first_fresh, first_fresh + max(0, count - len(training)))
    return np.concatenate([training[:count], fresh])


@dataclass(frozen=True)
class Candidates:
    """What a criterion chooses from.

    Attributes:
        features: Of the candidates, float ``[M, F]``.
        probabilities: How likely the network takes each for its own class, float ``[M]``.
        recognised: Whether that class is its likeliest, bool ``[M]``.
        real_features: Of the real training images of the class, float ``[N, F]``.
        seed: Of k-means.
    """

    features: np.ndarray
    probabilities: np.ndarray
    recognised: np.ndarray
    real_features: np.ndarray
    seed: int


Criterion = Callable[[Candidates, int], np.ndarray]
"""From candidates and how many to keep to rising numbers of samples."""


def by_centres(candidates: Candidates, kept: int) -> np.ndarray:
    """For each k-means centre of the real features the nearest candidate not yet taken, recognised ones first.

    Centres of large clusters choose first. Where the class has fewer images than are to be kept, centres choose again.
    """
    from d3m_assets.evaluation.baselines.k_means import clusters

    points = candidates.real_features.astype(np.float64)
    count = min(kept, len(points))
    labels, centres = clusters(points, count, candidates.seed)
    centres = centres[np.argsort(-np.bincount(labels, minlength=count), kind="stable")]
    distances = np.linalg.norm(candidates.features[None].astype(np.float64) - centres[:, None], axis=2)
    selected: list[int] = []
    free = np.ones(len(candidates.features), bool)
    for step in range(min(kept, len(free))):
        eligible = free & candidates.recognised
        distance = np.where(eligible if eligible.any() else free, distances[step % count], np.inf)
        selected.append(int(np.argmin(distance)))
        free[selected[-1]] = False
    return np.sort(np.array(selected, np.int64))


def by_herding(candidates: Candidates, kept: int) -> np.ndarray:
    """Candidates whose mean feature stays as near as can be to that of the real images, recognised ones first.

    The greedy choice of :func:`d3m_assets.evaluation.baselines.herding.herding`, towards the mean of the real images.
    """
    from d3m_assets.evaluation.baselines.herding import herding

    mean = candidates.real_features.astype(np.float64).mean(axis=0)
    order = [np.flatnonzero(candidates.recognised), np.flatnonzero(~candidates.recognised)]
    selected: list[int] = []
    for group in order:
        chosen = herding(candidates.features[group], kept - len(selected), mean=mean)
        selected += group[chosen].tolist()
    return np.sort(np.array(selected, np.int64))


def by_recognition(candidates: Candidates, kept: int) -> np.ndarray:
    """The first candidates that the network recognises, fewer than asked for where it recognises fewer.

    Of a class that it never recognises, the candidate that it thinks likeliest.
    """
    recognised = np.flatnonzero(candidates.recognised)[:kept]
    return recognised if len(recognised) else np.array([np.argmax(candidates.probabilities)], np.int64)


CRITERIA: dict[str, Criterion] = {"centres": by_centres, "herding": by_herding, "recognised": by_recognition}
"""Criteria by the name that ``selection.criterion`` gives them."""
