"""From students to a verdict in words.

Intervals and tests see the students only: what changes with the seed (initial weights, batches, augmentation
and, for random real images, the draw). The choice of test images and a repeated distillation are not in them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from d3m_assets.errors import StageError
from d3m_assets.evaluation.metrics import D3M, METHODS, RANDOM_REAL

CONFIDENCE = 0.95
_COMMON = ("n_train_images", "images_per_class", "bytes_per_class", "steps", "n_evaluated")
Outcome = Literal["better", "worse", "not distinguishable", "too few students"]


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds.

    Args:
        metrics: Rows of :func:`d3m_assets.evaluation.metrics.student_metrics`, any number of methods and
            budgets.

    Returns:
        One row for each method, budget, label mode, architecture and split, methods in the order of a report
        and budgets by bytes: mean and half_width (fractions; half the 95 % t-interval, NaN for a single
        student), n (students), n_train_images, images_per_class, bytes_per_class, steps, n_evaluated.

    Raises:
        StageError: If rows were trained by different recipes or evaluated on different splits.
    """
    check_equal_recipe(metrics)
    keys = ["method", "budget", "labels", "architecture", "split"]
    rows = []
    for key, students in metrics.groupby(keys, sort=False):
        mean, variance, n = _moments(students)
        half = _t_quantile(n - 1) * math.sqrt(variance / n) if n > 1 else math.nan
        first = students.iloc[0]
        same = {c: first[c] for c in _COMMON}
        rows.append({**dict(zip(keys, key, strict=True)), "mean": mean, "half_width": half, "n": n, **same})
    rows.sort(key=lambda row: METHODS.index(row["method"]) if row["method"] in METHODS else len(METHODS))
    summary = pd.DataFrame(rows)
    summary["rank"] = pd.factorize(summary["method"])[0]
    summary = summary.sort_values(["rank", "bytes_per_class"], kind="stable", ignore_index=True)
    return summary.drop(columns="rank")


@dataclass(frozen=True)
class Comparison:
    """One method against another at one budget.

    Attributes:
        method: The method in question.
        reference: What it is compared with.
        budget: Budget of the method.
        difference: Mean accuracy of the method minus that of the reference, as a fraction.
        low: Lower end of the 95 % interval of the difference; NaN with fewer than two students on a side.
        high: Upper end.
        outcome: What the interval says.
    """

    method: str
    reference: str
    budget: str
    difference: float
    low: float
    high: float
    outcome: Outcome

    @property
    def verdict(self) -> str:
        """The outcome in words, such as "not distinguishable from random real images"."""
        if self.outcome == "too few students":
            return f"too few students to compare with {self.reference}"
        return f"{self.outcome} {'from' if self.outcome == 'not distinguishable' else 'than'} {self.reference}"


def compare(metrics: pd.DataFrame, budget: str, *, method: str = D3M, reference: str = RANDOM_REAL) -> Comparison:
    """Compare two methods by Welch's unequal-variance t-test at 95 %.

    Unpaired, since equal seeds share nothing that would make their students alike.

    Args:
        metrics: Student rows.
        budget: Budget of the method; the reference is taken at the same budget, or without one if it has
            none.
        method: Method in question.
        reference: Method to compare with.

    Raises:
        StageError: If either has no students, or their recipes differ.
    """
    ours = metrics[(metrics["method"] == method) & (metrics["budget"] == budget)]
    theirs = metrics[(metrics["method"] == reference) & metrics["budget"].isin([budget, ""])]
    for name, students in ((method, ours), (reference, theirs)):
        if students.empty:
            raise StageError(f'no students of "{name}" at budget "{budget}"; run `d3m distill` to train them.')
    check_equal_recipe(pd.concat([ours, theirs]))
    mean_a, variance_a, n_a = _moments(ours)
    mean_b, variance_b, n_b = _moments(theirs)
    difference = mean_a - mean_b
    if min(n_a, n_b) < 2:
        return Comparison(method, reference, budget, difference, math.nan, math.nan, "too few students")
    a, b = variance_a / n_a, variance_b / n_b
    freedom = (a + b) ** 2 / (a**2 / (n_a - 1) + b**2 / (n_b - 1))
    half = _t_quantile(freedom) * math.sqrt(a + b)
    low, high = difference - half, difference + half
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    return Comparison(method, reference, budget, difference, low, high, outcome)


def compare_all(metrics: pd.DataFrame, *, method: str = D3M, reference: str = RANDOM_REAL) -> list[Comparison]:
    """Compare at every budget at which both were run, smallest first; empty if there is none."""
    ours = metrics[metrics["method"] == method].sort_values("bytes_per_class", kind="stable")
    theirs = set(metrics.loc[metrics["method"] == reference, "budget"])
    budgets = [b for b in dict.fromkeys(ours["budget"]) if b in theirs or "" in theirs]
    return [compare(metrics, b, method=method, reference=reference) for b in budgets]


def headline(comparisons: list[Comparison]) -> str:
    """Say in one sentence how a method does against one reference over its budgets."""
    if not comparisons:
        return "Nothing to compare yet."
    groups: dict[Outcome, list[str]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.outcome, []).append(comparison.budget)
    first = comparisons[0].verdict
    everywhere = len(groups) == 1 and len(comparisons) > 1
    text = f"{first} {'at every budget' if everywhere else 'at ' + _listing(groups.pop(comparisons[0].outcome))}"
    if not everywhere:
        text = "; ".join([text, *(f"{outcome} at {_listing(budgets)}" for outcome, budgets in groups.items())])
    return f"{text[0].upper()}{text[1:]}."


def check_equal_recipe(metrics: pd.DataFrame) -> None:
    """Refuse to put students into one table that differ in anything but their training set.

    Raises:
        StageError: Naming what differs, and between which rows.
    """
    if metrics.empty:
        raise StageError("there are no student metrics; run `d3m distill` to train students.")
    first = metrics.iloc[0]
    for column, what in (("recipe", "recipe"), ("split", "split"), ("n_evaluated", "number of test images")):
        other = metrics[metrics[column] != first[column]]
        if len(other):
            row = other.iloc[0]
            values = first[column], row[column]
            detail = _difference(*values) if column == "recipe" else f"{values[0]}, {values[1]}"
            raise StageError(
                f'students of "{first["method"]}" {first["budget"]} and "{row["method"]}" {row["budget"]} '
                f"differ in their {what} ({detail}) and cannot share a table; run `d3m distill` to redo them."
            )


def format_table(summary: pd.DataFrame) -> str:
    """Lay out a summary as text for a terminal."""
    table = pd.DataFrame(
        {
            "method": summary["method"],
            "budget": summary["budget"],
            "bytes/class": ["" if math.isnan(b) else f"{b:,.0f}" for b in summary["bytes_per_class"]],
            "training images": [f"{n:,}" for n in summary["n_train_images"]],
            "accuracy %": [percent(m, h) for m, h in zip(summary["mean"], summary["half_width"], strict=True)],
            "students": summary["n"].astype(str),
        }
    )
    # pandas has no left-aligned text columns.
    widths = [max([len(c), *table[c].map(len)]) for c in table.columns]
    left = {"method", "budget"}
    lines = [table.columns.tolist(), ["-" * w for w in widths], *table.to_numpy().tolist()]
    aligned = [
        [v.ljust(w) if c in left else v.rjust(w) for v, w, c in zip(line, widths, table.columns, strict=True)]
        for line in lines
    ]
    return "\n".join("  ".join(line) for line in aligned)


def percent(mean: float, half_width: float = math.nan) -> str:
    """Format a fraction and its half interval as percentages, "79.4 ± 1.3"."""
    return f"{mean * 100:.1f}" + ("" if math.isnan(half_width) else f" ± {half_width * 100:.1f}")


def _moments(students: pd.DataFrame) -> tuple[float, float, int]:
    """Mean, variance and count of the accuracies.

    Accuracy comes in steps of one test image, so three equal values do not mean no spread: the variance is
    never taken to be below that of the rounding.
    """
    values = students["accuracy"].to_numpy(float)
    rounding = (1 / float(students["n_evaluated"].iloc[0])) ** 2 / 12
    variance = max(float(np.var(values, ddof=1)), rounding) if len(values) > 1 else math.nan
    return float(values.mean()), variance, len(values)


def _t_quantile(freedom: float) -> float:
    from scipy import stats  # type: ignore[import-untyped]

    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _difference(a: str, b: str) -> str:
    left, right = json.loads(a), json.loads(b)
    keys = [k for k in left.keys() | right.keys() if left.get(k) != right.get(k)]
    return ", ".join(f"{k} {left.get(k)} and {right.get(k)}" for k in sorted(keys))
