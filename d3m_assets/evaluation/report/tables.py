"""Tables of the report: plain rows and cells, which the template only has to lay out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from d3m_assets.evaluation.audit import Finding
from d3m_assets.evaluation.methods import D3M, RANDOM_REAL, VARIANTS, WHOLE_TRAIN
from d3m_assets.evaluation.scores import augmentation_robust_score, confusion_matrix, label_robust_score
from d3m_assets.evaluation.statistics import (
    Comparison,
    Part,
    budgeted_baselines,
    compare_all,
    main_parts,
    parts,
    significance_words,
)

MAX_CLASSES = 20
"""Classes shown in pictures and in the table by class; a thousand of them would make a file nobody opens."""

MAX_COLUMNS = 12
"""Columns of a table, so that it fits on a sheet of paper."""

MAX_CONFUSIONS = 10
"""Pairs of classes told of as confused."""

_SIGNS = {"better": "▲", "worse": "▼", "not distinguishable": "≈", "too few seeds": "?"}
_WORDS = _SIGNS | {"too few seeds": "too few seeds"}


def verdict_card(summary: pd.DataFrame, comparison: Comparison, names: Mapping[Part, str]) -> dict[str, Any]:
    """One comparison at large: verdict, difference, and the two rows that are compared.

    Args:
        summary: All rows, from :func:`d3m_assets.evaluation.statistics.summarize`.
        comparison: Of the distilled row with another.
        names: The parts of the table in words.
    """
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
        "theirs": row(comparison.reference),
    }


def _difference(comparison: Comparison) -> str:
    words = f"{comparison.difference * 100:+.1f} points"
    if not math.isnan(comparison.low):
        words += f" (95 % interval {comparison.low * 100:+.1f} to {comparison.high * 100:+.1f})"
    words = words.replace("-", "−")
    if math.isnan(comparison.p_value):
        return words
    return f"{words}; {significance_words([comparison])}: p = {comparison.p_corrected:.2g}"


def baseline_tables(metrics: pd.DataFrame, names: Mapping[Part, str]) -> list[dict[str, Any]]:
    """Differences to every method of equal bytes; empty when random real images are the only one, as the cards tell it."""
    others = budgeted_baselines(metrics)
    if others in ([], [RANDOM_REAL]):
        return []
    return _compared([(r, "", compare_all(metrics, reference=r)) for r in others], names, metrics)


def variant_tables(metrics: pd.DataFrame, names: Mapping[Part, str]) -> list[dict[str, Any]]:
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
        test = significance_words([c for c in every if c.part == part])
        tables.append({"title": names[part], "budgets": budgets, "rows": shown, "test": test})
    return tables


def _cell(comparison: Comparison) -> dict[str, str]:
    """Sign, difference and interval of a comparison, in points."""
    difference, low, high = (
        f"{100 * v:+.1f}".replace("-", "−") for v in (comparison.difference, comparison.low, comparison.high)
    )
    interval = "" if math.isnan(comparison.low) else f"{low} to {high}"
    return {"sign": _WORDS[comparison.outcome], "difference": difference, "interval": interval}


def detail_rows(metrics: pd.DataFrame) -> list[dict[str, str]]:
    """What was chosen for rows, such as the codec of coded images: one mapping a row of the table."""
    if "detail" not in metrics:
        return []
    told = metrics[metrics["detail"].fillna("") != ""]
    rows = told[["method", "budget", "labels", "detail"]].drop_duplicates()
    kinds = set(metrics["labels"])
    return [
        {
            "method": str(row["method"]),
            "budget": str(row["budget"]),
            "labels": "" if kinds == {"hard"} else str(row["labels"]),
            "words": str(row["detail"]),
        }
        for row in rows.to_dict("records")
    ]


def class_table(metrics: pd.DataFrame, summary: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
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


def confusion_table(metrics: pd.DataFrame, summary: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any] | None:
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


def audit_rows(
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


def score_rows(audits: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def label_scores(summary: pd.DataFrame, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
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


def augmentation_scores(summary: pd.DataFrame) -> list[dict[str, Any]]:
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
