from __future__ import annotations

import unicodedata

import pandas as pd
import pytest

from d3m_assets.datasets import catalog
from d3m_assets.datasets.catalog import assign_class_ids, class_catalog, class_key, class_keys
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.errors import DatasetError
from d3m_assets.store import ArtefactKey


@pytest.mark.parametrize("name", ["7", "cat", "n01440764", "a.b-c_d", "x" * 64, "con"])
def test_safe_names_are_their_own_keys(name):
    assert class_key(name) == name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Cat", "cat"),
        ("two words", "two-words"),
        ("a/b", "a-b"),
        ("a\u2215b", "a-b"),
        ("a\uff0fb", "a-b"),
        ("..", "class"),
        (".hidden", "hidden"),
        ("日本語", "class"),
        ("ﬁne", "fine"),
        ("Ｃａｔ", "cat"),
        (" ", "class"),
        ("a\nb", "a-b"),
        ("y" * 65, "y" * 57),
    ],
)
def test_other_names_get_a_stem_and_a_hash(name, stem):
    key = class_key(name)
    assert key.rpartition("-")[0] == stem
    assert len(key.rpartition("-")[2]) == 6
    assert ArtefactKey("raw_dataset", class_key=key)


def test_keys_are_fixed_for_ever():
    # Partition keys live in Dagster's storage and in folder names: these may not change.
    assert [class_key(name) for name in ("Cat", "two words", "日本語")] == [
        "cat-48735c",
        "two-words-a03f1d",
        "class-77710a",
    ]


def test_spellings_of_one_name_share_a_key():
    assert class_key(unicodedata.normalize("NFD", "é")) == class_key(unicodedata.normalize("NFC", "é"))


def test_names_that_differ_in_case_or_width_stay_apart():
    names = ["cat", "Cat", "CAT", "Ｃａｔ", "c at", "c-at"]
    assert len({key.casefold() for key in class_keys(names).values()}) == len(names)


def test_names_that_meet_are_kept_apart(monkeypatch):
    real = catalog._hashed_key
    monkeypatch.setattr(catalog, "_hashed_key", lambda n, length: "same" if length == 6 else real(n, length))
    keys = class_keys(["A", "B"])
    assert keys["A"] == "same"
    assert keys["B"] == real("B", 12)
    # A key given before stays, whatever joins.
    assert class_keys(["A", "B"], {"B": "same"}) == {"A": real("A", 12), "B": "same"}
    # So does a name that is safe, but was taken by another's hash.
    assert class_keys(["same"], {"A": "same"})["same"] == real("same", 12)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([""], "empty name"),
        (["caf\udce9"], "not valid UTF-8"),
        (["a", "a"], "same name"),
        ([unicodedata.normalize(f, "é") for f in ("NFC", "NFD")], "é; merge"),
    ],
)
def test_unusable_names_are_refused(names, message):
    with pytest.raises(DatasetError, match=message):
        class_keys(names)


def test_natural_order():
    names = ["10", "2", "a10", "a2", "1", "b", "²"]
    assert sorted(names, key=catalog.natural) == ["1", "2", "10", "a2", "a10", "b", "²"]


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
