"""From students to a verdict in words.

Intervals and tests see what changes with the seed of a student: initial weights, batches, augmentation, the draw of
random real images and, where the students' seeds are spread over several distillations, inversion and pool. The choice
of test images is not in them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from d3m_assets.errors import StageError
from d3m_assets.evaluation.methods import D3M, METHODS, RANDOM_REAL, VARIANTS
from d3m_assets.evaluation.settings import LABEL_KINDS, LabelKind

CONFIDENCE = 0.95
LABEL_WORDS: dict[str, str] = {
    "hard": "Hard labels", "soft stored": "Soft labels, stored", "soft teacher": "Soft labels from the teacher"
}  # fmt: skip
ARCHITECTURE_WORDS = {"convnet-3": "ConvNet-3", "resnet-18": "ResNet-18", "vit-small": "ViT"}
_COMMON = ("n_train_images", "images_per_class", "bytes_per_class", "steps", "n_evaluated")
Outcome = Literal["better", "worse", "not distinguishable", "too few students"]


class Part(NamedTuple):
    """A part of a table: rows are compared with rows of the same part only.

    Attributes:
        labels: Kind of labels that students are trained on.
        architecture: Network of the students.
        augmentation: What is done to their training images.
    """

    labels: LabelKind
    architecture: str
    augmentation: str

    def of(self, metrics: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table of students, or of its summary, that belong to this part."""
        return metrics[(metrics[list(self._fields)] == list(self)).all(axis=1)]


def parts(metrics: pd.DataFrame) -> list[Part]:
    """Parts of a table: hard labels first, otherwise in the order in which they appear."""
    found = metrics[list(Part._fields)].drop_duplicates().itertuples(index=False, name=None)
    return sorted((Part(*part) for part in found), key=lambda part: LABEL_KINDS.index(part.labels))


def main_parts(metrics: pd.DataFrame) -> list[Part]:
    """Parts that verdicts are about: those of the first row's augmentation."""
    return [part for part in parts(metrics) if part.augmentation == metrics["augmentation"].iloc[0]]


def part_words(found: list[Part]) -> dict[Part, str]:
    """What tells parts of a table from each other, such as "Hard labels, ResNet-18"; empty words for a single part."""
    words = {}
    for part in found:
        told = [
            LABEL_WORDS[part.labels] if {p.labels for p in found} != {"hard"} else "",
            ARCHITECTURE_WORDS.get(part.architecture, part.architecture) if len({p.architecture for p in found}) > 1 else "",
            "no augmentation" if len({p.augmentation for p in found}) > 1 and part.augmentation == "none" else "",
        ]  # fmt: skip
        words[part] = ", ".join(word for word in told if word)
    return words


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds.

    Args:
        metrics: Rows of :func:`d3m_assets.evaluation.metrics.student_metrics`, any number of methods and
            budgets.

    Returns:
        One row for each part of the table, method, budget and split; hard labels first, methods in the
        order of a report and budgets by bytes: mean and half_width (fractions; half the 95 % t-interval, NaN for a single
        student), n (students), distillations, n_train_images, images_per_class, bytes_per_class, steps, n_evaluated.

    Raises:
        StageError: If rows were trained by different recipes or evaluated on different splits.
    """
    check_equal_recipe(metrics)
    keys = ["method", "budget", *Part._fields, "split"]
    rows = []
    for key, students in metrics.groupby(keys, sort=False):
        mean, variance, n = _moments(students)
        half = _t_quantile(n - 1) * math.sqrt(variance / n) if n > 1 else math.nan
        first = students.iloc[0]
        # Where every student has a training set of its own, their sizes may differ.
        same = {c: students[c].mean() if c != "n_train_images" else round(students[c].mean()) for c in _COMMON}
        same |= {c: first[c] for c in ("steps", "n_evaluated")}
        drawn = students["distillation"].nunique()
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "mean": mean,
                "half_width": half,
                "n": n,
                "distillations": drawn,
                **same,
            }
        )
    order = {part: i for i, part in enumerate(parts(metrics))}
    rows.sort(key=lambda row: METHODS.index(row["method"]) if row["method"] in METHODS else len(METHODS))
    summary = pd.DataFrame(rows)
    summary["rank"] = pd.factorize(summary["method"])[0]
    summary["part"] = [order[Part(*row)] for row in summary[list(Part._fields)].itertuples(index=False, name=None)]
    summary = summary.sort_values(["part", "rank", "bytes_per_class"], kind="stable", ignore_index=True)
    return summary.drop(columns=["rank", "part"])


@dataclass(frozen=True)
class Comparison:
    """One method against another at one budget, trained on the same kind of labels.

    Attributes:
        method: The method in question.
        reference: What it is compared with.
        budget: Budget of the method.
        difference: Mean over seeds of the accuracy of the method minus that of the reference, as a fraction.
        low: Lower end of the 95 % interval of the difference; NaN with fewer than two seeds.
        high: Upper end.
        outcome: What the interval says.
        part: Part of the table that both belong to.
        n: Seeds that both have.
    """

    method: str
    reference: str
    budget: str
    difference: float
    low: float
    high: float
    outcome: Outcome
    part: Part
    n: int = 0

    @property
    def labels(self) -> LabelKind:
        """Kind of labels of both."""
        return self.part.labels

    @property
    def verdict(self) -> str:
        """The outcome in words, such as "not distinguishable from random real images"."""
        if self.outcome == "too few students":
            return f"too few students to compare with {self.reference}"
        return f"{self.outcome} {'from' if self.outcome == 'not distinguishable' else 'than'} {self.reference}"


def compare(
    metrics: pd.DataFrame, budget: str, *, method: str = D3M, reference: str = RANDOM_REAL, part: Part | None = None
) -> Comparison:
    """Compare two methods by the differences between students of the same seed: a paired t-test at 95 %.

    Students of one seed begin with the same weights and draw the same batches and augmentations.

    Args:
        metrics: Student rows.
        budget: Budget of the method; the reference is taken at the same budget, or without one if it has
            none.
        method: Method in question.
        reference: Method to compare with.
        part: Part of the table; the first by default.

    Raises:
        StageError: If either has no students, their recipes differ, or a seed has several students.
    """
    if part is None:
        if metrics.empty:
            raise StageError("there are no student metrics; run `d3m distill` to train students.")
        part = parts(metrics)[0]
    own = part.of(metrics)
    ours = own[(own["method"] == method) & (own["budget"] == budget)]
    theirs = own[(own["method"] == reference) & own["budget"].isin([budget, ""])]
    for name, students in ((method, ours), (reference, theirs)):
        if students.empty:
            raise StageError(
                f'no students of "{name}" at budget "{budget}" with {part.labels} labels; run `d3m distill` to train them.'
            )
        if students["seed"].duplicated().any():
            raise StageError(f'several students of "{name}" at budget "{budget}" have one seed; keep one of each.')
    check_equal_recipe(pd.concat([ours, theirs]))
    paired = ours.set_index("seed")["accuracy"] - theirs.set_index("seed")["accuracy"]
    differences = paired.dropna().to_numpy(float)
    n = len(differences)
    if n < 2:
        difference = float(ours["accuracy"].mean() - theirs["accuracy"].mean())
        return Comparison(method, reference, budget, difference, math.nan, math.nan, "too few students", part, n)
    difference = float(differences.mean())
    variance = max(float(np.var(differences, ddof=1)), 2 * _rounding(ours))
    half = _t_quantile(n - 1) * math.sqrt(variance / n)
    low, high = difference - half, difference + half
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    return Comparison(method, reference, budget, difference, low, high, outcome, part, n)


def compare_all(metrics: pd.DataFrame, *, method: str = D3M, reference: str = RANDOM_REAL) -> list[Comparison]:
    """Compare in every main part of the table and at every budget at which both were run.

    Returns:
        Hard labels first, the smallest budget first; empty if there is nothing to compare.
    """
    found = []
    for part in main_parts(metrics) if len(metrics) else []:
        own = part.of(metrics)
        ours = own[own["method"] == method].sort_values("bytes_per_class", kind="stable")
        theirs = set(own.loc[own["method"] == reference, "budget"])
        budgets = [b for b in dict.fromkeys(ours["budget"]) if b in theirs or "" in theirs]
        found += [compare(metrics, b, method=method, reference=reference, part=part) for b in budgets]
    return found


def rivals(metrics: pd.DataFrame, *, method: str = D3M) -> list[str]:
    """Methods that were run within a budget of bytes as ``method`` was, in the order of a report; variants are not."""
    budgeted = metrics[
        (metrics["budget"] != "") & (metrics["method"] != method) & ~metrics["method"].isin(list(VARIANTS))
    ]
    found = list(dict.fromkeys(budgeted["method"]))
    return sorted(found, key=lambda m: METHODS.index(m) if m in METHODS else len(METHODS))


def headline(comparisons: list[Comparison]) -> str:
    """Say in words how a method does against one reference over its budgets, one sentence a part of the table."""
    return " ".join(headlines(comparisons))


def headlines(comparisons: list[Comparison]) -> list[str]:
    """The sentences of :func:`headline`, one for each part of the table."""
    if not comparisons:
        return ["Nothing to compare yet."]
    found = list(dict.fromkeys(c.part for c in comparisons))
    sentences = [_sentence([c for c in comparisons if c.part == part]) for part in found]
    words = part_words(found)
    if len(found) == 1 and not words[found[0]]:
        return [f"{sentences[0][0].upper()}{sentences[0][1:]}."]
    return [f"{words[part]}: {s}." for part, s in zip(found, sentences, strict=True)]


def _sentence(comparisons: list[Comparison]) -> str:
    groups: dict[Outcome, list[str]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.outcome, []).append(comparison.budget)
    first = comparisons[0].verdict
    if len(groups) == 1 and len(comparisons) > 1:
        return f"{first} at every budget"
    text = f"{first} at {_listing(groups.pop(comparisons[0].outcome))}"
    return "; ".join([text, *(f"{outcome} at {_listing(budgets)}" for outcome, budgets in groups.items())])


def check_equal_recipe(metrics: pd.DataFrame) -> None:
    """Refuse to put students into one table that differ in anything but their training set.

    Raises:
        StageError: Naming what differs, and between which rows.
    """
    if metrics.empty:
        raise StageError("there are no student metrics; run `d3m distill` to train students.")
    known = {text: _without_part(text) for text in metrics["recipe"].unique()}
    _check_equal(metrics.assign(recipe=metrics["recipe"].map(known)))
    for _, own in metrics.groupby(list(Part._fields), sort=False):
        _check_equal(own)


_OF_A_PART = ("labels", "architecture", "width", "learning_rate", "augmentation", "augmentation_limits", "cutmix")


def _without_part(recipe: str) -> str:
    """What of a recipe must be the same in all parts of a table; a network brings its own width and learning rate."""
    return json.dumps({k: v for k, v in json.loads(recipe).items() if k not in _OF_A_PART}, sort_keys=True)


def _check_equal(metrics: pd.DataFrame) -> None:
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
    """Lay out a summary as text for a terminal; its parts, where there are several, are told and set apart."""
    told = {
        c: summary[c]
        for c in Part._fields
        if summary[c].nunique() > 1 or (c == "labels" and set(summary[c]) != {"hard"})
    }
    table = pd.DataFrame(
        {
            **told,
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
    left = {*Part._fields, "method", "budget"}
    lines = [table.columns.tolist(), ["-" * w for w in widths], *table.to_numpy().tolist()]
    aligned = [
        [v.ljust(w) if c in left else v.rjust(w) for v, w, c in zip(line, widths, table.columns, strict=True)]
        for line in lines
    ]
    part = summary[list(Part._fields)]
    begins = part.ne(part.shift()).any(axis=1).tolist()
    text = ["  ".join(line) for line in aligned]
    for position in range(len(begins) - 1, 0, -1):
        if begins[position]:
            text.insert(position + 2, "")
    return "\n".join(text)


def percent(mean: float, half_width: float = math.nan) -> str:
    """Format a fraction and its half interval as percentages, "79.4 ± 1.3"."""
    return f"{mean * 100:.1f}" + ("" if math.isnan(half_width) else f" ± {half_width * 100:.1f}")


def _moments(students: pd.DataFrame) -> tuple[float, float, int]:
    """Mean, variance and count of the accuracies.

    Accuracy comes in steps of one test image, so three equal values do not mean no spread: the variance is
    never taken to be below that of the rounding.
    """
    values = students["accuracy"].to_numpy(float)
    variance = max(float(np.var(values, ddof=1)), _rounding(students)) if len(values) > 1 else math.nan
    return float(values.mean()), variance, len(values)


def _rounding(students: pd.DataFrame) -> float:
    """Variance of one accuracy that comes of counting whole images."""
    return (1 / float(students["n_evaluated"].iloc[0])) ** 2 / 12


def _t_quantile(freedom: float) -> float:
    from scipy import stats  # type: ignore[import-untyped]

    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _difference(a: str, b: str) -> str:
    left, right = json.loads(a), json.loads(b)
    keys = [k for k in left.keys() | right.keys() if left.get(k) != right.get(k)]
    return ", ".join(f"{k} {left.get(k)} and {right.get(k)}" for k in sorted(keys))
