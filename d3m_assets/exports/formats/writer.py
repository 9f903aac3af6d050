"""What a format of export has to do: go on where it stopped, take images in their order, and end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from d3m_assets.datasets.names import folder_name
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.exports.stream import GeneratedImage

if TYPE_CHECKING:
    from mlcroissant import Field, FileObject, FileSet, Source

CARD = "README.md"
CROISSANT = "croissant.json"
COMMON = frozenset({CARD, CROISSANT})
"""Files that every format may have."""


@dataclass(frozen=True)
class ExportPlan:
    """What is going to be written.

    Attributes:
        bundle: The distilled dataset.
        counts: Images of each class.
        image_size: Height and width of an image, in pixels: of the model's images, or, without any, of the stored ones.
        per_class: Images of a class that were asked for; None: the training set.
        precision: Number format and device of the model, such as "float32 cpu"; empty: all images are coded.
    """

    bundle: Bundle
    counts: tuple[int, ...]
    image_size: tuple[int, int]
    per_class: int | None
    precision: str

    @property
    def total(self) -> int:
        """Images of all classes."""
        return sum(self.counts)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; the label of an image is the place of its class in this list."""
        return [c.prompts.class_name for c in self.bundle.classes]

    @cached_property
    def folders(self) -> list[str]:
        """What the folder of each class is called: its name, where that is safe on every operating system."""
        return [folder_name(name) for name in self.class_names]

    @property
    def made(self) -> str:
        """How the images were made, an adjective."""
        words = {"generated": self.bundle.generates, "coded real": self.bundle.has_codes}
        return " and ".join(word for word, holds in words.items() if holds)

    @property
    def with_origin(self) -> bool:
        """Whether every image says beside its label if it was generated or coded."""
        return self.bundle.has_codes

    @property
    def raw_bytes(self) -> int:
        """Bytes of the pixels of all images, which PNG files of them hardly exceed."""
        return self.total * self.image_size[0] * self.image_size[1] * self.bundle.recipe.channels


class FormatWriter(ABC):
    """Writes the images of a bundle in one format.

    Whatever a reader sees under its final name is whole: files are written under a hidden name and then renamed. The bytes
    depend on the plan alone, not on where an export was interrupted.

    Args:
        folder: The folder to write; exists.
        plan: What is going to be written.
    """

    title: ClassVar[str]
    """The format in words, for cards."""

    def __init__(self, folder: Path, plan: ExportPlan) -> None:
        self.folder, self.plan = folder, plan

    @staticmethod
    @abstractmethod
    def check(plan: ExportPlan) -> None:
        """Refuse what the format cannot hold.

        Raises:
            BundleError: It cannot hold this bundle.
        """

    @staticmethod
    @abstractmethod
    def owns(path: PurePosixPath, plan: ExportPlan) -> bool:
        """Whether a file, named by its path below the folder, is one that this writer writes."""

    @abstractmethod
    def resume(self) -> int:
        """Make ready to write, and say how many images, counted from the first, are there and stay."""

    @abstractmethod
    def write(self, image: GeneratedImage) -> None:
        """Take the next image."""

    @abstractmethod
    def finish(self) -> None:
        """Finish the files of the images, after the last one."""

    @abstractmethod
    def front_matter(self) -> Mapping[str, Any]:
        """What the card tells the `datasets` library about the files, as keys of its front matter."""

    @abstractmethod
    def loading_example(self) -> str:
        """Python code that reads the files, for the card."""

    @abstractmethod
    def croissant(self) -> CroissantParts:
        """What a Croissant description says of the files, after the last image."""


@dataclass(frozen=True)
class CroissantParts:
    """The part of a Croissant description that depends on the format.

    Attributes:
        distribution: The files.
        image: Where the images are in them.
        label: The label of an image.
    """

    distribution: list[FileObject | FileSet]
    image: Source
    label: Field
