"""Plots of the report: accuracy against stored bytes."""

from __future__ import annotations

import io
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.evaluation.methods import CLASS_NAMES, CODED, D3M, PACKED, RANDOM_REAL, VARIANTS, WHOLE_TRAIN
from d3m_assets.evaluation.statistics import percent
from d3m_assets.ledger import byte_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the plot on their way into the page's variables, so that it follows light and dark.
_INK, _FAINT, _OURS, _THEIRS = "#010101", "#020202", "#030303", "#040404"

_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--line)", _OURS: "var(--ours)", _THEIRS: "var(--theirs)"}

_CODED, _PACKED = "#050505", "#060606"
_VARIABLES |= {_CODED: "var(--worse)", _PACKED: "var(--better)"}
_ON_WHITE = {
    _INK: "#5f666e", _FAINT: "#e3e1dc", _OURS: "#0b5fa5", _THEIRS: "#b4591c", _CODED: "#a3292b", _PACKED: "#1d6b3e",
}  # fmt: skip

_STYLES = {D3M: (_OURS, "o"), RANDOM_REAL: (_THEIRS, "s"), CODED: (_CODED, "D"), PACKED: (_PACKED, "^")}

_MARKERS = "vPX*<>hd"

_NARROWEST, _WIDEST = 16, 8192
"""Bytes of a class that the axis covers at least, where no row has more."""

_DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (2, 1)))


def accuracy_plot(summary: pd.DataFrame, *, on_white: bool = False) -> str:
    """Draw accuracy against bytes per class as an ``<svg>`` element whose colours are the page's variables.

    Methods with several byte counts become points with 95 % intervals; methods without one, and the whole train split,
    become horizontal lines.

    Args:
        summary: Rows of one part of the table, from :func:`d3m_assets.evaluation.statistics.summarize`.
        on_white: Whether it is a picture by itself, with colours of its own on white, instead of a part of a page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(summary["method"]))
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "d3m", "font.size": 10}
    with mpl.rc_context(style):
        # Beyond three, every line of the legend has its own height, so that the axes keep theirs.
        figure = Figure(figsize=(6.6, 4.2 + 0.22 * max(0, math.ceil(len(names) / 2) - 3)), layout="constrained")
        axes = figure.subplots()
        _plot_methods(axes, summary)
        _lay_out(axes, summary)
        entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(
            [entries[name] for name in names],
            names,
            loc="outside lower center",
            ncols=2,
            frameon=False,
            labelcolor=_INK,
            handlelength=2.6,
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=not on_white, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in (_ON_WHITE if on_white else _VARIABLES).items():
        svg = svg.replace(colour, variable)
    return svg


def _plot_methods(axes: Axes, summary: pd.DataFrame) -> None:
    """Points with intervals for methods at budgets, horizontal lines for the others."""
    others = itertools.cycle(_MARKERS)
    for name, rows in summary[_at_budgets(summary)].groupby("method", sort=False):
        colour, marker = _STYLES.get(str(name)) or (_INK, next(others))
        x, y = rows["bytes_per_class"].to_numpy(float), rows["mean"].to_numpy(float) * 100
        error = rows["half_width"].fillna(0).to_numpy(float) * 100
        axes.errorbar(
            x,
            y,
            np.vstack([error, np.minimum(error, 100 - y)]),
            color=colour,
            label=name,
            capsize=3,
            marker=marker,
            markersize=6,
            linewidth=1.8 if name in _STYLES else 1,
            elinewidth=1.2,
        )
    for i, row in enumerate(summary[~_at_budgets(summary)].to_dict("records")):
        dash = _DASHES[i % len(_DASHES)]
        axes.axhline(row["mean"] * 100, color=_INK, linewidth=1.3, linestyle=dash, label=row["method"])


def _lay_out(axes: Axes, summary: pd.DataFrame) -> None:
    """Axes, ticks at our budgets, and grid."""
    from matplotlib.ticker import NullFormatter, NullLocator

    points = summary[_at_budgets(summary)]
    if len(points):
        axes.set_xscale("log")
        low, high = points["bytes_per_class"].min(), points["bytes_per_class"].max()
        if high <= _WIDEST:  # small images: always the same range, so that pictures can be laid side by side
            low, high = min(low, _NARROWEST), _WIDEST
        axes.set_xlim(low / 1.3, high * 1.3)
        ours = points[points["method"] == D3M]
        named = (ours if len(ours) else points).drop_duplicates("bytes_per_class").to_dict("records")
        ticks = {t["bytes_per_class"]: f"{byte_size(t['bytes_per_class'])}\n{t['budget']}" for t in named}
        for power in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1):
            # Between our budgets every fourth power of two, where there is room for its label.
            if power % 2 == 0 and all(abs(power - math.log2(size)) > 0.9 for size in ticks):
                ticks[2.0**power] = byte_size(2**power)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes of a class (logarithmic)", color=_INK)
    axes.set_ylabel("accuracy on real images, %", color=_INK)
    axes.set_ylim(bottom=max(_bottom(summary), axes.get_ylim()[0]), top=min(101.0, axes.get_ylim()[1]))
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.tick_params(colors=_INK, length=0)
    axes.spines[:].set_visible(False)


def _at_budgets(summary: pd.DataFrame) -> pd.Series:
    return (summary["budget"] != "") & summary["bytes_per_class"].gt(0)


def titled_plot(summary: pd.DataFrame, title: str) -> dict[str, Any]:
    """A plot with its title, its alternative text, and the rows that lie below its axis, in words.

    Args:
        summary: Rows of one part of the table, from :func:`d3m_assets.evaluation.statistics.summarize`.
        title: Names the part.
    """
    rows = summary[~summary["method"].isin(list(VARIANTS))]
    below = rows[rows["mean"] * 100 < _bottom(rows)]
    below_axis = [
        " at ".join(w for w in (r["method"], r["budget"]) if w) + f" {percent(r['mean'])} %"
        for r in below.to_dict("records")
    ]
    return {"title": title, "svg": accuracy_plot(rows), "alt": _plot_alt(rows), "below": below_axis}


def _bottom(summary: pd.DataFrame) -> float:
    """Lowest accuracy, in per cent, that a plot has room for: a method far below the others must not flatten them."""
    compared = summary[summary["method"].isin([D3M, RANDOM_REAL, CLASS_NAMES, WHOLE_TRAIN])]
    rows = compared if len(compared) else summary
    low = (rows["mean"] - rows["half_width"].fillna(0)).min() * 100
    return max(0.0, float(low) - 5)


def _plot_alt(summary: pd.DataFrame) -> str:
    parts = []
    for row in summary.to_dict("records"):
        name = " at ".join(word for word in (row["method"], row["budget"]) if word)
        parts.append(f"{name} {percent(row['mean'], row['half_width'])} %")
    return "Accuracy against stored bytes of a class: " + "; ".join(parts)
