"""The file that a bundle is kept in: safetensors, with one hash over every byte.

The hash, a SHA-256 in hex, stands in the file's metadata; it is that of the file with 64 zeros in its place. It tells damage, not
forgery: whoever changes a bundle on purpose can make it right again, so what the file says is checked all the same
(:mod:`d3m_assets.distillation.bundle`). Who made a file is told by a signature (docs/how-to/exports.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from d3m_assets.errors import BundleError
from d3m_assets.terminal import printable

FORMAT = "d3m-bundle-5"
"""Of bundles of prompts or of codes."""
FORMAT_OF_BOTH = "d3m-bundle-6"
"""Of bundles of both, so that earlier versions ask for an upgrade and do not call them damaged."""
_FORMATS = (FORMAT, FORMAT_OF_BOTH)
_EARLIER = tuple(f"d3m-bundle-{n}" for n in range(1, 5))
"""Formats whose hashes covered the payload but not the recipe."""
MOST_HEADER_BYTES = 1 << 24
"""A class takes about 50 bytes of the header, so that this is room for 300,000."""
_FIELDS = ("classes", "format", "recipe", "sha256")
_NO_HASH = "0" * 64


@dataclass(frozen=True)
class BundleFile:
    """What a file holds, not yet understood.

    Attributes:
        tensors: Bytes of each tensor.
        recipe: The recipe as JSON.
        classes: The entries of the classes as JSON.
        format: Of the file.
    """

    tensors: Mapping[str, bytes]
    recipe: str
    classes: str
    format: str


def write_file(tensors: Mapping[str, np.ndarray], recipe: str, classes: str, file_format: str = FORMAT) -> bytes:
    """Contents of a file; equal arguments give equal bytes.

    Args:
        tensors: By name.
        recipe: JSON.
        classes: JSON.
        file_format: One of those that are read.
    """
    from safetensors.numpy import save

    metadata = {"format": file_format, "recipe": recipe, "classes": classes, "sha256": _NO_HASH}
    data = _ordered(save(dict(tensors), metadata=metadata))
    return data.replace(_hash_field(_NO_HASH), _hash_field(hashlib.sha256(data).hexdigest()), 1)


def read_file(data: bytes, name: str) -> BundleFile:
    """Undo :func:`write_file`.

    Args:
        data: Contents of the file.
        name: What errors call it.

    Raises:
        BundleError: It is no bundle, of another format, or its hash is wrong.
    """
    from safetensors import SafetensorError, deserialize

    end = 8 + int.from_bytes(data[:8], "little")
    if end > MOST_HEADER_BYTES:
        raise BundleError(
            f"{name} is not a bundle of d3m-assets: it claims a header of {end - 8:,} bytes, and a bundle's has at most "
            f"{MOST_HEADER_BYTES - 8:,}"
        )
    try:
        tensors = {key: bytes(tensor["data"]) for key, tensor in deserialize(data)}
        metadata: dict[str, str] = json.loads(data[8:end])["__metadata__"]
        version = metadata["format"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = printable(error, 200)
        raise BundleError(f"{name} is not a bundle of d3m-assets, or is damaged: {reason}") from None
    if version in _EARLIER:
        raise BundleError(
            f"{name} has the format {version}, in which only the payload was protected against damage; this version reads "
            f"{' and '.join(_FORMATS)}. Make it again where it was distilled: `d3m distill` puts it together anew from its store"
        )
    if version not in _FORMATS:
        raise BundleError(
            f"{name} has the format {printable(version, 40)}; this version reads {' and '.join(_FORMATS)}. Upgrade d3m-assets"
        )
    if sorted(metadata) != sorted(_FIELDS):
        raise BundleError(f"{name} is damaged: its metadata are not {', '.join(_FIELDS)}; get it again")
    header = data[:end].replace(_hash_field(metadata["sha256"]), _hash_field(_NO_HASH), 1)
    digest = hashlib.sha256(header)
    digest.update(memoryview(data)[end:])
    if digest.hexdigest() != metadata["sha256"]:
        raise BundleError(f"{name} is damaged: its hash is wrong; get it again")
    return BundleFile(tensors, metadata["recipe"], metadata["classes"], version)


def _hash_field(digest: str) -> bytes:
    """How the hash stands in the header; quotes within the other fields are escaped, so nothing else there reads so."""
    return f'"sha256":"{digest}"'.encode()


def _ordered(data: bytes) -> bytes:
    """Sort the header's metadata: the library writes it in the order of a hash map, which changes between runs."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
