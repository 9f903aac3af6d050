import re

import pytest

from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.errors import StageError


def prompts(name="sea_lion", **changes):
    given = {"templates": ("a photo of a {}", "{} up close"), "initializer": None, "keep_class_name": True} | changes
    return ClassPrompts.of(3, "sea-lion-1a2b3c", name, **given)


def test_tokens_are_lower_case_delimited_and_of_fixed_width():
    tokens = [placeholder_token(i, p) for i in (0, 9999) for p in (0, 25, 26, 675)]
    assert len(set(tokens)) == len(tokens)
    assert {len(t) for t in tokens} == {12}
    assert all(re.fullmatch(r"<d3m-\d{4}[a-z]{2}>", t) for t in tokens)


def test_too_many_prompts_are_refused():
    with pytest.raises(StageError, match="676"):
        placeholder_token(0, 676)


def test_a_class_is_named_as_people_write_it():
    p = prompts()
    assert p.by_name() == "a photo of a sea lion"
    assert p.by_name(1) == "sea lion up close"
    assert p.learned(1) == "a photo of a <d3m-0003ab> sea lion"
    assert p.initializer == "sea lion"


def test_the_name_can_be_left_out_and_the_start_chosen():
    p = prompts(keep_class_name=False, initializer="animal")
    assert p.learned(0) == "a photo of a <d3m-0003aa>"
    assert p.initializer == "animal"


def test_round_trip():
    assert ClassPrompts.from_json(prompts().to_json()) == prompts()


def test_the_words_of_an_initializer_are_dealt_out_to_the_vectors():
    several = prompts(initializer="small brown  dog")
    assert several.starts(1) == ["small brown dog"]
    assert several.starts(2) == ["small dog", "brown"]
    assert several.starts(3) == ["small", "brown", "dog"]
    assert several.starts(5) == ["small", "brown", "dog", "small", "brown"]
    assert prompts(initializer="dog").starts(2) == ["dog", "dog"]
    # The class's own name stays whole: it is what the vectors stand before.
    assert prompts().starts(2) == ["sea lion", "sea lion"]
