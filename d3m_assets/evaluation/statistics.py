"""From students to a verdict in words.

Intervals and tests see what changes with the seed of a student: initial weights, batches, augmentation, the choice of
real images and, where the students' seeds are spread over several distillations, inversion and pool. The choice of test
images is not in them.

Students of one distillation share its images and are not independent. So where a row has several distillations, the unit is
the distillation: its students are averaged, and intervals and tests are those of the means of distillations. These blocks are
independent, and nothing has to be assumed about how much of the spread comes from distillations and how much from students. A
row with one distillation, or with images chosen anew for every seed, has a block for each student.

Rows of different training sets are compared as independent samples of unequal variance. Students of one seed begin with the
same weights, but what they learn from different images hardly correlates; pairing them would take degrees of freedom, of which
three distillations leave two, and force a row that is cheap to measure to have as many students as one that is not. The
statistic is that of Welch (1947, Biometrika 34, 28-35), its critical value the one of Cochran and Cox (Experimental Designs,
1957, section 4.14): the quantiles of t at the blocks of either row, weighed by the variances of their means. With three blocks
against ten, Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2, 110-114) find some false difference in more than
5 % of families, since a variance of three blocks is often far too small; ``test_statistics.py`` shows both. Paired, by
distillation, are only a variant and the distilled row that it varies: both are made of the same vectors.

A table makes many comparisons, and one in twenty tests at 95 % finds a difference where there is none. Verdicts are therefore
those of p-values corrected by Holm's method over a family (:func:`compare_all`): within one part of the table, either all
comparisons of D3M with another method at any budget, or all comparisons of a variant with what it varies. The probability of
any false "better" or "worse" in a family is at most 5 %. Every place that tells a verdict takes it from there.

That no difference was found says little where a large one could not have been found. "Not distinguishable" is therefore
said only where the 95 % interval holds no difference and nothing beyond :data:`MARGIN`; everything else that is not
significant is "too few seeds", and :attr:`Comparison.blocks_needed` says how many would do, and of which row.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from d3m_assets.errors import StageError
from d3m_assets.evaluation.methods import CODED, D3M, HEADLINE, METHODS, RANDOM_REAL, VARIANTS
from d3m_assets.evaluation.settings import LABEL_KINDS, LabelKind
from d3m_assets.ledger import byte_size

CONFIDENCE = 0.95
MARGIN = 0.05
"""Differences of accuracy up to which two methods may be called not distinguishable."""
MOST_SEEDS = 1000
_FEW_STUDENTS = 30
"""Students of a rival that are rather trained than one thing more is distilled."""
_LEAST_EXPONENT = -100.0
"""Of p-values, which are not told apart below."""
_SHORT = 0.25
"""Doublings of bytes by which a coded set may be short of its budget."""
LABEL_WORDS: dict[str, str] = {
    "hard": "Hard labels",
    "soft stored": "Soft labels, stored",
    "soft teacher": "Soft labels from the teacher",
}
ARCHITECTURE_WORDS = {"convnet-3": "ConvNet-3", "resnet-18": "ResNet-18", "vit-small": "ViT"}
Outcome = Literal["better", "worse", "not distinguishable", "too few seeds"]


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
    distinct = metrics[list(Part._fields)].drop_duplicates().itertuples(index=False, name=None)
    return sorted((Part(*part) for part in distinct), key=lambda part: LABEL_KINDS.index(part.labels))


def main_parts(metrics: pd.DataFrame) -> list[Part]:
    """Parts that verdicts are about: those of the first row's augmentation."""
    return [part for part in parts(metrics) if part.augmentation == metrics["augmentation"].iloc[0]]


def part_words(of: Sequence[Part]) -> dict[Part, str]:
    """What tells parts of a table from each other, such as "Hard labels, ResNet-18"; empty words for a single part."""
    kinds, networks, augmentations = ({part[i] for part in of} for i in range(len(Part._fields)))
    words = {}
    for part in of:
        labels = LABEL_WORDS[part.labels] if kinds != {"hard"} else ""
        network = ARCHITECTURE_WORDS.get(part.architecture, part.architecture) if len(networks) > 1 else ""
        augmentation = "no augmentation" if len(augmentations) > 1 and part.augmentation == "none" else ""
        words[part] = ", ".join(word for word in (labels, network, augmentation) if word)
    return words


def summarize(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds.

    Args:
        metrics: Rows of :func:`d3m_assets.evaluation.metrics.student_metrics`, any number of methods and
            budgets.

    Returns:
        One row for each part of the table, method, budget and split; hard labels first, methods in the
        order of a report and budgets by bytes: mean and half_width (fractions; half the 95 % t-interval, NaN for a single
        student or distillation), n (students), blocks (independent means that the interval is of), distillations,
        n_train_images, images_per_class, bytes_per_class, steps, n_evaluated.

    Raises:
        StageError: If rows were trained by different recipes or evaluated on different splits.
    """
    check_equal_recipe(metrics)
    keys = ["method", "budget", *Part._fields, "split"]
    rows = []
    for key, students in metrics.groupby(keys, sort=False):
        blocks = _Students.of(str(key[0]), str(key[1]), students).by_block()
        mean, variance, n = float(np.mean(blocks)), _variance(blocks, students), len(blocks)
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "mean": mean,
                "half_width": _t_quantile(n - 1) * math.sqrt(variance / n) if n > 1 else math.nan,
                "n": len(students),
                "blocks": n,
                "distillations": students["distillation"].nunique(),
                # Where every student has a training set of its own, their sizes may differ.
                "n_train_images": round(students["n_train_images"].mean()),
                "images_per_class": students["images_per_class"].mean(),
                "bytes_per_class": students["bytes_per_class"].mean(),
                "steps": students["steps"].iloc[0],
                "n_evaluated": students["n_evaluated"].iloc[0],
            }
        )
    rows.sort(key=lambda row: _rank(row["method"]))
    summary = pd.DataFrame(rows)
    order = {part: i for i, part in enumerate(parts(metrics))}
    summary["rank"] = pd.factorize(summary["method"])[0]
    summary["part"] = [order[Part(*row)] for row in summary[list(Part._fields)].itertuples(index=False, name=None)]
    summary = summary.sort_values(["part", "rank", "bytes_per_class"], kind="stable", ignore_index=True)
    return summary.drop(columns=["rank", "part"])


def _rank(method: str) -> int:
    """Position of a method in a report; methods that it does not know follow the others."""
    return METHODS.index(method) if method in METHODS else len(METHODS)


class Blocks(NamedTuple):
    """Independent means of the two rows of a comparison: of distillations or pools where a row has several, else students."""

    method: int
    reference: int


@dataclass(frozen=True)
class Comparison:
    """One method against another at one budget, trained on the same kind of labels.

    Attributes:
        method: The method in question.
        reference: What it is compared with.
        budget: Budget of the method.
        difference: Mean accuracy of the method minus that of the reference, as a fraction.
        low: Lower end of the 95 % interval of this difference by itself; NaN where a row has a single block.
        high: Upper end.
        part: Part of the table that both belong to.
        blocks: Independent means of both; where they are paired, those that both have.
        units: What a block of either is: "distillations", "pools" or "students".
        variances: Of a block of either; where they are paired, of their differences, and 0.
        paired: Whether the blocks of one are compared with the same blocks of the other.
        p_value: Two-sided; NaN where a row has a single block.
        p_corrected: The p-value corrected for all comparisons of the family, which decides the outcome.
        family_size: Number of comparisons with a p-value in the family; 1 where it stands alone.
    """

    method: str
    reference: str
    budget: str
    difference: float
    low: float
    high: float
    part: Part
    blocks: Blocks
    units: tuple[str, str]
    variances: tuple[float, float]
    paired: bool
    p_value: float
    p_corrected: float
    family_size: int = 1

    @property
    def labels(self) -> LabelKind:
        """Kind of labels of both."""
        return self.part.labels

    @property
    def outcome(self) -> Outcome:
        """What the corrected test says, and whether its not finding a difference says anything."""
        if math.isnan(self.p_corrected):
            return "too few seeds"
        if self.p_corrected < 1 - CONFIDENCE:
            return "better" if self.difference > 0 else "worse"
        return "not distinguishable" if -MARGIN <= self.low <= 0 <= self.high <= MARGIN else "too few seeds"

    @property
    def verdict(self) -> str:
        """The outcome in words, such as "not distinguishable from random real images"."""
        if self.outcome == "too few seeds":
            return f"too few seeds to compare with {self.reference}"
        return f"{self.outcome} {'from' if self.outcome == 'not distinguishable' else 'than'} {self.reference}"

    @property
    def blocks_needed(self) -> Blocks | None:
        """Fewest blocks, none fewer than now, that would reach another outcome than "too few seeds".

        If difference and spread stay what they were, and the correction is the strictest of the family: so many would tell the
        difference from none, or that there is none beyond :data:`MARGIN`. Blocks of the method are as few as can be, since
        distillations are what costs, where up to 30 of the reference do. None: the spread is not known, or more than
        :data:`MOST_SEEDS` would be needed.
        """
        if math.isnan(self.low):
            return None
        strict = (1 - CONFIDENCE) / max(1, self.family_size)
        if self.paired or self.units[1] == "pools" or self.units == ("distillations", "distillations"):
            # Both have a block more for each distillation more.
            together = np.arange(max(self.blocks), MOST_SEEDS + 1)
            enough = self._tells(together, together, strict)
            return Blocks(*[int(together[enough][0])] * 2) if enough.any() else None
        ours = np.arange(self.blocks.method, MOST_SEEDS + 1)[:, None]
        for most in (_FEW_STUDENTS, MOST_SEEDS):
            theirs = np.arange(self.blocks.reference, max(most, self.blocks.reference) + 1)[None]
            found = np.argwhere(self._tells(ours, theirs, strict))
            if len(found):
                return Blocks(int(ours[found[0][0], 0]), int(theirs[0, found[0][1]]))
        return None

    def _tells(self, ours: np.ndarray, theirs: np.ndarray, strict: float) -> np.ndarray:
        """Whether so many blocks would tell the observed difference from none, or that there is none beyond the margin."""
        half, half_strict = (
            _half_width(self.variances, (ours, theirs), level, self.paired) for level in (1 - CONFIDENCE, strict)
        )
        size = abs(self.difference)
        return (half_strict < size) | ((size <= half) & (size + half <= MARGIN))

    @property
    def lacking(self) -> str:
        """What there is too little of, such as "distillations" or "distillations and students"; "seeds" where it is not known."""
        if self.blocks_needed is None:
            return "seeds"
        each = zip(self.units, self.blocks, self.blocks_needed, strict=True)
        return " and ".join(dict.fromkeys(unit for unit, now, needed in each if needed > now)) or "seeds"


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests by the step-down method of Holm (1979).

    "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 65-70. Of m values the
    smallest is multiplied by m, the next by m - 1 and so on, at most 1 and never less than the one before.

    Args:
        p_values: In any order; NaN where there was no test, which counts for nothing.

    Returns:
        Corrected p-values in the same order.
    """
    tested = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, highest = [math.nan] * len(p_values), 0.0
    for position, i in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - position) * p_values[i]))
        corrected[i] = highest
    return corrected


def compare(
    metrics: pd.DataFrame, budget: str, *, method: str = D3M, reference: str = RANDOM_REAL, part: Part | None = None
) -> Comparison:
    """Compare two methods by one test, not corrected: Welch's, or a paired one of a variant and what it varies.

    What a table or a sentence tells comes from :func:`compare_all`, which corrects for the other comparisons.

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
    rows = part.of(metrics)
    ours = rows[(rows["method"] == method) & (rows["budget"] == budget)]
    theirs = rows[(rows["method"] == reference) & rows["budget"].isin([budget, ""])]
    for name, students in ((method, ours), (reference, theirs)):
        if students.empty:
            raise StageError(
                f'no students of "{name}" at budget "{budget}" with {part.labels} labels; run `d3m distill` to train them.'
            )
    check_equal_recipe(pd.concat([ours, theirs]))
    return _test(_Students.of(method, budget, ours), _Students.of(reference, budget, theirs), budget, part)


def compare_all(metrics: pd.DataFrame, *, method: str = D3M, reference: str = RANDOM_REAL) -> list[Comparison]:
    """Compare in every main part of the table and at every budget at which both were run.

    P-values are corrected over the family that the pair belongs to in the part: D3M with every other method of the table
    but the variants, at every budget; or every variant with what it varies, at every budget. A pair that is in neither is
    corrected for its own budgets only.

    Returns:
        Hard labels first, the smallest budget first; empty if there is nothing to compare.

    Raises:
        StageError: If recipes of a part differ, or a seed has several students.
    """
    comparisons = []
    for part in main_parts(metrics) if len(metrics) else []:
        family = _family(part.of(metrics), part, (method, reference))
        comparisons += [c for c in family if (c.method, c.reference) == (method, reference)]
    return comparisons


def _family(rows: pd.DataFrame, part: Part, pair: tuple[str, str]) -> list[Comparison]:
    """All comparisons of the family that a pair belongs to, in one part of a table, with corrected p-values."""
    methods = list(dict.fromkeys(rows["method"]))
    with_others = [(D3M, other) for other in methods if other != D3M and other not in VARIANTS]
    of_variants = [(variant, varied) for variant, varied in VARIANTS.items() if variant in methods]
    pairs = next((pairs for pairs in (with_others, of_variants) if pair in pairs), [pair])
    check_equal_recipe(rows)
    ordered = rows.sort_values("bytes_per_class", kind="stable")
    students: dict[str, dict[str, _Students]] = {}
    for (name, budget), group in ordered.groupby(["method", "budget"], sort=False):
        students.setdefault(str(name), {})[str(budget)] = _Students.of(str(name), str(budget), group)
    family = []
    for method, reference in pairs:
        theirs = students.get(reference, {})
        for budget, ours in students.get(method, {}).items():
            if budget in theirs or "" in theirs:
                family.append(_test(ours, theirs.get(budget) or theirs[""], budget, part))
    corrected = holm([c.p_value for c in family])
    size = sum(not math.isnan(p) for p in corrected)
    return [replace(c, p_corrected=p, family_size=size) for c, p in zip(family, corrected, strict=True)]


@dataclass(frozen=True)
class _Students:
    """Students of one method at one budget: accuracy and distillation by seed, and the images they were evaluated on."""

    method: str
    accuracies: dict[int, float]
    distillations: dict[int, int]
    n_evaluated: int

    @classmethod
    def of(cls, method: str, budget: str, rows: pd.DataFrame) -> _Students:
        if rows["seed"].duplicated().any():
            raise StageError(f'several students of "{method}" at budget "{budget}" have one seed; keep one of each.')
        seeds = rows["seed"].tolist()
        accuracies = dict(zip(seeds, rows["accuracy"].tolist(), strict=True))
        distillations = dict(zip(seeds, rows["distillation"].tolist(), strict=True))
        return cls(method, accuracies, distillations, int(rows["n_evaluated"].iloc[0]))

    @property
    def unit(self) -> str:
        """What a block is, in words."""
        return "students" if not self.nested else "distillations" if self.method.startswith(D3M) else "pools"

    def rounding(self, blocks: int) -> float:
        """Variance of the mean of a block that comes of counting whole images."""
        return _rounding(self.n_evaluated) * blocks / len(self.accuracies)

    @property
    def nested(self) -> bool:
        """Whether students are of several distillations."""
        return len(set(self.distillations.values())) > 1

    def by_block(self) -> np.ndarray:
        """Means of independent blocks: of distillations where there are several, otherwise each student by itself."""
        if not self.nested:
            return np.array(list(self.accuracies.values()))
        return _block_means([self.distillations[seed] for seed in self.accuracies], list(self.accuracies.values()))


def _block_means(blocks: Sequence[int], values: Sequence[float]) -> np.ndarray:
    """Mean of the values of each block, in the order in which blocks appear."""
    return pd.Series(values, dtype=float).groupby(list(blocks), sort=False).mean().to_numpy()


def _test(ours: _Students, theirs: _Students, budget: str, part: Part) -> Comparison:
    """Two-sided test of a difference with its 95 % interval, over blocks."""
    paired = _is_paired(ours.method, theirs.method)
    if paired:
        sample = _differences(ours, theirs)
        blocks = Blocks(len(sample), len(sample))
        # A difference is rounded twice.
        spread = _variance_of(sample, ours.rounding(len(sample)) + theirs.rounding(len(sample)))
        difference, variances = float(sample.mean()) if len(sample) else math.nan, (spread, 0.0)
    else:
        samples = ours.by_block(), theirs.by_block()
        blocks = Blocks(len(samples[0]), len(samples[1]))
        difference = float(samples[0].mean() - samples[1].mean())
        variances = (
            _variance_of(samples[0], ours.rounding(blocks.method)),
            _variance_of(samples[1], theirs.rounding(blocks.reference)),
        )
    half = p = math.nan
    if min(blocks) > 1:
        half = float(_half_width(variances, blocks, 1 - CONFIDENCE, paired))
        p = _p_value(difference, variances, blocks, paired)
    return Comparison(
        method=ours.method,
        reference=theirs.method,
        budget=budget,
        difference=difference,
        low=difference - half,
        high=difference + half,
        part=part,
        blocks=blocks,
        units=(ours.unit, theirs.unit),
        variances=variances,
        paired=paired,
        p_value=p,
        p_corrected=p,
    )


def _is_paired(method: str, reference: str) -> bool:
    """Whether one of the two is a variant of the other as distilled: then they are of the same vectors."""
    return D3M in (method, reference) and (VARIANTS.get(method) == reference or VARIANTS.get(reference) == method)


def _differences(ours: _Students, theirs: _Students) -> np.ndarray:
    """Mean differences of the distillations that both have; of the students that both have where there is one distillation."""
    seeds = [seed for seed in ours.accuracies if seed in theirs.accuracies]
    by_seed = [ours.accuracies[seed] - theirs.accuracies[seed] for seed in seeds]
    return _block_means([ours.distillations[seed] for seed in seeds], by_seed) if ours.nested else np.array(by_seed)


def _half_width(variances: tuple[float, float], blocks: Any, level: float, paired: bool) -> Any:
    """Critical value of a difference: half its interval at a level of significance, for any numbers of blocks of both."""
    from scipy import special  # type: ignore[import-untyped]

    ours, theirs = (variance / np.asarray(n) for variance, n in zip(variances, blocks, strict=True))
    of_ours, of_theirs = (-special.stdtrit(np.asarray(n) - 1, level / 2) for n in blocks)
    if paired:
        return of_ours * np.sqrt(ours)
    return (ours * of_ours + theirs * of_theirs) / np.sqrt(ours + theirs)


def _p_value(difference: float, variances: tuple[float, float], blocks: Blocks, paired: bool) -> float:
    """The level of significance at which a difference is as large as its critical value."""
    from scipy import optimize, stats

    if paired:
        return float(2 * stats.t.sf(abs(difference) / math.sqrt(variances[0] / blocks.method), blocks.method - 1))

    def beyond(exponent: float) -> float:
        return float(_half_width(variances, blocks, 10**exponent, paired)) - abs(difference)

    # A level of 1 has a critical value of 0.
    if beyond(_LEAST_EXPONENT) <= 0:
        return 10**_LEAST_EXPONENT
    return 1.0 if beyond(0.0) >= 0 else float(10 ** optimize.brentq(beyond, _LEAST_EXPONENT, 0.0, xtol=1e-12))


def _variance_of(blocks: np.ndarray, rounding: float) -> float:
    """Variance of blocks, never below that of counting whole images; NaN for fewer than two."""
    return max(float(np.var(blocks, ddof=1)), rounding) if len(blocks) > 1 else math.nan


def budgeted_baselines(metrics: pd.DataFrame, *, method: str = D3M) -> list[str]:
    """Methods that were run within a budget of bytes as ``method`` was, in the order of a report; variants are not."""
    budgeted = metrics[
        (metrics["budget"] != "") & (metrics["method"] != method) & ~metrics["method"].isin(list(VARIANTS))
    ]
    return sorted(dict.fromkeys(budgeted["method"]), key=_rank)


def significance_words(comparisons: Sequence[Comparison]) -> str:
    """How verdicts were reached, such as "Welch's t-test, Cochran-Cox, 95 %, Holm-corrected for 12 comparisons"."""
    tested = [c for c in comparisons if not math.isnan(c.p_value)]
    sizes = sorted({c.family_size for c in tested})
    names = dict.fromkeys("paired t-test" if c.paired else "Welch's t-test, Cochran-Cox" for c in tested or comparisons)
    test = f"{' or '.join(names)}, {CONFIDENCE:.0%}".replace("%", " %")
    if not sizes or sizes == [1]:
        return test
    return f"{test}, Holm-corrected for {' or '.join(str(size) for size in sizes)} comparisons"


def verdict_comparisons(metrics: pd.DataFrame) -> list[list[Comparison]]:
    """D3M against each method of the verdict that was measured, coded real images first: a list a method."""
    found = [compare_all(metrics, reference=reference) for reference in HEADLINE if reference in set(metrics["method"])]
    return [comparisons for comparisons in found if comparisons]


def verdict(metrics: pd.DataFrame) -> list[str]:
    """The verdict in sentences: first whether D3M is better than coded real images, where these were measured."""
    against = verdict_comparisons(metrics)
    return [sentence for comparisons in against for sentence in headlines(comparisons)] or headlines([])


def crossing_sentence(summary: pd.DataFrame, *, method: str = D3M, reference: str = CODED) -> str:
    """In words, from how many bytes a class on one method's mean accuracy is above another's, or that they do not cross.

    Between the bytes that were measured, accuracies are interpolated over the logarithm of bytes.

    Args:
        summary: Rows of one part of the table, from :func:`summarize`.
        method: In question.
        reference: Compared with it.

    Returns:
        Empty where they share no range of bytes.
    """
    curves = []
    for name in (method, reference):
        rows = summary[(summary["method"] == name) & (summary["budget"] != "")].sort_values("bytes_per_class")
        curves.append((np.log2(rows["bytes_per_class"].to_numpy(float)), rows["mean"].to_numpy(float)))
    (x, y), (reference_x, reference_y) = curves
    if not len(x) or not len(reference_x):
        return ""
    # A coded set is a few bytes short of its budget: it is known up to the budget of the method beside it.
    low, high = max(x[0], reference_x[0]), min(x[-1], reference_x[-1] + _SHORT)
    if low > high:
        return ""
    at = np.unique(np.concatenate([x, reference_x, [low, high]]))
    at = at[(low <= at) & (at <= high)]
    ahead = np.interp(at, x, y) - np.interp(at, reference_x, reference_y)
    leads, told = ahead > 0, []
    starts = [at[0]]
    for k in np.flatnonzero(leads[1:] != leads[:-1]):
        starts.append(at[k] + ahead[k] / (ahead[k] - ahead[k + 1]) * (at[k + 1] - at[k]))
    leader = bool(leads[0])
    for number, start in enumerate(starts):
        above, below = (method, reference) if leader else (reference, method)
        told.append(f"{above} above {below} from {'about ' if number else ''}{_rounded_bytes(start)}")
        leader = not leader
    end = "without a crossing" if len(starts) == 1 else f"{len(starts) - 1} crossing{'s' if len(starts) > 2 else ''}"
    return f"Mean accuracy against bytes of a class: {', '.join(told)} to {_rounded_bytes(at[-1])}, {end}."


def _rounded_bytes(power: float) -> str:
    return byte_size(float(round(2.0**power)))


def seeds_sentence(comparisons: Sequence[Comparison]) -> str:
    """How many distillations or students would do, and of which row, where there were too few; empty where there were enough."""
    told = [f"{c.reference} at {c.budget} {_needed_words(c)}" for c in comparisons if c.outcome == "too few seeds"]
    if not told:
        return ""
    return (
        "Where there are too few seeds, so many would tell the difference from none, or that there is none beyond "
        f"{MARGIN * 100:.0f} points, if difference and spread stay as they were: {'; '.join(told)}."
    )


def _needed_words(comparison: Comparison) -> str:
    """Such as "about 5 distillations of D3M (now 3) and 12 students of its own (now 8)"."""
    c, needed = comparison, comparison.blocks_needed
    if needed is None and min(c.blocks) > 1:
        return f"more than {MOST_SEEDS} (now {c.blocks.method} {c.units[0]} against {c.blocks.reference} {c.units[1]})"
    least = needed or Blocks(max(2, c.blocks.method), max(2, c.blocks.reference))
    sides = zip(least, c.units, (f"of {c.method}", "of its own"), c.blocks, strict=True)
    words = [f"{n} {unit} {whose} (now {now})" for n, unit, whose, now in sides if n > now]
    return f"{'about' if needed else 'at least'} {' and '.join(words)}"


def headline(comparisons: Sequence[Comparison]) -> str:
    """Say in words how a method does against one reference over its budgets, one sentence a part of the table."""
    return " ".join(headlines(comparisons))


def headlines(comparisons: Sequence[Comparison]) -> list[str]:
    """The sentences of :func:`headline`, one for each part of the table."""
    if not comparisons:
        return ["Nothing to compare yet."]
    compared = list(dict.fromkeys(c.part for c in comparisons))
    sentences = [_sentence([c for c in comparisons if c.part == part]) for part in compared]
    words = part_words(compared)
    if len(compared) == 1 and not words[compared[0]]:
        return [f"{sentences[0][0].upper()}{sentences[0][1:]}."]
    return [f"{words[part]}: {sentence}." for part, sentence in zip(compared, sentences, strict=True)]


def _sentence(comparisons: Sequence[Comparison]) -> str:
    budgets: dict[Outcome, list[str]] = {}
    for comparison in comparisons:
        budgets.setdefault(comparison.outcome, []).append(comparison.budget)
    first = comparisons[0]
    if len(budgets) == 1 and len(comparisons) > 1:
        return f"{first.verdict} at every budget"
    text = f"{first.verdict} at {_enumeration(budgets.pop(first.outcome))}"
    return "; ".join([text, *(f"{outcome} at {_enumeration(names)}" for outcome, names in budgets.items())])


def check_equal_recipe(metrics: pd.DataFrame) -> None:
    """Refuse to put students into one table that differ in anything but their training set.

    Raises:
        StageError: Naming what differs, and between which rows.
    """
    if metrics.empty:
        raise StageError("there are no student metrics; run `d3m distill` to train students.")
    shared = {text: _without_part(text) for text in metrics["recipe"].unique()}
    _check_equal(metrics.assign(recipe=metrics["recipe"].map(shared)))
    for _, rows in metrics.groupby(list(Part._fields), sort=False):
        _check_equal(rows)


_PART_KEYS = ("labels", "architecture", "width", "learning_rate", "augmentation", "augmentation_limits", "cutmix")


def _without_part(recipe: str) -> str:
    """What of a recipe must be the same in all parts of a table; a network brings its own width and learning rate."""
    return json.dumps({k: v for k, v in json.loads(recipe).items() if k not in _PART_KEYS}, sort_keys=True)


def _check_equal(metrics: pd.DataFrame) -> None:
    first = metrics.iloc[0]
    for column, what in (("recipe", "recipe"), ("split", "split"), ("n_evaluated", "number of test images")):
        other = metrics[metrics[column] != first[column]]
        if len(other):
            row = other.iloc[0]
            values = first[column], row[column]
            detail = _differing_keys(*values) if column == "recipe" else f"{values[0]}, {values[1]}"
            raise StageError(
                f'students of "{first["method"]}" {first["budget"]} and "{row["method"]}" {row["budget"]} '
                f"differ in their {what} ({detail}) and cannot share a table; run `d3m distill` to redo them."
            )


def format_table(summary: pd.DataFrame) -> str:
    """Lay out a summary as text for a terminal or a pipe, as wide as it has to be; a blank line separates its parts."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    named = [c for c in Part._fields if summary[c].nunique() > 1 or (c == "labels" and set(summary[c]) != {"hard"})]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in [*named, "method", "budget"]:
        table.add_column(name, no_wrap=True)
    for name in ("bytes/class", "training images", "accuracy %", "students"):
        table.add_column(name, no_wrap=True, justify="right")
    previous = None
    for row in summary.to_dict("records"):
        part = Part(*(row[c] for c in Part._fields))
        if previous not in (None, part):
            table.add_section()
        previous = part
        table.add_row(*(row[c] for c in named), row["method"], row["budget"], *_figures(row))
    # Rich would cut lines at the width of the terminal, 80 columns where there is none.
    text = io.StringIO()
    plain = {"color_system": None, "markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
    Console(file=text, width=10_000, force_terminal=False, **plain).print(table)  # type: ignore[arg-type]
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _figures(row: dict[Any, Any]) -> list[str]:
    """Bytes of a class, training images, accuracy and students of a row of a summary."""
    size = "" if math.isnan(row["bytes_per_class"]) else f"{row['bytes_per_class']:,.0f}"
    return [size, f"{row['n_train_images']:,}", percent(row["mean"], row["half_width"]), str(row["n"])]


def percent(mean: float, half_width: float = math.nan) -> str:
    """Format a fraction and its half interval as percentages, "79.4 ± 1.3"."""
    return f"{mean * 100:.1f}" + ("" if math.isnan(half_width) else f" ± {half_width * 100:.1f}")


def _variance(blocks: np.ndarray, students: pd.DataFrame) -> float:
    """Variance of the accuracies of blocks; NaN for a single one.

    Accuracy comes in steps of one test image, so three equal values do not mean no spread: the variance is
    never taken to be below that of the rounding.
    """
    rounding = _rounding(int(students["n_evaluated"].iloc[0])) * len(blocks) / len(students)
    return _variance_of(blocks, rounding)


def _rounding(n_evaluated: int) -> float:
    """Variance of one accuracy that comes of counting whole images."""
    return (1 / n_evaluated) ** 2 / 12


@lru_cache
def _t_quantile(freedom: int) -> float:
    from scipy import stats  # type: ignore[import-untyped]

    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))


def _enumeration(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _differing_keys(a: str, b: str) -> str:
    left, right = json.loads(a), json.loads(b)
    keys = [k for k in left.keys() | right.keys() if left.get(k) != right.get(k)]
    return ", ".join(f"{k} {left.get(k)} and {right.get(k)}" for k in sorted(keys))
