"""Images that a user leaves out of a dataset, by name, pattern or list."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fsspec.utils import glob_translate

from d3m_assets.datasets.problems import listed_names
from d3m_assets.errors import DatasetError, SettingsError


class Exclusion:
    """Paths below a dataset that are left out.

    Args:
        patterns: Each the path of an image or folder below the dataset, or a pattern of such paths: ``*`` and ``?`` stay
            within a folder, ``**`` goes through folders. A folder stands for all that is in it.

    Raises:
        SettingsError: A pattern is none.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._given = {_spelling(pattern).rstrip("/"): pattern for pattern in patterns}
        # A name that has brackets is also taken literally; names are looked up, so that a list of thousands is quick.
        self._globs = {p: _expression(p) for p in self._given if re.search(r"[*?[]", p)}
        self._used: set[str] = set()

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self._given)

    def covers(self, path: str) -> bool:
        """Whether a path below the dataset, or a folder above it, is left out."""
        if not self._given:
            return False
        spelled = PurePosixPath(_spelling(path))
        matching: set[str] = set()
        for place in (spelled, *spelled.parents[:-1]):
            text = str(place)
            matching |= {text} & self._given.keys()
            matching |= {pattern for pattern, expression in self._globs.items() if expression.match(text)}
        self._used |= matching
        return bool(matching)

    def refuse_unused(self, url: str) -> None:
        """Refuse patterns that left nothing out: most are misspelt, and the image that is meant would stay.

        Raises:
            DatasetError: There are some.
        """
        if unused := [given for pattern, given in self._given.items() if pattern not in self._used]:
            raise DatasetError(
                f"the setting `exclude` names {listed_names(unused)}, which {url} does not have; correct or remove that. "
                "Paths are relative to the dataset, such as train/7/001.png, */7 or train/**/*.gif"
            )


def read_exclusion(exclude: Sequence[str]) -> Exclusion:
    """The exclusion that a setting stands for.

    Args:
        exclude: Patterns, and ``@file`` for a text file with one pattern a line, blank lines and lines that begin with
            ``#`` passed over.

    Raises:
        SettingsError: A file that is named cannot be read.
    """
    patterns: list[str] = []
    for entry in exclude:
        if not entry.startswith("@"):
            patterns.append(entry)
            continue
        file = Path(entry[1:]).expanduser()
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"the setting `exclude` names the list {file}, which cannot be read: {error}. Give a UTF-8 text file "
                f"with one path a line (looked in {Path.cwd()})"
            ) from None
        patterns += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return Exclusion(patterns)


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(pattern))
    except (ValueError, re.error) as error:
        raise SettingsError(f"the setting `exclude` has the pattern {pattern!r}: {error}") from None


def _spelling(path: str) -> str:
    # macOS and Linux store the same name differently.
    return unicodedata.normalize("NFC", path)
