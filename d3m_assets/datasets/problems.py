"""What is wrong with the data: one table of what, where, how many, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from d3m_assets.addresses import masked

MOST_LISTED = 20
"""Files or classes named in one message."""


@dataclass(frozen=True, slots=True)
class DatasetProblem:
    """One thing wrong with the data.

    Attributes:
        class_name: The class that it is in; empty: it concerns all.
        place: Path of the image or folder below the dataset, several joined by ``" = "``; may be empty.
        what: What is wrong, as the rest of a sentence that begins with the place.
        remedy: What to do about it.
        severity: An "error" stops its class, a "warning" nothing.
    """

    class_name: str
    place: str
    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    def __post_init__(self) -> None:
        # What a server says may quote the address with its password, and problems are stored.
        for name in ("place", "what", "remedy"):
            object.__setattr__(self, name, masked(getattr(self, name)))

    def __str__(self) -> str:
        """Place, what and remedy as a sentence."""
        return f"{self.place} {self.what}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """Problems of one class that are alike: a line of the table.

    Attributes:
        severity: "error" or "warning".
        class_name: Their class.
        what: What is wrong with them.
        count: How many they are.
        where: The first three places.
        remedy: What to do about them.
    """

    severity: str
    class_name: str
    what: str
    count: int
    where: str
    remedy: str


def problem_rows(problems: Iterable[DatasetProblem]) -> list[ProblemRow]:
    """The table of problems: errors first, then in the order in which they were found."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for p in problems:
        groups.setdefault((p.severity, p.class_name, p.what, p.remedy), []).append(p.place)
    rows = [
        ProblemRow(
            severity, name, what, len(places), ", ".join(places[:3]) + (", …" if len(places) > 3 else ""), remedy
        )
        for (severity, name, what, remedy), places in groups.items()
    ]
    return sorted(rows, key=lambda row: row.severity)


def unlabelled(name: str, count: int) -> list[DatasetProblem]:
    """What is told of rows without a class, as the test splits of competitions have; they are left out."""
    if not count:
        return []
    what = f"has {count} images without a label, which are left out"
    return [DatasetProblem("", name, what, "give them one if that is not meant", "warning")]


def listing(problems: Sequence[DatasetProblem]) -> str:
    """Problems for a message, one an indented line, the first :data:`MOST_LISTED` of them.

    One that concerns two classes is listed once.
    """
    lines = list(dict.fromkeys(f"  {problem}" for problem in problems))
    more = f"\nand {len(lines) - MOST_LISTED} more" if len(lines) > MOST_LISTED else ""
    return "\n".join(lines[:MOST_LISTED]) + more


def listed_names(names: Sequence[str]) -> str:
    """Names for a message, the first :data:`MOST_LISTED` of them."""
    text = ", ".join(repr(name) for name in names[:MOST_LISTED])
    return text + (f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else "")


def utf8_path(path: str) -> str:
    """A path for a message, with bytes that are no UTF-8 escaped."""
    return path.encode("utf-8", "backslashreplace").decode()
