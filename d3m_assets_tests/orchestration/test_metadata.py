"""What a person sees of an artefact."""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from d3m_assets.orchestration.metadata import MAX_PNG_BYTES, MAX_TABLE_ROWS, describe, value
from d3m_assets.store import ArtefactKey, Spec, Store


def test_pictures_are_shown_inline_and_never_large() -> None:
    shown = value("samples_png", b"\x89PNG")
    assert isinstance(shown, dg.MarkdownMetadataValue)
    assert shown.value == "![samples](data:image/png;base64,iVBORw==)"

    refused = value("samples_png", bytes(MAX_PNG_BYTES + 1))
    assert isinstance(refused, dg.TextMetadataValue)
    assert refused.value == "not shown: 30,001 bytes, more than 30,000"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (3, 3),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (float("nan"), "nan"),
        (np.float64("inf"), "inf"),
        ("text", "text"),
        ((1, 2), dg.MetadataValue.json([1, 2])),
        ({"a": 1}, dg.MetadataValue.json({"a": 1})),
        (Path("/x"), dg.MetadataValue.path("/x")),
    ],
)
def test_values_become_what_the_ui_can_show(content: object, expected: object) -> None:
    assert value("label", content) == expected
    dg.AssetMaterialization("x", metadata={"label": value("label", content)})


def test_markdown_is_rendered() -> None:
    assert value("notes_md", "**x**") == dg.MetadataValue.md("**x**")


def test_long_tables_say_what_they_leave_out() -> None:
    frame = pd.DataFrame({"step": range(MAX_TABLE_ROWS + 7), "loss": 0.5})

    shown = value("losses", frame)

    assert isinstance(shown, dg.TableMetadataValue)
    assert len(shown.records) == MAX_TABLE_ROWS + 1
    assert shown.records[-1].data == {"step": "and 7 more rows", "loss": ""}
    dg.AssetMaterialization("x", metadata={"losses": shown})


def test_tables_keep_their_types() -> None:
    frame = pd.DataFrame({"name": ["a", "b"], "loss": [0.5, float("nan")], "n": [1, 2], "list": [[1], [2]]})

    shown = value("losses", frame)

    assert isinstance(shown, dg.TableMetadataValue)
    assert [column.type for column in shown.schema.columns] == ["string", "float", "int", "string"]
    assert shown.records[1].data == {"name": "b", "loss": "nan", "n": 2, "list": "[2]"}


@pytest.mark.parametrize(
    ("key", "label"),
    [
        (ArtefactKey("raw_dataset", "a"), "dagster/partition_row_count"),
        (ArtefactKey("class_catalog"), "dagster/row_count"),
    ],
)
def test_every_artefact_has_the_same_labels(tmp_path: Path, key: ArtefactKey, label: str) -> None:
    store = Store.open(tmp_path)
    manifest = store.write(key, Spec({}, {}, "1"), {"x.json": b"12345", "y.json": b"123"}, {})

    found = describe(store, key, manifest, {"rows": 4, "classes": 2})

    assert found == {
        label: 4,
        "classes": 2,
        "stored bytes": 8,
        "artefact fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "dagster/uri": store.uri(key),
    }
