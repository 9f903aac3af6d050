import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from d3m_assets.errors import StageError
from d3m_assets.evaluation.statistics import (
    MARGIN,
    Part,
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

OURS = [0.90, 0.91, 0.93]
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
        ([0.90, 0.92, 0.94], "not distinguishable from random real images"),
        ([0.60, 0.80, 0.99], "too few seeds to compare with random real images"),
        ([0.72, 0.68, 0.60], "better than random real images"),
        ([0.80, 0.65, 0.52], "too few seeds to compare with random real images"),  # +25 points, and yet
        ([0.97, 0.98, 0.99], "worse than random real images"),
        ([0.915, 0.925, 0.947], "worse than random real images"),  # overlapping, but below seed by seed
    ],
)
def test_verdicts_follow_the_paired_t_test(random, verdict):
    comparison = compare(_metrics(random), "ipc-1")
    assert comparison.verdict == verdict
    reference = stats.ttest_rel(OURS, random)
    interval = reference.confidence_interval(0.95)
    assert comparison.p_value == comparison.p_corrected == pytest.approx(reference.pvalue)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))
    assert (comparison.outcome in ("better", "worse")) == (reference.pvalue <= 0.05)
    if reference.pvalue > 0.05:
        within = -MARGIN <= interval.low <= 0 <= interval.high <= MARGIN
        assert comparison.outcome == ("not distinguishable" if within else "too few seeds")
    assert comparison.n == 3


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
    rows = [_metrics([0.885, 0.885, 0.915])]
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
    assert significance_words(every) == "paired t-test, 95 %, Holm-corrected for 6 comparisons"
    assert significance_words([single]) == "paired t-test, 95 %"
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


def test_students_are_paired_by_seed_whatever_their_order():
    ours, theirs = student_rows("D3M", "ipc-1", OURS), student_rows(RANDOM, "ipc-1", [0.7, 0.8, 0.75])
    wanted = compare(pd.concat([ours, theirs]), "ipc-1")
    assert compare(pd.concat([ours, theirs.iloc[::-1]]), "ipc-1") == wanted
    part = compare(pd.concat([ours, theirs.iloc[1:]]), "ipc-1")
    assert part.n == 2
    assert part.difference == pytest.approx(np.mean([0.91 - 0.8, 0.93 - 0.75]))
    assert compare(pd.concat([ours, theirs.assign(seed=[7, 8, 9])]), "ipc-1").outcome == "too few seeds"
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
    assert lines[2].split() == ["D3M", "ipc-1", "60", "10", "91.3", "±", "3.8", "3"]
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


def test_a_comparison_takes_the_mean_difference_of_each_distillation():
    random = np.array([0.80, 0.84, 0.82, 0.90, 0.78, 0.86, 0.84, 0.88])
    metrics = pd.concat([_nested("D3M", NESTED), student_rows(RANDOM, "ipc-1", random)])
    comparison = compare(metrics, "ipc-1")
    ours = np.array(NESTED).T.ravel()
    blocks = (ours - random).reshape(2, 4).mean(axis=0)  # seeds 0 and 4 are of distillation 0
    reference = stats.ttest_1samp(blocks, 0)
    interval = reference.confidence_interval(0.95)
    assert comparison.n == 4
    assert comparison.difference == pytest.approx(blocks.mean())
    assert comparison.p_value == pytest.approx(reference.pvalue)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))
    # The same for a reference that is nested as well, and the other way round.
    both = pd.concat([_nested("D3M", NESTED), _nested(RANDOM, random.reshape(2, 4).T)])
    assert compare(both, "ipc-1").p_value == pytest.approx(reference.pvalue)
    turned = compare(metrics, "ipc-1", method=RANDOM, reference="D3M")
    assert (turned.difference, turned.p_value) == pytest.approx((-comparison.difference, comparison.p_value))


def test_false_alarms_stay_at_five_percent_where_distillations_vary():
    """Distillations that differ by 3 points and students by 1: paired by student, half of all tests would be wrong."""
    draw = np.random.default_rng(0)
    wrong, naive = 0, 0
    for _ in range(80):
        ours = 0.8 + np.repeat(draw.normal(0, 0.03, (4, 1)), 4, axis=1) + draw.normal(0, 0.01, (4, 4))
        theirs = 0.8 + draw.normal(0, 0.01, 16)
        metrics = pd.concat([_nested("D3M", ours), student_rows(RANDOM, "ipc-1", theirs)])
        wrong += compare(metrics, "ipc-1").p_value < 0.05
        naive += stats.ttest_rel(np.array(ours).T.ravel(), theirs).pvalue < 0.05
    assert wrong <= 10 and naive > 16


def test_how_many_seeds_would_do_follows_from_the_spread():
    metrics = _metrics([0.80, 0.65, 0.52])
    comparison = compare(metrics, "ipc-1")
    differences = np.array(OURS) - [0.80, 0.65, 0.52]
    n = comparison.seeds_needed

    def told(n):
        return stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n) <= differences.mean()

    assert n > 3 and told(n) and not told(n - 1)
    sentence = seeds_sentence([comparison])
    assert f"random real images at ipc-1 about {n} (now 3)" in sentence
    # A correction for more comparisons asks for more.
    among_many = pd.concat([metrics, *(student_rows(f"b{i}", "ipc-1", OURS, bytes_per_class=60) for i in range(9))])
    assert compare_all(among_many)[0].seeds_needed > n
    assert seeds_sentence(compare_all(_metrics([0.70, 0.72, 0.75]))) == ""
    one = pd.concat([student_rows("D3M", "ipc-1", [0.9]), student_rows(RANDOM, "ipc-1", [0.5])])
    assert "at ipc-1 at least 2 (now 1)" in seeds_sentence(compare_all(one))


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
