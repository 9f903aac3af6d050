"""Tables and values as files of artefacts."""

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd


def to_parquet(frame: pd.DataFrame, compression: Literal["snappy", "zstd"] = "snappy") -> bytes:
    """A table as a parquet file."""
    out = BytesIO()
    frame.to_parquet(out, index=False, compression=compression)
    return out.getvalue()


def from_parquet(content: bytes) -> pd.DataFrame:
    """Undo :func:`to_parquet`."""
    import pandas as pd

    return pd.read_parquet(BytesIO(content))


def to_json(value: Any) -> bytes:
    """A value as a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
