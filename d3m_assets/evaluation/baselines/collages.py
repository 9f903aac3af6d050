"""Collages: images composed of the crops of real images that a teacher is surest about."""

from __future__ import annotations

import itertools

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages

CROPS = 8
"""Crops that compete for each image's place in a collage."""
_SMALLEST_CROP = 0.5


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
    rows, columns = (slice(0, top), slice(top, None)), (slice(0, left), slice(left, None))
    quarters = list(itertools.product(rows, columns))
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


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    images = real.images(class_id)
    judged = crops(images, seed)
    probability = real.class_probabilities(class_id, judged.reshape(-1, *images.shape[1:]))
    losses = -np.log(np.maximum(probability, 1e-12)).reshape(judged.shape[:2])
    return collages(images, losses, min(count, len(images)), seed)


COLLAGES = Baseline("collages", "collages of real patches", _images, split="synthetic", needs_teacher=True)
