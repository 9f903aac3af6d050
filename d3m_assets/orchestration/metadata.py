"""From what the pipeline says about an artefact to metadata that a person can use in the UI.

Every event keeps its metadata in the database for ever, so previews and tables are capped here.
"""

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from d3m_assets.store import ArtefactKey, Manifest, Store

if TYPE_CHECKING:
    import pandas as pd

LABELS = {
    "loss_begin": "loss before the first step",
    "loss_best": "loss of the vectors kept",
    "payload_bytes": "bytes charged to the class",
    "bundle_bytes": "bytes of the bundle",
    "stop_reason": "stopped because of",
    "train": "train images",
    "validation": "validation images",
    "test": "test images",
}
"""What metrics are called in the UI, where their names are short; else by their name with spaces.

Dagster plots metadata by these labels over time and partitions, so a new one begins a new plot.
"""

MAX_PNG_BYTES = 30_000
MAX_TABLE_ROWS = 50


def describe(store: Store, key: ArtefactKey, manifest: Manifest, described: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a materialisation.

    Args:
        store: Where the artefact is.
        key: Which it is.
        manifest: Its commit record.
        described: From ``Planner.preview``: numbers, text, PNG bytes under ``*_png``, markdown under ``*_md``,
            tables as DataFrames, ``rows`` for the number of rows.

    Returns:
        Values by label; those of every artefact have the same labels, so that they can be plotted over partitions.
    """
    metadata = {_label(name): value(name, content) for name, content in described.items()}
    rows = metadata.pop("rows", None)
    if rows is not None:
        partitioned = key.class_key is not None or key.budget is not None
        metadata["dagster/partition_row_count" if partitioned else "dagster/row_count"] = rows
    return metadata | {
        "dagster/uri": store.uri(key),
        "stored bytes": manifest.bytes,
        "artefact fingerprint": manifest.fingerprint,
        "created": manifest.created,
    }


def _label(name: str) -> str:
    name = name.removesuffix("_png").removesuffix("_md")
    return LABELS.get(name, name.replace("_", " "))


def value(label: str, content: Any) -> Any:
    """One value as Dagster shows it best; what it cannot show becomes text."""
    import pandas as pd

    if isinstance(content, bytes):
        return png(label, content)
    if label.endswith("_md"):
        return dg.MetadataValue.md(str(content))
    if isinstance(content, pd.DataFrame):
        return table(content)
    if hasattr(content, "item") and getattr(content, "ndim", None) == 0:
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)  # JSON has no word for it, and the UI fails on the whole event
    if isinstance(content, bool | int | float | str) or content is None:
        return content
    if isinstance(content, Mapping):
        return dg.MetadataValue.json(dict(content))
    if isinstance(content, list | tuple):
        return dg.MetadataValue.json(list(content))
    if isinstance(content, Path):
        return dg.MetadataValue.path(content)
    return str(content)


def png(label: str, content: bytes) -> dg.MetadataValue:
    """An inline picture, or a line saying why it is not shown."""
    if len(content) > MAX_PNG_BYTES:
        return dg.MetadataValue.text(f"not shown: {len(content):,} bytes, more than {MAX_PNG_BYTES:,}")
    encoded = base64.b64encode(content).decode()
    return dg.MetadataValue.md(f"![{_label(label)}](data:image/png;base64,{encoded})")


def table(frame: "pd.DataFrame") -> dg.MetadataValue:
    """The first rows of a table; a last row says how many were left out."""
    head = frame.head(MAX_TABLE_ROWS)
    columns = [str(column) for column in frame.columns]
    records = [dg.TableRecord(dict(zip(columns, map(_cell, row), strict=True))) for row in head.itertuples(index=False)]
    if len(frame) > len(head) and columns:
        note = f"and {len(frame) - len(head)} more rows"
        records.append(dg.TableRecord({columns[0]: note, **dict.fromkeys(columns[1:], "")}))
    types = {"i": "int", "f": "float", "b": "bool"}
    kinds = ["string" if len(frame) > len(head) else types.get(frame[c].dtype.kind, "string") for c in frame.columns]
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in zip(columns, kinds, strict=True)])
    return dg.MetadataValue.table(records, schema=schema)


def _cell(content: Any) -> Any:
    if hasattr(content, "item") and getattr(content, "ndim", None) == 0:
        content = content.item()
    if isinstance(content, bool | int | str):
        return content
    return content if isinstance(content, float) and math.isfinite(content) else str(content)
