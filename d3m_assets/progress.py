"""How long-running library calls tell their caller where they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """One step forward.

    Attributes:
        stage: What is running, for example ``"scan"`` or ``"inversion"``.
        done: Units finished, from 0 to ``total``.
        total: Units in all; 0 when not known.
        detail: The unit at hand, for people.
    """

    stage: str
    done: int
    total: int
    detail: str = ""


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """Listen to nothing: the default :data:`Progress`."""
