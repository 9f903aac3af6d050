from __future__ import annotations

import hashlib

import pytest

from d3m_assets.datasets import checks
from d3m_assets.datasets.problems import listed_names
from d3m_assets.errors import DatasetError


def test_the_side_of_an_image_depends_on_its_content_only():
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)]
    aside = checks.validation_part(digests, 0.2)
    assert 20 < sum(aside) < 60
    assert checks.validation_part(digests[50:], 0.2) == aside[50:]
    assert not any(checks.validation_part(digests, 0))


def test_a_class_is_not_set_aside_whole():
    assert checks.validation_part(["00" * 32, "01" * 32], 0.5) == [False, False]


def placed(split, name, path, sha256="x", pixels="p"):
    return checks.PlacedImage(split, name, path, sha256, pixels)


def test_one_image_may_stand_twice_in_a_class_but_not_in_two_places():
    twice = [placed("train", "a", "a/1"), placed("train", "a", "a/2")]
    (warning,) = checks.duplicates(twice)
    assert str(warning).startswith("a/1 = a/2 is the same image 2 times in train; ")
    assert (warning.severity, warning.class_name) == ("warning", "a")
    errors = [p for p in checks.duplicates([*twice, placed("train", "b", "b/1")]) if p.severity == "error"]
    assert [p.class_name for p in errors] == ["a", "b"]
    assert {str(p).partition(";")[0] for p in errors} == {"a/1 = b/1 is the same image in two classes"}
    found = checks.duplicates([*twice, placed("test", "a", "t/1")])
    assert [(p.severity, p.place) for p in found] == [("error", "a/1 = t/1"), ("warning", "a/1 = a/2")]
    assert "in train and test" in found[0].what
    assert checks.duplicates([placed("train", "a", "1"), placed("test", "b", "2", pixels="q")]) == []


def test_equal_pixels_in_other_files_are_told_apart_from_equal_files():
    (problem,) = checks.duplicates([placed("train", "a", "1.png"), placed("train", "a", "1.bmp", sha256="y")])
    assert "(other files, equal pixels)" in problem.what


def test_both_splits_have_the_same_classes():
    assert checks.lopsided_splits({"train": ["a"], "test": ["a"]}) == []
    (problem,) = checks.lopsided_splits({"train": ["a"], "test": ["a", "b"]})
    assert (problem.class_name, problem.severity) == ("b", "error")
    assert str(problem).startswith("test/b is in test/ but not in train/; add train/b/")


def test_so_many_unusable_images_are_a_fault_of_the_dataset():
    problems = [checks.unusable_image("a", f"file-{i}", "is empty") for i in range(checks.MOST_UNREADABLE)]
    checks.refuse_many_unusable("here", problems[1:])
    with pytest.raises(DatasetError, match="There may be more") as error:
        checks.refuse_many_unusable("here", problems)
    assert "file-19 is empty; replace or remove it" in str(error.value)
    assert "file-20 " not in str(error.value)
    assert listed_names([str(i) for i in range(30)]).endswith("and 10 more")
