"""How the images of a dataset are found and read."""

from __future__ import annotations

from pydantic import Field

from d3m_assets.setting_types import Section

MAX_PIXELS = 64_000_000
"""Pixels of an image beyond which it is not decoded, unless the settings say otherwise."""
MAX_BYTES = 256 * 2**20
"""Size of a file beyond which it is not read, unless the settings say otherwise."""


class ImageSettings(Section):
    """How the images of a dataset are found and read. What of it decides about content is in the scan's fingerprint."""

    test_fraction: float = Field(
        default=0.2,
        gt=0,
        le=0.5,
        description="Part of each class that becomes the test split of a dataset that has none, by hash of the pixels.",
    )
    image_column: str = Field(
        default="",
        description="Column of a table that holds the images or their paths; empty: found by its type or name.",
    )
    label_column: str = Field(
        default="", description="Column of a table that holds the class; empty: found by its type or name."
    )
    max_bytes: int = Field(default=MAX_BYTES, ge=1, description="Size of an image file beyond which it is not read.")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=16,
        le=178_956_970,  # Pillow refuses more
        description="Pixels of an image beyond which it is not decoded; of a WebP, which takes more memory, three quarters.",
    )
    cache_gib: float = Field(
        default=4.0,
        ge=0,
        description="Most disk that copies of images from a network take, in GiB, so that each is fetched once; 0: none.",
    )
