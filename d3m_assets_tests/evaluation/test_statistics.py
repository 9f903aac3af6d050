import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from d3m_assets.errors import StageError
from d3m_assets.evaluation.statistics import (
    Part,
    check_equal_recipe,
    compare,
    compare_all,
    format_table,
    headline,
    percent,
    rivals,
    summarise,
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
    row = summarise(student_rows("D3M", "ipc-1", OURS)).iloc[0]
    interval = stats.t.interval(0.95, 2, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert row["mean"] == pytest.approx(np.mean(OURS))
    assert row["mean"] - row["half_width"] == pytest.approx(interval[0])
    assert row["n"] == 3


def test_summary_puts_our_method_first_and_budgets_by_bytes():
    summary = summarise(_metrics([0.7, 0.8, 0.75], [0.9, 0.9, 0.91]).iloc[::-1])
    assert summary["method"].tolist() == ["D3M", "D3M", RANDOM, RANDOM]
    assert summary["budget"].tolist() == ["ipc-1", "ipc-2"] * 2


def test_one_student_has_no_interval_and_no_verdict():
    metrics = pd.concat([student_rows("D3M", "ipc-1", [0.9]), student_rows(RANDOM, "ipc-1", [0.5, 0.5, 0.5])])
    assert math.isnan(summarise(metrics)["half_width"].iloc[0])
    assert compare(metrics, "ipc-1").verdict == "too few students to compare with random real images"


def test_equal_accuracies_still_have_the_spread_of_rounding():
    assert 0 < summarise(student_rows("D3M", "ipc-1", [1.0, 1.0, 1.0]))["half_width"].iloc[0] < 0.005


@pytest.mark.parametrize(
    ("random", "verdict"),
    [
        ([0.70, 0.72, 0.75], "better than random real images"),
        ([0.90, 0.92, 0.94], "not distinguishable from random real images"),
        ([0.60, 0.80, 0.99], "not distinguishable from random real images"),
        ([0.97, 0.98, 0.99], "worse than random real images"),
        ([0.915, 0.925, 0.947], "worse than random real images"),  # overlapping, but below seed by seed
    ],
)
def test_verdicts_follow_the_paired_t_test(random, verdict):
    comparison = compare(_metrics(random), "ipc-1")
    assert comparison.verdict == verdict
    reference = stats.ttest_rel(OURS, random)
    interval = reference.confidence_interval(0.95)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))
    assert (comparison.outcome == "not distinguishable") == (reference.pvalue > 0.05)
    assert comparison.n == 3


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
    assert compare(pd.concat([ours, theirs.assign(seed=[7, 8, 9])]), "ipc-1").outcome == "too few students"
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
    assert [(r.labels, r.method) for r in summarise(metrics).itertuples()] == [
        ("hard", "D3M"), ("hard", RANDOM), ("soft teacher", "D3M"), ("soft teacher", RANDOM)
    ]  # fmt: skip


def test_how_soft_labels_were_made_must_be_the_same_within_their_kind():
    check_equal_recipe(pd.concat([_soft("soft stored", 2.0), _soft("soft teacher", 3.0), _metrics(OURS)]))
    cooler = _soft("soft teacher", 1.0)
    with pytest.raises(StageError, match="recipe.*temperature"):
        check_equal_recipe(pd.concat([_soft("soft teacher"), cooler.assign(budget="ipc-2")]))


def test_every_method_within_a_budget_is_a_rival():
    more = [student_rows(m, b, OURS) for m, b in [("herding", "ipc-1"), ("whole train split", ""), ("new", "ipc-1")]]
    assert rivals(pd.concat([_metrics(OURS), *more])) == [RANDOM, "herding", "new"]


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
        summarise(mixed)
    with pytest.raises(StageError, match="steps 100 and 101"):
        compare(mixed, "ipc-1")
    validated = student_rows(RANDOM, "ipc-1", OURS).assign(split="validation")
    with pytest.raises(StageError, match="test, validation"):
        check_equal_recipe(pd.concat([student_rows("D3M", "ipc-1", OURS), validated]))
    with pytest.raises(StageError, match="no student metrics"):
        summarise(student_rows("D3M", "ipc-1", []))


def test_seeds_are_no_part_of_the_recipe():
    check_equal_recipe(pd.concat([student_rows("D3M", "", OURS, seeds=(0, 1)), student_rows(RANDOM, "", OURS)]))


def test_comparing_what_was_not_run_is_refused():
    with pytest.raises(StageError, match='no students of "random real images" at budget "ipc-1"'):
        compare(student_rows("D3M", "ipc-1", OURS), "ipc-1")


def test_table_for_the_terminal():
    lines = format_table(summarise(_metrics([0.7, 0.8, 0.75]))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["D3M", "ipc-1", "60", "10", "91.3", "±", "3.8", "3"]
    assert percent(0.5) == "50.0"
    soft = format_table(summarise(pd.concat([_metrics(OURS), _soft("soft teacher")]))).splitlines()
    assert soft[0].startswith("labels")
    assert soft[5].split()[:3] == ["soft", "teacher", "D3M"]


def test_training_sets_of_different_sizes_are_told_by_their_mean():
    rows = student_rows("D3M, off-class rejected", "ipc-1", [0.9, 0.91, 0.92])
    rows["n_train_images"], rows["images_per_class"] = [90, 95, 97], [9.0, 9.5, 9.7]
    found = summarise(rows).iloc[0]
    assert found["n_train_images"] == 94
    assert found["images_per_class"] == pytest.approx(9.4)


def test_parts_of_a_table_are_set_apart_in_the_terminal():
    both = pd.concat([_metrics([0.7, 0.72, 0.75]), _soft("soft teacher")], ignore_index=True)
    assert [len(block.splitlines()) for block in format_table(summarise(both)).split("\n\n")] == [4, 2]
    assert "\n\n" not in format_table(summarise(_metrics([0.7, 0.72, 0.75])))
