"""The bundle: the distilled dataset of one budget in one safetensors file, and the recipe that regenerates it.

The vectors of all classes lie in one tensor, class after class, prompt after prompt: an entry for each class in the
file's header would cost more than many a class's payload. The selections of samples lie in another, and image codes in a third:
a bundle holds vectors or codes, of all its classes. The recipe is JSON in the file's metadata and holds nothing that varies
between two equal runs, so equal distillations give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.distillation.budgets import NUMPY_TYPES, EmbeddingPlan
from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.distillation.selection import decode_selection, samples_in_order, selection_bytes
from d3m_assets.distillation.settings import CODES, GenerationSettings
from d3m_assets.errors import BundleError, StageError
from d3m_assets.ledger import BundleBytes

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder

FORMAT = "d3m-bundle-1"
FORMAT_2 = "d3m-bundle-2"
"""The same, with something that an earlier version of this package would pass over."""
FORMAT_3 = "d3m-bundle-3"
"""The same, with int4 vectors or a selection of samples."""
FORMAT_4 = "d3m-bundle-4"
"""The same, with image codes in place of vectors, or with a payload that was decided on validation images."""
_FORMATS = (FORMAT, FORMAT_2, FORMAT_3, FORMAT_4)
CODE_VERSION = "1"
"""Raised whenever a change here changes a bundle's bytes."""

_TENSOR = "embeddings"
_AUTOENCODER_FIELDS = ("autoencoder", "autoencoder_fingerprint", "autoencoder_bytes")
_SELECTIONS = "selections"
_CODES = "codes"
MOST_CANDIDATES = 1_000_000
"""A recipe that names more could keep a reader busy for ever."""
_SELECTION_FIELDS = ("criterion", "candidates", "kept")
_PAYLOAD_FIELDS = ("payload", "payload_choice")
NO_VECTORS = EmbeddingPlan(0, 0, "int8", 1)
"""The plan of a class that is stored as image codes."""


@dataclass(frozen=True)
class DistilledClass:
    """One class of a bundle.

    Attributes:
        prompts: What it is called.
        plan: How its bytes are spent.
        vectors: Stored vectors, ``[prompts, vectors, stored_width]``.
        selection: Code of the samples that are kept (:mod:`d3m_assets.distillation.selection`); empty: all are.
        codes: Coded real images (:mod:`d3m_assets.evaluation.codecs`) in place of vectors; empty: there are none.
    """

    prompts: ClassPrompts
    plan: EmbeddingPlan
    vectors: np.ndarray
    selection: bytes = b""
    codes: bytes = b""

    @classmethod
    def coded(cls, prompts: ClassPrompts, codes: bytes) -> DistilledClass:
        """A class whose payload is image codes."""
        return cls(prompts, NO_VECTORS, np.empty((0, 0, NO_VECTORS.stored_width), np.int8), codes=codes)

    @property
    def payload(self) -> int:
        """Bytes charged to the class."""
        return self.plan.payload + len(self.selection) + len(self.codes)


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
        foundation: How the foundation model was named; empty: codes need none.
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
        criterion: What samples are selected by, for people; empty: by nothing.
        candidates: Samples that a class is selected from; 0: there is no selection.
        kept: Most samples that a selection has, or images that the training set has without one; 0: it is not recorded.
        payload: "codes": all classes are stored as image codes; empty: as prompts.
        payload_choice: How payload or codec were chosen on validation images, for people.
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
    criterion: str = ""
    candidates: int = 0
    kept: int = 0
    payload: str = ""
    payload_choice: str = ""


@dataclass(frozen=True)
class Bundle:
    """A distilled dataset: recipe and classes."""

    recipe: Recipe
    classes: tuple[DistilledClass, ...]

    @property
    def payload(self) -> int:
        """Bytes of all vectors, selections and codes: what the ledger charges to the classes."""
        return sum(c.payload for c in self.classes)

    @property
    def is_coded(self) -> bool:
        """Whether its images are coded real images, for which no model is needed; otherwise they are generated."""
        return self.recipe.payload == CODES

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the file's contents: what images that were generated from it name it by."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's contents; equal bundles give equal bytes."""
        from safetensors.numpy import save

        first = self.classes[0].plan
        vectors = np.concatenate([c.vectors.reshape(-1, first.stored_width) for c in self.classes])
        vectors = vectors.astype(NUMPY_TYPES[first.storage_type])
        selections = b"".join(c.selection for c in self.classes)
        entries = [_class_entry(c, bool(self.recipe.candidates)) for c in self.classes]
        recipe = _recipe_to_json(self.recipe, first)
        metadata = {
            "format": self._format(first),
            "recipe": json.dumps(recipe, ensure_ascii=False, sort_keys=True, separators=(",", ":")),
            "classes": json.dumps(entries, ensure_ascii=False, separators=(",", ":")),
            "sha256": hashlib.sha256(vectors.tobytes()).hexdigest(),
        }
        tensors: dict[str, np.ndarray] = {_TENSOR: vectors}
        if selections:
            tensors[_SELECTIONS] = np.frombuffer(selections, np.uint8)
            metadata["selections_sha256"] = hashlib.sha256(selections).hexdigest()
        if self.is_coded:
            codes = b"".join(c.codes for c in self.classes)
            tensors[_CODES] = np.frombuffer(codes, np.uint8)
            metadata["codes_sha256"] = hashlib.sha256(codes).hexdigest()
        return _ordered(save(tensors, metadata=metadata))

    def _format(self, plan: EmbeddingPlan) -> str:
        """The oldest format that a reader needs to know."""
        if self.recipe.payload or self.recipe.payload_choice:
            return FORMAT_4
        if self.recipe.criterion or plan.storage_type == "int4":
            return FORMAT_3
        return FORMAT_2 if self.recipe.autoencoder or plan.norms else FORMAT

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the bundle") -> Bundle:
        """Read a bundle.

        Args:
            data: Contents of the file.
            name: What errors call it.

        Raises:
            BundleError: It is no bundle, of another version, or damaged.
        """
        tensors, metadata = _open(data, name)
        try:
            raw = bytes(tensors[_TENSOR]["data"])
            recipe, plan = _recipe_from_json(json.loads(metadata["recipe"]))
            if hashlib.sha256(raw).hexdigest() != metadata["sha256"]:
                raise BundleError(f"{name} is damaged: the hash of its embeddings is wrong; get it again")
            vectors = np.frombuffer(raw, NUMPY_TYPES[plan.storage_type]).reshape(-1, plan.stored_width)
            _check_recipe(recipe)
            selections = bytes(tensors[_SELECTIONS]["data"]) if _SELECTIONS in tensors else b""
            if selections and hashlib.sha256(selections).hexdigest() != metadata["selections_sha256"]:
                raise BundleError(f"{name} is damaged: the hash of its selection of samples is wrong; get it again")
            codes = _codes(tensors, metadata, recipe, name)
            classes, end, selected, decoded = [], 0, 0, 0
            for entry in json.loads(metadata["classes"]):
                read = _read_class(
                    entry, recipe, plan, vectors[end:], selections[selected:], memoryview(codes)[decoded:]
                )
                classes.append(read)
                end += read.plan.prompts * read.plan.vectors
                selected += len(read.selection)
                decoded += len(read.codes)
            if decoded != len(codes):
                raise BundleError(
                    f"{name} is damaged: {len(codes)} bytes of codes, but its classes have {decoded}; get it again"
                )
            if selected != len(selections):
                raise BundleError(
                    f"{name} is damaged: {len(selections)} bytes of selections, but its classes have {selected}; get it again"
                )
            if not classes:
                raise ValueError("no classes")
            for what, values in (
                ("name", [c.prompts.class_name for c in classes]),
                ("number", [c.prompts.class_id for c in classes]),
            ):
                if len(set(values)) < len(classes):
                    raise ValueError(f"two classes of one {what}")
            if end != len(vectors):
                raise BundleError(
                    f"{name} is damaged: {len(vectors)} vectors, but its classes name {end}; get it again"
                )
        except (KeyError, TypeError, ValueError, StageError) as error:
            raise BundleError(f"{name} is damaged: {error!r}; get it again") from error
        return cls(recipe, tuple(classes))

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

    def selected(self, distilled: DistilledClass) -> np.ndarray | None:
        """Rising numbers of the samples that a class keeps, int ``[K]``; None: samples are taken as they come.

        Raises:
            BundleError: Its code is no selection of the recipe.
        """
        if not distilled.selection:
            return None
        return decode_selection(distilled.selection, self.recipe.candidates, self.recipe.kept)

    def samples(self, distilled: DistilledClass, count: int) -> np.ndarray:
        """Numbers of the first ``count`` samples of a class: its selection, then fresh ones behind all candidates.

        Raises:
            BundleError: The class has coded images, and fewer of them.
        """
        if self.is_coded:
            self._check_coded(distilled, count)
            return np.arange(count)
        return samples_in_order(self.selected(distilled), self.recipe.candidates, count)

    def training_images(self, distilled: DistilledClass) -> int:
        """Images of a class that the training set has."""
        if self.is_coded:
            return self._coded_count(distilled)
        selected = self.selected(distilled)
        if selected is not None:
            return len(selected)
        return self.recipe.kept or self.generation_settings().images_per_class

    def coded_images(self, distilled: DistilledClass) -> np.ndarray:
        """The decoded images of a class of a coded bundle, uint8 ``[N, H, W, C]`` at the stored size.

        Raises:
            StageError: The code is damaged.
        """
        return _decoded(distilled.codes, self._stored_shape)

    def check_images_per_class(self, count: int) -> None:
        """Refuse more images of each class than a coded bundle has; a generating one has any number.

        Raises:
            BundleError: A class has fewer.
        """
        if self.is_coded:
            for c in self.classes:
                self._check_coded(c, count)

    def _check_coded(self, distilled: DistilledClass, count: int) -> None:
        if count > self._coded_count(distilled):
            fewest = min(self._coded_count(c) for c in self.classes)
            raise BundleError(
                f"class {distilled.prompts.class_name!r} has {self._coded_count(distilled)} coded real images and no prompt to "
                f"generate more from, but {count} were asked for; ask for at most {fewest} of each class, or for none in "
                "particular; or distil with payload=prompts"
            )

    def _coded_count(self, distilled: DistilledClass) -> int:
        from d3m_assets.evaluation.codecs.reading import code_header

        return code_header(distilled.codes, self._stored_shape).count

    @property
    def _stored_shape(self) -> tuple[int, int, int]:
        return self.recipe.image_height, self.recipe.image_width, self.recipe.channels

    def byte_counts(self) -> BundleBytes:
        """Bytes of the vectors, of the file and of the models it needs, all classes together."""
        return BundleBytes(
            vectors=sum(c.plan.payload for c in self.classes),
            selections=sum(len(c.selection) for c in self.classes) if self.recipe.criterion else None,
            file=len(self.to_bytes()),
            codes=sum(len(c.codes) for c in self.classes) if self.is_coded else None,
            foundation=self.recipe.foundation_bytes,
            autoencoder=self.recipe.autoencoder_bytes if self.recipe.autoencoder else None,
        )

    def ledger(self) -> pd.DataFrame:
        """Bytes by item: columns item, scope ("class" or "shared"), kind and bytes.

        Bytes are those of all classes together.
        """
        return self.byte_counts().table()

    def check_foundation(self, fingerprint: str, name: str) -> None:
        """Refuse another foundation model than the one the vectors were learned with.

        Raises:
            BundleError: It is another.
        """
        if self.is_coded:  # it is decoded by no model
            return
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
        expected = f"{self.recipe.autoencoder!r} (fingerprint {self.recipe.autoencoder_fingerprint[:12]})"
        if self.recipe.autoencoder and files is None:
            raise BundleError(
                f"the images of this bundle are decoded by the tiny autoencoder {expected}; name its folder with "
                "--set generation.tiny_autoencoder=FOLDER"
            )
        if files is not None and files.fingerprint != self.recipe.autoencoder_fingerprint:
            decoder = f"the tiny autoencoder {expected}" if self.recipe.autoencoder else "the foundation model's own"
            raise BundleError(
                f"the images of this bundle are decoded by {decoder}, but generation.tiny_autoencoder={files.path} has the "
                f"fingerprint {files.fingerprint[:12]}; name the right one"
            )

    def generation_settings(self) -> GenerationSettings:
        """The sampler settings of the recipe."""
        return GenerationSettings(**self.recipe.generation)


def _class_entry(c: DistilledClass, others_are_selected: bool) -> list[Any]:
    """What the header says of a class; only what differs from its name, since ten thousand classes repeat it."""
    p = c.prompts
    entry: list[Any] = [p.class_id, p.class_name, c.plan.prompts, c.plan.vectors]
    names = {"key": p.class_key, "name": p.display_name, "init": p.initializer}
    changed: dict[str, Any] = {field: value for field, value in names.items() if value != p.class_name}
    if others_are_selected and not c.selection:
        changed["all"] = True
    if c.codes:
        changed["codes"] = len(c.codes)
    return [*entry, changed] if changed else entry


def _read_class(
    entry: list[Any],
    recipe: Recipe,
    shared_plan: EmbeddingPlan,
    vectors: np.ndarray,
    selections: bytes,
    codes: memoryview,
) -> DistilledClass:
    """A class from its entry in the header.

    Args:
        entry: As :func:`_class_entry` gives it.
        recipe: The bundle's.
        shared_plan: Storage of the bundle's vectors.
        vectors: Stored vectors from the first of the class on, ``[N, stored_width]``.
        selections: Codes of selections from the class's on.
        codes: Image codes from the class's on.

    Raises:
        BundleError: Its selection is none.
        StageError: Its image code is none.
        TypeError, ValueError: It is no such entry.
    """
    class_id, class_name, prompts, per_prompt, *changed = entry
    names = changed[0] if changed else {}
    # A bundle is what people exchange: a class named ../../x must not become a folder elsewhere.
    leaves = class_name in ("", ".", "..") or "\0" in class_name or Path(class_name).name != class_name
    if not isinstance(class_id, int) or leaves:
        raise ValueError(f"class {class_name!r} cannot name a folder")
    words = ClassPrompts(
        class_id,
        names.get("key", class_name),
        class_name,
        names.get("name", class_name),
        names.get("init", class_name),
        recipe.templates,
        recipe.keep_class_name,
    )
    if recipe.payload == CODES:
        return DistilledClass.coded(words, _own_code(codes, names.get("codes"), (prompts, per_prompt), recipe))
    if "codes" in names:
        raise ValueError("image codes beside prompts")
    plan = replace(shared_plan, prompts=prompts, vectors=per_prompt)
    own = vectors[: prompts * per_prompt].reshape(prompts, per_prompt, plan.stored_width)
    selection = b""
    if recipe.candidates and not names.get("all"):
        selection = selections[: selection_bytes(recipe.candidates, recipe.kept)]
        decode_selection(selection, recipe.candidates, recipe.kept)
    return DistilledClass(words, plan, own, selection)


def _own_code(codes: memoryview, length: Any, vectors: tuple[int, int], recipe: Recipe) -> bytes:
    """The first ``length`` bytes of ``codes``, if they are a code within the budget and the class has no vectors beside it.

    Raises:
        StageError, ValueError: They are not.
    """
    from d3m_assets.evaluation.codecs.reading import code_header

    if not isinstance(length, int) or not 0 < length <= min(recipe.bytes_per_class, len(codes)) or any(vectors):
        raise ValueError(f"a class of {length} bytes of image codes and vectors {vectors}")
    own = bytes(codes[:length])
    code_header(own, (recipe.image_height, recipe.image_width, recipe.channels))
    return own


def _codes(tensors: dict[str, Any], metadata: dict[str, str], recipe: Recipe, name: str) -> bytes:
    """The image codes of all classes; none where there are prompts.

    Raises:
        BundleError: They are damaged.
        KeyError, ValueError: They are missing, or there where they have no place.
    """
    if recipe.payload not in ("", CODES):
        raise ValueError(f"a payload of {recipe.payload!r}")
    if (_CODES in tensors) != (recipe.payload == CODES):
        raise ValueError("image codes beside prompts, or none in their place")
    if recipe.payload != CODES:
        return b""
    codes = bytes(tensors[_CODES]["data"])
    if hashlib.sha256(codes).hexdigest() != metadata["codes_sha256"]:
        raise BundleError(f"{name} is damaged: the hash of its image codes is wrong; get it again")
    return codes


@lru_cache(maxsize=2)
def _decoded(codes: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from d3m_assets.evaluation.codecs.reading import read_code

    images = read_code(codes, shape)
    images.flags.writeable = False  # it is shared by all who ask
    return images


def _recipe_to_json(recipe: Recipe, plan: EmbeddingPlan) -> dict[str, Any]:
    """The recipe and how vectors are stored; without what an earlier version does not know where it is not used."""
    values = {**asdict(recipe), "storage_type": plan.storage_type, "width": plan.width}
    if plan.norms:
        values["norms"] = plan.norms
    if not recipe.autoencoder:
        values = {name: value for name, value in values.items() if name not in _AUTOENCODER_FIELDS}
    if not recipe.criterion:
        values = {name: value for name, value in values.items() if name not in _SELECTION_FIELDS}
    return {name: value for name, value in values.items() if value or name not in _PAYLOAD_FIELDS}


def _recipe_from_json(values: dict[str, Any]) -> tuple[Recipe, EmbeddingPlan]:
    """The recipe, and the plan of one vector as the bundle stores it.

    Raises:
        KeyError, TypeError: It is none.
    """
    plan = EmbeddingPlan(1, 1, values.pop("storage_type"), values.pop("width"), values.pop("norms", 0))
    return Recipe(**(values | {"templates": tuple(values["templates"])})), plan


def _check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that could not generate images.

    Raises:
        TypeError, ValueError: It could not.
    """
    GenerationSettings(**recipe.generation)
    if not recipe.templates or any(t.count("{}") != 1 for t in recipe.templates):
        raise ValueError("templates without a place for the class")
    if recipe.candidates and not 1 <= recipe.kept <= recipe.candidates <= MOST_CANDIDATES:
        raise ValueError(f"a selection of {recipe.kept} of {recipe.candidates} samples")
    sides = recipe.image_height, recipe.image_width
    if recipe.payload == CODES and not (all(type(n) is int and n > 0 for n in sides) and recipe.channels in (1, 3)):
        raise ValueError(f"coded images of {sides} pixels and {recipe.channels} channels")


def _open(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a bundle file.

    Raises:
        BundleError: It is no bundle, or of another version.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata: dict[str, str] = header["__metadata__"]
        version = metadata["format"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{name} is not a bundle of d3m-assets, or is damaged: {error}") from error
    if version not in _FORMATS:
        raise BundleError(
            f"{name} has the format {version}; this version reads {', '.join(_FORMATS[:-1])} and {_FORMATS[-1]}. "
            "Upgrade d3m-assets"
        )
    return tensors, metadata


def _ordered(data: bytes) -> bytes:
    """Sort the header's metadata: the library writes it in the order of a hash map, which changes between runs."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
