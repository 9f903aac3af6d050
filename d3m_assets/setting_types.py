"""Field types that several sections of settings share, and the base class of a section.

The sections stand beside what they configure (:mod:`d3m_assets.distillation.settings`,
:mod:`d3m_assets.evaluation.settings`); :mod:`d3m_assets.settings` composes and loads them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode


def as_list(value: Any) -> Any:
    """Accept ``"a, b"``, ``'["a", "b"]'`` and a single number where a list is wanted."""
    if isinstance(value, str):
        if not value.strip():
            return []
        return json.loads(value) if value.lstrip().startswith("[") else [v.strip() for v in value.split(",")]
    return [value] if isinstance(value, int) else value


def as_list_of_texts(value: Any) -> Any:
    """Like :func:`as_list`, but a comma is part of the text."""
    if isinstance(value, str):
        return json.loads(value) if value.lstrip().startswith("[") else [value]
    return value


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values unchanged.

    Raises:
        ValueError: One is given twice; texts are compared without regard to case.
    """
    folded = [v.casefold() if isinstance(v, str) else v for v in values]
    if twice := sorted({str(v) for v in folded if folded.count(v) > 1}):
        raise ValueError(f"{', '.join(twice)} given twice")
    return values


def ascending(value: tuple[float, float]) -> tuple[float, float]:
    """Return the interval unchanged.

    Raises:
        ValueError: It does not begin below its end.
    """
    if value[0] >= value[1]:
        raise ValueError("an interval begins below its end; write for example 0.2, 0.8")
    return value


Positive = Annotated[int, Field(ge=1)]

Share = Annotated[float, Field(ge=0, le=1)]

Interval = Annotated[tuple[Share, Share], NoDecode, BeforeValidator(as_list), AfterValidator(ascending)]

Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    NoDecode,
    BeforeValidator(as_list),
    Field(min_length=1),
    AfterValidator(distinct),
]


class Section(BaseModel):
    """A group of settings: frozen, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
