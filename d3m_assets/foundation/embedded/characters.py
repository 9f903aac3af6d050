"""The embedded model's training data: captioned characters, drawn by procedure.

Two hands draw: a pen that follows a skeleton (``skeletons.py``) bent, slanted and stretched at random, and printed
fonts (the ones matplotlib ships) warped a little. Every image comes with the attributes it was drawn with, and the
caption names a random part of them, so that the model learns words for them and also what they leave open.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.foundation.embedded.distance_fields import FIELD, Outlines, distance_field
from d3m_assets.foundation.embedded.skeletons import pen_skeletons, random_skeleton

if TYPE_CHECKING:
    import torch

CODE_VERSION = "3"
"""Raised whenever a change here, or of the skeletons, changes a drawing."""

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SYMBOLS = "!#$%+=<>@*ΓΔΘΛΞΣΦαβγδεζηθμξστφψБГЗИЛФЦЧШЩЫЭЯйц"
"""Drawn in training without a name, so that the model can draw shapes that no caption names."""

UNSEEN_SYMBOLS = "ΨΩπλЖДЮ&?€"
"""Never drawn in training: what the model card inverts."""

FIRST_SHAPE = len(CHARACTERS + SYMBOLS + UNSEEN_SYMBOLS)
"""Index of the first random shape; those from here on are strokes that no alphabet has, and no caption names."""

RANDOM_SHAPES = 4096
"""How many there are."""

IMAGE_SIZE = 32
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEMPLATES = ("", "a", "a photo of a", "a picture of a", "an image of a", "a drawing of a")
"""Caption openings, the usual ones of textual inversion among them."""

ATTRIBUTES = {
    "weight": ("thin", "medium", "bold", "heavy"),
    "slant": ("backslanted", "upright", "slanted"),
    "width": ("narrow", "regular", "wide"),
    "size": ("small", "large"),
    "hand": ("handwritten", "printed"),
    "resolution": ("sharp", "blurry", "coarse", "scanned"),
    "noise": ("clean", "noisy"),
    "polarity": ("white", "black"),
}
"""Words of each attribute, in the order of the integer codes in ``Rendered.attributes``."""

VARIANT_WORDS = ("plain", "narrow", "open", "flagged", "based", "short", "flag", "looped", "flat", "round", "smooth",
                 "closed", "curved", "tall", "two", "strokes", "straight", "barred", "hooked", "crossed", "loops",
                 "script", "cursive", "long", "top", "heavy", "sans", "serif", "mono", "italic")  # fmt: skip

FONTS = {
    "DejaVuSans": "sans", "DejaVuSans-Bold": "sans", "DejaVuSans-Oblique": "sans italic", "DejaVuSansMono": "mono",
    "DejaVuSerif": "serif", "DejaVuSerif-Italic": "serif italic", "STIXGeneral": "serif",
    "STIXGeneralItalic": "serif italic", "cmr10": "serif", "cmss10": "sans", "cmtt10": "mono", "cmb10": "serif",
}  # fmt: skip
HELD_OUT_FONTS = {"DejaVuSansMono-Oblique": "mono italic", "STIXGeneralBol": "serif", "cmti10": "serif italic",
                  "DejaVuSerif-Bold": "serif"}  # fmt: skip
_SHARP, _BLURRY, _COARSE, _SCANNED = range(4)


def caption_words() -> list[str]:
    """Every word a caption can hold, for the tokenizer."""
    words = {w for t in TEMPLATES for w in t.split()} | {w for group in ATTRIBUTES.values() for w in group}
    words |= set(VARIANT_WORDS) | set(DIGIT_NAMES) | {"uppercase", "lowercase", "digit", "letter", "character"}
    return sorted(words) + list(string.digits + string.ascii_lowercase)


@dataclass(frozen=True)
class Rendered:
    """A batch of drawn characters.

    Attributes:
        images: uint8 ``[N, 32, 32]``, 0 black.
        characters: int64 ``[N]``, indices into ``CHARACTERS``, then ``SYMBOLS``, ``UNSEEN_SYMBOLS`` and random shapes.
        attributes: int8 ``[N, 8]``, codes in the order of ``ATTRIBUTES``.
        variants: The skeleton's variant or the font's style, a string of words each.
    """

    images: np.ndarray
    characters: np.ndarray
    attributes: np.ndarray
    variants: list[str]


@lru_cache(maxsize=2)
def _pen_bank(held_out: bool) -> dict[str, list[tuple[str, np.ndarray]]]:
    return pen_skeletons(CHARACTERS, held_out=held_out)


@cache
def _shape(number: int) -> np.ndarray:
    return random_skeleton(number)


@cache
def _printed(font_name: str, character: str) -> np.ndarray:
    """Signed distance field ``[64, 64]`` of a printed character, in units of the height, inside positive."""
    field = distance_field(_font(font_name), character)
    assert field is not None
    return field


@cache
def _font(name: str) -> Any:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), 200)


def _bend(points: torch.Tensor, amplitude: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move points ``[N, P, 2]`` by a smooth random field: three waves of low frequency for each sample."""
    import torch

    n = len(points)
    frequency = torch.randn(n, 3, 2, generator=generator) * 3.0
    phase = torch.rand(n, 3, 1, generator=generator) * 6.2832
    direction = torch.randn(n, 3, 2, generator=generator) * amplitude.view(n, 1, 1)
    wave = torch.sin(torch.einsum("npk,nwk->nwp", points, frequency) + phase)
    return points + torch.einsum("nwp,nwk->npk", wave, direction)


def _inside(ends: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """How far each pixel lies inside the ink, ``[N, 1024]``, of segments ``[N, S, 2, 2]`` with half-widths ``[N, S]``."""
    import torch

    axis = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
    begin, vector = ends[:, :, 0], ends[:, :, 1] - ends[:, :, 0]
    squared = vector.square().sum(-1) + 1e-9
    product = grid @ vector.mT - (begin * vector).sum(-1).unsqueeze(1)
    along = (product / squared.unsqueeze(1)).clamp_(0, 1)
    # |g - b - a v|^2 expanded, so that no [N, pixels, S, 2] array is ever made.
    distance = grid.square().sum(-1).unsqueeze(-1) - 2 * (grid @ begin.mT) + begin.square().sum(-1).unsqueeze(1)
    distance += along * (along * squared.unsqueeze(1) - 2 * product)
    return (half.unsqueeze(1) - distance.clamp_(min=0).sqrt_()).amax(-1)


def _draw_pen(skeletons: torch.Tensor, geometry: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Ink ``[N, 32, 32]`` in 0..1 of strokes ``[N, S, 2, 2]`` (height 1, centred)."""
    import torch

    n, s = skeletons.shape[:2]
    points = skeletons.reshape(n, s * 2, 2)
    points = _bend(points, 0.012 + 0.05 * torch.rand(n, generator=generator), generator)
    x, y = points.unbind(-1)
    x = x * geometry["stretch"].view(n, 1)
    x = x - y * geometry["slant"].view(n, 1)
    y = y + geometry["balance"].view(n, 1) * (0.25 - y.square())
    c, q = torch.cos(geometry["rotation"]).view(n, 1), torch.sin(geometry["rotation"]).view(n, 1)
    points = torch.stack([c * x - q * y, q * x + c * y], -1)
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    extent = high - low
    pen = geometry["pen"].view(n, 1, 1)
    # The pen's own width is part of the extent: a bold character is no taller than a thin one.
    scale = (geometry["height"].view(n, 1) / torch.maximum(extent[..., 1], extent[..., 0])).unsqueeze(-1) * (1 - pen)
    points = (points - (low + high) / 2) * scale + geometry["shift"].unsqueeze(1)
    ends = points.view(n, s, 2, 2)
    # Pressure: the pen's half-width varies slowly along the stroke.
    swing = torch.sin(
        torch.linspace(0, 3.1416, s).view(1, s) * (0.5 + torch.rand(n, 1, generator=generator) * 2)
        + torch.rand(n, 1, generator=generator) * 6.2832
    )
    half = geometry["height"].view(n, 1) * geometry["pen"].view(n, 1) / 2 * (1 + 0.25 * swing)
    # Few samples at a time: the distances of a whole batch would leave the processor's cache.
    inside = torch.cat([_inside(e, h) for e, h in zip(ends.split(16), half.split(16), strict=True)])
    return (0.5 + inside * IMAGE_SIZE / geometry["edge"].view(n, 1)).clamp(0, 1).view(n, IMAGE_SIZE, IMAGE_SIZE)


def _draw_print(fields: torch.Tensor, geometry: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Ink ``[N, 32, 32]`` in 0..1 of printed characters from distance fields ``[N, 64, 64]``."""
    import torch
    import torch.nn.functional as F

    n = len(fields)
    axis = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2).expand(n, -1, -1)
    grid = grid - 2 * geometry["shift"].unsqueeze(1)
    c, q = torch.cos(geometry["rotation"]).view(n, 1), torch.sin(geometry["rotation"]).view(n, 1)
    x, y = grid.unbind(-1)
    x, y = c * x + q * y, -q * x + c * y
    x = (x + y * geometry["slant"].view(n, 1)) / geometry["stretch"].view(n, 1)
    grid = torch.stack([x, y], -1) / (1.25 * geometry["height"].view(n, 1, 1))
    grid = _bend(grid, 0.01 + geometry["bend"] * torch.rand(n, generator=generator), generator)
    field = F.grid_sample(
        fields.unsqueeze(1), grid.view(n, IMAGE_SIZE, IMAGE_SIZE, 2), padding_mode="border", align_corners=False
    ).squeeze(1)
    field = (field + geometry["embolden"].view(n, 1, 1)) * geometry["height"].view(n, 1, 1) * IMAGE_SIZE
    return (0.5 + field / geometry["edge"].view(n, 1, 1)).clamp(0, 1)


def render(
    count: int,
    seed: int,
    *,
    characters: str | None = None,
    digit_share: float = 0.6,
    pen_share: float = 0.75,
    held_out: bool = False,
    outlines: Outlines | None = None,
    symbol_share: float = 0.0,
    shape_share: float = 0.0,
) -> Rendered:
    """Draw characters with random attributes.

    Args:
        count: How many.
        seed: Equal seeds draw equal images on one machine.
        characters: Draw these, in turn; otherwise random ones.
        digit_share: Share of digits among random characters.
        pen_share: Share drawn by the pen; the rest is printed.
        held_out: Use the fonts and skeletons that training never sees.
        outlines: Print with these fonts in place of those that matplotlib ships, and vary what a camera does more widely:
            what the embedded model is trained on.
        symbol_share: Share of ``SYMBOLS`` (indices behind those of ``CHARACTERS``), printed; needs ``outlines``.
        shape_share: Share of random shapes, written by the pen.

    Returns:
        The images with what they were drawn with.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    if characters is None:
        digit = rng.random(count) < digit_share
        indices = np.where(digit, rng.integers(0, 10, count), rng.integers(10, len(CHARACTERS), count))
    else:
        indices = np.resize([(CHARACTERS + SYMBOLS + UNSEEN_SYMBOLS).index(c) for c in characters], count)
    pen = torch.rand(count, generator=generator) < pen_share
    if symbol_share:
        symbol = rng.random(count) < symbol_share
        indices = np.where(symbol, len(CHARACTERS) + rng.integers(0, len(SYMBOLS), count), indices)
    if shape_share:
        shape = rng.random(count) < shape_share
        indices = np.where(shape, FIRST_SHAPE + rng.integers(0, RANDOM_SHAPES, count), indices)
    pen = torch.from_numpy(indices >= FIRST_SHAPE) | pen & torch.from_numpy(indices < len(CHARACTERS))
    law = _SHIPPED_FONTS if outlines is None else _MANY_FONTS
    geometry, resolution = _random_geometry(count, generator, law)
    skeletons, fields, variants, by_hand = _outlines(indices, pen, held_out, outlines, rng)
    ink = torch.zeros(count, IMAGE_SIZE, IMAGE_SIZE)
    for mask, source, draw in ((pen, skeletons, _draw_pen), (~pen, fields, _draw_print)):
        if mask.any():
            index = mask.nonzero().squeeze(1)
            part = {k: v[index] for k, v in geometry.items()}
            ink[index] = draw(torch.from_numpy(source[index.numpy()]), part, generator)
    image, noisy, black = _photograph(ink.unsqueeze(1), resolution, generator, law)
    weight = torch.where(
        pen,
        torch.bucketize(geometry["pen"], torch.tensor([0.12, 0.18, 0.24])),
        torch.bucketize(geometry["embolden"], torch.tensor([-0.01, 0.02, 0.038])),
    )
    attributes = [  # in the order of ATTRIBUTES
        weight,
        torch.bucketize(geometry["slant"], torch.tensor([-0.12, 0.12])),
        torch.bucketize(geometry["stretch"], torch.tensor([0.65, 1.0])),
        (geometry["height"] > 0.93).long(),
        (~pen & ~by_hand).long(),
        resolution,
        noisy.long(),
        black.long(),
    ]
    pixels = (image.squeeze(1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    codes = torch.stack(attributes, 1).to(torch.int8).numpy()
    return Rendered(pixels, indices.astype(np.int64), codes, variants)


@dataclass(frozen=True)
class _Law:
    """Shares of images that are so (the rest of them sharp), and how much printed characters are bent."""

    scanned: float
    coarse: float
    blurry: float
    black: float
    noisy: float
    bend: float
    plain: float


_SHIPPED_FONTS = _Law(scanned=0.32, coarse=0.18, blurry=0.15, black=0.12, noisy=0.12, bend=0.02, plain=0.75)
_MANY_FONTS = _Law(scanned=0.06, coarse=0.24, blurry=0.15, black=0.25, noisy=0.12, bend=0.05, plain=0.6)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    return low + (high - low) * torch.rand(count, generator=generator)


def _random_geometry(count: int, generator: torch.Generator, law: _Law) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """How each character is written, by name float ``[N]`` (``shift``: ``[N, 2]``), and its resolution, int64 ``[N]``."""
    import torch

    thickness = _uniform(0.07, 0.32, count, generator)
    height = 1 - _uniform(0, 0.42, count, generator).square() * 0.95 - 0.02
    slant = torch.randn(count, generator=generator) * 0.22
    stretch = torch.exp(_uniform(-0.85, 0.30, count, generator))
    coarse = torch.rand(count, generator=generator)
    geometry = {
        "pen": thickness,
        "embolden": _uniform(-0.025, 0.045, count, generator),
        "height": height,
        "slant": slant,
        "stretch": stretch,
        "rotation": torch.randn(count, generator=generator) * 0.09,
        "edge": _uniform(0.9, 2.2, count, generator),
        "shift": (torch.rand(count, 2, generator=generator) - 0.5) * (0.03 + (1 - height)).unsqueeze(1) * 0.9,
        "balance": torch.randn(count, generator=generator) * 0.22,
        "bend": torch.full((count,), law.bend),
    }
    # "scanned" is how sets of digits were made, scikit-learn's among them (Alpaydin and Kaynak 1998): the character is cut
    # out to fill the field, thresholded, and its ink counted in 8 x 8 blocks.
    resolution = torch.full((count,), _SHARP)
    coarser = law.scanned + law.coarse
    for code, below in ((_BLURRY, coarser + law.blurry), (_COARSE, coarser), (_SCANNED, law.scanned)):
        resolution[coarse < below] = code
    scanned = resolution == _SCANNED
    geometry["height"] = torch.where(scanned, 1.0, height)
    geometry["shift"] *= ~scanned.unsqueeze(1)
    return geometry, resolution


def _outlines(
    indices: np.ndarray, pen: torch.Tensor, held_out: bool, outlines: Outlines | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[str], torch.Tensor]:
    """What to draw each character from.

    Returns:
        Skeletons ``[N, S, 2, 2]`` of what the pen writes, distance fields ``[N, 64, 64]`` of the rest, variants, and which
        of the fonts imitate a hand, bool ``[N]``.
    """
    import torch

    count = len(indices)
    bank = _pen_bank(held_out)
    styles = HELD_OUT_FONTS if held_out else FONTS
    names = list(styles)
    fields = np.zeros((count, FIELD, FIELD), np.float32)
    variants = [""] * count
    by_hand = torch.zeros(count, dtype=torch.bool)
    skeletons = np.zeros((count, *next(iter(bank.values()))[0][1].shape), np.float32)
    fonts = rng.integers(0, len(names), count)
    choice = rng.random(count)
    for i, c in enumerate(indices):
        if c >= FIRST_SHAPE:
            skeletons[i] = _shape(int(c) - FIRST_SHAPE)
        elif pen[i]:
            options = bank[CHARACTERS[c]]
            variants[i], skeletons[i] = options[int(choice[i] * len(options))]
        elif outlines is not None:
            having = np.flatnonzero(outlines.present[:, c])
            font = having[int(choice[i] * len(having))]
            variants[i], fields[i], by_hand[i] = (
                outlines.styles[font],
                outlines.field(font, c),
                bool(outlines.is_hand[font]),
            )
        else:
            variants[i] = styles[names[fonts[i]]]
            fields[i] = _printed(names[fonts[i]], CHARACTERS[c])
    return skeletons, fields, variants, by_hand


def _photograph(
    image: torch.Tensor, resolution: torch.Tensor, generator: torch.Generator, law: _Law
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a camera does to ink: resolution, blur, contrast, polarity, noise.

    Args:
        image: Ink in 0..1, ``[N, 1, 32, 32]``; written over.
        resolution: Codes, int64 ``[N]``.
        generator: Source of randomness.
        law: Shares of what happens.

    Returns:
        The images, and which of them are noisy and which are black on white, bool ``[N]``.
    """
    import torch

    count = len(image)
    scanned = resolution == _SCANNED
    _coarsen(image, resolution, generator)
    _blur(image, resolution, generator)
    plain = torch.rand(count, generator=generator) < law.plain
    background = torch.where(plain, 0.0, _uniform(0, 0.25, count, generator)).view(-1, 1, 1, 1)
    ink_level = torch.where(scanned, 1.0, _uniform(0.7, 1.0, count, generator)).view(-1, 1, 1, 1)
    background[scanned] = 0
    image = background + image * (ink_level - background)
    black = torch.rand(count, generator=generator) < law.black
    image = torch.where(black.view(-1, 1, 1, 1), 1 - image, image)
    noisy = (torch.rand(count, generator=generator) < law.noisy) & ~scanned
    image = image + noisy.view(-1, 1, 1, 1) * 0.09 * torch.randn(image.shape, generator=generator)
    return image, noisy, black


def _coarsen(image: torch.Tensor, resolution: torch.Tensor, generator: torch.Generator) -> None:
    """Bring coarse images to 8 to 16 px a side, and scanned ones, thresholded first, to 8; in place."""
    import torch
    import torch.nn.functional as F

    scanned = resolution == _SCANNED
    sides = torch.tensor([8, 10, 12, 16])[torch.randint(0, 4, (len(image),), generator=generator)]
    sides[scanned] = 8
    image[scanned] = (image[scanned] > 0.5).float()
    for side in (8, 10, 12, 16):
        index = ((resolution >= _COARSE) & (sides == side)).nonzero().squeeze(1)
        if len(index):
            small = F.adaptive_avg_pool2d(image[index], side)
            big = F.interpolate(small, IMAGE_SIZE, mode="bicubic", align_corners=False, antialias=True)
            image[index] = big.clamp(0, 1)


def _blur(image: torch.Tensor, resolution: torch.Tensor, generator: torch.Generator) -> None:
    """Blur the blurry images by one Gaussian, in place."""
    import torch
    import torch.nn.functional as F

    index = (resolution == _BLURRY).nonzero().squeeze(1)
    if len(index):
        taps = torch.arange(-4, 5).float()
        kernel = torch.exp(-0.5 * (taps / (0.7 + 0.8 * torch.rand(1, generator=generator))) ** 2)
        kernel = kernel / kernel.sum()
        blurred = F.conv2d(F.pad(image[index], (4, 4, 4, 4)), kernel.view(1, 1, 1, 9))
        image[index] = F.conv2d(blurred, kernel.view(1, 1, 9, 1))


def caption(rendered: Rendered, index: int, rng: np.random.Generator) -> tuple[str, list[str]]:
    """One random caption of an image: an opening, and the words that describe it.

    Args:
        rendered: The batch.
        index: Which image of it.
        rng: Source of randomness.

    Returns:
        The opening (one of ``TEMPLATES``) and the describing words, the character's name last.
    """
    code = rendered.characters[index]
    character = CHARACTERS[code] if code < len(CHARACTERS) else ""
    if not character:
        words = ["character"]
    elif character.isdigit():
        name = character if rng.random() < 0.85 else DIGIT_NAMES[int(character)]
        words = [name] if rng.random() < 0.85 else ["digit", name]
    else:
        case = "uppercase" if character.isupper() else "lowercase"
        words = [case, character.lower()] if rng.random() < 0.7 else [character.lower()]
    # A quarter of the captions name the character alone, so that a class name leaves every attribute open.
    keep = 0.0 if rng.random() < 0.25 else rng.uniform(0.2, 1.0)
    named = [
        group[code]
        for group, code in zip(ATTRIBUTES.values(), rendered.attributes[index], strict=True)
        if rng.random() < keep
    ]
    if rng.random() < keep * 0.7:
        named += rendered.variants[index].split()
    rng.shuffle(named)
    return TEMPLATES[rng.integers(len(TEMPLATES))], named + words
