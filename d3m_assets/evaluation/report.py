"""The report: one HTML file for people, with the verdict first. Needs no network, script or other file."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from d3m_assets.errors import StageError
from d3m_assets.evaluation.audit import Finding
from d3m_assets.evaluation.metrics import CLASS_NAMES, D3M, RANDOM_REAL, VARIANTS, WHOLE_TRAIN
from d3m_assets.evaluation.scores import augmentation_robust_score, confusion_matrix, label_robust_score
from d3m_assets.evaluation.statistics import (
    LABEL_WORDS,
    Comparison,
    Part,
    budgeted_baselines,
    compare_all,
    headline,
    headlines,
    main_parts,
    part_words,
    parts,
    percent,
    significance_words,
    summarize,
)

LEDGER_COLUMNS = ("budget", "item", "scope", "kind", "bytes")
_FOR_SOME_ROWS = ("for soft labels", "for rejection")
_KINDS = {"stored", "regenerable", *_FOR_SOME_ROWS, "reference"}
MAX_CLASSES = 20
"""Classes shown in pictures and in the table by class; a thousand of them would make a file nobody opens."""
MAX_COLUMNS = 12
"""Columns of a table, so that it fits on a sheet of paper."""
MAX_CONFUSIONS = 10
"""Pairs of classes told of as confused."""
IMAGES_PER_SAMPLE = 8
_TILE = 32
_MAX_TILE = 64

# Colours of the plot on their way into the page's variables, so that it follows light and dark.
_INK, _FAINT, _OURS, _THEIRS = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--line)", _OURS: "var(--ours)", _THEIRS: "var(--theirs)"}
_SIGNS = {"better": "▲", "worse": "▼", "not distinguishable": "≈", "too few students": "?"}
_STYLES = {D3M: (_OURS, "o"), RANDOM_REAL: (_THEIRS, "s")}
_MARKERS = "D^vPX*<>"
_DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (2, 1)))


def render_report(
    metrics: pd.DataFrame,
    ledger: pd.DataFrame,
    samples: Mapping[str, Mapping[str, np.ndarray]],
    provenance: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    dataset: str = "",
    audits: Mapping[str, Mapping[str, Any]] | None = None,
    findings: Mapping[str, Sequence[Finding]] | None = None,
    agreement: Sequence[Mapping[str, Any]] = (),
    teacher_accuracy: float | None = None,
) -> str:
    """Render the report of one distillation.

    Args:
        metrics: Student rows of every method and budget
            (:func:`d3m_assets.evaluation.metrics.student_metrics`).
        ledger: Bytes, one row an item: ``budget`` (empty for all), ``item`` (words), ``scope`` ("class" or
            "shared"), ``kind`` ("stored", "regenerable", "for soft labels" or "for rejection" where only such
            rows need it or, for comparison only, "reference"), ``bytes`` (int, all classes together).
        samples: Example images, title to class name to uint8 ``[N, H, W, C]``; titles in the order shown, the
            first eight images of each class.
        provenance: Where it comes from, name to value; a mapping as value becomes a group of its own.
        class_names: Names of the classes by position.
        dataset: Name of the dataset.
        audits: Budget to summary of its audit (:class:`d3m_assets.evaluation.audit.Audit`) with ``class_name`` in each
            class and, where they were computed, the scores of :mod:`d3m_assets.evaluation.scores`; null for NaN.
        findings: Budget to what the audit's thresholds say of it.
        agreement: What a teacher says of the pool, one row a budget: budget, images, off_class (count), agrees and
            probability (fractions), least and least_class (the class with which it agrees least).
        teacher_accuracy: Of the teacher that rows ask, on the images that students are evaluated on, as a fraction.

    Returns:
        A complete HTML document. The same input gives the same text.

    Raises:
        StageError: If metrics were made by different recipes, are missing, or do not fit the classes; or if
            the ledger lacks a column.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    summary = summarize(metrics)
    if wrong := {len(a) for a in metrics["class_accuracy"]} - {len(class_names)}:
        raise StageError(f"metrics have {wrong.pop()} classes, the report {len(class_names)}; run `d3m distill`.")
    accounts = _ledger_groups(ledger)
    comparisons = compare_all(metrics)
    verdicts = headlines(comparisons)
    names = part_words(parts(metrics))
    shown = main_parts(metrics)
    environment = Environment(
        loader=PackageLoader("d3m_assets.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": byte_size, "percent": percent}
    return environment.get_template("report.html.j2").render(
        dataset=dataset,
        split=summary["split"].iloc[0],
        n_evaluated=int(summary["n_evaluated"].iloc[0]),
        n_classes=len(class_names),
        students=sorted(set(summary["n"])),
        distillations=int(summary["distillations"].max()),
        headline=verdicts[0],
        other_headlines=verdicts[1:],
        asides=[*_asides(metrics, summary), *_needed(ledger), *_teacher(teacher_accuracy)],
        cards=[_card(summary, comparison, names) for comparison in comparisons],
        against=_against(metrics, names),
        variants=_variants(metrics, names),
        groups=[{"title": names[part], "rows": part.of(summary).to_dict("records")} for part in names],
        ours=D3M,
        plots=[_plot(part.of(summary), names[part]) for part in shown],
        sample_titles=list(samples),
        sample_classes=_sample_classes(samples, class_names),
        n_hidden=max(0, len(class_names) - MAX_CLASSES),
        class_table=_class_table(metrics, summary, class_names),
        confusion=_confusion(metrics, shown[0].of(summary), class_names),
        audits=_audit_rows(audits or {}, findings or {}),
        clean=bool(audits) and not any((findings or {}).values()),
        agreement=list(agreement),
        scores=_score_rows(audits or {}),
        label_scores=_label_scores(summary, comparisons),
        augmentation_scores=_augmentation_scores(summary),
        ledger=accounts,
        soft_labels=bool(set(_FOR_SOME_ROWS) & set(ledger["kind"])),
        recipe=_groups(_recipes(metrics)),
        provenance=_groups(provenance),
    )


def accuracy_plot(summary: pd.DataFrame) -> str:
    """Draw accuracy against bytes per class as an ``<svg>`` element whose colours are the page's variables.

    Methods with several byte counts become points with 95 % intervals; methods without one, and the whole train split,
    become horizontal lines.

    Args:
        summary: Rows of one part of the table, from :func:`d3m_assets.evaluation.statistics.summarize`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "d3m", "font.size": 10}
    points = summary[_at_budgets(summary)]
    with mpl.rc_context(style):
        names = list(dict.fromkeys(summary["method"]))
        # Beyond three, every line of the legend has its own height, so that the axes keep theirs.
        figure = Figure(figsize=(5.4, 3.8 + 0.22 * max(0, math.ceil(len(names) / 2) - 3)), layout="constrained")
        axes = figure.subplots()
        others = itertools.cycle(_MARKERS)
        for name, rows in points.groupby("method", sort=False):
            colour, marker = _STYLES.get(str(name)) or (_INK, next(others))
            x, y = rows["bytes_per_class"].to_numpy(float), rows["mean"].to_numpy(float) * 100
            error = rows["half_width"].fillna(0).to_numpy(float) * 100
            axes.errorbar(
                x, y, np.vstack([error, np.minimum(error, 100 - y)]), color=colour, label=name, capsize=3,
                marker=marker, markersize=6, linewidth=1.8 if name in _STYLES else 1, elinewidth=1.2,
            )  # fmt: skip
        for i, row in enumerate(summary[~_at_budgets(summary)].to_dict("records")):
            dash = _DASHES[i % len(_DASHES)]
            axes.axhline(row["mean"] * 100, color=_INK, linewidth=1.3, linestyle=dash, label=row["method"])
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
        entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(
            [entries[n] for n in names], names, loc="outside lower center", ncols=2, frameon=False,
            labelcolor=_INK, handlelength=2.6,
        )  # fmt: skip
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def byte_size(count: float) -> str:
    """Write a number of bytes for people: "64 B", "83.0 kB", "4.2 MB"; decimal units, and nothing for NaN."""
    if math.isnan(count):
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 10 * size or (count >= size and unit != "kB"):
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B" if float(count).is_integer() else f"{count:,.1f} B"


def ledger_totals(ledger: pd.DataFrame) -> pd.DataFrame:
    """Add up what has to be stored or sent, with and without the parts that all classes share.

    Args:
        ledger: As for :func:`render_report`.

    Returns:
        One row a budget: budget, classes (bytes of the classes), everything (with shared parts, those of all
        budgets included).

    Raises:
        StageError: If a column is missing, or a scope or kind is unknown.
    """
    if missing := [c for c in LEDGER_COLUMNS if c not in ledger.columns]:
        raise StageError(f"the ledger lacks the columns {', '.join(missing)}; see render_report.")
    for column, known in (("scope", {"class", "shared"}), ("kind", _KINDS)):
        if unknown := sorted(set(ledger[column]) - known):
            raise StageError(f"ledger {column} {unknown[0]!r} is none of {', '.join(sorted(known))}; correct it.")
    stored = ledger[ledger["kind"] == "stored"]
    rows = []
    for budget in dict.fromkeys(b for b in stored["budget"] if b):
        here = stored[stored["budget"].isin([budget, ""])]
        classes = int(here.loc[here["scope"] == "class", "bytes"].sum())
        rows.append({"budget": budget, "classes": classes, "everything": int(here["bytes"].sum())})
    return pd.DataFrame(rows, columns=["budget", "classes", "everything"])


def _at_budgets(summary: pd.DataFrame) -> pd.Series:
    return (summary["budget"] != "") & summary["bytes_per_class"].gt(0)


def _recipes(metrics: pd.DataFrame) -> dict[str, Any]:
    """The recipe that all rows share, what other networks have of their own, and how each kind of soft labels was made."""
    found: dict[str, Any] = {}
    names = part_words(parts(metrics))
    for part, words in names.items():
        recipe = json.loads(part.of(metrics)["recipe"].iloc[0])
        soft = recipe.pop("labels", None)
        if not found:
            found["Recipe of every student"] = recipe
        own = {k: v for k, v in recipe.items() if v != found["Recipe of every student"].get(k)}
        if own:
            found[f"Recipe of students: {words}"] = own
        if soft:
            found[LABEL_WORDS[part.labels]] = soft
    return found


def _asides(metrics: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    asides = []
    if against_names := compare_all(metrics, reference=CLASS_NAMES):
        asides.append("Is learning worth more than naming the class? " + headline(against_names))
    reached, images = [], 0
    for part, words in part_words(main_parts(metrics)).items():
        own = part.of(summary)
        for row in own[own["method"] == WHOLE_TRAIN].to_dict("records"):
            images, kind = row["n_train_images"], f" ({words[0].lower()}{words[1:]})" if words else ""
            reached.append(f"{percent(row['mean'])} %{kind}")
    if reached:
        asides.append(f"The whole train split, {images:,} images, reaches {', '.join(reached)}.")
    return asides


def _teacher(accuracy: float | None) -> list[str]:
    """A sentence about the teacher: trained by another recipe, it is no row of the table."""
    if accuracy is None:
        return []
    return [f"The teacher itself, one network trained by a recipe of its own, reaches {percent(accuracy)} %."]


def _needed(ledger: pd.DataFrame) -> list[str]:
    """What some rows need that all classes share, and that the bytes of a class therefore do not show."""
    shared = ledger[ledger["kind"].isin(_FOR_SOME_ROWS) & (ledger["scope"] == "shared")]
    return [
        f"Rows that ask the {item} also need the {item} itself, {byte_size(size)} beside the bytes of the classes."
        for item, size in zip(shared["item"], shared["bytes"], strict=True)
    ]


def _card(summary: pd.DataFrame, comparison: Comparison, names: Mapping[Part, str]) -> dict[str, Any]:
    own = comparison.part.of(summary)

    def row(method: str) -> dict[str, Any]:
        return dict(own[(own["method"] == method) & own["budget"].isin([comparison.budget, ""])].iloc[-1])

    return {
        "title": " · ".join(word for word in (comparison.budget, names[comparison.part]) if word),
        "outcome": comparison.outcome.replace(" ", "-"),
        "sign": _SIGNS[comparison.outcome],
        "verdict": comparison.verdict,
        "difference": _difference(comparison),
        "ours": row(D3M),
        "theirs": row(RANDOM_REAL),
    }


def _difference(comparison: Comparison) -> str:
    words = f"{comparison.difference * 100:+.1f} points"
    if not math.isnan(comparison.low):
        words += f" (95 % interval {comparison.low * 100:+.1f} to {comparison.high * 100:+.1f})"
    words = words.replace("-", "−")
    if math.isnan(comparison.p_value):
        return words
    return f"{words}; {significance_words([comparison])}: p = {comparison.p_corrected:.2g}"


def _against(metrics: pd.DataFrame, names: Mapping[Part, str]) -> list[dict[str, Any]]:
    """Differences to every method of equal bytes; empty when random real images are the only one, as the cards tell it."""
    others = budgeted_baselines(metrics)
    if others in ([], [RANDOM_REAL]):
        return []
    return _compared([(r, "", compare_all(metrics, reference=r)) for r in others], names, metrics)


def _variants(metrics: pd.DataFrame, names: Mapping[Part, str]) -> list[dict[str, Any]]:
    """Differences of rows that change one thing to the rows that they change it of."""
    pairs = [(method, reference) for method, reference in VARIANTS.items() if method in set(metrics["method"])]
    return _compared([(m, r, compare_all(metrics, method=m, reference=r)) for m, r in pairs], names, metrics)


def _compared(
    rows: Sequence[tuple[str, str, Sequence[Comparison]]], names: Mapping[Part, str], metrics: pd.DataFrame
) -> list[dict[str, Any]]:
    """A table for each part: a row for each name (and what it is against), a column for each budget."""
    every = [c for _, _, comparisons in rows for c in comparisons]
    order = list(dict.fromkeys(metrics.sort_values("bytes_per_class", kind="stable")["budget"]))
    tables = []
    for part in [part for part in names if part in {c.part for c in every}]:
        budgets = [b for b in order if b in {c.budget for c in every if c.part == part}]
        shown = []
        for name, against, comparisons in rows:
            cells = {c.budget: _cell(c) for c in comparisons if c.part == part}
            if cells:
                shown.append({"name": name, "against": against, "cells": [cells.get(b) for b in budgets]})
        seeds = sorted({c.n for c in every if c.part == part})
        test = significance_words([c for c in every if c.part == part])
        tables.append({"title": names[part], "budgets": budgets, "rows": shown, "n": seeds, "test": test})
    return tables


def _cell(comparison: Comparison) -> dict[str, str]:
    """Sign, difference and interval of a comparison, in points."""
    difference, low, high = (
        f"{100 * v:+.1f}".replace("-", "−") for v in (comparison.difference, comparison.low, comparison.high)
    )
    interval = "" if math.isnan(comparison.low) else f"{low} to {high}"
    return {"sign": _SIGNS[comparison.outcome], "difference": difference, "interval": interval}


def _plot(own: pd.DataFrame, title: str) -> dict[str, Any]:
    rows = own[~own["method"].isin(list(VARIANTS))]
    bottom = _bottom(rows)
    below = rows[rows["mean"] * 100 < bottom]
    told = [
        " at ".join(w for w in (r["method"], r["budget"]) if w) + f" {percent(r['mean'])} %"
        for r in below.to_dict("records")
    ]
    return {"title": title, "svg": accuracy_plot(rows), "alt": _plot_alt(rows), "below": told}


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


def _sample_classes(
    samples: Mapping[str, Mapping[str, np.ndarray]], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    shown = []
    for name in class_names[:MAX_CLASSES]:
        cells = []
        for title, by_class in samples.items():
            images = by_class.get(name)
            if images is None or not len(images):
                cells.append({"title": title, "image": "", "alt": f"no {title} of class {name}"})
                continue
            images = images[:IMAGES_PER_SAMPLE]
            alt = f"{len(images)} × {title}, class {name}"
            cells.append({"title": title, "image": _sheet(images), "alt": alt})
        shown.append({"name": name, "cells": cells})
    return shown


def _sheet(images: np.ndarray, columns: int = 4) -> str:
    """Lay images out with transparent gaps between them, as a PNG data URI.

    Small images are enlarged by whole factors, so that their pixels stay visible and browsers need not guess.
    """
    from PIL import Image

    pictures = [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]
    height, width = images.shape[1:3]
    factor = max(1, _TILE // max(height, width))
    size = (width * factor, height * factor)
    if max(height, width) > _MAX_TILE:
        shrink = _MAX_TILE / max(height, width)
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        pictures = [p.resize(size, Image.Resampling.BICUBIC) for p in pictures]
    else:
        pictures = [p.resize(size, Image.Resampling.NEAREST) for p in pictures]
    # Always room for a full sheet: every cell of the page then shows its images at one scale.
    gap = max(1, size[0] // 16)
    rows = IMAGES_PER_SAMPLE // columns
    mode = "LA" if images.shape[3] == 1 else "RGBA"
    sheet = Image.new(mode, (columns * (size[0] + gap) - gap, rows * (size[1] + gap) - gap))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.convert(mode), (i % columns * (size[0] + gap), i // columns * (size[1] + gap)))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _class_table(metrics: pd.DataFrame, summary: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """Mean accuracy by class, first the classes where our largest budget does worst; with many classes only those.

    Of the first network only, and of its students with augmentation.
    """
    first = parts(metrics)[0]
    same = (summary["architecture"] == first.architecture) & (summary["augmentation"] == first.augmentation)
    summary = summary[same & ~summary["method"].isin(list(VARIANTS))]
    columns = list(zip(summary["method"], summary["budget"], summary["labels"], strict=True))[:MAX_COLUMNS]
    means = {}
    for method, budget, labels in columns:
        own = first._replace(labels=labels).of(metrics)
        wanted = own[(own["method"] == method) & (own["budget"] == budget)]
        means[method, budget, labels] = np.mean(np.array(wanted["class_accuracy"].tolist(), float), axis=0)
    ours = [c for c in columns if c[0] == D3M] or columns
    order = _worst_first(means[ours[-1]])[:MAX_CLASSES]
    rows = [{"name": class_names[i], "values": [float(means[c][i]) for c in columns]} for i in order]
    shown = [(method, budget, "" if labels == "hard" else labels) for method, budget, labels in columns]
    return {
        "columns": shown,
        "rows": rows,
        "worst": len(class_names) > MAX_CLASSES,
        "left_out": max(0, len(summary) - MAX_COLUMNS),
        "by": " ".join(word for word in shown[columns.index(ours[-1])] if word),
    }


def _worst_first(accuracies: np.ndarray) -> list[int]:
    """Positions by accuracy, lowest first; classes without a test image last."""
    return [int(i) for i in np.argsort(np.nan_to_num(accuracies, nan=2.0), kind="stable")]


def _confusion(metrics: pd.DataFrame, summary: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any] | None:
    """What the students of our largest budget, in the first part of the table, take each class for; None where no row says."""
    if "confusion" not in metrics:
        return None
    ours = summary[summary["method"] == D3M]
    row = (ours if len(ours) else summary).iloc[-1]
    same = ["method", "budget", *Part._fields]
    chosen = metrics[(metrics[same] == row[same]).all(axis=1)]
    matrix = confusion_matrix(list(chosen["confusion"]), len(class_names))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    wrong = shares - np.diag(np.diag(shares))
    pairs = [divmod(int(p), len(class_names)) for p in np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]]
    worst = [
        {"class": class_names[a], "taken": class_names[b], "share": float(wrong[a, b]), "right": float(shares[a, a])}
        for a, b in pairs
        if wrong[a, b] > 0
    ]
    order = _worst_first(np.where(matrix.sum(1) > 0, np.diag(shares), np.nan))
    small = len(class_names) <= MAX_COLUMNS
    rows = [{"name": class_names[i], "values": [float(v) for v in shares[i]]} for i in order if matrix[i].sum()]
    name = " ".join(word for word in (row["method"], row["budget"]) if word)
    return {"of": name, "worst": worst, "names": list(class_names), "rows": rows if small else []}


def _audit_rows(
    audits: Mapping[str, Mapping[str, Any]], findings: Mapping[str, Sequence[Finding]]
) -> list[dict[str, Any]]:
    """One row a budget: shares, the class that varies least, and what was found."""
    rows = []
    for budget, summary in audits.items():
        spreads = [(c["spread"], c["class_name"]) for c in summary["classes"] if c["spread"] is not None]
        least = min(spreads, default=(math.nan, ""))
        found = [{"severity": f.severity, "text": f.text} for f in findings.get(budget, ())]
        rows.append({**summary, "budget": budget, "spread": least[0], "spread_class": least[1], "findings": found})
    return rows


def _score_rows(audits: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a budget with its scores and the class that is covered least; none where no audit has any."""
    rows = []
    for budget, summary in audits.items():
        if summary.get("coverage") is not None:
            covered = [(c["coverage"], c["class_name"]) for c in summary["classes"] if c["coverage"] is not None]
            least = min(covered, default=(math.nan, ""))
            rows.append({**summary, "budget": budget, "least": least[0], "least_class": least[1]})
    return rows


def _mean(summary: pd.DataFrame, method: str, budgets: Sequence[str], part: Part) -> float | None:
    own = part.of(summary)
    chosen = own.loc[(own["method"] == method) & own["budget"].isin(budgets), "mean"]
    return float(chosen.iloc[-1]) if len(chosen) else None


def _label_scores(summary: pd.DataFrame, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """DD-Ranking's label-robust score at every budget where all it is made of was measured, with the first network."""
    rows, first = [], parts(summary)[0]
    kinds = [part for part in main_parts(summary) if part.architecture == first.architecture]
    for budget in dict.fromkeys(c.budget for c in comparisons):
        at = [budget, ""]
        measured = [
            part for part in kinds if None not in (_mean(summary, D3M, at, part), _mean(summary, RANDOM_REAL, at, part))
        ]
        # Which labels "any" stands for is decided before accuracy is looked at: soft ones where there are some.
        hard = first._replace(labels="hard")
        used = next((part for part in measured if part.labels != "hard"), hard)
        full, ours = _mean(summary, WHOLE_TRAIN, [""], hard), _mean(summary, D3M, at, hard)
        ours_any, random_any = _mean(summary, D3M, at, used), _mean(summary, RANDOM_REAL, at, used)
        if full is None or ours is None or ours_any is None or random_any is None:
            continue
        found = label_robust_score(full_hard=full, synthetic_hard=ours, synthetic_any=ours_any, random_any=random_any)
        rows.append({"budget": budget, "labels": used.labels, "score": found.score, **found.ingredients})
    return rows


def _augmentation_scores(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """DD-Ranking's augmentation-robust score at every budget where students were also trained without augmentation."""
    rows, first = [], parts(summary)[0]
    plain = first._replace(augmentation="none")
    ours = plain.of(summary)
    for budget in ours.loc[ours["method"] == D3M, "budget"] if first != plain else ():
        values = [_mean(summary, method, [budget], part) for part in (first, plain) for method in (D3M, RANDOM_REAL)]
        if None not in values:
            names = ("synthetic_augmented", "random_augmented", "synthetic_plain", "random_plain")
            found = augmentation_robust_score(
                **{n: float(v) for n, v in zip(names, values, strict=True) if v is not None}
            )
            rows.append({"budget": budget, "score": found.score, **found.ingredients})
    return rows


def _ledger_groups(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    totals = {row["budget"]: row for row in ledger_totals(ledger).to_dict("records")}
    soft = ledger[ledger["kind"].isin(_FOR_SOME_ROWS)]
    for budget, total in totals.items():
        needed = soft[soft["budget"].isin([budget, ""])]
        total["soft"] = [
            {"item": item["item"], "bytes": total["everything"] + item["bytes"]} for item in needed.to_dict("records")
        ]
    groups = []
    for budget in [*dict.fromkeys(b for b in ledger["budget"] if b), ""]:
        items = ledger[ledger["budget"] == budget].to_dict("records")
        if items:
            groups.append({"budget": budget, "items": items, "total": totals.get(budget)})
    return groups


def _groups(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split a mapping into titled groups of words; values without a group come first, without a title."""
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    groups: list[tuple[str, Mapping[str, Any]]] = [("", plain)] if plain else []
    groups += [(k, v) for k, v in values.items() if isinstance(v, Mapping)]
    return [
        {"title": title, "items": {str(k).replace("_", " "): _words(v) for k, v in items.items()}}
        for title, items in groups
    ]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)
