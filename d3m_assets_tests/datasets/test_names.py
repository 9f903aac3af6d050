from __future__ import annotations

import unicodedata

import pytest

from d3m_assets.datasets import names as class_names
from d3m_assets.datasets.names import class_key, class_keys, natural
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
    real = class_names._hashed_key
    monkeypatch.setattr(class_names, "_hashed_key", lambda n, length: "same" if length == 6 else real(n, length))
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
    assert sorted(names, key=natural) == ["1", "2", "10", "a2", "a10", "b", "²"]
