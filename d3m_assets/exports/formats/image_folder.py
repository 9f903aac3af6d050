"""An image folder, ``<class>/00000.png``, with ``metadata.jsonl`` in the layout of Hugging Face's ImageFolder."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from d3m_assets.datasets.names import folder_name
from d3m_assets.errors import BundleError
from d3m_assets.exports.croissant_fields import class_name_field
from d3m_assets.exports.export_folder import OWN, STATE, part_of, write_whole
from d3m_assets.exports.formats.writer import COMMON, CroissantParts, ExportPlan, FormatWriter
from d3m_assets.exports.image_record import METADATA, image_name
from d3m_assets.exports.stream import GeneratedImage
from d3m_assets.terminal import printable

_IMAGE = re.compile(r"\d{5,12}\.png")
_FEATURES = (
    ("label", None),
    ("format", "string"),
    ("bundle", "string"),
    ("class_id", "int64"),
    ("class_name", "string"),
    ("index", "int64"),
    ("prompt_index", "int64"),
    ("prompt", "string"),
    ("seed", "string"),
    ("foundation", "string"),
    ("precision", "string"),
    ("selected", "bool"),
)
"""Columns of ``metadata.jsonl`` behind ``file_name``, and their types."""


def ignores_case(folder: Path) -> bool:
    """Whether the file system of an export's folder takes ``a`` and ``A`` for the same name."""
    return (folder / STATE.upper()).exists()


class ImageFolderWriter(FormatWriter):
    """Writes a PNG file an image; lines of the metadata follow their images, so a line stands for an image that is there."""

    title = "image folder"

    def __init__(self, folder: Path, plan: ExportPlan) -> None:
        super().__init__(folder, plan)
        self._part = part_of(folder / METADATA)
        self._lines: BinaryIO | None = None

    @staticmethod
    def check(plan: ExportPlan) -> None:
        """Refuse a class whose folder would be a file of the export."""
        files = COMMON | OWN | {METADATA}
        reserved = files | {part_of(Path(name)).name for name in files}
        for name, folder in zip(plan.class_names, plan.folders, strict=True):
            # Some file systems ignore case.
            if folder.casefold() in {r.casefold() for r in reserved}:
                raise BundleError(
                    f"a class is called {name!r}, as a file that an image folder needs; choose another format with "
                    "--format huggingface or webdataset"
                )

    @staticmethod
    def owns(path: PurePosixPath, plan: ExportPlan) -> bool:
        """Whether a file is the metadata, the card, or an image of a class."""
        if len(path.parts) == 1:
            return path.name in COMMON | {METADATA}
        return len(path.parts) == 2 and path.parts[0] in plan.folders and bool(_IMAGE.fullmatch(path.name))

    def resume(self) -> int:
        """Count the lines whose images are there, and cut off what follows them.

        Raises:
            BundleError: Two classes would be one folder on this disk.
        """
        folded = Counter(folder.casefold() for folder in self.plan.folders)
        twins = sorted((f for f in self.plan.folders if folded[f.casefold()] > 1), key=str.casefold)
        if twins and ignores_case(self.folder):
            raise BundleError(
                f"{self.folder} is on a disk that takes {twins[0]!r} and {twins[1]!r} for one name; choose another format with "
                "--format huggingface or webdataset, or another disk"
            )
        if (self.folder / METADATA).is_file():
            with (self.folder / METADATA).open("rb") as lines:
                if all(self._is_there(line) for line in lines):
                    return self.plan.total
            (self.folder / METADATA).replace(self._part)  # images were taken away since
        done = size = 0
        if self._part.is_file():
            with self._part.open("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n") or not self._is_there(line):
                        break
                    done, size = done + 1, size + len(line)
            with self._part.open("r+b") as lines:
                lines.truncate(size)
        self._lines = self._part.open("ab")
        return done

    def _is_there(self, line: bytes) -> bool:
        """Whether the image of a line of the metadata is there.

        Raises:
            BundleError: The line is none of ours.
        """
        try:
            return (self.folder / json.loads(line)["file_name"]).is_file()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(
                f"{METADATA} in {self.folder} is damaged ({printable(repr(error))}); remove it and {self._part.name}, and the "
                "images are written again"
            ) from None

    def write(self, image: GeneratedImage) -> None:
        """Write the file of an image, then its line."""
        assert self._lines is not None
        record = image.record
        name = image_name(record.index)
        folder = folder_name(record.class_name)
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, image.png())
        self._lines.write(record.to_row(f"{folder}/{name}", with_origin=self.plan.with_origin).encode())
        self._lines.flush()

    def finish(self) -> None:
        """Give the metadata its name."""
        if self._lines is not None:
            self._lines.close()
            self._part.replace(self.folder / METADATA)

    def front_matter(self) -> Mapping[str, Any]:
        """All files are one split, whatever folders are called, and labels are classes in the bundle's order."""
        names = {str(i): name for i, name in enumerate(self.plan.class_names)}
        features = [{"name": "image", "dtype": "image"}]
        features += [
            {"name": name, "dtype": dtype or {"class_label": {"names": names}}}  # type: ignore[dict-item]
            for name, dtype in (*_FEATURES, *([("origin", "string")] if self.plan.with_origin else []))
        ]
        files = [{"split": "train", "path": "**"}]
        return {"configs": [{"config_name": "default", "data_files": files, "features": features}]}

    def loading_example(self) -> str:
        """By the `datasets` library, and by torchvision."""
        return (
            'import datasets\n\ndata = datasets.load_dataset("FOLDER", split="train")\n'
            'data[0]["image"], data.features["label"].int2str(data[0]["label"])'
        )

    def croissant(self) -> CroissantParts:
        """A class is the name of its folder: the label in the metadata would be read as a number where it looks like one."""
        import mlcroissant as mlc

        files = mlc.FileSet(id="png", name="png", encoding_formats=["image/png"], includes=["*/*.png"])
        folder = mlc.Source(
            file_set="png",
            extract=mlc.Extract(file_property="fullpath"),
            transforms=[mlc.Transform(regex=r"^(.*)/[^/]+$")],
        )
        image = mlc.Source(file_set="png", extract=mlc.Extract(file_property="content"))
        return CroissantParts([files], image, class_name_field(folder))
