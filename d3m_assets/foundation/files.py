"""The files of a text-to-image model on local disk: what they declare, and their fingerprint. Nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from d3m_assets.errors import FoundationError
from d3m_assets.foundation.digests import file_digests

TEXT_ENCODERS = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
}
"""Supported pipelines, and the text encoders whose token tables textual inversion extends."""

EMBEDDED = "embedded"

_COMMIT = re.compile(r"[0-9a-f]{40}")

_WEIGHTS = (".safetensors", ".json", ".txt")

_COMPONENTS = (
    "model_index.json",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "scheduler",
)


def embedded_path() -> Path:
    """The directory of the model that ships with the package.

    Raises:
        FoundationError: It is not there: neither in an installed package nor in a clone.
    """
    package = Path(__file__).resolve().parents[1]
    for path in (package / "_embedded_foundation", package.parent / "data" / "foundation"):
        if (path / "model_index.json").is_file():
            return path
    raise FoundationError(
        "the embedded foundation model is missing from this installation; reinstall d3m-assets, train it with "
        "`d3m foundation train`, or name another model with --foundation PATH"
    )


@dataclass(frozen=True)
class FoundationFiles:
    """A text-to-image pipeline on local disk, not loaded.

    Attributes:
        name: How the user named it.
        path: Its diffusers directory.
        checkpoint: A single file with all weights; the directory then gives configurations and tokenizers only.
        digests: Cache of file digests (:func:`~d3m_assets.foundation.digests.file_digests`); None: none is kept.
    """

    name: str
    path: Path
    checkpoint: Path | None = None
    digests: Path | None = field(default=None, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the names and contents of the files that determine what it generates."""
        found = [f for part in _COMPONENTS for f in sorted([self.path / part, *(self.path / part).glob("*")])]
        used = _WEIGHTS if self.checkpoint is None else (".json", ".txt")
        lines = []
        for file in found:
            index = self.checkpoint is not None and file.name.endswith(".index.json")  # of weights that are not used
            if file.is_file() and file.suffix in used and not index:
                lines.append((file.relative_to(self.path).as_posix(), file))
        if self.checkpoint is not None:
            lines.append(("checkpoint", self.checkpoint))
        digest = hashlib.sha256()
        for (name, _), content in zip(lines, file_digests([file for _, file in lines], self.digests), strict=True):
            digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()

    @property
    def source(self) -> Path:
        """Where the weights are: the checkpoint or the directory."""
        return self.checkpoint or self.path

    @property
    def commit(self) -> str:
        """Commit of the hub's repository that the files are of, in hex; empty: they are not out of the hub's cache."""
        folder = self.path.absolute()
        return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else ""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on disk."""
        files = [self.checkpoint] if self.checkpoint else self.path.glob("*/*.safetensors")
        return sum(f.stat().st_size for f in files)

    @property
    def has_weights(self) -> bool:
        """Whether every part has weights on disk, and not its configuration alone."""
        if self.checkpoint is not None:
            return True
        parts = ("vae", *TEXT_ENCODERS[self.kind], "unet")
        return all(any((self.path / part).glob("*.safetensors")) for part in parts)

    def config(self, component: str) -> dict[str, Any]:
        """The JSON configuration of one component.

        Raises:
            FoundationError: It is missing or damaged.
        """
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        file = self.path / component / name
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise FoundationError(f"{file} cannot be read: {error}. Is {self.name} complete?") from error

    @cached_property
    def kind(self) -> str:
        """Class of the pipeline, one of :data:`TEXT_ENCODERS`.

        Raises:
            FoundationError: It is another, or cannot be read.
        """
        index = self.path / "model_index.json"
        try:
            found = json.loads(index.read_text())["_class_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FoundationError(f"{index} is damaged: {error}. Restore the pipeline directory") from error
        if not isinstance(found, str) or found not in TEXT_ENCODERS:
            raise FoundationError(f"{self.path} is a {found}; supported are: {', '.join(TEXT_ENCODERS)}")
        return found

    @property
    def text_widths(self) -> tuple[int, ...]:
        """Length of a token embedding of each text encoder."""
        return tuple(int(self.config(name)["hidden_size"]) for name in TEXT_ENCODERS[self.kind])

    @property
    def text_width(self) -> int:
        """Length of a learned vector: a token embedding for each text encoder, one behind the other."""
        return sum(self.text_widths)

    @property
    def text_length(self) -> int:
        """Tokens of a prompt, begin and end included."""
        return int(self.config("text_encoder").get("max_position_embeddings", 77))

    @property
    def image_size(self) -> int:
        """Side of the images it was trained to generate, in pixels."""
        factor = 2 ** (len(self.config("vae")["block_out_channels"]) - 1)
        return int(self.config("unet")["sample_size"]) * factor
