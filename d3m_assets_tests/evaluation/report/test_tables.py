import pandas as pd
import pytest

from d3m_assets.evaluation.report.tables import label_scores
from d3m_assets.evaluation.statistics import compare_all, summarize


def test_soft_labels_take_the_place_of_any_where_both_have_them(metrics):
    soft = metrics[(metrics["budget"] == "ipc-1") & metrics["method"].isin(["D3M", "random real images"])]
    both = pd.concat([metrics, soft.assign(labels="soft stored", accuracy=soft["accuracy"] - 0.1)])
    rows = label_scores(summarize(both), compare_all(metrics))
    assert {r["budget"]: r["labels"] for r in rows} == {"ipc-1": "soft stored", "ipc-5": "hard"}
    assert rows[0]["synthetic_any"] == pytest.approx(rows[0]["synthetic_hard"] - 0.1)
