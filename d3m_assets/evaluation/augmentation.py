"""Random augmentations of training batches: affine maps, crops and CutMix.

Every function takes float images ``[N, C, H, W]`` and draws its random numbers on the CPU, whatever device the images are
on, so that a seed gives the same augmentations everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Augmentation:
    """Limits of the random affine map that every image of every batch gets.

    Brightness and contrast are left alone on purpose: the instance normalisation of ConvNet-3 cancels both.

    Attributes:
        rotation: Largest rotation, in degrees, either way.
        scale: Largest relative change of size; width and height change independently.
        shear: Largest horizontal shear, as a fraction of the height.
        translation: Largest shift, as a fraction of the side.
    """

    rotation: float = 15.0
    scale: float = 0.15
    shear: float = 0.15
    translation: float = 0.1


AUGMENTATION = Augmentation()
CROP = {"area": (0.5, 1.0), "aspect": (3 / 4, 4 / 3)}
"""Limits of random crops: share of the area that is kept, and width by height."""


def affine_warp(images: torch.Tensor, limits: Augmentation, generator: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Apply one random affine map to each image; what comes in from outside is black.

    Args:
        images: float ``[N, C, H, W]``.
        limits: Of the maps.
        generator: CPU random numbers: seven for each image.
        flip: Whether half of the images are mirrored left to right.

    Returns:
        float ``[N, C, H, W]``, resampled bilinearly.
    """
    import torch
    from torch.nn import functional as F

    n = len(images)
    angle, x_scale, y_scale, shear, x_shift, y_shift, mirror = torch.rand(7, n, generator=generator) * 2 - 1
    angle = angle * math.radians(limits.rotation)
    cos, sin = angle.cos(), angle.sin()
    x_scale, y_scale, shear = 1 + x_scale * limits.scale, 1 + y_scale * limits.scale, shear * limits.shear
    if flip:
        x_scale = x_scale * mirror.sign()
    # affine_grid maps output to input coordinates in -1..1, hence the factor 2 on shifts.
    x_row = [x_scale * cos, x_scale * (shear * cos - sin), x_shift * 2 * limits.translation]
    y_row = [y_scale * sin, y_scale * (shear * sin + cos), y_shift * 2 * limits.translation]
    theta = torch.stack([*x_row, *y_row]).T.reshape(n, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def random_resized_crop(images: torch.Tensor, generator: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Cut a random rectangle within the limits of :data:`CROP` out of each image and stretch it to the whole.

    Args:
        images: float ``[N, C, H, W]``.
        generator: CPU random numbers: five for each image.
        flip: Whether half of the images are mirrored left to right.

    Returns:
        float ``[N, C, H, W]``, resampled bilinearly.
    """
    import torch
    from torch.nn import functional as F

    n = len(images)
    area, aspect, x, y, mirror = torch.rand(5, n, generator=generator)
    (least_area, most_area), (narrowest, widest) = CROP["area"], CROP["aspect"]
    area = least_area + area * (most_area - least_area)
    aspect = torch.exp(math.log(narrowest) + aspect * math.log(widest / narrowest))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y, zero = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1), torch.zeros(n)
    if flip:
        width = width * torch.where(mirror < 0.5, -1.0, 1.0)
    theta = torch.stack([width, zero, x, zero, height, y]).T.reshape(n, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def cutmix(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Replace one random box of all images by that of others (Yun et al., ICCV 2019, algorithm 1, with α = 1).

    Args:
        images: float ``[N, C, H, W]``.
        generator: CPU random numbers: three and a permutation.

    Returns:
        The mixed images, for each of them the position of the image that its box comes from (int64 ``[N]``), and the
        share of the area that is still the image's own.
    """
    import torch

    height, width = images.shape[2:]
    share, x, y = torch.rand(3, generator=generator).tolist()
    half_side = math.sqrt(1 - share) / 2
    top, bottom = max(0, round(height * (y - half_side))), min(height, round(height * (y + half_side)))
    left, right = max(0, round(width * (x - half_side))), min(width, round(width * (x + half_side)))
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / (height * width)
