"""Bytes in words and sums: what a distilled set costs to store or to send."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from d3m_assets.errors import StageError

LEDGER_COLUMNS = ("budget", "item", "scope", "kind", "bytes")
"""Bytes, one row an item: ``budget`` (empty for all), ``item`` (words), ``scope`` ("class" or "shared"), ``kind`` ("stored",
"regenerable", one of :data:`FOR_SOME_ROWS` where only such rows need it or, for comparison only, "reference"), ``bytes``
(int, all classes together)."""

FOR_SOME_ROWS = ("for soft labels", "for rejection")
_KINDS = {"stored", "regenerable", *FOR_SOME_ROWS, "reference"}


def byte_size(count: float) -> str:
    """Write a number of bytes for people: "64 B", "83.0 kB", "4.2 MB"; decimal units, and nothing for NaN."""
    if math.isnan(count):
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 10 * size or (count >= size and unit != "kB"):
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B" if float(count).is_integer() else f"{count:,.1f} B"


def ledger_totals(ledger: pd.DataFrame) -> pd.DataFrame:
    """Add up what has to be stored or sent, with and without the parts that all classes share.

    Args:
        ledger: With :data:`LEDGER_COLUMNS`.

    Returns:
        One row a budget: budget, classes (bytes of the classes), everything (with shared parts, those of all
        budgets included).

    Raises:
        StageError: If a column is missing, or a scope or kind is unknown.
    """
    if missing := [c for c in LEDGER_COLUMNS if c not in ledger.columns]:
        raise StageError(f"the ledger lacks the columns {', '.join(missing)}; see LEDGER_COLUMNS.")
    for column, known in (("scope", {"class", "shared"}), ("kind", _KINDS)):
        if unknown := sorted(set(ledger[column]) - known):
            raise StageError(f"ledger {column} {unknown[0]!r} is none of {', '.join(sorted(known))}; correct it.")
    stored = ledger[ledger["kind"] == "stored"]
    rows = []
    for budget in dict.fromkeys(b for b in stored["budget"] if b):
        here = stored[stored["budget"].isin([budget, ""])]
        classes = int(here.loc[here["scope"] == "class", "bytes"].sum())
        rows.append({"budget": budget, "classes": classes, "everything": int(here["bytes"].sum())})
    return pd.DataFrame(rows, columns=["budget", "classes", "everything"])


def needed_by_some_rows(ledger: pd.DataFrame) -> list[str]:
    """What some rows need that all classes share, and that the bytes of a class therefore do not show."""
    shared = ledger[ledger["kind"].isin(FOR_SOME_ROWS) & (ledger["scope"] == "shared")]
    return [
        f"Rows that ask the {item} also need the {item} itself, {byte_size(size)} beside the bytes of the classes."
        for item, size in zip(shared["item"], shared["bytes"], strict=True)
    ]


def ledger_groups(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """The ledger by budget, what all budgets share last, each group with its totals (:func:`ledger_totals`)."""
    totals = {row["budget"]: row for row in ledger_totals(ledger).to_dict("records")}
    soft = ledger[ledger["kind"].isin(FOR_SOME_ROWS)]
    for budget, total in totals.items():
        needed = soft[soft["budget"].isin([budget, ""])]
        total["soft"] = [
            {"item": item["item"], "bytes": total["everything"] + item["bytes"]} for item in needed.to_dict("records")
        ]
    groups = []
    for budget in [*dict.fromkeys(b for b in ledger["budget"] if b), ""]:
        items = ledger[ledger["budget"] == budget].to_dict("records")
        if items:
            groups.append({"budget": budget, "items": items, "total": totals.get(budget)})
    return groups
