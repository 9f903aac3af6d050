"""Pen skeletons: the strokes that a hand draws for each character.

A skeleton is a list of strokes; a stroke is a list of points in the unit square (x to the right, y down) that a smooth
curve passes through. A point given twice is a corner. The digits are written out here in the variants that people
write (7 with and without a bar, 4 open and closed ...); letters come from the single-line Hershey fonts, which were
digitised as pen movements. Nothing here was fitted to any image data set; shapes that had been added after a
look at which digits of scikit-learn's train split are confused are gone.
"""

from __future__ import annotations

import math

import numpy as np

Stroke = list[tuple[float, float]]

# Hershey fonts drawn as one line per stroke; the doubled and filled faces belong with the printed fonts.
SINGLE_LINE_FONTS = {"futural": "plain", "scripts": "script", "cursive": "cursive"}
HELD_OUT_SINGLE_LINE_FONT = "rowmans"

_RANDOM_SHAPES = 77
"""Root of the random shapes."""

SEGMENTS = 40
"""Line segments of every resampled skeleton, so that skeletons stack into one array."""


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = -90, sweep: float = -360) -> Stroke:
    angles = [math.radians(start + sweep * i / 12) for i in range(13)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


_TWO_FIVE = [(0.20, 0.42), (0.20, 0.42), (0.55, 0.36), (0.85, 0.60), (0.76, 0.90), (0.42, 1.0), (0.08, 0.90)]

DIGITS: dict[str, dict[str, list[Stroke]]] = {
    "0": {
        "plain": [_ellipse(0.5, 0.5, 0.40, 0.5)],
        "narrow": [_ellipse(0.5, 0.5, 0.28, 0.5, -70)],
        "open": [_ellipse(0.5, 0.5, 0.38, 0.5, -60, -335)],
    },
    "1": {
        "plain": [[(0.5, 0.0), (0.5, 0.5), (0.5, 1.0)]],
        "flagged": [[(0.25, 0.26), (0.55, 0.0), (0.55, 0.0), (0.55, 1.0)]],
        "based": [[(0.25, 0.24), (0.52, 0.0), (0.52, 0.0), (0.52, 1.0)], [(0.18, 1.0), (0.86, 1.0)]],
        "short flag": [[(0.36, 0.14), (0.55, 0.0), (0.55, 0.0), (0.52, 1.0)]],
    },
    "2": {
        "plain": [
            [
                (0.12, 0.26),
                (0.26, 0.05),
                (0.55, 0.0),
                (0.82, 0.14),
                (0.80, 0.38),
                (0.5, 0.7),
                (0.08, 1.0),
                (0.08, 1.0),
                (0.94, 1.0),
            ]
        ],
        "looped": [
            [
                (0.12, 0.24),
                (0.3, 0.03),
                (0.62, 0.02),
                (0.80, 0.22),
                (0.68, 0.52),
                (0.38, 0.84),
                (0.14, 0.96),
                (0.10, 0.82),
                (0.30, 0.80),
                (0.60, 0.95),
                (0.94, 0.94),
            ]
        ],
        "flat": [
            [
                (0.10, 0.12),
                (0.45, 0.0),
                (0.78, 0.12),
                (0.74, 0.42),
                (0.40, 0.72),
                (0.06, 0.97),
                (0.06, 0.97),
                (0.5, 0.93),
                (0.94, 1.0),
            ]
        ],
    },
    "3": {
        "round": [
            [
                (0.12, 0.14),
                (0.40, 0.0),
                (0.76, 0.10),
                (0.76, 0.32),
                (0.38, 0.46),
                (0.38, 0.46),
                (0.80, 0.58),
                (0.86, 0.82),
                (0.5, 1.0),
                (0.08, 0.88),
            ]
        ],
        "flat": [
            [
                (0.12, 0.02),
                (0.12, 0.02),
                (0.82, 0.02),
                (0.82, 0.02),
                (0.42, 0.40),
                (0.42, 0.40),
                (0.80, 0.54),
                (0.84, 0.84),
                (0.46, 1.0),
                (0.08, 0.90),
            ]
        ],
        "smooth": [
            [
                (0.14, 0.08),
                (0.5, 0.0),
                (0.78, 0.16),
                (0.64, 0.40),
                (0.46, 0.48),
                (0.70, 0.56),
                (0.84, 0.78),
                (0.56, 0.98),
                (0.10, 0.94),
            ]
        ],
    },
    "4": {
        "open": [[(0.24, 0.0), (0.12, 0.56), (0.12, 0.56), (0.92, 0.56)], [(0.70, 0.16), (0.66, 1.0)]],
        "closed": [[(0.68, 1.0), (0.68, 0.0), (0.68, 0.0), (0.06, 0.66), (0.06, 0.66), (0.96, 0.66)]],
        "curved": [[(0.20, 0.04), (0.14, 0.34), (0.34, 0.52), (0.76, 0.46)], [(0.80, 0.02), (0.70, 1.0)]],
        "tall": [[(0.46, 0.0), (0.08, 0.60), (0.08, 0.60), (0.92, 0.62)], [(0.60, 0.32), (0.58, 1.0)]],
    },
    "5": {
        "two strokes": [[(0.26, 0.02), *_TWO_FIVE], [(0.26, 0.02), (0.86, 0.0)]],
        "plain": [[(0.84, 0.02), (0.26, 0.02), (0.26, 0.02), *_TWO_FIVE]],
        "smooth": [
            [
                (0.86, 0.03),
                (0.46, 0.03),
                (0.22, 0.20),
                (0.36, 0.42),
                (0.70, 0.54),
                (0.80, 0.76),
                (0.54, 0.98),
                (0.10, 0.93),
            ]
        ],
    },
    "6": {
        "curved": [
            [
                (0.74, 0.02),
                (0.36, 0.24),
                (0.14, 0.62),
                (0.24, 0.94),
                (0.58, 1.0),
                (0.84, 0.80),
                (0.70, 0.55),
                (0.40, 0.56),
                (0.18, 0.76),
            ]
        ],
        "straight": [
            [(0.52, 0.0), (0.20, 0.58), (0.20, 0.88), (0.5, 1.0), (0.80, 0.88), (0.78, 0.62), (0.5, 0.54), (0.20, 0.72)]
        ],
        "looped": [
            [
                (0.60, 0.0),
                (0.24, 0.34),
                (0.16, 0.74),
                (0.40, 1.0),
                (0.70, 0.92),
                (0.74, 0.68),
                (0.50, 0.60),
                (0.26, 0.80),
                (0.34, 0.98),
            ]
        ],
    },
    "7": {
        "plain": [[(0.10, 0.04), (0.10, 0.04), (0.90, 0.04), (0.90, 0.04), (0.40, 1.0)]],
        "barred": [[(0.10, 0.04), (0.10, 0.04), (0.90, 0.04), (0.90, 0.04), (0.42, 1.0)], [(0.28, 0.52), (0.84, 0.48)]],
        "curved": [[(0.08, 0.08), (0.48, 0.06), (0.90, 0.02), (0.90, 0.02), (0.58, 0.48), (0.46, 1.0)]],
    },
    "8": {
        "crossed": [
            [
                (0.80, 0.16),
                (0.52, 0.0),
                (0.22, 0.14),
                (0.34, 0.40),
                (0.70, 0.60),
                (0.84, 0.84),
                (0.5, 1.0),
                (0.16, 0.84),
                (0.30, 0.60),
                (0.68, 0.38),
                (0.80, 0.16),
            ]
        ],
        "two loops": [_ellipse(0.5, 0.24, 0.28, 0.24), _ellipse(0.5, 0.74, 0.35, 0.26)],
        "narrow": [
            [
                (0.72, 0.10),
                (0.46, 0.02),
                (0.30, 0.18),
                (0.48, 0.42),
                (0.66, 0.70),
                (0.54, 0.98),
                (0.32, 0.90),
                (0.36, 0.66),
                (0.62, 0.36),
                (0.74, 0.12),
            ]
        ],
    },
    "9": {
        "straight": [
            [
                (0.82, 0.22),
                (0.56, 0.0),
                (0.20, 0.12),
                (0.18, 0.40),
                (0.48, 0.52),
                (0.80, 0.28),
                (0.82, 0.05),
                (0.82, 0.05),
                (0.78, 1.0),
            ]
        ],
        "curved": [
            [
                (0.80, 0.20),
                (0.54, 0.0),
                (0.20, 0.12),
                (0.20, 0.40),
                (0.50, 0.50),
                (0.80, 0.26),
                (0.84, 0.5),
                (0.70, 0.88),
                (0.24, 0.98),
            ]
        ],
        "round": [
            [(0.84, 0.24), (0.5, 0.0), (0.16, 0.22), (0.46, 0.50), (0.82, 0.28), (0.82, 0.28), (0.66, 0.7), (0.50, 1.0)]
        ],
    },
}


def _curve(points: Stroke, per_segment: int = 8) -> np.ndarray:
    """Catmull-Rom curve through ``points``; a repeated point ends one smooth piece and begins the next."""
    pieces: list[list[tuple[float, float]]] = [[points[0]]]
    for previous, point in zip(points, points[1:], strict=False):
        if point == previous:
            if len(pieces[-1]) > 1:
                pieces.append([])
            else:
                continue
        pieces[-1].append(point)
    out: list[np.ndarray] = []
    for piece in pieces:
        p = np.array(piece, dtype=np.float64)
        if len(p) < 3:
            out.append(p)
            continue
        closed = np.allclose(p[0], p[-1])
        first, last = (p[-2], p[1]) if closed else (2 * p[0] - p[1], 2 * p[-1] - p[-2])
        q = np.vstack([first, p, last])
        t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
        for a, b, c, d in zip(q, q[1:], q[2:], q[3:], strict=False):
            out.append(
                0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            )
        out.append(p[-1:])
    return np.vstack(out)


def segments(strokes: list[Stroke], *, smooth: bool) -> np.ndarray:
    """Resample strokes to ``SEGMENTS`` straight segments of about equal length.

    Args:
        strokes: Points of each stroke, in any units.
        smooth: Pass a smooth curve through the points; otherwise join them by straight lines.

    Returns:
        float32 array ``[SEGMENTS, 2, 2]`` (segment, begin or end, x or y), scaled so that the height is 1.
    """
    curves = [_curve(s) if smooth else np.array(s, dtype=np.float64) for s in strokes if len(s) > 1]
    lengths = [float(np.linalg.norm(np.diff(c, axis=0), axis=1).sum()) for c in curves]
    total = sum(lengths)
    counts = [max(1, round(SEGMENTS * length / total)) for length in lengths]
    counts[int(np.argmax(counts))] += SEGMENTS - sum(counts)
    out = []
    for curve, count in zip(curves, counts, strict=True):
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
        at = np.linspace(0, along[-1], count + 1)
        points = np.stack([np.interp(at, along, curve[:, k]) for k in (0, 1)], axis=1)
        out.append(np.stack([points[:-1], points[1:]], axis=1))
    array = np.concatenate(out)
    low, high = array.reshape(-1, 2).min(0), array.reshape(-1, 2).max(0)
    height = max(high[1] - low[1], 0.25 * (high[0] - low[0]), 1e-6)
    return ((array - (low + high) / 2) / height).astype(np.float32)


def pen_skeletons(characters: str, *, held_out: bool = False) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Skeletons of every character, by variant.

    Args:
        characters: Which characters.
        held_out: Give only skeletons that training never sees (another single-line font).

    Returns:
        For each character a list of ``(variant, float32 [SEGMENTS, 2, 2])``.
    """
    from HersheyFonts import HersheyFonts

    fonts = {HELD_OUT_SINGLE_LINE_FONT: "plain"} if held_out else SINGLE_LINE_FONTS
    out: dict[str, list[tuple[str, np.ndarray]]] = {c: [] for c in characters}
    if not held_out:
        for character, variants in DIGITS.items():
            if character in out:
                out[character] += [(name, segments(s, smooth=True)) for name, s in variants.items()]
    for font, style in fonts.items():
        hershey = HersheyFonts()
        hershey.load_default_font(font)
        for c in characters:
            strokes = [[(float(x), float(y)) for x, y in s] for s in hershey.strokes_for_text(c)]
            if strokes:
                out[c].append((style, segments(strokes, smooth=False)))
    return out


def random_skeleton(number: int) -> np.ndarray:
    """A shape that nobody writes: one to four random strokes, most of which begin on an earlier one.

    Args:
        number: Equal numbers give equal shapes.

    Returns:
        float32 ``[SEGMENTS, 2, 2]``.
    """
    rng = np.random.default_rng([_RANDOM_SHAPES, number])
    aspect = rng.uniform(0.5, 1.0)
    strokes: list[Stroke] = []
    for _ in range(rng.choice(4, p=(0.25, 0.35, 0.25, 0.15)) + 1):
        if rng.random() < 0.3:
            (x, y), (width, height) = rng.uniform(0.25, 0.75, 2), rng.uniform(0.15, 0.5, 2)
            sweep = rng.choice((-1, 1)) * rng.choice((180.0, 270.0, 360.0))
            stroke = _ellipse(x, y, width, height, start=rng.uniform(0, 360), sweep=sweep)
        else:
            points = [(x, y) for x, y in rng.uniform(0, 1, (rng.integers(2, 5), 2))]
            if strokes and rng.random() < 0.7:
                earlier = strokes[rng.integers(len(strokes))]
                points[0] = earlier[rng.integers(len(earlier))]
            corners = rng.random(len(points)) < 0.4
            stroke = [p for p, corner in zip(points, corners, strict=True) for _ in range(1 + corner)]
        strokes.append(stroke)
    return segments([[(x * aspect, y) for x, y in stroke] for stroke in strokes], smooth=True)
