"""Signed-distance fields of printed characters, and the bank that holds those of many fonts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FIELD = 64
"""Side of the stored distance fields of printed characters, in pixels."""

SCALE = 500.0
"""Steps of the stored distances for one height of a character."""


@dataclass(frozen=True)
class Outlines:
    """A bank of drawn fonts.

    Attributes:
        fields: int8 ``[F, C, 64, 64]``, signed distances to the edge of each character (inside positive), in 1/500 of its
            height; C runs over ``CHARACTERS``, ``SYMBOLS`` and ``UNSEEN_SYMBOLS``.
        present: bool ``[F, C]``: whether the font has that character.
        styles: For each font the words of its style ("sans italic"), a string.
        is_hand: bool ``[F]``: the font imitates a hand.
        sources: For each font ``{"package", "file", "sha256"}``.
    """

    fields: np.ndarray
    present: np.ndarray
    styles: list[str]
    is_hand: np.ndarray
    sources: list[dict[str, str]]

    def field(self, font: int, index: int) -> np.ndarray:
        """Signed-distance field float32 ``[64, 64]`` of one character, in heights of the character."""
        return self.fields[font, index].astype(np.float32) / SCALE


def distance_field(font: Any, character: str) -> np.ndarray | None:
    """Signed distance field of one character of a font.

    Args:
        font: A Pillow font, large enough to be measured in pixels.
        character: Which.

    Returns:
        float32 ``[64, 64]``, in units of the character's height, inside positive; nothing where the font draws no ink.
    """
    from PIL import Image, ImageDraw
    from scipy.ndimage import distance_transform_edt

    left, top, right, bottom = font.getbbox(character)
    side = round(1.25 * max(right - left, bottom - top))
    if side < 2:
        return None
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(((side - right - left) / 2, (side - bottom - top) / 2), character, fill=255, font=font)
    ink = np.asarray(canvas) > 127
    if not ink.any():
        return None
    distance = (distance_transform_edt(ink) - distance_transform_edt(~ink)) / (side / 1.25)
    return np.asarray(Image.fromarray(distance.astype(np.float32)).resize((FIELD, FIELD)))
