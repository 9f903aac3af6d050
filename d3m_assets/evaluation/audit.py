"""Audit of a synthetic pool: copies of training images, repeats, images of another class, collapsed classes.

Everything is measured against the real data's own distances, so no threshold is a number of grey levels. Arrays in,
tables out; where images come from and what the network is that sees features is for the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.settings import AuditSettings

CODE_VERSION = "2"
"""Raised whenever a change here changes what an audit finds."""
_SHARES = ["memorised", "near_duplicate", "off_class"]

REFERENCE_IMAGES = 1000
"""Most real images whose distances to the train split make a threshold; a percentile needs no more."""

FEWEST_HELD_OUT = 20
"""Held-out images below which the train split's own distances, each image left out once, make the threshold instead."""

COPY_RATIO = 0.5
"""A copy is at most this much as far from its nearest training image as from the ``neighbours``-th nearest one.

An average of a class lies closer to real images than they lie to each other, but about equally close to many; a copy is
close to one. The rule is that of Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023,
section 4.2), who compare with the mean of the 50 nearest.
"""


@dataclass(frozen=True)
class ImageSet:
    """Images as points of one or more spaces.

    Attributes:
        labels: int64 ``[N]``, position of the class in the table of classes.
        spaces: Name of a space to ``[N, F]``, any number type; ``"pixels"`` is always there.

    Raises:
        StageError: A space is missing, or has another number of images than there are labels.
    """

    labels: np.ndarray
    spaces: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        """Reject arrays that do not belong together."""
        if "pixels" not in self.spaces:
            raise StageError('an audit compares pixels in any case; give the space "pixels"')
        for name, points in self.spaces.items():
            if points.ndim != 2 or len(points) != len(self.labels):
                raise StageError(f"{len(self.labels)} labels but {name} of shape {points.shape}; give [N, F]")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @classmethod
    def of(cls, images: LabelledImages, features: np.ndarray | None = None) -> ImageSet:
        """Images in pixel space and, where features ``[N, F]`` are given, in feature space."""
        spaces = {"pixels": images.images.reshape(len(images), -1)}
        return cls(images.labels, spaces if features is None else spaces | {"features": features})


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        images: One row an image of the pool, in its order: label; for every space the root mean square difference to
            the nearest training image (``pixels_distance``), that image's row (``pixels_nearest``) and the difference to
            the nearest other image of the pool (``pixels_other``); memorised and near_duplicate (in any space),
            judged_class and off_class.
        summary: JSON values: thresholds and what they were taken from, shares (fractions) over all images, and
            ``classes``, a list in the order of the classes with the same shares and ``spread``, the class's spread as a
            multiple of the real one. NaN where a class has no image or the real class no spread.
    """

    images: pd.DataFrame
    summary: dict[str, Any]


def audit_pool(
    pool: ImageSet,
    train: ImageSet,
    held_out: ImageSet,
    *,
    n_classes: int,
    quantile: float = 0.01,
    neighbours: int = 5,
    generated: np.ndarray | None = None,
) -> Audit:
    """Compare a pool with the images it was distilled from and with real ones it has not seen.

    - Memorised: in some space, as close to its nearest training image as only the closest ``quantile`` of held-out real
      images are, and close to hardly any other (:data:`COPY_RATIO`).
    - Near duplicate: in some space, as close to another image of the pool as only the closest ``quantile`` of training
      images are to another training image. The share grows with the size of the pool, as it would for real images.
    - Off class: most of its nearest training images, in features where given, are of another class than its label.
    - Spread: root mean square distance of a class's images to their mean, in features where given, over that of the
      training images of the class. A class that has collapsed has one near 0.

    Args:
        pool: Synthetic images, N of them.
        train: Real images the pool was distilled from, at least 2.
        held_out: Real images of the same classes that it was not, from the validation part; may be empty.
        n_classes: Number of classes K.
        quantile: Share of real images that a threshold calls too close.
        neighbours: Real images that vote on a class, and that a copy is compared with.
        generated: Which images of the pool were generated, bool ``[N]``, where the others are coded real images: shares of
            memorised images are of those that were generated, and no other is called memorised. None: of all.

    Raises:
        StageError: The pool is empty, there are fewer than two training images, or the spaces differ.
    """
    import pandas as pd

    _check_sets(pool, train, held_out)
    judging = "features" if "features" in train.spaces else "pixels"
    spaces = {name: _compare_in(name, pool, train, held_out, quantile, neighbours) for name in pool.spaces}
    votes = _vote(spaces[judging].nearest, train.labels, n_classes)
    table: dict[str, np.ndarray] = {"label": pool.labels.astype(np.int64)}
    for name, space in spaces.items():
        table |= {
            f"{name}_distance": space.distances[:, 0],
            f"{name}_nearest": space.nearest[:, 0],
            f"{name}_other": space.to_other,
        }
    table |= {
        "memorised": np.any([space.memorised for space in spaces.values()], axis=0)
        & (True if generated is None else generated),
        "near_duplicate": np.any([space.near_duplicate for space in spaces.values()], axis=0),
        "judged_class": votes,
        "off_class": votes != pool.labels,
    }
    images = pd.DataFrame(table)
    judged_copies = images if generated is None else images[generated]
    spread = spread_ratios(pool.spaces[judging], pool.labels, train.spaces[judging], train.labels, n_classes)
    summary = {
        "images": len(pool),
        "train_images": len(train),
        "held_out_images": len(held_out),
        "quantile": quantile,
        "neighbours": neighbours,
        "reference": "held-out images" if _enough(held_out) else "train images, each left out once",
        "judged_in": judging,
        "thresholds": {name: space.thresholds for name, space in spaces.items()},
        **{share: float(images[share].mean()) for share in _SHARES},
        "memorised": float(judged_copies["memorised"].mean()),
        "off_class_of_held_out": _off_class_share(held_out, train, judging, neighbours, n_classes),
        "classes": _class_shares(images, judged_copies, spread),
    }
    return Audit(images, summary)


def _check_sets(pool: ImageSet, train: ImageSet, held_out: ImageSet) -> None:
    if not len(pool):
        raise StageError(
            "the pool is empty, so there is nothing to audit; generation.images_per_class must be at least 1"
        )
    if len(train) < 2:
        raise StageError("an audit needs at least two training images to say how close real images are; add some")
    if pool.spaces.keys() != train.spaces.keys() or (len(held_out) and held_out.spaces.keys() != train.spaces.keys()):
        raise StageError(
            f"pool, train and held-out images are in different spaces: {[*pool.spaces]}, {[*train.spaces]}"
        )


def _off_class_share(images: ImageSet, train: ImageSet, space: str, neighbours: int, n_classes: int) -> float:
    """Share of images whose nearest training images are mostly of another class; NaN without images."""
    if not len(images):
        return math.nan
    nearest = nearest_images(images.spaces[space], train.spaces[space], neighbours)[1]
    return float((_vote(nearest, train.labels, n_classes) != images.labels).mean())


def _enough(held_out: ImageSet) -> bool:
    """Whether there are held-out images enough to take a threshold from."""
    return len(held_out) >= FEWEST_HELD_OUT


@dataclass(frozen=True)
class _Space:
    """A pool compared with real images in one space.

    Attributes:
        distances: To the nearest training images of each image of the pool, float64 ``[N, k]``.
        nearest: Rows of these, int64 ``[N, k]``.
        to_other: Distance to the nearest other image of the pool ``[N]``; infinite where there is no other.
        memorised: bool ``[N]``.
        near_duplicate: bool ``[N]``.
        thresholds: Distances at most which an image is too close, "to_train" and "within_pool".
    """

    distances: np.ndarray
    nearest: np.ndarray
    to_other: np.ndarray
    memorised: np.ndarray
    near_duplicate: np.ndarray
    thresholds: dict[str, float]


def _compare_in(
    name: str, pool: ImageSet, train: ImageSet, held_out: ImageSet, quantile: float, neighbours: int
) -> _Space:
    points, real = pool.spaces[name], train.spaces[name]
    distances, nearest = nearest_images(points, real, neighbours)
    to_other = np.full(len(points), np.inf)
    if len(points) > 1:
        to_other = nearest_images(points, points, 1, same=True)[0][:, 0]
    among_real = _nearest_distances_of_sample(real)
    from_held_out = _nearest_distances_of_sample(held_out.spaces[name], real) if _enough(held_out) else among_real
    to_train, within_pool = np.quantile(from_held_out, quantile), np.quantile(among_real, quantile)
    return _Space(
        distances,
        nearest,
        to_other,
        memorised=(distances[:, 0] <= to_train) & (distances[:, 0] <= COPY_RATIO * distances[:, -1]),
        near_duplicate=to_other <= within_pool,
        thresholds={"to_train": float(to_train), "within_pool": float(within_pool)},
    )


def _class_shares(images: pd.DataFrame, judged_copies: pd.DataFrame, spread: np.ndarray) -> list[dict[str, Any]]:
    """Number of images, shares and spread of every class; NaN for a class without an image."""
    shares = images.groupby("label")[_SHARES].mean().reindex(range(len(spread)))
    shares["memorised"] = judged_copies.groupby("label")["memorised"].mean().reindex(range(len(spread)))
    counts = images["label"].value_counts()
    return [
        {"images": int(counts.get(c, 0)), **{s: float(shares[s].iloc[c]) for s in _SHARES}, "spread": float(spread[c])}
        for c in range(len(spread))
    ]


@dataclass(frozen=True)
class Finding:
    """A fault of a pool.

    Attributes:
        check: ``not_memorised``, ``no_near_duplicates``, ``of_their_class`` or ``no_class_collapsed``.
        severity: "error" or "warning".
        text: What was found, in words.
    """

    check: str
    severity: Literal["error", "warning"]
    text: str


CHECKS = {
    "not_memorised": ("memorised", "copies of training images"),
    "no_near_duplicates": ("near_duplicate", "near duplicates of other images of the pool"),
    "of_their_class": ("off_class", "closest to real images of another class"),
    "no_class_collapsed": ("spread", "of the real class's spread"),
}
"""What each check looks at in the summary of a class, and how it is told."""


COPIES = "coded_real_images"
"""True in the summary of an audit of coded real images."""


def findings(summary: Mapping[str, Any], settings: AuditSettings) -> list[Finding]:
    """Judge every class of an audit by the thresholds of the settings, the worst first.

    Args:
        summary: As in :class:`Audit`, with a ``class_name`` in each of its classes; null instead of NaN is allowed. With
            :data:`COPIES`, that images are copies of training images is meant, and no fault.
        settings: Thresholds: shares above, or a spread below which a class is told of.

    Returns:
        At most one finding for each check and severity, naming the classes.
    """
    found = []
    for check, (name, words) in CHECKS.items():
        if name == "memorised" and summary.get(COPIES):
            continue
        warning, error = getattr(settings, f"{name}_warning"), getattr(settings, f"{name}_error")
        # Shares are faults when large, a spread when small.
        sign = -1 if name == "spread" else 1
        # null or NaN, which is not even equal to itself, where a class has no such figure
        values = [(c[name], c["class_name"]) for c in summary["classes"] if c[name] is not None and c[name] == c[name]]
        values.sort(key=lambda value: -sign * value[0])
        errors = [(value, of) for value, of in values if sign * value > sign * error]
        warnings = [(value, of) for value, of in values if sign * error >= sign * value > sign * warning]
        if errors:
            found.append(Finding(check, "error", _finding_text(name, words, errors, error)))
        if warnings:
            found.append(Finding(check, "warning", _finding_text(name, words, warnings, warning)))
    return found


def _finding_text(name: str, words: str, classes: list[tuple[float, str]], limit: float) -> str:
    """A sentence about the classes beyond a limit, the first five by name."""
    count = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
    comparison, of = ("less", "") if name == "spread" else ("more", "of the images ")
    listed = ", ".join(f"{class_name} ({value * 100:.0f} %)" for value, class_name in classes[:5])
    return f"{count} with {comparison} than {limit * 100:g} % {of}{words}: {listed}{' …' if len(classes) > 5 else ''}"


def nearest_images(
    queries: np.ndarray, references: np.ndarray, k: int, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` nearest references of every query, nearest first and, where those are equally near, by row.

    Args:
        queries: ``[N, F]``, any number type.
        references: ``[M, F]``.
        k: How many; fewer when there are not as many references.
        same: Whether queries are the references, so that row i is no neighbour of itself.

    Returns:
        Root mean square differences, float64 ``[N, k]`` in the units of the input, and rows of ``references``, int64
        ``[N, k]``. Exact to about a millionth of the largest value; copies of whole numbers such as pixels are at 0.
    """
    return _nearest(queries, references, k, np.arange(len(queries)) if same else None)


def spread_ratios(
    points: np.ndarray, labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray, n_classes: int
) -> np.ndarray:
    """Spread of every class as a multiple of the real class's: root mean square distance to the class's mean.

    Returns:
        float64 ``[K]``; NaN where the class has no image, or the real one fewer than two different ones.
    """
    ratios = np.full(n_classes, np.nan)
    for c in range(n_classes):
        synthetic_points, real_points = points[labels == c], real[real_labels == c]
        if len(synthetic_points) and len(real_points) and (real_spread := _spread(real_points)) > 0:
            ratios[c] = _spread(synthetic_points) / real_spread
    return ratios


def _spread(points: np.ndarray) -> float:
    values = points.astype(np.float64)
    return float(np.sqrt(((values - values.mean(0)) ** 2).sum(1).mean()))


def _nearest_distances_of_sample(points: np.ndarray, references: np.ndarray | None = None) -> np.ndarray:
    """Distances of evenly spaced points to their nearest reference, or without references to the nearest other point."""
    count = min(len(points), REFERENCE_IMAGES)
    rows = np.unique(np.linspace(0, len(points) - 1, count).astype(np.int64))
    if references is None:
        return _nearest(points[rows], points, 1, rows)[0][:, 0]
    return _nearest(points[rows], references, 1, None)[0][:, 0]


def _nearest(
    queries: np.ndarray, references: np.ndarray, k: int, own_rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`nearest_images`, with the row of each query among the references, which is left out, if it is one."""
    from sklearn.neighbors import NearestNeighbors

    # float32 holds pixels and features exactly; scikit-learn multiplies them in float64, in pieces that fit into memory.
    queries, references = (x.astype(np.float32) if x.dtype.itemsize <= 4 else x for x in (queries, references))
    k = min(k, len(references) - (own_rows is not None))
    search = NearestNeighbors(n_neighbors=k + (own_rows is not None), algorithm="brute").fit(references)
    distances, rows = (found.copy() for found in search.kneighbors(queries))
    if own_rows is not None:
        # Where there are many copies of a query, it need not be among its neighbours itself; then the last one goes.
        distances[rows == own_rows[:, None]] = np.inf
    order = np.lexsort((rows, distances))[:, :k]
    distances, rows = np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)
    return distances.astype(np.float64) / np.sqrt(references.shape[1]), rows.astype(np.int64)


def _vote(neighbours: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Most frequent class of each row of neighbours; among equals the one that comes nearest."""
    classes = labels[neighbours]
    counts = (classes[:, :, None] == np.arange(n_classes)).sum(1)
    most = np.take_along_axis(counts, classes, 1) == counts.max(1, keepdims=True)
    return np.take_along_axis(classes, most.argmax(1)[:, None], 1)[:, 0].astype(np.int64)
