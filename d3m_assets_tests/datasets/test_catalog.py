from __future__ import annotations

import pandas as pd
import pytest

from d3m_assets.datasets import catalog
from d3m_assets.datasets.catalog import assign_class_ids, class_catalog
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.errors import DatasetError


def test_ids_are_given_once():
    first = assign_class_ids(["10", "2", "1"])
    assert first["class_name"].tolist() == ["1", "2", "10"]
    assert first["class_id"].tolist() == [0, 1, 2]
    second = assign_class_ids(["3", "10", "2", "0"], first)
    assert dict(zip(second["class_name"], second["class_id"], strict=True)) == {
        "1": 0,
        "2": 1,
        "10": 2,
        "0": 3,
        "3": 4,
    }
    assert second.loc[~second["active"], "class_name"].tolist() == ["1"]
    third = assign_class_ids(["1"], second)
    assert third.loc[third["active"], "class_id"].tolist() == [0]
    assert len(third) == 5
    pd.testing.assert_frame_equal(assign_class_ids(["10", "0", "2", "3"], second), second)


def test_keys_stay_when_a_class_joins():
    first = assign_class_ids(["Cat", "Ｃａｔ"])
    second = assign_class_ids(["cat", "Cat", "Ｃａｔ", "CAT"], first)
    merged = first.merge(second, on="class_name", suffixes=("", "_after"))
    assert (merged["class_key"] == merged["class_key_after"]).all()
    assert second["class_key"].is_unique


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="class_key"), "lacks class_key"),
        (lambda table: table.assign(class_id=0), "repeats a class_id"),
    ],
)
def test_broken_previous_catalog_is_refused(change, message):
    with pytest.raises(DatasetError, match=message):
        assign_class_ids(["a"], change(assign_class_ids(["a", "b"])))


def test_catalog_of_a_scan(make_folder, tmp_path):
    root = make_folder("a", "b")
    scan = ImageFolder(root, validation_fraction=0.3).scan()
    table = class_catalog(scan)
    assert list(table.columns) == list(catalog.COLUMNS)
    assert (table["n_train"] + table["n_validation"]).tolist() == [6, 6]
    assert table["n_test"].tolist() == [2, 2]
    assert table["fingerprint"].tolist() == [images.fingerprint for images in scan.classes.values()]
    for split in ("train", "test"):
        (root / split / "a").rename(root / split / "c")
    table.to_parquet(tmp_path / "catalog.parquet")
    later = class_catalog(ImageFolder(root).scan(), pd.read_parquet(tmp_path / "catalog.parquet"))
    assert later["class_name"].tolist() == ["a", "b", "c"]
    assert later["active"].tolist() == [False, True, True]
    assert later["n_train"].tolist()[0] == 0
    assert later["fingerprint"].tolist()[0] == ""
