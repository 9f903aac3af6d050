import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from d3m_assets.errors import StageError
from d3m_assets.evaluation.statistics import (
    MARGIN,
    Blocks,
    Part,
    _half_width,
    budgeted_baselines,
    check_equal_recipe,
    compare,
    compare_all,
    crossing_sentence,
    format_table,
    headline,
    holm,
    percent,
    seeds_sentence,
    significance_words,
    summarize,
    verdict,
    verdict_comparisons,
)
from d3m_assets_tests.evaluation.conftest import student_rows

OURS = [0.905, 0.912, 0.922]
RANDOM = "random real images"


def _metrics(*random_by_budget):
    parts = []
    for i, accuracies in enumerate(random_by_budget, start=1):
        parts.append(student_rows(RANDOM, f"ipc-{i}", accuracies, bytes_per_class=64 * i))
        parts.append(student_rows("D3M", f"ipc-{i}", OURS, bytes_per_class=60 * i))
    return pd.concat(parts, ignore_index=True)


def test_summary_is_the_t_interval_over_seeds():
    row = summarize(student_rows("D3M", "ipc-1", OURS)).iloc[0]
    interval = stats.t.interval(0.95, 2, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert row["mean"] == pytest.approx(np.mean(OURS))
    assert row["mean"] - row["half_width"] == pytest.approx(interval[0])
    assert row["n"] == 3


def test_summary_puts_our_method_first_and_budgets_by_bytes():
    summary = summarize(_metrics([0.7, 0.8, 0.75], [0.9, 0.9, 0.91]).iloc[::-1])
    assert summary["method"].tolist() == ["D3M", "D3M", RANDOM, RANDOM]
    assert summary["budget"].tolist() == ["ipc-1", "ipc-2"] * 2


def test_one_student_has_no_interval_and_no_verdict():
    metrics = pd.concat([student_rows("D3M", "ipc-1", [0.9]), student_rows(RANDOM, "ipc-1", [0.5, 0.5, 0.5])])
    assert math.isnan(summarize(metrics)["half_width"].iloc[0])
    assert compare(metrics, "ipc-1").verdict == "too few seeds to compare with random real images"


def test_equal_accuracies_still_have_the_spread_of_rounding():
    assert 0 < summarize(student_rows("D3M", "ipc-1", [1.0, 1.0, 1.0]))["half_width"].iloc[0] < 0.005


@pytest.mark.parametrize(
    ("random", "verdict"),
    [
        ([0.70, 0.72, 0.75], "better than random real images"),
        ([0.905, 0.91, 0.92], "not distinguishable from random real images"),
        ([0.60, 0.80, 0.99], "too few seeds to compare with random real images"),
        ([0.72, 0.68, 0.60], "better than random real images"),
        ([0.80, 0.65, 0.52], "too few seeds to compare with random real images"),  # +25 points, and yet
        ([0.97, 0.98, 0.99], "worse than random real images"),
        ([0.915, 0.925, 0.947], "too few seeds to compare with random real images"),  # below, but only seed by seed
    ],
)
def test_verdicts_follow_welchs_statistic_at_the_degrees_of_freedom_of_three(random, verdict):
    """With three blocks on both sides the two quantiles that are weighed are one."""
    comparison = compare(_metrics(random), "ipc-1")
    assert comparison.verdict == verdict
    statistic = stats.ttest_ind(OURS, random, equal_var=False).statistic
    p, error = 2 * stats.t.sf(abs(statistic), 2), (np.mean(OURS) - np.mean(random)) / statistic
    interval = comparison.difference + np.array([-1, 1]) * stats.t.ppf(0.975, 2) * error
    assert comparison.p_value == comparison.p_corrected == pytest.approx(p)
    assert (comparison.low, comparison.high) == pytest.approx(tuple(interval))
    assert (comparison.outcome in ("better", "worse")) == (p <= 0.05)
    if p > 0.05:
        within = -MARGIN <= interval[0] <= 0 <= interval[1] <= MARGIN
        assert comparison.outcome == ("not distinguishable" if within else "too few seeds")
    assert (comparison.blocks, comparison.units, comparison.paired) == ((3, 3), ("students", "students"), False)


def test_quantiles_are_weighed_by_the_variances_of_the_means():
    """Cochran and Cox's critical value, by hand, at the level that is told as p-value."""
    ours, random = [[0.90], [0.93], [0.95]], [0.80, 0.95, 0.71, 0.9, 0.86, 0.78, 0.88, 0.7]
    c = compare(pd.concat([_nested("D3M", ours), student_rows(RANDOM, "ipc-1", random)]), "ipc-1")
    w, v = np.var(ours, ddof=1) / 3, np.var(random, ddof=1) / 8

    def critical(level):
        return (w * stats.t.isf(level / 2, 2) + v * stats.t.isf(level / 2, 7)) / np.sqrt(w + v)

    assert (c.blocks, c.units) == ((3, 8), ("distillations", "students"))
    assert c.difference == pytest.approx(np.mean(ours) - np.mean(random))
    assert critical(c.p_value) == pytest.approx(c.difference)
    assert (c.low, c.high) == pytest.approx((c.difference - critical(0.05), c.difference + critical(0.05)))


def test_equal_means_and_no_spread_have_a_test():
    metrics = pd.concat([student_rows("D3M", "ipc-1", [0.9] * 3), student_rows(RANDOM, "ipc-1", [0.9] * 8)])
    equal = compare(metrics, "ipc-1")
    assert (equal.p_value, equal.outcome) == (1.0, "not distinguishable")
    apart = compare(metrics.assign(accuracy=[0.9] * 3 + [0.5] * 8), "ipc-1")
    assert apart.outcome == "better" and 0 < apart.p_value < 1e-4


def test_holm_by_hand():
    # 4 * 0.005, 3 * 0.011, 2 * 0.02, 0.04: the third and fourth are as large as the one before or larger.
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    # Never below the one before (0.03 after 0.045), never above 1, in the order given.
    assert holm([0.03, 0.6, 0.015]) == pytest.approx([0.06, 0.6, 0.045])
    assert holm([0.024, 0.02, 0.021]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    without_test = holm([0.01, math.nan, 0.04])
    assert without_test[0] == pytest.approx(0.02) and without_test[2] == pytest.approx(0.04)
    assert math.isnan(without_test[1])
    assert holm([]) == []


def _against_many(n):
    """A difference that one test at 95 % finds, and ``n`` methods that are as good as D3M."""
    rows = [_metrics([0.84, 0.85, 0.86])]
    rows += [
        student_rows(f"baseline {i}", "ipc-1", [0.9 + 0.001 * i, 0.92, 0.92], bytes_per_class=60) for i in range(n)
    ]
    return pd.concat(rows, ignore_index=True)


def test_a_verdict_is_that_of_all_comparisons_of_its_part():
    alone, among_many = _against_many(0), _against_many(5)
    assert compare_all(alone)[0].outcome == "better"
    (corrected,) = compare_all(among_many)
    assert corrected.outcome == "too few seeds"  # its interval leaves out 0, and yet it is one of six
    assert corrected.family_size == 6
    single = compare(among_many, "ipc-1")
    assert (corrected.p_value, corrected.low, corrected.high) == (single.p_value, single.low, single.high)
    assert corrected.low > 0 and corrected.p_value < 0.05
    assert corrected.p_corrected == pytest.approx(6 * corrected.p_value)
    every = [c for i in range(5) for c in compare_all(among_many, reference=f"baseline {i}")] + [corrected]
    assert [c.p_corrected for c in every] == pytest.approx(holm([c.p_value for c in every]))
    assert significance_words(every) == "Welch's t-test, Cochran-Cox, 95 %, Holm-corrected for 6 comparisons"
    assert significance_words([single]) == "Welch's t-test, Cochran-Cox, 95 %"
    # Another part of the table is another family.
    both = pd.concat([among_many, _soft("soft teacher")], ignore_index=True)
    assert [c.family_size for c in compare_all(both)] == [6, 1]
    assert compare_all(both)[0] == corrected


def test_variants_are_a_family_of_their_own():
    fresh = student_rows("D3M, fresh samples", "ipc-1", [0.92, 0.93, 0.95], bytes_per_class=60)
    equal = student_rows("D3M, equal IPC", "ipc-1", [0.95, 0.93, 0.95], bytes_per_class=60)
    metrics = pd.concat([_against_many(5), fresh, equal], ignore_index=True)
    assert compare_all(metrics)[0].family_size == 6
    assert compare_all(metrics, method="D3M, fresh samples", reference="D3M")[0].family_size == 2
    assert compare_all(metrics, method="D3M, equal IPC", reference=RANDOM)[0].family_size == 2
    # What no table tells stands by itself.
    assert compare_all(metrics, method="baseline 1", reference=RANDOM)[0].family_size == 1


def test_methods_without_budget_and_every_budget_count():
    metrics = pd.concat([_metrics([0.7, 0.7, 0.7], [0.9, 0.9, 0.9]), student_rows("whole train split", "", OURS)])
    assert [c.family_size for c in compare_all(metrics)] == [4, 4]
    one_student = student_rows("herding", "ipc-1", [0.9], bytes_per_class=60)
    assert [c.family_size for c in compare_all(pd.concat([metrics, one_student]))] == [4, 4]


def test_equal_students_are_not_distinguishable():
    comparison = compare(_metrics(OURS), "ipc-1")
    assert comparison.outcome == "not distinguishable"
    assert comparison.low < 0 < comparison.high


def test_only_a_variant_is_paired_with_the_distilled_row_that_it_varies():
    ours, fresh = student_rows("D3M", "ipc-1", OURS), student_rows("D3M, fresh samples", "ipc-1", [0.91, 0.93, 0.93])
    pair = {"method": "D3M, fresh samples", "reference": "D3M"}
    wanted = compare(pd.concat([ours, fresh]), "ipc-1", **pair)
    assert wanted.paired and wanted.p_value == pytest.approx(stats.ttest_rel([0.91, 0.93, 0.93], OURS).pvalue)
    assert compare(pd.concat([ours.iloc[::-1], fresh]), "ipc-1", **pair).p_value == pytest.approx(wanted.p_value)
    part = compare(pd.concat([ours, fresh.iloc[1:]]), "ipc-1", **pair)
    assert part.blocks == (2, 2)
    assert part.difference == pytest.approx(np.mean([0.93 - 0.912, 0.93 - 0.922]))
    assert significance_words([wanted]) == "paired t-test, 95 %"
    assert significance_words([wanted, compare(_metrics(OURS), "ipc-1")]).startswith("paired t-test or Welch's t-test")
    # Images of another origin have nothing to do with those of the same seed.
    theirs = student_rows(RANDOM, "ipc-1", [0.7, 0.8, 0.75])
    alone = compare(pd.concat([ours, theirs]), "ipc-1")
    other = compare(pd.concat([ours, theirs.assign(seed=[8, 7, 9])]), "ipc-1")
    assert (other.p_value, other.low) == pytest.approx((alone.p_value, alone.low))
    with pytest.raises(StageError, match="one seed"):
        compare(pd.concat([ours, theirs, theirs]), "ipc-1")


def _soft(kind, temperature=2.0, ours=OURS, random=(0.95, 0.96, 0.97)):
    """Rows of one kind of soft labels, as student_metrics gives them."""
    rows = pd.concat([student_rows("D3M", "ipc-1", ours), student_rows(RANDOM, "ipc-1", random)])
    labelled = [
        json.dumps(json.loads(r) | {"labels": {"kind": kind, "temperature": temperature}}) for r in rows["recipe"]
    ]
    return rows.assign(labels=kind, recipe=labelled)


def test_only_rows_with_the_same_labels_are_compared():
    metrics = pd.concat([_metrics([0.7, 0.72, 0.75]), _soft("soft teacher")], ignore_index=True)
    found = compare_all(metrics)
    assert [(c.labels, c.outcome) for c in found] == [("hard", "better"), ("soft teacher", "worse")]
    assert headline(found) == (
        "Hard labels: better than random real images at ipc-1. "
        "Soft labels from the teacher: worse than random real images at ipc-1."
    )
    alone = metrics[(metrics["labels"] == "hard") | (metrics["method"] == "D3M")]
    assert [c.labels for c in compare_all(alone)] == ["hard"]
    with pytest.raises(StageError, match='"random real images" at budget "ipc-1" with soft teacher labels'):
        compare(alone, "ipc-1", part=Part("soft teacher", "convnet-3", "affine"))
    assert [(r.labels, r.method) for r in summarize(metrics).itertuples()] == [
        ("hard", "D3M"), ("hard", RANDOM), ("soft teacher", "D3M"), ("soft teacher", RANDOM)
    ]  # fmt: skip


def test_how_soft_labels_were_made_must_be_the_same_within_their_kind():
    check_equal_recipe(pd.concat([_soft("soft stored", 2.0), _soft("soft teacher", 3.0), _metrics(OURS)]))
    cooler = _soft("soft teacher", 1.0)
    with pytest.raises(StageError, match="recipe.*temperature"):
        check_equal_recipe(pd.concat([_soft("soft teacher"), cooler.assign(budget="ipc-2")]))


def test_every_method_within_a_budget_is_a_baseline():
    more = [student_rows(m, b, OURS) for m, b in [("herding", "ipc-1"), ("whole train split", ""), ("new", "ipc-1")]]
    assert budgeted_baselines(pd.concat([_metrics(OURS), *more])) == [RANDOM, "herding", "new"]


def test_reference_without_budget_stands_for_all():
    metrics = pd.concat(
        [_metrics([0.7, 0.7, 0.7], [0.9, 0.9, 0.9]), student_rows("class-name prompts", "", [0.8, 0.81, 0.8])]
    )
    against = compare_all(metrics, reference="class-name prompts")
    assert [c.budget for c in against] == ["ipc-1", "ipc-2"]
    assert headline(against) == "Better than class-name prompts at every budget."


def test_headlines():
    better, same, worse = [0.7, 0.71, 0.7], OURS, [0.98, 0.98, 0.99]
    cases = {
        "Better than random real images at ipc-1; not distinguishable at ipc-2; worse at ipc-3.": (
            better,
            same,
            worse,
        ),
        "Not distinguishable from random real images at ipc-1 and ipc-3; better at ipc-2.": (
            same,
            better,
            same,
        ),
        "Worse than random real images at every budget.": (worse, worse),
        "Worse than random real images at ipc-1.": (worse,),
    }
    for text, random in cases.items():
        assert headline(compare_all(_metrics(*random))) == text
    assert headline([]) == "Nothing to compare yet."


def test_rows_of_different_recipes_or_splits_are_refused():
    mixed = pd.concat([student_rows("D3M", "ipc-1", OURS, steps=100), student_rows(RANDOM, "ipc-1", OURS, steps=101)])
    with pytest.raises(StageError, match=r'"D3M" ipc-1 and "random real images" ipc-1 .*steps 100 and 101'):
        summarize(mixed)
    with pytest.raises(StageError, match="steps 100 and 101"):
        compare(mixed, "ipc-1")
    validated = student_rows(RANDOM, "ipc-1", OURS).assign(split="validation")
    with pytest.raises(StageError, match="test, validation"):
        check_equal_recipe(pd.concat([student_rows("D3M", "ipc-1", OURS), validated]))
    with pytest.raises(StageError, match="no student metrics"):
        summarize(student_rows("D3M", "ipc-1", []))


def test_seeds_are_no_part_of_the_recipe():
    check_equal_recipe(pd.concat([student_rows("D3M", "", OURS, seeds=(0, 1)), student_rows(RANDOM, "", OURS)]))


def test_comparing_what_was_not_run_is_refused():
    with pytest.raises(StageError, match='no students of "random real images" at budget "ipc-1"'):
        compare(student_rows("D3M", "ipc-1", OURS), "ipc-1")


def test_table_for_the_terminal():
    lines = format_table(summarize(_metrics([0.7, 0.8, 0.75]))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["method", "budget", "bytes/class", "training", "images", "accuracy", "%", "students"]
    assert lines[2].split() == ["D3M", "ipc-1", "60", "10", "91.3", "±", "2.1", "3"]
    assert percent(0.5) == "50.0"
    soft = format_table(summarize(pd.concat([_metrics(OURS), _soft("soft teacher")]))).splitlines()
    assert soft[0].startswith("labels")
    assert soft[5].split()[:3] == ["soft", "teacher", "D3M"]


def test_table_is_as_wide_as_it_has_to_be_and_takes_names_as_they_are(monkeypatch):
    long = "[bold]a method[/bold] " + "with a long name " * 10 + ":smile:"
    rows = student_rows(long.strip(), "ipc-1", OURS)
    table = format_table(summarize(rows))
    assert long.strip() in table
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert format_table(summarize(rows)) == table
    assert "\x1b" not in table


def test_training_sets_of_different_sizes_are_told_by_their_mean():
    rows = student_rows("D3M, off-class rejected", "ipc-1", [0.9, 0.91, 0.92])
    rows["n_train_images"], rows["images_per_class"] = [90, 95, 97], [9.0, 9.5, 9.7]
    found = summarize(rows).iloc[0]
    assert found["n_train_images"] == 94
    assert found["images_per_class"] == pytest.approx(9.4)


def test_parts_of_a_table_are_set_apart_in_the_terminal():
    both = pd.concat([_metrics([0.7, 0.72, 0.75]), _soft("soft teacher")], ignore_index=True)
    assert [len(block.splitlines()) for block in format_table(summarize(both)).split("\n\n")] == [4, 2]
    assert "\n\n" not in format_table(summarize(_metrics([0.7, 0.72, 0.75])))


def _nested(method, accuracies, budget="ipc-1", **more):
    """Students whose seeds take the distillations in turn, as rows of the product do: one list a distillation."""
    together = np.array(accuracies).T
    rows = student_rows(method, budget, together.ravel(), **more)
    return rows.assign(distillation=[i % len(accuracies) for i in range(len(rows))])


NESTED = [[0.90, 0.92], [0.95, 0.95], [0.88, 0.90], [0.93, 0.95]]


def test_students_of_one_distillation_count_once():
    row = summarize(_nested("D3M", NESTED)).iloc[0]
    means = np.mean(NESTED, axis=1)
    interval = stats.t.interval(0.95, 3, loc=means.mean(), scale=stats.sem(means))
    assert (row["n"], row["blocks"], row["distillations"]) == (8, 4, 4)
    assert row["mean"] == pytest.approx(means.mean())
    assert (row["mean"] - row["half_width"], row["mean"] + row["half_width"]) == pytest.approx(interval)
    # Eight students as if each were of its own would promise too much.
    alone = summarize(student_rows("D3M", "ipc-1", np.ravel(NESTED))).iloc[0]
    assert alone["half_width"] < 0.7 * row["half_width"]


def test_a_variant_is_compared_by_the_mean_difference_of_each_distillation():
    fresh = np.array(NESTED) + [[0.01, 0.03], [0.02, 0.02], [-0.01, 0.02], [0.03, 0.01]]
    metrics = pd.concat([_nested("D3M", NESTED), _nested("D3M, fresh samples", fresh)])
    comparison = compare(metrics, "ipc-1", method="D3M, fresh samples", reference="D3M")
    reference = stats.ttest_1samp((fresh - NESTED).mean(axis=1), 0)
    interval = reference.confidence_interval(0.95)
    assert (comparison.blocks, comparison.units) == ((4, 4), ("distillations", "distillations"))
    assert comparison.p_value == pytest.approx(reference.pvalue)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))
    turned = compare(metrics, "ipc-1", method="D3M", reference="D3M, fresh samples")
    assert (turned.difference, turned.p_value) == pytest.approx((-comparison.difference, comparison.p_value))


def test_against_other_rows_the_means_of_distillations_are_the_sample():
    random = np.array([0.80, 0.84, 0.82, 0.90, 0.78, 0.86, 0.84, 0.88])
    metrics = pd.concat([_nested("D3M", NESTED), student_rows(RANDOM, "ipc-1", random)])
    means = student_rows("D3M", "ipc-1", np.mean(NESTED, axis=1))
    found, wanted = compare(metrics, "ipc-1"), compare(pd.concat([means, metrics.iloc[8:]]), "ipc-1")
    assert found.blocks == (4, 8)
    assert (found.p_value, found.low, found.high) == pytest.approx((wanted.p_value, wanted.low, wanted.high))
    turned = compare(metrics, "ipc-1", method=RANDOM, reference="D3M")
    assert (turned.difference, turned.p_value) == pytest.approx((-found.difference, found.p_value))
    pools = compare(
        pd.concat([_nested("D3M", NESTED), _nested("class-name prompts", NESTED, "")]),
        "ipc-1",
        reference="class-name prompts",
    )
    assert pools.units == ("distillations", "pools")


README_SPREADS = ([0.9, 0.9], [[6, 1.2, 1, 0.9, 1.5, 4, 0.3], [2.5, 0.5, 0.3, 0.4, 1.5, 4, 0.3]])
"""Points: of D3M at two budgets, and of the seven rows that it is compared with at each, in the README's order."""
SPREADS = {
    "of the README": README_SPREADS,
    "equal": ([1, 1], np.ones((2, 7))),
    "D3M varies more": ([3, 3], np.ones((2, 7))),
    "D3M varies less": ([0.5, 0.5], np.ones((2, 7))),
    "means vary alike": ([1, 1], np.full((2, 7), 1.8)),
}


def _found(draw, ours, spread, n, difference=0.0, times=4000, family=14):
    """Which of many comparisons of three blocks with n tell a difference, and which by Satterthwaite's degrees of freedom."""
    theirs = draw.normal(0, spread, (times, n))
    variances = ours.var(axis=1, ddof=1), theirs.var(axis=1, ddof=1)
    seen = np.abs(ours.mean(axis=1) + difference - theirs.mean(axis=1))
    welch = stats.ttest_ind(ours + difference, theirs, axis=1, equal_var=False).pvalue
    return seen > _half_width(variances, (3, n), 0.05 / family, False), welch < 0.05 / family


def _families(draw, spreads, n):
    """Whether each of many families of comparisons without a difference finds one: as told, and by Satterthwaite's degrees."""
    told, welch = np.zeros(4000, bool), np.zeros(4000, bool)
    for own, of_rivals in zip(*spreads, strict=True):
        ours = draw.normal(0, own, (4000, 3))
        for spread in of_rivals:
            found = _found(draw, ours, spread, n)
            told, welch = told | found[0], welch | found[1]
    return told.mean(), welch.mean()


@pytest.mark.parametrize("name", SPREADS)
@pytest.mark.parametrize("n", [4, 10])
def test_at_most_one_family_in_twenty_finds_a_difference_where_there_is_none(name, n):
    """Of Holm's steps only the first matters: where there is no difference, the smallest p-value decides."""
    told, _ = _families(np.random.default_rng(0), SPREADS[name], n)
    assert told <= 0.05


def test_satterthwaites_degrees_of_freedom_would_find_too_many():
    assert _families(np.random.default_rng(0), README_SPREADS, 10)[1] > 0.055


@pytest.mark.parametrize("spread", [6, 4])
def test_fifteen_points_are_told_with_the_spreads_of_the_readme(spread):
    """Against eight random or rendered sets; with three they are not."""
    draw = np.random.default_rng(0)
    ours = draw.normal(0, 0.9, (4000, 3))
    assert _found(draw, ours, spread, 8, difference=15)[0].mean() > 0.85
    assert _found(draw, ours, spread, 3, difference=15)[0].mean() < 0.5


def test_what_is_simulated_is_what_is_told():
    draw, outcomes = np.random.default_rng(1), set()
    for difference in (0.0, 0.06, 0.4):
        ours, theirs = draw.normal(0.6 + difference, 0.009, 3), draw.normal(0.6, 0.06, 8)
        rows = [_nested("D3M", ours[:, None]), student_rows(RANDOM, "ipc-1", theirs)]
        (told,) = compare_all(pd.concat(rows))
        variances = ours.var(ddof=1), theirs.var(ddof=1)
        wide = abs(ours.mean() - theirs.mean()) > _half_width(variances, (3, 8), 0.05, False)
        assert (told.outcome == "better") == wide
        outcomes.add(told.outcome)
    assert len(outcomes) > 1 and "better" in outcomes


def _against_random(ours, random):
    return pd.concat([_nested("D3M", [[a] for a in ours]), student_rows(RANDOM, "ipc-1", random)])


def test_how_many_more_are_needed_is_said_of_the_side_that_varies():
    wide, narrow = [0.95, 0.6, 0.8, 0.5], [0.80, 0.81, 0.80, 0.81]
    of_students = compare(_against_random([0.90, 0.91, 0.905], wide), "ipc-1")
    assert of_students.outcome == "too few seeds"
    n = of_students.blocks_needed.reference
    assert of_students.blocks_needed == Blocks(3, n) and n > 4
    assert of_students.lacking == "students"
    sentence = seeds_sentence([of_students])
    assert f"random real images at ipc-1 about {n} students of its own (now 4)" in sentence

    def told(n):
        half = _half_width(of_students.variances, (3, n), 0.05, False)
        return half < of_students.difference

    assert told(n) and not told(n - 1)
    of_distillations = compare(_against_random([0.95, 0.80, 0.85], narrow), "ipc-1")
    assert of_distillations.lacking == "distillations"
    more = of_distillations.blocks_needed.method
    assert more > 3
    assert f"about {more} distillations of D3M (now 3)." in seeds_sentence([of_distillations])
    assert of_distillations.blocks_needed.reference == 4
    # A correction for more comparisons asks for more.
    many = [student_rows(f"b{i}", "ipc-1", OURS, bytes_per_class=60) for i in range(9)]
    among = compare_all(pd.concat([_against_random([0.90, 0.91, 0.905], wide), *many]))[0]
    assert among.blocks_needed > of_students.blocks_needed


def test_pools_of_class_names_come_with_distillations():
    rows = [_nested("D3M", [[0.9], [0.95], [0.92]]), _nested("class-name prompts", [[0.7], [0.9], [0.8]], "")]
    needed = compare(pd.concat(rows), "ipc-1", reference="class-name prompts").blocks_needed
    assert needed.method == needed.reference > 3


def test_no_sentence_where_there_are_enough_and_another_where_the_spread_is_not_known():
    assert seeds_sentence(compare_all(_metrics([0.70, 0.72, 0.75]))) == ""
    one = pd.concat([student_rows("D3M", "ipc-1", [0.9]), student_rows(RANDOM, "ipc-1", [0.5])])
    (unknown,) = compare_all(one)
    assert (unknown.blocks_needed, unknown.lacking) == (None, "seeds")
    assert "at ipc-1 at least 2 students of D3M (now 1) and 2 students of its own (now 1)" in seeds_sentence([unknown])


def test_the_verdict_begins_with_coded_real_images_and_ends_with_what_needs_no_bytes():
    rows = [
        _metrics([0.7, 0.71, 0.7]),
        student_rows("coded real images", "ipc-1", [0.97, 0.98, 0.99], bytes_per_class=60),
        student_rows("rendered characters", "", [0.80, 0.81, 0.80]),
        student_rows("class-name prompts", "", [0.70, 0.71, 0.70]),
        student_rows("real images by herding", "ipc-1", [0.70, 0.71, 0.70]),
    ]
    sentences = verdict(pd.concat(rows, ignore_index=True))
    assert sentences == [
        "Worse than coded real images at ipc-1.",
        "Better than random real images at ipc-1.",
        "Better than class-name prompts at ipc-1.",
        "Better than rendered characters at ipc-1.",
    ]
    assert [c[0].family_size for c in verdict_comparisons(pd.concat(rows, ignore_index=True))] == [5] * 4
    assert verdict(student_rows("D3M", "ipc-1", OURS)) == ["Nothing to compare yet."]


def test_too_few_seeds_are_said_in_the_headline():
    found = compare_all(_metrics([0.80, 0.65, 0.52], [0.7, 0.71, 0.7]))
    assert headline(found) == "Too few seeds to compare with random real images at ipc-1; better at ipc-2."


def _curve(method, by_bytes):
    rows = [student_rows(method, f"{b}B", [a, a, a], bytes_per_class=b) for b, a in by_bytes.items()]
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize(
    ("coded", "words"),
    [
        (
            {16: 0.5, 64: 0.7, 256: 0.8},
            "D3M above coded real images from 64 B to 256 B, without a crossing",
        ),
        (
            {62: 0.95, 250: 0.97},
            "coded real images above D3M from 64 B to 256 B, without a crossing",
        ),
        # 0.8 against 0.7 at 64 B and 0.9 against 1.0 at 256 B: in the middle of the logarithm, 128 B.
        (
            {64: 0.7, 256: 1.0},
            "D3M above coded real images from 64 B, coded real images above D3M from about 128 B to 256 B, 1 crossing",
        ),
        (
            {64: 0.7, 128: 0.9, 256: 0.85},
            "D3M above coded real images from 64 B, coded real images above D3M from about 102 B, "
            "D3M above coded real images from about 181 B to 256 B, 2 crossings",
        ),
    ],
)
def test_the_crossing_is_named_in_words(coded, words):
    metrics = pd.concat([_curve("D3M", {64: 0.8, 256: 0.9}), _curve("coded real images", coded)])
    assert crossing_sentence(summarize(metrics)) == f"Mean accuracy against bytes of a class: {words}."


def test_without_a_common_range_no_crossing_is_named():
    ours = _curve("D3M", {64: 0.8})
    assert crossing_sentence(summarize(ours)) == ""
    assert crossing_sentence(summarize(pd.concat([ours, _curve("coded real images", {16: 0.5, 32: 0.6})]))) == ""
    names = student_rows("coded real images", "", OURS)
    assert crossing_sentence(summarize(pd.concat([ours, names]))) == ""
