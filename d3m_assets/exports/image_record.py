"""What a generated image says of itself: a text chunk in its PNG file, and a line of ``metadata.jsonl`` beside it.

Anyone can write anything into a file, so what is read is limited in size and checked before it is used, and
:func:`~d3m_assets.terminal.printable` keeps terminal escapes out of what is shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from d3m_assets.errors import BundleError
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    from d3m_assets.foundation.loading import Foundation

KEY = "d3m"
"""Keyword of the text chunk."""
FORMAT: Final = "d3m-image-1"
METADATA = "metadata.jsonl"
"""Name that Hugging Face's ImageFolder looks for."""
MAX_TEXT = 16_384
"""Most characters of a record: the longest that is written is a tenth of it."""

Origin = Literal["generated", "coded real image"]
GENERATED: Origin = "generated"
CODED: Origin = "coded real image"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, Field(max_length=1000)]


class ImageRecord(BaseModel):
    """Where a generated image comes from.

    Attributes:
        format: Of this record.
        bundle: SHA-256 of the bundle, in hex (:attr:`Bundle.sha256 <d3m_assets.distillation.bundle.Bundle.sha256>`).
        class_id: Of its class.
        class_name: Of its class.
        index: Its number within its class.
        prompt_index: Which of the class's prompts generated it; 0 of a coded image.
        prompt: That prompt as text; empty for a coded image.
        seed: Name of its noise (:func:`d3m_assets.distillation.generation.noise_seed`); empty for a coded image.
        foundation: Fingerprint of the foundation model; empty for a coded image.
        precision: Number format of the model, such as "float32", and the kind of device, such as "cpu"; empty for a coded image.
        versions: Of packages and of Python.
        selected: Whether the training set keeps it; no: a fresh sample beyond those that a selection chose from.
        origin: Whether it was generated, or is a real image that was coded and decoded.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal["d3m-image-1"] = FORMAT
    bundle: Digest
    class_id: int
    class_name: Short
    index: Annotated[int, Field(ge=0)]
    prompt_index: Annotated[int, Field(ge=0)]
    prompt: Short
    seed: Short
    foundation: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    precision: Short
    versions: Annotated[dict[Short, Short], Field(max_length=50)]
    selected: bool = True
    origin: Origin = GENERATED

    def facts(self, *, with_origin: bool = False) -> dict[str, Any]:
        """All fields.

        Args:
            with_origin: Whether the origin stands there of generated images, too, as it does of others.
        """
        return self.model_dump(exclude=None if with_origin or self.origin != GENERATED else {"origin"})

    def to_text(self) -> str:
        """Compact JSON in ASCII."""
        return json.dumps(self.facts(), separators=(",", ":"))

    def to_row(self, file_name: str, *, with_origin: bool = False) -> str:
        """Its line of ``metadata.jsonl``, with the class as ``label``; package versions stand in the images only.

        Args:
            file_name: Below the folder of the file.
            with_origin: As of :meth:`facts`.
        """
        facts = {name: value for name, value in self.facts(with_origin=with_origin).items() if name != "versions"}
        row = {"file_name": file_name, "label": self.class_name, **facts}
        return json.dumps(row, ensure_ascii=False) + "\n"


def parse_record(text: str, what: str) -> ImageRecord:
    """A record from the text of a chunk.

    Args:
        text: The text.
        what: Where it stands, for messages; nothing of the text is quoted in them.

    Raises:
        BundleError: It is no such record.
    """
    if len(text) > MAX_TEXT:
        raise BundleError(f"{what} carries {len(text):,} characters as its record; one of d3m-assets is far shorter")
    try:
        return ImageRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        # Only names of our own fields, and never a key out of the text.
        field = str(first["loc"][0]) if first["loc"] and first["loc"][0] in ImageRecord.model_fields else "the text"
        reason = "is missing" if first["type"] == "missing" else "is not as d3m-assets writes it"
        raise BundleError(f"{what} carries a damaged or strange record: {field} {reason}") from None


def read_record(path: Path) -> ImageRecord:
    """The record of a PNG file.

    Raises:
        BundleError: The file cannot be read, is no PNG, or carries no record of ours.
    """
    what = printable(str(path))
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(KEY)
    except Exception as error:  # Pillow raises many kinds for files that are not as they should be
        raise BundleError(f"{what} cannot be read as a PNG image ({type(error).__name__})") from None
    if not isinstance(text, str):
        raise BundleError(
            f"{what} carries no record of d3m-assets: `d3m regenerate` did not write it, or another program has stripped "
            "it. Of an image in a pool: d3m lineage --pool BUDGET --class NAME --index N"
        )
    return parse_record(text, what)


def precision_of(foundation: Foundation | None) -> str:
    """The number format that a loaded model computes in, and the kind of its device, such as ``"float32 cpu"``.

    Empty without a model, as coded images are decoded.
    """
    if foundation is None:
        return ""
    return f"{str(foundation.unet.dtype).removeprefix('torch.')} {foundation.device.type}"


def image_name(index: int) -> str:
    """File name of an image within the folder of its class."""
    return f"{index:05d}.png"
