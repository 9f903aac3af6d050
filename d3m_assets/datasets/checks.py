"""What a dataset is refused for, whatever it is stored in, and how its train split is divided.

A source lists and reads its images; what it found is judged here, so that every source refuses the same faults in the same
words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from d3m_assets.datasets.names import natural
from d3m_assets.errors import DatasetError

SMALLEST_SIDE = 4
"""Pixels; smaller images hold nothing to learn from."""
MOST_PROBLEMS = 20
"""Files or classes named in one message."""


def refuse_lopsided_splits(url: str, classes: Mapping[str, Iterable[str]]) -> None:
    """Refuse classes that have no test images or no train images.

    Args:
        url: The dataset.
        classes: Class names of "train" and of "test".

    Raises:
        DatasetError: A class is in one of the splits only.
    """
    for split, other in (("train", "test"), ("test", "train")):
        if lacking := sorted(set(classes[split]) - set(classes[other]), key=natural):
            raise DatasetError(
                f"{url}: {listed_names(lacking)} in {split}/ but not in {other}/. "
                f"Add {other}/<class>/ with images, or remove the class from {split}/."
            )


def refuse_damaged(problems: Sequence[str]) -> None:
    """Refuse images that cannot be used.

    Args:
        problems: One line a file: its place and what is wrong with it. A source may stop reading at
            :data:`MOST_PROBLEMS`.

    Raises:
        DatasetError: There are any.
    """
    if problems:
        more = "" if len(problems) < MOST_PROBLEMS else "\nThere may be more."
        listing = "\n".join(f"  {problem}" for problem in problems[:MOST_PROBLEMS])
        raise DatasetError(f"images that cannot be used; replace or remove them:\n{listing}{more}")


def refuse_shared(images: Iterable[tuple[str, str, str, str]]) -> None:
    """Refuse images that stand in two classes or in both splits: they would spoil every accuracy.

    The same content may appear again in the same class and split.

    Args:
        images: Split, class name, path and SHA-256 of each.

    Raises:
        DatasetError: One content stands in several places.
    """
    places: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for split, class_name, path, sha256 in images:
        places[sha256].setdefault((split, class_name), path)
    shared = [found for found in places.values() if len(found) > 1]
    if not shared:
        return
    lines = []
    for found in shared[:MOST_PROBLEMS]:
        kind = "two classes" if len({class_name for _, class_name in found}) > 1 else "train and test"
        lines.append(f"  {' = '.join(sorted(found.values()))} (in {kind})")
    more = f"\nand {len(shared) - MOST_PROBLEMS} more" if len(shared) > MOST_PROBLEMS else ""
    raise DatasetError("the same image stands in several places; keep it in one:\n" + "\n".join(lines) + more)


def validation_part(digests: Sequence[str], fraction: float) -> list[bool]:
    """Which train images of a class are set aside for choices.

    By content, so that the side of an image does not depend on which others there are. A class whose images would all be
    set aside keeps them all for training.

    Args:
        digests: SHA-256 of each image, in hex.
        fraction: Share that is set aside.
    """
    aside = [int(digest[:8], 16) < fraction * 2**32 for digest in digests]
    return [False] * len(aside) if all(aside) else aside


def printable(path: str) -> str:
    """A path for a message, with bytes that are no UTF-8 escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def listed_names(names: Sequence[str]) -> str:
    """Names for a message, the first :data:`MOST_PROBLEMS` of them."""
    listing = ", ".join(repr(name) for name in names[:MOST_PROBLEMS])
    return listing + (f" and {len(names) - MOST_PROBLEMS} more" if len(names) > MOST_PROBLEMS else "")
