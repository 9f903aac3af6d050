import numpy as np
import pytest

from d3m_assets.evaluation.report.ledger_table import byte_size, ledger_totals


def test_ledger_totals_with_and_without_shared_parts(ledger):
    totals = ledger_totals(ledger).set_index("budget")
    assert totals.loc["ipc-1"].to_dict() == {"classes": 120, "everything": 4_000_120}
    assert totals.loc["ipc-5"].to_dict() == {"classes": 600, "everything": 4_000_600}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (64, "64 B"),
        (8300.8, "8,300.8 B"),
        (83_008, "83.0 kB"),
        (4_240_000, "4.2 MB"),
        (2e9, "2.0 GB"),
        (np.nan, ""),
    ],
)
def test_byte_size(count, text):
    assert byte_size(count) == text
