"""Plots of the report: accuracy against stored bytes."""

from __future__ import annotations

import io
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.evaluation.methods import CLASS_NAMES, D3M, RANDOM_REAL, VARIANTS, WHOLE_TRAIN
from d3m_assets.evaluation.statistics import percent
from d3m_assets.ledger import byte_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the plot on their way into the page's variables, so that it follows light and dark.
_INK, _FAINT, _OURS, _THEIRS = "#010101", "#020202", "#030303", "#040404"

_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--line)", _OURS: "var(--ours)", _THEIRS: "var(--theirs)"}

_STYLES = {D3M: (_OURS, "o"), RANDOM_REAL: (_THEIRS, "s")}

_MARKERS = "D^vPX*<>"

_DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (2, 1)))


def accuracy_plot(summary: pd.DataFrame) -> str:
    """Draw accuracy against bytes per class as an ``<svg>`` element whose colours are the page's variables.

    Methods with several byte counts become points with 95 % intervals; methods without one, and the whole train split,
    become horizontal lines.

    Args:
        summary: Rows of one part of the table, from :func:`d3m_assets.evaluation.statistics.summarize`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(summary["method"]))
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "d3m", "font.size": 10}
    with mpl.rc_context(style):
        # Beyond three, every line of the legend has its own height, so that the axes keep theirs.
        figure = Figure(figsize=(5.4, 3.8 + 0.22 * max(0, math.ceil(len(names) / 2) - 3)), layout="constrained")
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
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
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
        axes.set_xlim(points["bytes_per_class"].min() / 1.5, points["bytes_per_class"].max() * 1.5)
        ours = points[points["method"] == D3M]
        ticks = (ours if len(ours) else points).drop_duplicates("bytes_per_class").to_dict("records")
        axes.set_xticks(
            [t["bytes_per_class"] for t in ticks],
            [f"{byte_size(t['bytes_per_class'])}\n{t['budget']}" for t in ticks],
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("stored bytes of a class (logarithmic)", color=_INK)
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
