"""What is found wrong with images, whatever they are stored in, and how the train split is divided.

A source lists and reads its images; what it found is judged here, so that every source finds the same faults in the same
words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from d3m_assets.datasets.names import natural
from d3m_assets.datasets.problems import DatasetProblem, listing
from d3m_assets.datasets.source import ClassImages
from d3m_assets.errors import DatasetError

SMALLEST_SIDE = 4
"""Pixels; smaller images hold nothing to learn from."""
MOST_UNREADABLE = 500
"""Images that cannot be used; with so many the fault is with the whole dataset, and reading on is a waste."""


_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image that was read, and where it stands.

    Attributes:
        split: "train", "validation" or "test".
        class_name: Its class.
        path: Below the dataset.
        sha256: Hex digest of the file.
        pixels: Hex digest of the decoded pixels.
    """

    split: str
    class_name: str
    path: str
    sha256: str
    pixels: str


def lopsided_splits(classes: Mapping[str, Iterable[str]]) -> list[DatasetProblem]:
    """Classes that have no test images or no train images: an error of each.

    Args:
        classes: Class names of "train" and of "test".
    """
    return [
        DatasetProblem(
            name,
            f"{split}/{name}",
            f"is in {split}/ but not in {other}/",
            f"add {other}/{name}/ with images, or remove the class from {split}/",
        )
        for split, other in (("train", "test"), ("test", "train"))
        for name in sorted(set(classes[split]) - set(classes[other]), key=natural)
    ]


def unusable_image(class_name: str, path: str, what: str) -> DatasetProblem:
    """An image that cannot be used: an error of its class.

    Args:
        class_name: Its class.
        path: Below the dataset, printable.
        what: What is wrong with it, such as "is empty".
    """
    return DatasetProblem(class_name, path, what, "replace or remove it, or leave it out with the setting `exclude`")


def duplicates(images: Iterable[PlacedImage]) -> list[DatasetProblem]:
    """Images with the same pixels, whether or not the files are the same.

    In two classes, or in two splits, one would spoil every accuracy: an error of each class that it stands in. Within a
    class and split it only counts double: a warning.
    """
    by_pixels: dict[str, list[PlacedImage]] = defaultdict(list)
    for image in images:
        by_pixels[image.pixels].append(image)
    found = []
    for same in by_pixels.values():
        if len(same) > 1:
            places: dict[tuple[str, str], list[PlacedImage]] = defaultdict(list)
            for image in same:
                places[image.split, image.class_name].append(image)
            found += _shared(list(places.values())) if len(places) > 1 else []
            found += [_repeated(stand) for stand in places.values() if len(stand) > 1]
    return found


def _shared(places: Sequence[Sequence[PlacedImage]]) -> list[DatasetProblem]:
    names = sorted({stand[0].class_name for stand in places}, key=natural)
    splits = {stand[0].split for stand in places}
    kind = "in two classes" if len(names) > 1 else f"in {' and '.join(s for s in _SPLITS if s in splits)}"
    paths = " = ".join(sorted(stand[0].path for stand in places))
    what = f"is the same image {kind}{_by_pixels([image for stand in places for image in stand])}"
    return [DatasetProblem(name, paths, what, "keep it in one, or leave it out with `exclude`") for name in names]


def _repeated(stand: Sequence[PlacedImage]) -> DatasetProblem:
    paths = " = ".join(image.path for image in stand[:3]) + (" = …" if len(stand) > 3 else "")
    what = f"is the same image {len(stand)} times in {stand[0].split}{_by_pixels(stand)}"
    remedy = "it counts as often as it is there; remove the copies if that is not meant"
    return DatasetProblem(stand[0].class_name, paths, what, remedy, "warning")


def _by_pixels(images: Sequence[PlacedImage]) -> str:
    return " (other files, equal pixels)" if len({image.sha256 for image in images}) > 1 else ""


def refuse_many_unusable(url: str, problems: Sequence[DatasetProblem]) -> None:
    """Refuse a dataset that was given up because of too many images that cannot be used.

    Args:
        url: The dataset.
        problems: Of single images; a source stops reading at :data:`MOST_UNREADABLE`.

    Raises:
        DatasetError: There are so many.
    """
    if len(problems) >= MOST_UNREADABLE:
        raise DatasetError(
            f"{url}: {len(problems)} images cannot be used, and reading stopped there; the whole dataset seems damaged:\n"
            f"{listing(problems)}\nThere may be more."
        )


def refuse_without_sound_class(url: str, classes: Iterable[ClassImages], problems: Sequence[DatasetProblem]) -> None:
    """Refuse a dataset that has no class without an error.

    Raises:
        DatasetError: All have one; the message lists them.
    """
    if all(images.errors for images in classes):
        errors = [problem for problem in problems if problem.severity == "error"]
        raise DatasetError(f"{url}: no class can be used as it is:\n{listing(errors)}")


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


def held_out_part(digests: Sequence[str], fraction: float) -> list[bool]:
    """Which images of a class are set aside as its test split, where the dataset has none.

    By content, as :func:`validation_part`, but by other digits of the digest: of the images left for training each is as likely
    to be set aside for validation as if there were no test split. Equal digests stay together. A class of at least two
    different images has one on either side.

    Args:
        digests: SHA-256 of the pixels of each image, in hex.
        fraction: Share that is set aside.
    """
    marks = {digest: int(digest[8:16], 16) for digest in digests}
    aside = {digest for digest, mark in marks.items() if mark < fraction * 2**32}
    if len(marks) > 1:
        aside = aside or {min(marks, key=lambda digest: marks[digest])}
        if len(aside) == len(marks):
            aside.remove(max(marks, key=lambda digest: marks[digest]))
    else:
        aside = set()
    return [digest in aside for digest in digests]
