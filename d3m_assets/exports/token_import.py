"""Embeddings that a user already has, read from the files of other programs, as prompts of a class.

Only safetensors is read: pickled files run code when they are loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from d3m_assets.errors import BundleError
from d3m_assets.exports.tokens import SDXL_PARTS
from d3m_assets.terminal import printable


class _ListedToken(BaseModel):
    """What ``tokens.json`` says of a file; ``file`` is a path that stays within the folder."""

    class_name: Annotated[str, Field(alias="class")]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?$")]


@dataclass(frozen=True)
class ImportedEmbeddings:
    """Embeddings of a class that came from elsewhere.

    Attributes:
        files: One for each prompt.
        sha256: Hex digest of each file.
        vectors: Vectors of each prompt.
    """

    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    vectors: int

    def rows(self, widths: tuple[int, ...]) -> np.ndarray:
        """The vectors as stored in the files, float32 ``[prompts, vectors, D]``.

        Raises:
            BundleError: A file has changed since it was found, or is not usable.
        """
        if tuple(map(_file_digest, self.files)) != self.sha256:
            raise BundleError(f"{self.files[0]} or a file beside it has changed; run the command again")
        return np.stack([read_embedding(file, widths) for file in self.files])


def find_embeddings(folder: Path, class_names: Sequence[str], widths: tuple[int, ...]) -> dict[str, ImportedEmbeddings]:
    """Find the embeddings that a user already has for some classes.

    Args:
        folder: Holds ``<class name>.safetensors``, or ``<class name>/learned_embeds.safetensors`` as the
            sd-concepts-library has it; or what :func:`export_tokens` wrote, whose ``tokens.json`` says which class a
            file belongs to.
        class_names: The classes of the dataset.
        widths: Length of a token embedding of each of the model's text encoders.

    Returns:
        By class name; classes without a file are missing.

    Raises:
        BundleError: The folder does not exist or holds no embedding, a file belongs to no class, a class has two, or one
            is not usable.
    """
    if not folder.is_dir():
        raise BundleError(f"imported_embeddings names {folder}, which is no folder")
    files: dict[str, list[Path]] = {}
    listed = folder / "tokens.json"
    if listed.is_file():
        try:
            for entry in TypeAdapter(list[_ListedToken]).validate_json(listed.read_bytes()):
                files.setdefault(entry.class_name, []).append(folder / entry.file)
        except (OSError, ValueError) as error:
            reason = error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else error
            raise BundleError(f"{listed} is damaged ({printable(reason)}); export the tokens again") from None
    else:
        for file in sorted([*folder.glob("*.*"), *folder.glob("*/learned_embeds.*")]):
            if file.suffix in (".bin", ".pt", ".pth", ".ckpt"):
                raise BundleError(
                    f"{file} is pickled, and pickled files run code when they are loaded. Convert it where you trust it: "
                    "load it with torch and write its tensors with safetensors.torch.save_file"
                )
            if file.suffix == ".safetensors":
                files.setdefault(file.parent.name if file.parent != folder else file.stem, []).append(file)
        unread = [f for f in sorted(folder.glob("*/*.safetensors")) if f.stem != "learned_embeds"]
        if unread:
            raise BundleError(
                f"{unread[0]} is not looked for there; name it {folder / '<class>.safetensors'} or "
                f"{folder / '<class>' / 'learned_embeds.safetensors'}"
            )
        for name, own in files.items():
            if len(own) > 1:
                raise BundleError(f"class {name} has two embeddings, {own[0]} and {own[1]}; take one of them away")
    if not files:
        raise BundleError(f"imported_embeddings names {folder}, which holds no .safetensors file")
    strange = sorted(set(files) - set(class_names))
    if strange:
        raise BundleError(
            f"{files[strange[0]][0]} is named after no class of the dataset; its classes are {', '.join(class_names[:20])}"
        )
    found = {}
    for name, own in files.items():
        counts = {len(read_embedding(file, widths)) for file in own}
        if len(counts) > 1:
            raise BundleError(f"the embeddings of class {name} have {sorted(counts)} vectors; all need as many")
        found[name] = ImportedEmbeddings(tuple(own), tuple(map(_file_digest, own)), counts.pop())
    return found


def read_embedding(path: Path, widths: tuple[int, ...]) -> np.ndarray:
    """Vectors of one textual-inversion file, float32 ``[vectors, D]``.

    Args:
        path: A safetensors file with one tensor ``[vectors, D]`` or ``[D]`` under any name (diffusers, AUTOMATIC1111,
            sd-concepts-library), or with ``clip_l`` and ``clip_g`` (SDXL).
        widths: Length of a token embedding of each of the model's text encoders.

    Raises:
        BundleError: It cannot be read, holds several tokens, or fits another model.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():
        raise BundleError(f"{path} is no regular file")  # a pipe would be waited for
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name).float().numpy() for name in stored.keys()}  # noqa: SIM118
    except (
        OSError,
        SafetensorError,
        ValueError,
        TypeError,
        RuntimeError,
        MemoryError,
    ) as error:  # by strange numbers, too
        raise BundleError(f"{path} cannot be read as safetensors: {printable(error)}") from error
    parts = list(tensors.values())
    if set(tensors) == set(SDXL_PARTS):
        parts = [tensors[name] for name in SDXL_PARTS]
    elif len(parts) != 1:
        raise BundleError(
            f"{path} holds {len(parts)} tensors ({printable(', '.join(sorted(tensors)[:5]))}); give a file for each token"
        )
    parts = [p[None] if p.ndim == 1 else p for p in parts]
    shapes = [p.shape for p in parts]
    if any(len(s) != 2 or s[0] != shapes[0][0] or s[0] < 1 for s in shapes) or [s[-1] for s in shapes] != list(widths):
        raise BundleError(
            f"{path} holds vectors of shape {' and '.join(map(str, shapes))}, but this foundation model takes vectors of "
            f"{' + '.join(map(str, widths))} numbers; it was made for another model"
        )
    rows = np.concatenate(parts, axis=-1)
    if not np.isfinite(rows).all() or not np.any(rows, axis=-1).all():
        raise BundleError(f"{path} holds a vector that is zero or not finite")
    return rows


def _file_digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
