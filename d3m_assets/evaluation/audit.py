"""Audit of a synthetic pool: copies of training images, repeats, images of another class, collapsed classes.

Everything is measured against the real data's own distances, so no threshold is a number of grey levels. Arrays in,
tables out; where images come from and what the network is that sees features is for the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.settings import AuditSettings

CODE_VERSION = "1"
"""Raised whenever a change here changes what an audit finds."""

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
    pool: ImageSet, train: ImageSet, held_out: ImageSet, *, n_classes: int, quantile: float = 0.01, neighbours: int = 5
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

    Raises:
        StageError: The pool is empty, there are fewer than two training images, or the spaces differ.
    """
    import pandas as pd

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
    judging = "features" if "features" in train.spaces else "pixels"
    table: dict[str, np.ndarray] = {"label": pool.labels.astype(np.int64)}
    memorised, repeated = np.zeros(len(pool), bool), np.zeros(len(pool), bool)
    thresholds, off_held_out = {}, float("nan")
    for name, points in pool.spaces.items():
        real = train.spaces[name]
        distances, nearest = nearest_images(points, real, neighbours)
        among_real = _sample_to_others(real)
        from_held_out = len(held_out) >= FEWEST_HELD_OUT
        close = np.quantile(_sample_to(held_out.spaces[name], real) if from_held_out else among_real, quantile)
        close_among_real = np.quantile(among_real, quantile)
        to_other = (
            nearest_images(points, points, 1, same=True)[0][:, 0] if len(pool) > 1 else np.full(len(pool), np.inf)
        )
        memorised |= (distances[:, 0] <= close) & (distances[:, 0] <= COPY_RATIO * distances[:, -1])
        repeated |= to_other <= close_among_real
        table |= {f"{name}_distance": distances[:, 0], f"{name}_nearest": nearest[:, 0], f"{name}_other": to_other}
        thresholds[name] = {"to_train": float(close), "within_pool": float(close_among_real)}
        if name == judging:
            judged = _vote(nearest, train.labels, n_classes)
            if len(held_out):
                found = nearest_images(held_out.spaces[name], real, neighbours)[1]
                off_held_out = float((_vote(found, train.labels, n_classes) != held_out.labels).mean())
    table |= {"memorised": memorised, "near_duplicate": repeated, "judged_class": judged}
    table["off_class"] = judged != pool.labels
    images = pd.DataFrame(table)
    spread = spread_ratios(pool.spaces[judging], pool.labels, train.spaces[judging], train.labels, n_classes)
    shares = ["memorised", "near_duplicate", "off_class"]
    by_class = images.groupby("label")[shares].mean().reindex(range(n_classes))
    counts = images["label"].value_counts()
    classes = [
        {"images": int(counts.get(c, 0)), **{s: float(by_class[s].iloc[c]) for s in shares}, "spread": float(spread[c])}
        for c in range(n_classes)
    ]
    summary = {
        "images": len(pool), "train_images": len(train), "held_out_images": len(held_out), "quantile": quantile,
        "neighbours": neighbours, "reference": "held-out images" if from_held_out else "train images, each left out once",
        "judged_in": judging, "thresholds": thresholds, **{s: float(images[s].mean()) for s in shares},
        "off_class_of_held_out": off_held_out, "classes": classes,
    }  # fmt: skip
    return Audit(images, summary)


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


def findings(summary: Mapping[str, Any], settings: AuditSettings) -> list[Finding]:
    """Judge every class of an audit by the thresholds of the settings, the worst first.

    Args:
        summary: As in :class:`Audit`, with a ``class_name`` in each of its classes; null instead of NaN is allowed.
        settings: Thresholds: shares above, or a spread below which a class is told of.

    Returns:
        At most one finding for each check and severity, naming the classes.
    """
    found = []
    for check, (name, words) in CHECKS.items():
        warning, error = getattr(settings, f"{name}_warning"), getattr(settings, f"{name}_error")
        # Shares are faults when large, a spread when small.
        sign = -1 if name == "spread" else 1
        values = [(c[name], c["class_name"]) for c in summary["classes"] if c[name] is not None and c[name] == c[name]]
        values.sort(key=lambda v: -sign * v[0])
        wrong = [(v, n) for v, n in values if sign * v > sign * error]
        doubtful = [(v, n) for v, n in values if sign * error >= sign * v > sign * warning]
        for severity, classes, limit in (("error", wrong, error), ("warning", doubtful, warning)):
            if classes:
                listed = ", ".join(f"{n} ({v * 100:.0f} %)" for v, n in classes[:5]) + (
                    " …" if len(classes) > 5 else ""
                )
                many = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
                than = "less" if name == "spread" else "more"
                of = "" if name == "spread" else "of the images "
                text = f"{many} with {than} than {limit * 100:g} % {of}{words}: {listed}"
                found.append(Finding(check, severity, text))  # type: ignore[arg-type]
    return found


def nearest_images(
    queries: np.ndarray, references: np.ndarray, k: int, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` nearest references of every query, nearest first.

    Args:
        queries: ``[N, F]``, any number type.
        references: ``[M, F]``.
        k: How many; fewer when there are not as many references.
        same: Whether queries are the references, so that row i is no neighbour of itself.

    Returns:
        Root mean square differences, float64 ``[N, k]`` in the units of the input, and rows of ``references``, int64
        ``[N, k]``. Exact to about a millionth of the largest value.
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
        ours, theirs = points[labels == c], real[real_labels == c]
        if len(ours) and len(theirs) and (width := _spread(theirs)) > 0:
            ratios[c] = _spread(ours) / width
    return ratios


def _spread(points: np.ndarray) -> float:
    values = points.astype(np.float64)
    return float(np.sqrt(((values - values.mean(0)) ** 2).sum(1).mean()))


def _sample_to(points: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Distances of evenly chosen points to their nearest reference."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), REFERENCE_IMAGES)).astype(np.int64))
    return _nearest(points[chosen], references, 1, None)[0][:, 0]


def _sample_to_others(points: np.ndarray) -> np.ndarray:
    """Distances of evenly chosen points to their nearest other."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), REFERENCE_IMAGES)).astype(np.int64))
    return _nearest(points[chosen], points, 1, chosen)[0][:, 0]


def _nearest(
    queries: np.ndarray, references: np.ndarray, k: int, excluded: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    # In pieces: the squares of all distances of a large pool and train split do not fit into memory.
    width = references.shape[1]
    rows = max(1, 2**22 // max(1, width))
    k = min(k, len(references) - (excluded is not None))
    centre = references[:rows].astype(np.float64).mean(0)
    squares = np.empty((len(queries), k))
    positions = np.empty((len(queries), k), np.int64)
    for begin in range(0, len(queries), rows):
        part = queries[begin : begin + rows].astype(np.float64) - centre
        best = np.full((len(part), k), np.inf)
        where = np.zeros((len(part), k), np.int64)
        for first in range(0, len(references), rows):
            others = references[first : first + rows].astype(np.float64) - centre
            found = (part**2).sum(1)[:, None] + (others**2).sum(1) - 2 * part @ others.T
            if excluded is not None:
                own = excluded[begin : begin + rows] - first
                inside = np.flatnonzero((own >= 0) & (own < len(others)))
                found[inside, own[inside]] = np.inf
            both = np.concatenate([best, found], axis=1)
            index = np.concatenate([where, np.broadcast_to(np.arange(first, first + len(others)), found.shape)], axis=1)
            few = np.argpartition(both, k - 1, axis=1)[:, :k]
            few = np.take_along_axis(few, np.take_along_axis(both, few, 1).argsort(axis=1, kind="stable"), 1)
            best, where = np.take_along_axis(both, few, 1), np.take_along_axis(index, few, 1)
        squares[begin : begin + rows], positions[begin : begin + rows] = best, where
    return np.sqrt(squares.clip(min=0) / width), positions


def _vote(neighbours: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Most frequent class of each row of neighbours; among equals the one that comes nearest."""
    classes = labels[neighbours]
    counts = (classes[:, :, None] == np.arange(n_classes)).sum(1)
    most = np.take_along_axis(counts, classes, 1) == counts.max(1, keepdims=True)
    return np.take_along_axis(classes, most.argmax(1)[:, None], 1)[:, 0].astype(np.int64)
