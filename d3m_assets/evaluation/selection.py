"""Training sets chosen or composed from real training images: what a distillation has to beat besides a random draw.

Every function here works on the training images of one class and on plain arrays; :func:`select_real` applies the choices
to a table of images, class by class. Seeds and arrays decide the result, not the order of classes or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

CODE_VERSION = "1"
"""Raised whenever a change here changes which images are chosen or composed."""

CROPS = 8
"""Crops that compete for each image's place in a collage."""
_SMALLEST_CROP = 0.5


@dataclass(frozen=True)
class Described:
    """What a teacher says of the training images of one class, in the order of their hashes.

    Attributes:
        features: float ``[N, F]``.
        errors: EL2N scores ``[N]``, from :func:`el2n`.
    """

    features: np.ndarray
    errors: np.ndarray


def herding(features: np.ndarray, count: int) -> np.ndarray:
    """Choose images whose mean is as near as can be to that of all, one after the other.

    Greedy choice of Rebuffi et al., "iCaRL" (arXiv 1611.07725, algorithm 4), after Welling, "Herding dynamical weights to
    learn" (ICML 2009), without replacement.

    Args:
        features: float ``[N, F]``.
        count: Images wanted; N or more gives all.

    Returns:
        Distinct positions, int64 ``[min(count, N)]``, in the order chosen.
    """
    points = features.astype(np.float64)
    squares, mean, total = (points**2).sum(axis=1), points.mean(axis=0), np.zeros(points.shape[1])
    free = np.ones(len(points), bool)
    chosen = np.empty(min(count, len(points)), np.int64)
    for step in range(len(chosen)):
        # |(step + 1) * mean - total - x|², without what is the same for every x.
        score = squares - 2 * points @ ((step + 1) * mean - total)
        chosen[step] = np.argmin(np.where(free, score, np.inf))
        free[chosen[step]] = False
        total += points[chosen[step]]
    return chosen


def k_center(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose images such that none is far from all chosen: always the one farthest from those chosen so far.

    Gonzalez (1985), as the greedy choice of Sener & Savarese, "Active learning for convolutional neural networks: a
    core-set approach" (arXiv 1708.00489, algorithm 1).

    Args:
        features: float ``[N, F]``.
        count: Images wanted; N or more gives all.
        seed: Draws the first image.

    Returns:
        Distinct positions, int64 ``[min(count, N)]``, in the order chosen.
    """
    points = features.astype(np.float64)
    chosen = np.empty(min(count, len(points)), np.int64)
    nearest = np.full(len(points), np.inf)
    following = int(np.random.default_rng(seed).integers(len(points)))
    for step in range(len(chosen)):
        chosen[step] = following
        nearest = np.minimum(nearest, ((points - points[following]) ** 2).sum(axis=1))
        nearest[following] = -1  # never again, even where all that is left are copies
        following = int(np.argmax(nearest))
    return chosen


def k_means(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose the image nearest to the centre of each of ``count`` clusters (k-means++, Arthur & Vassilvitskii, 2007).

    Args:
        features: float ``[N, F]``.
        count: Images wanted; N or more gives all.
        seed: Draws the first centres.

    Returns:
        Distinct positions, int64 ``[min(count, N)]``, those of the largest clusters first.
    """
    points = features.astype(np.float64)
    count = min(count, len(points))
    labels, centres = _clusters(points, count, seed)
    distance = ((points - centres[labels]) ** 2).sum(axis=1)
    sizes = np.bincount(labels, minlength=count)
    medoids = [
        int(members[np.argmin(distance[members])])
        for cluster in np.argsort(-sizes, kind="stable")
        if len(members := np.flatnonzero(labels == cluster))
    ]
    # Copies leave clusters empty; their places go to images that were not chosen.
    rest = np.setdiff1d(np.arange(len(points)), medoids)[: count - len(medoids)]
    return np.array([*medoids, *rest], np.int64)


def el2n(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How wrong a classifier is about each image: the norm of probabilities minus one-hot label.

    Paul et al., "Deep learning on a data diet" (arXiv 2107.07075), here of one trained teacher instead of
    several networks early in training.

    Args:
        probabilities: float ``[N, K]``.
        labels: Class positions ``[N]``.

    Returns:
        float64 ``[N]``, 0 (certain and right) to √2.
    """
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(labels)), labels] -= 1
    return np.linalg.norm(errors, axis=1)


def easiest(errors: np.ndarray, count: int) -> np.ndarray:
    """Choose the images with the lowest scores.

    With few images the easy ones teach most (Sorscher et al., "Beyond neural scaling laws", arXiv 2206.14486).

    Args:
        errors: Scores ``[N]``.
        count: Images wanted; N or more gives all.

    Returns:
        Positions, int64 ``[min(count, N)]``, easiest first, the earlier of equals.
    """
    return np.argsort(errors, kind="stable")[:count].astype(np.int64)


CHOICES: dict[str, Callable[[Described, int, int], np.ndarray]] = {
    "herding": lambda known, count, seed: herding(known.features, count),
    "k-center": lambda known, count, seed: k_center(known.features, count, seed),
    "k-means": lambda known, count, seed: k_means(known.features, count, seed),
    "el2n": lambda known, count, seed: easiest(known.errors, count),
}
"""Ways to choose real images, by their names in ``evaluation.baselines``."""


def select_real(
    rows: pd.DataFrame, per_class: int, seed: int, choice: str, described: Mapping[int, Described]
) -> pd.DataFrame:
    """Choose real training images of every class.

    Args:
        rows: Image table with at least the columns ``class_id``, ``sha256`` and ``split``; only rows whose split is
            "train" are chosen from.
        per_class: Images of each class; a class that has fewer gives all it has.
        seed: Of what is random in the choice.
        choice: One of :data:`CHOICES`.
        described: For each ``class_id``, what the teacher says of its training images sorted by ``sha256``.

    Returns:
        The chosen rows, by class and then in the order chosen.

    Raises:
        DatasetError: A class has no training image, or its description is of another number of images.
    """
    import pandas as pd

    chosen = []
    for class_id in sorted(int(c) for c in rows["class_id"].unique()):
        train = rows[(rows["class_id"] == class_id) & (rows["split"] == "train")].sort_values("sha256")
        if train.empty:
            raise DatasetError(f"class_id {class_id} has no training image; add some to its train folder.")
        known = described[class_id]
        if len(known.features) != len(train):
            raise DatasetError(
                f"{len(known.features)} images of class_id {class_id} are described, but it has {len(train)}; "
                "describe its training images anew."
            )
        chosen.append(train.iloc[CHOICES[choice](known, per_class, seed)])
    return pd.concat(chosen, ignore_index=True)


def crops(images: np.ndarray, seed: int) -> np.ndarray:
    """Random crops of every image, each enlarged to the size of an image.

    Args:
        images: Real training images of one class, uint8 ``[N, H, W, C]``.
        seed: Draws them: squares of half to the whole area of the largest square of an image.

    Returns:
        uint8 ``[N, CROPS, H, W, C]``.
    """
    n, height, width, channels = images.shape
    boxes = _boxes(images.shape, seed)
    made = np.empty((n, CROPS, height, width, channels), np.uint8)
    for index in np.ndindex(n, CROPS):
        made[index] = _cropped(images[index[0]], boxes[index], (height, width))
    return made


def collages(images: np.ndarray, losses: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Compose images of four quarters each, of the crops of real images that a teacher is surest about.

    In the manner of RDED (Sun et al., arXiv 2312.03526): of the random crops of every image the one with the lowest loss
    is kept, the best of all images are taken, and four are shrunk into one image. When a class has too few images for
    that, second-best crops follow.

    Args:
        images: Real training images of one class, uint8 ``[N, H, W, C]``.
        losses: The teacher's cross-entropy with the class on :func:`crops` of the same seed ``[N, CROPS]``.
        count: Images wanted.
        seed: That of the crops.

    Returns:
        uint8 ``[count, H, W, C]``; the surest crops are together.
    """
    _, height, width, channels = images.shape
    boxes = _boxes(images.shape, seed)
    place = np.argsort(np.argsort(losses, axis=1, kind="stable"), axis=1)
    order = np.lexsort((losses.ravel(), place.ravel()))
    made = np.empty((count, height, width, channels), np.uint8)
    top, left = height // 2, width // 2
    quarters = [(slice(0, top), slice(0, left)), (slice(0, top), slice(left, None)),
                (slice(top, None), slice(0, left)), (slice(top, None), slice(left, None))]  # fmt: skip
    for index, crop in enumerate(np.resize(order, 4 * count)):
        image, number = divmod(int(crop), CROPS)
        quarter = made[index // 4][quarters[index % 4]]
        quarter[:] = _cropped(images[image], boxes[image, number], quarter.shape[:2])
    return made


def _boxes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Left, top, right and bottom of every crop in px, float ``[N, CROPS, 4]``."""
    n, height, width, _ = shape
    draw = np.random.default_rng(seed)
    sides = min(height, width) * np.sqrt(draw.uniform(_SMALLEST_CROP, 1, (n, CROPS)))
    tops, lefts = draw.random((n, CROPS)) * (height - sides), draw.random((n, CROPS)) * (width - sides)
    right, bottom = np.minimum(lefts + sides, width), np.minimum(tops + sides, height)
    return np.stack([lefts, tops, right, bottom], axis=-1)


def _cropped(image: np.ndarray, box: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    taken = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=tuple(box.tolist()))
    return np.asarray(taken).reshape(*size, image.shape[2])


def latent_means(latents: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres of clusters of a class's latents, to be decoded to images.

    In the manner of D4M's prototypes (Su et al., arXiv 2407.15138), which then go through the denoiser once
    more; here they are decoded as they are.

    Args:
        latents: float ``[N, ...]``.
        count: Centres wanted; N or more gives the latents themselves.
        seed: Draws the first centres.

    Returns:
        float32 ``[min(count, N), ...]``.
    """
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    if count >= len(flat):
        return latents.astype(np.float32)
    return _clusters(flat, count, seed)[1].astype(np.float32).reshape(count, *latents.shape[1:])


def _clusters(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each point ``[N]`` and centres ``[count, F]``."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():  # one thread: sums round alike on every machine
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        found = KMeans(count, n_init=4, random_state=seed % 2**32).fit(points)
    return found.labels_, found.cluster_centers_
