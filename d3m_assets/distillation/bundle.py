"""The bundle: the distilled dataset of one budget in one safetensors file, and the recipe that regenerates it.

The vectors of all classes lie in one tensor, class after class, prompt after prompt: an entry for each class in the
file's header would cost more than many a class's payload. The recipe is JSON in the file's metadata and holds nothing
that varies between two equal runs, so equal distillations give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import BundleError

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder

FORMAT = "d3m-bundle-1"
FORMAT_2 = "d3m-bundle-2"
"""The same, with something that an earlier version of this package would pass over."""
CODE_VERSION = "1"
"""Raised whenever a change here changes a bundle's bytes."""

_TENSOR = "embeddings"
_OF_AUTOENCODER = ("autoencoder", "autoencoder_fingerprint", "autoencoder_bytes")
_KINDS = {"int8": np.int8, "fp16": np.float16}


@dataclass(frozen=True)
class DistilledClass:
    """One class of a bundle.

    Attributes:
        prompts: What it is called.
        plan: How its bytes are spent.
        vectors: Stored vectors, ``[prompts, vectors, stored_width]``.
    """

    prompts: ClassPrompts
    plan: EmbeddingPlan
    vectors: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """How a bundle regenerates its pool.

    Attributes:
        budget: Name of the budget.
        bytes_per_class: Bytes the budget allows a class.
        dataset: Name of the dataset, for people.
        image_height: Stored height of the real images, in pixels.
        image_width: Stored width.
        channels: Stored channels; 1 makes regenerated images grey.
        foundation: How the foundation model was named.
        foundation_fingerprint: Of its files.
        foundation_bytes: Size of its weights.
        generation: Sampler, steps, guidance, batch size.
        scheduler: The noise schedule's kind and prediction type, for people.
        seed: Root of the random streams.
        templates: Prompts with ``{}`` for the class.
        keep_class_name: Whether the class's name stands behind the learned vectors.
        licence: Terms of the bundle, as far as known.
        autoencoder: Name of the tiny autoencoder that decodes; empty: the foundation model's own does.
        autoencoder_fingerprint: Of its files.
        autoencoder_bytes: Size of its weights.
    """

    budget: str
    bytes_per_class: int
    dataset: str
    image_height: int
    image_width: int
    channels: int
    foundation: str
    foundation_fingerprint: str
    foundation_bytes: int
    generation: dict[str, Any]
    scheduler: str
    seed: int
    templates: tuple[str, ...]
    keep_class_name: bool
    licence: str = "as the dataset's and the foundation model's"
    autoencoder: str = ""
    autoencoder_fingerprint: str = ""
    autoencoder_bytes: int = 0


@dataclass(frozen=True)
class Bundle:
    """A distilled dataset: recipe and classes."""

    recipe: Recipe
    classes: tuple[DistilledClass, ...]

    @property
    def payload(self) -> int:
        """Bytes of all embedding vectors: what the ledger charges to the classes."""
        return sum(c.plan.payload for c in self.classes)

    def to_bytes(self) -> bytes:
        """The file's contents; equal bundles give equal bytes."""
        from safetensors.numpy import save

        first = self.classes[0].plan
        kind, width, norms = first.storage_type, first.width, first.norms
        rows = np.concatenate([c.vectors.reshape(-1, first.stored_width) for c in self.classes]).astype(_KINDS[kind])
        listed = []
        for c in self.classes:
            # Only what differs from the rule is written: ten thousand classes repeat these names.
            p = c.prompts
            entry: list[Any] = [p.class_id, p.class_name, c.plan.prompts, c.plan.vectors]
            extra = {k: v for k, v in (("key", p.class_key), ("name", p.display_name), ("init", p.initializer))
                     if v != p.class_name}  # fmt: skip
            listed.append([*entry, extra] if extra else entry)
        recipe = {**asdict(self.recipe), "storage_type": kind, "width": width}
        if norms:
            recipe["norms"] = norms
        if not self.recipe.autoencoder:
            recipe = {name: value for name, value in recipe.items() if name not in _OF_AUTOENCODER}
        metadata = {
            "format": FORMAT_2 if self.recipe.autoencoder or norms else FORMAT,
            "recipe": json.dumps(recipe, ensure_ascii=False, sort_keys=True, separators=(",", ":")),
            "classes": json.dumps(listed, ensure_ascii=False, separators=(",", ":")),
            "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        }
        return _ordered(save({_TENSOR: rows}, metadata=metadata))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the bundle") -> Bundle:
        """Read a bundle.

        Raises:
            BundleError: It is no bundle, of another version, or damaged.
        """
        from safetensors import SafetensorError, deserialize

        try:
            tensors = dict(deserialize(data))
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            metadata = header["__metadata__"]
            found = metadata["format"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{name} is not a bundle of d3m-assets, or is damaged: {error}") from error
        if found not in (FORMAT, FORMAT_2):
            raise BundleError(
                f"{name} has the format {found}; this version reads {FORMAT} and {FORMAT_2}. Upgrade d3m-assets"
            )
        try:
            raw = bytes(tensors[_TENSOR]["data"])
            recipe = json.loads(metadata["recipe"])
            kind, width, norms = recipe.pop("storage_type"), recipe.pop("width"), recipe.pop("norms", 0)
            stored_width = EmbeddingPlan(1, 1, kind, width, norms).stored_width
            if hashlib.sha256(raw).hexdigest() != metadata["sha256"]:
                raise BundleError(f"{name} is damaged: the hash of its embeddings is wrong; get it again")
            rows = np.frombuffer(raw, _KINDS[kind]).reshape(-1, stored_width)
            recipe["templates"] = tuple(recipe["templates"])
            parsed = Recipe(**recipe)
            GenerationSettings(**parsed.generation)
            if not parsed.templates or any(t.count("{}") != 1 for t in parsed.templates):
                raise ValueError("templates without a place for the class")
            classes, at = [], 0
            for class_id, class_name, prompts, vectors, *extra in json.loads(metadata["classes"]):
                other = extra[0] if extra else {}
                # A bundle is what people exchange: a class named ../../x must not become a folder elsewhere.
                leaves = class_name in ("", ".", "..") or "\0" in class_name or Path(class_name).name != class_name
                if not isinstance(class_id, int) or leaves:
                    raise ValueError(f"class {class_name!r} cannot name a folder")
                words = ClassPrompts(
                    class_id, other.get("key", class_name), class_name, other.get("name", class_name),
                    other.get("init", class_name), parsed.templates, parsed.keep_class_name,
                )  # fmt: skip
                plan = EmbeddingPlan(prompts, vectors, kind, width, norms)
                part = rows[at : at + prompts * vectors].reshape(prompts, vectors, stored_width)
                classes.append(DistilledClass(words, plan, part))
                at += prompts * vectors
            if not classes:
                raise ValueError("no classes")
            if at != len(rows):
                raise BundleError(f"{name} is damaged: {len(rows)} vectors, but its classes name {at}; get it again")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{name} is damaged: {error!r}; get it again") from error
        return cls(parsed, tuple(classes))

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle file.

        Raises:
            BundleError: It does not exist or is no bundle.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise BundleError(f"the bundle {path} cannot be read: {error}") from error
        return cls.from_bytes(data, str(path))

    def token_of(self, class_index: int, prompt: int) -> str:
        """Placeholder token of one learned prompt."""
        return placeholder_token(self.classes[class_index].prompts.class_id, prompt)

    def ledger(self) -> pd.DataFrame:
        """Bytes by item: columns item, scope ("class" or "shared"), kind ("stored" or "regenerable") and bytes.

        Bytes are those of all classes together.
        """
        import pandas as pd

        size = len(self.to_bytes())
        rows = [
            ("embedding vectors", "class", "stored", self.payload),
            ("recipe and names", "shared", "stored", size - self.payload),
            ("foundation model", "shared", "stored", self.recipe.foundation_bytes),
        ]
        if self.recipe.autoencoder:
            rows.append(("tiny autoencoder", "shared", "stored", self.recipe.autoencoder_bytes))
        return pd.DataFrame(rows, columns=["item", "scope", "kind", "bytes"])

    def check_foundation(self, fingerprint: str, name: str) -> None:
        """Refuse another foundation model than the one the vectors were learned with.

        Raises:
            BundleError: It is another.
        """
        if fingerprint != self.recipe.foundation_fingerprint:
            raise BundleError(
                f"this bundle was made for the foundation model {self.recipe.foundation!r} "
                f"(fingerprint {self.recipe.foundation_fingerprint[:12]}), but {name!r} has {fingerprint[:12]}. "
                "Its vectors mean nothing to another model: name the right one with --foundation"
            )

    def check_autoencoder(self, files: TinyAutoencoder | None) -> None:
        """Refuse to decode with another autoencoder than the recipe's.

        Raises:
            BundleError: The recipe has a tiny autoencoder and this is another, or none.
        """
        wanted = f"{self.recipe.autoencoder!r} (fingerprint {self.recipe.autoencoder_fingerprint[:12]})"
        if self.recipe.autoencoder and files is None:
            raise BundleError(
                f"the images of this bundle are decoded by the tiny autoencoder {wanted}; name its folder with "
                "--set generation.tiny_autoencoder=FOLDER"
            )
        if files is not None and files.fingerprint != self.recipe.autoencoder_fingerprint:
            right = f"the tiny autoencoder {wanted}" if self.recipe.autoencoder else "the foundation model's own"
            raise BundleError(
                f"the images of this bundle are decoded by {right}, but generation.tiny_autoencoder={files.path} has the "
                f"fingerprint {files.fingerprint[:12]}; name the right one"
            )

    def generation_settings(self) -> GenerationSettings:
        """The sampler settings of the recipe."""
        return GenerationSettings(**self.recipe.generation)


def _ordered(data: bytes) -> bytes:
    """Sort the header's metadata: the library writes it in the order of a hash map, which changes between runs."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
