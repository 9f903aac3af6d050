"""What real images teach at numbers of bytes at which nothing is distilled."""

import shutil
from io import BytesIO

import pandas as pd
import pytest

from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import open_pipeline, run

KEY = ArtefactKey("frontier_metrics")
CHANGES = {
    "evaluation.baselines": "random,coded", "evaluation.reference_budgets": "24B,64B,ipc-2,192B",
    "teacher.steps": 40, "teacher.width": 4, "teacher.learning_rate": 0.02, "validation_fraction": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def frontier(finished, tmp_path_factory):
    root = tmp_path_factory.mktemp("frontier")
    shutil.copytree(finished, root, dirs_exist_ok=True)
    run(open_pipeline(root, root / "images", **CHANGES))
    return root


def test_further_budgets_are_measured_and_those_of_the_distillation_are_not_measured_twice(frontier):
    pipeline = open_pipeline(frontier, frontier / "images", **CHANGES)
    assert pipeline.plan().pending() == []
    rows = pd.read_parquet(BytesIO(pipeline.store.read(KEY, "metrics.parquet")))
    # ipc-1 is 64 B and ipc-3 is 192 B: both are distilled at.
    assert set(zip(rows["budget"], rows["method"], strict=True)) == {
        ("24B", "coded real images"), ("ipc-2", "coded real images"), ("ipc-2", "random real images"),
    }  # fmt: skip
    sizes = rows.groupby(["budget", "method"])["bytes_per_class"].first()
    assert sizes["24B", "coded real images"] <= 24
    assert sizes["ipc-2", "random real images"] == 128
    report = pd.read_parquet(BytesIO(pipeline.store.read(ArtefactKey("distillation_report"), "metrics.parquet")))
    assert {"24B", "ipc-1", "ipc-2", "ipc-3"} <= set(report["budget"])
    page = pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert "coded real images at 24B" in page
    assert "Mean accuracy against bytes of a class: " in page


def test_only_what_it_depends_on_makes_it_anew(frontier):
    def pending(**changes):
        plan = open_pipeline(frontier, frontier / "images", **CHANGES | changes).plan()
        return {e.key.asset for e in plan.pending()}

    assert pending(**{"evaluation.reference_budgets": "24B,ipc-2"}) == set()
    assert pending(**{"evaluation.reference_budgets": "24B"}) == {"frontier_metrics", "distillation_report"}
    assert "frontier_metrics" not in pending(**{"inversion.steps": 4})
    assert "frontier_metrics" in pending(**{"students.steps": 5})


def test_it_is_skipped_where_no_further_budget_holds_an_image(finished):
    def reason(**changes):
        pipeline = open_pipeline(finished, finished / "images", **changes)
        return {e.key.asset for e in pipeline.plan().entries}

    assert "frontier_metrics" not in reason()
    assert "frontier_metrics" not in reason(**{"evaluation.reference_budgets": "ipc-3"})
    assert "frontier_metrics" in reason(**{"evaluation.reference_budgets": "ipc-2"})
