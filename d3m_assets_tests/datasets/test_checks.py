from __future__ import annotations

import hashlib

import pytest

from d3m_assets.datasets import checks
from d3m_assets.errors import DatasetError


def test_the_side_of_an_image_depends_on_its_content_only():
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)]
    aside = checks.validation_part(digests, 0.2)
    assert 20 < sum(aside) < 60
    assert checks.validation_part(digests[50:], 0.2) == aside[50:]
    assert not any(checks.validation_part(digests, 0))


def test_a_class_is_not_set_aside_whole():
    assert checks.validation_part(["00" * 32, "01" * 32], 0.5) == [False, False]


def test_one_content_may_stand_twice_in_a_class_but_not_in_two_places():
    twice = [("train", "a", "a/1", "x"), ("train", "a", "a/2", "x")]
    checks.refuse_shared(twice)
    with pytest.raises(DatasetError, match=r"a/1 = b/1 \(in two classes\)"):
        checks.refuse_shared([*twice, ("train", "b", "b/1", "x")])
    with pytest.raises(DatasetError, match="in train and test"):
        checks.refuse_shared([*twice, ("test", "a", "t/1", "x")])


def test_both_splits_have_the_same_classes():
    checks.refuse_lopsided_splits("here", {"train": ["a"], "test": ["a"]})
    with pytest.raises(DatasetError, match=r"'b' in test/ but not in train/"):
        checks.refuse_lopsided_splits("here", {"train": ["a"], "test": ["a", "b"]})


def test_a_long_list_is_cut():
    with pytest.raises(DatasetError, match="There may be more") as error:
        checks.refuse_damaged([f"file-{i} is empty" for i in range(checks.MOST_PROBLEMS + 5)])
    assert f"file-{checks.MOST_PROBLEMS - 1} " in str(error.value)
    assert f"file-{checks.MOST_PROBLEMS} " not in str(error.value)
    assert checks.listed_names([str(i) for i in range(30)]).endswith("and 10 more")
