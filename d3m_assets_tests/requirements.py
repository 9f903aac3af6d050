"""What some tests need from the machine: skipped with a reason where it is missing, an error where it is promised.

``.ci/run`` installs what Debian has and promises it in ``$TESTS_REQUIRE``, so that there nothing is left out unseen.
"""

import os

import pytest

VARIABLE = "TESTS_REQUIRE"
KINDS = ("postgres", "browser", "ray", "proc", "compose", "servers", "s3", "docs", "mount")


class MissingRequirementError(Exception):
    """A machine lacks what its environment promises."""


def need(kind: str, present: object, reason: str) -> pytest.MarkDecorator:
    """A mark that skips tests where something is missing.

    Args:
        kind: One of :data:`KINDS`, as ``$TESTS_REQUIRE`` lists them, separated by commas.
        present: Whether it is there.
        reason: What is missing, and how it is had.

    Raises:
        MissingRequirementError: It is missing although ``$TESTS_REQUIRE`` names it.
        ValueError: The kind, or one that the variable names, is unknown.
    """
    required = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    if unknown := sorted({kind, *required} - set(KINDS)):
        raise ValueError(f"{', '.join(unknown)}: tests know {', '.join(KINDS)}")
    if not present and kind in required:
        raise MissingRequirementError(f"${VARIABLE} names {kind}, but: {reason}")
    return pytest.mark.skipif(not present, reason=reason)
