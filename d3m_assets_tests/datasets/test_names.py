from __future__ import annotations

import unicodedata
from pathlib import PureWindowsPath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3m_assets.datasets import names as class_names
from d3m_assets.datasets.names import LONGEST_FOLDER, class_key, class_keys, folder_name, natural, normalized
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


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("tabby cat", "tabby cat"),
        ("日本 語", "日本 語"),
        ("100%_{x}", "100%_{x}"),
        ("100%2E", "100%252E"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("__MACOSX", "%5F_MACOSX"),
        ("..\\..\\x", "%2E.%5C..%5Cx"),
        ("C:x", "C%3Ax"),
        ("CON", "%43ON"),
        ("console", "console"),
        ("NUL.txt", "%4EUL.txt"),
        ("dot.", "dot%2E"),
        ("space ", "space%20"),
        ("\x1b[31m", "%1B[31m"),
        ("\u202egnp", "%E2%80%AEgnp"),
    ],
)
def test_a_folder_is_called_as_its_class_wherever_that_is_safe(name, folder):
    assert folder_name(name) == folder
    assert unquote(folder) == name


def test_a_name_is_as_long_as_its_normal_form():
    with pytest.raises(DatasetError, match="a name of 600 characters"):
        normalized("\u0958" * 300)  # one character that is two in NFC
    assert normalized(normalized("\u0958" * 200)) == normalized("\u0958" * 200)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("%~.: /CON25aE"), min_size=1), unique=True
    )
)
def test_folders_are_safe_and_as_different_as_their_names(names):
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for name, folder in zip(names, folders, strict=True):
        assert len(folder.encode()) <= LONGEST_FOLDER
        assert not set(folder) & set('<>:"/\\|?*\0') and folder[-1] not in ". "
        assert not PureWindowsPath(folder).is_reserved()
        assert unquote(folder) == name or "%~" in folder


def test_a_long_name_is_cut_and_stays_apart_from_its_like():
    names = ["x" * 400, "x" * 399, "語" * 300, "x" * 166 + "%~" + "0" * 32]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == 4
    assert all(len(folder.encode()) <= LONGEST_FOLDER for folder in folders)
    with pytest.raises(DatasetError, match="401 characters.*at most 400"):
        class_keys(["x" * 401])


def test_a_key_does_not_end_with_a_dot_which_windows_drops_from_a_folder():
    keys = class_keys(["7", "7.", "7.."])
    assert keys["7"] == "7"
    assert len(set(keys.values())) == 3
    assert not any(key.endswith(".") for key in keys.values())
