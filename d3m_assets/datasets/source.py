"""What a dataset is to the rest of the package: the result of a scan, and something that can be scanned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from d3m_assets.addresses import masked
from d3m_assets.datasets.problems import DatasetProblem
from d3m_assets.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd


Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image that was read and decoded completely.

    Attributes:
        uri: Where it is: a local path or fsspec URL, and behind a ``#`` the place in a file that holds many images.
        relative_path: Path below the dataset, with ``/``; what names the image.
        sha256: Hex digest of the file.
        bytes: Size of the file.
        width: Pixels, as shown (after EXIF orientation).
        height: Pixels, as shown.
        mode: Pillow's mode of the stored pixels.
        split: What the image may be used for.
    """

    uri: str
    relative_path: str
    sha256: str
    bytes: int
    width: int
    height: int
    mode: str
    split: Split

    def __str__(self) -> str:
        """Its path below the dataset."""
        return self.relative_path


@dataclass(frozen=True)
class ClassImages:
    """The images of one class, sorted by split folder and path.

    Attributes:
        class_name: Its name.
        images: Those that could be read.
        errors: What has to be mended before the class can be used; empty: it is sound.
    """

    class_name: str
    images: tuple[ImageRecord, ...]
    errors: tuple[DatasetProblem, ...] = ()

    @property
    def problem(self) -> str:
        """Why the class cannot be used, naming the first files; empty if it is sound."""
        more = f" (and {len(self.errors) - 3} more)" if len(self.errors) > 3 else ""
        return ". ".join(str(error) for error in self.errors[:3]) + more

    def of(self, split: Split) -> tuple[ImageRecord, ...]:
        """The images of one split."""
        return tuple(image for image in self.images if image.split == split)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of every image's path, content and split, and of where and of which kind errors are.

        A class that was mended has the fingerprint that it had before it broke. The kind of an error is what helps against it:
        what it says of the cause may be another text at each look, with the id of a request in it, and is for people only.
        """
        images = sorted((image.relative_path, image.sha256, image.split) for image in self.images)
        if self.errors:
            return _digest([images, [(error.place, error.remedy) for error in self.errors]])
        return _digest(images)

    def table(self, class_id: int) -> pd.DataFrame:
        """One row an image: the attributes of :class:`ImageRecord`, ``class_id`` and ``class_name``."""
        import pandas as pd

        columns = list(ImageRecord.__slots__)
        rows = [[getattr(image, column) for column in columns] for image in self.images]
        place = columns.index("uri")
        for row in rows:
            row[place] = masked(row[place])  # the table is stored
        return pd.DataFrame(rows, columns=columns).assign(class_id=class_id, class_name=self.class_name)


@dataclass(frozen=True)
class Scan:
    """A dataset that was read completely; what is wrong with single classes is told of these.

    Attributes:
        url: Where it is.
        classes: Images by class name, in natural order of the names.
        image_height: Median height of the train images, in pixels.
        image_width: Median width of the train images, in pixels.
        channels: 1 when every image is stored without colour, otherwise 3.
        problems: Everything that is wrong, warnings included.
    """

    url: str
    classes: dict[str, ClassImages]
    image_height: int
    image_width: int
    channels: Literal[1, 3]
    problems: tuple[DatasetProblem, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the fingerprints of all classes and the image shape."""
        classes = sorted((name, images.fingerprint) for name, images in self.classes.items())
        return _digest([classes, self.image_height, self.image_width, self.channels])


class ImageReader(Protocol):
    """Gives the contents of images. It can be pickled, so that worker processes read the images themselves."""

    def read(self, image: ImageRecord) -> bytes:
        """Contents of an image file, exactly as they were when they were scanned.

        Raises:
            DatasetError: It cannot be read, or has changed since.
        """


class DatasetSource(ImageReader, Protocol):
    """Where real images come from."""

    url: str

    def scan(self, progress: Progress = silent) -> Scan:
        """Read everything and check it.

        Raises:
            DatasetError: Not one class can be used as it is; the message names files or classes and says what to do.
                What is wrong with some of the classes is in :attr:`Scan.problems`.
        """


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()
