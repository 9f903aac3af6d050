from __future__ import annotations

import pytest
from pydantic import ValidationError

from d3m_assets.setting_types import Interval, Positive, Section, Seeds


class Example(Section):
    count: Positive = 1
    seeds: Seeds = (0,)
    part: Interval = (0.0, 1.0)


@pytest.mark.parametrize("given", ["1, 2", "[1, 2]", [1, 2], (1, 2)])
def test_lists_are_read_in_every_form_that_the_environment_and_files_have(given):
    assert Example(seeds=given).seeds == (1, 2)
    assert Example(seeds=5).seeds == (5,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "greater than or equal to 1"),
        ({"seeds": ""}, "at least 1"),
        ({"seeds": "1, 1"}, "1 given twice"),
        ({"part": "0.8, 0.2"}, "begins below its end"),
        ({"part": (0, 2)}, "less than or equal to 1"),
        ({"other": 1}, "not permitted"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Example(**values)


def test_a_section_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Example().count = 2
