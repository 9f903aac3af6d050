"""The bundle: the distilled dataset of one budget in one safetensors file, and the recipe that regenerates it.

The vectors of all classes lie in one tensor, class after class, prompt after prompt: an entry for each class in the
file's header would cost more than many a class's payload. The selections of samples lie in another, and image codes in a third:
a bundle holds vectors, codes or both, of all its classes. The recipe is JSON in the file's metadata and holds nothing that varies
between two equal runs, so equal distillations give equal bytes.

A bundle is what people exchange, so a file may say anything. What is read is typed and bounded, and a file is refused that is not,
byte for byte, what would be written of what was read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, ConfigDict, FailFast, Field, TypeAdapter, ValidationError

from d3m_assets.datasets.names import LONGEST_NAME, SAFE_KEY, normalized
from d3m_assets.distillation.budgets import NUMPY_TYPES, EmbeddingPlan, StorageType
from d3m_assets.distillation.bundle_file import FORMAT, FORMAT_OF_BOTH, read_file, write_file
from d3m_assets.distillation.prompts import MOST_PROMPTS, ClassPrompts, placeholder_token
from d3m_assets.distillation.selection import (
    MOST_CANDIDATES,
    check_selection,
    decode_selection,
    samples_in_order,
    selection_bytes,
)
from d3m_assets.distillation.settings import (
    BOTH,
    CODES,
    MOST_IMAGES,
    MOST_TEMPLATES,
    PARTS,
    PROMPTS,
    GenerationSettings,
    Template,
)
from d3m_assets.distillation.vectors import check_stored
from d3m_assets.errors import BundleError, D3MError
from d3m_assets.ledger import Budget, BundleBytes
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder

CODE_VERSION = "2"
"""Raised whenever a change here or in :mod:`d3m_assets.distillation.bundle_file` changes a bundle's bytes."""

_TENSOR = "embeddings"
_SELECTIONS = "selections"
_CODES = "codes"
_OPTIONAL_FIELDS = frozenset(
    ("autoencoder", "autoencoder_fingerprint", "autoencoder_bytes", "criterion", "candidates", "kept")
    + ("payload", "payload_choice", "norms")
)
"""Of the stored recipe: left out where they are empty."""
LONGEST_TEXT = 10_000
"""Characters of a text of the recipe that is meant for people, and of paths and addresses."""
MOST_SIDE = 1 << 16
"""Pixels of a side of the real images."""
MOST_WIDTH = 1 << 16
"""Numbers in a learned vector: thirty times those of SDXL."""
MOST_VECTORS = 1000
"""Of a prompt: thirteen times the tokens that CLIP reads."""
NO_VECTORS = EmbeddingPlan(0, 0, "int8", 1)
"""The plan of a class that is stored as image codes alone."""

_Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
_Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
_Size = Annotated[int, Field(ge=0, lt=1 << 63)]
_Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


@dataclass(frozen=True)
class DistilledClass:
    """One class of a bundle.

    Attributes:
        prompts: What it is called.
        plan: How its bytes are spent.
        vectors: Stored vectors, ``[prompts, vectors, stored_width]``.
        selection: Code of the samples that are kept (:mod:`d3m_assets.distillation.selection`); empty: all are.
        codes: Coded real images (:mod:`d3m_assets.evaluation.codecs`), in place of vectors or beside them; empty: none.
    """

    prompts: ClassPrompts
    plan: EmbeddingPlan
    vectors: np.ndarray
    selection: bytes = b""
    codes: bytes = b""

    @classmethod
    def coded(cls, prompts: ClassPrompts, codes: bytes) -> DistilledClass:
        """A class whose payload is image codes alone."""
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
        payload: "codes": all classes are stored as image codes; "both": as prompts and codes; empty: as prompts.
        payload_choice: How payload or codec were chosen on validation images, for people.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    budget: _Text
    bytes_per_class: _Size
    dataset: _Text
    image_height: _Side
    image_width: _Side
    channels: int
    foundation: _Text
    foundation_fingerprint: _Digest
    foundation_bytes: _Size
    generation: dict[str, Any]
    scheduler: _Text
    seed: _Size
    templates: Annotated[tuple[Template, ...], Field(min_length=1, max_length=MOST_TEMPLATES)]
    keep_class_name: bool
    licence: _Text = "as the dataset's and the foundation model's"
    autoencoder: _Text = ""
    autoencoder_fingerprint: _Digest = ""
    autoencoder_bytes: _Size = 0
    criterion: _Text = ""
    candidates: Annotated[int, Field(ge=0, le=MOST_CANDIDATES)] = 0
    kept: Annotated[int, Field(ge=0, le=MOST_IMAGES)] = 0
    payload: Literal["", "codes", "both"] = ""
    payload_choice: _Text = ""

    @property
    def parts(self) -> frozenset[str]:
        """What classes are stored as: prompts, codes or both."""
        return PARTS[self.payload or PROMPTS]

    @property
    def file_format(self) -> str:
        """Format of its bundle's file."""
        return FORMAT_OF_BOTH if self.payload == BOTH else FORMAT


@dataclass(frozen=True, kw_only=True)
class _StoredRecipe(Recipe):
    """A recipe as the file has it: with how vectors are stored.

    Attributes:
        storage_type: Number format of the vectors.
        width: Numbers in a vector.
        norms: Norms that are stored with each vector.
    """

    storage_type: StorageType
    width: Annotated[int, Field(ge=1, le=MOST_WIDTH)]
    norms: Annotated[int, Field(ge=0, le=4)] = 0

    def split(self) -> tuple[Recipe, EmbeddingPlan]:
        """The recipe, and the plan of one vector."""
        recipe = Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})
        return recipe, EmbeddingPlan(1, 1, self.storage_type, self.width, self.norms)


def _class_name(name: str) -> str:
    if normalized(name) != name:
        raise ValueError("it is not in Unicode's NFC form")
    return name


_ClassName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_class_name)]
_Words = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]


@dataclass(frozen=True)
class _Differences:
    """What of a class is not as its name suggests.

    Attributes:
        key: Partition key.
        name: Name in prompts.
        init: Words whose embeddings the inversion started from.
        all: It has no selection, though others do.
        codes: Bytes of its image codes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    key: Annotated[str, Field(pattern=rf"^{SAFE_KEY}$")] | None = None
    name: _Words | None = None
    init: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] | None = None
    all: Literal[True] | None = None
    codes: Annotated[int, Field(ge=1)] | None = None


class _ClassEntry(NamedTuple):
    """What the header says of a class; only what differs from its name, since ten thousand classes repeat it."""

    class_id: Annotated[int, Field(ge=0, lt=1 << 31)]
    class_name: _ClassName
    prompts: Annotated[int, Field(ge=0, le=MOST_PROMPTS)]
    vectors: Annotated[int, Field(ge=0, le=MOST_VECTORS)]
    differences: _Differences = _Differences()

    @classmethod
    def of(cls, c: DistilledClass, others_are_selected: bool) -> _ClassEntry:
        """The entry of a class."""
        p = c.prompts
        key, name, init = (v if v != p.class_name else None for v in (p.class_key, p.display_name, p.initializer))
        everything: Literal[True] | None = True if others_are_selected and not c.selection else None
        return cls(
            p.class_id,
            p.class_name,
            c.plan.prompts,
            c.plan.vectors,
            _Differences(key, name, init, everything, len(c.codes) or None),
        )

    def to_json(self) -> list[Any]:
        """JSON values, as stored."""
        *values, differences = self
        named = {name: value for name, value in asdict(differences).items() if value is not None}
        return [*values, named] if named else values

    def words(self, recipe: Recipe) -> ClassPrompts:
        """What the class is called."""
        d, name = self.differences, self.class_name
        return ClassPrompts(
            self.class_id,
            d.key or name,
            name,
            d.name or name,
            d.init or name,
            recipe.templates,
            recipe.keep_class_name,
        )


@lru_cache(maxsize=1)
def _readers() -> tuple[TypeAdapter[_StoredRecipe], TypeAdapter[list[_ClassEntry]]]:
    return TypeAdapter(_StoredRecipe), TypeAdapter(Annotated[list[_ClassEntry], FailFast()])


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
    def generates(self) -> bool:
        """Whether images are generated from prompts, for which the model is needed; otherwise all are coded real images."""
        return PROMPTS in self.recipe.parts

    @property
    def has_codes(self) -> bool:
        """Whether there are coded real images, alone or beside generated ones."""
        return CODES in self.recipe.parts

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the file's contents: what images that were generated from it name it by."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's contents; equal bundles give equal bytes."""
        first = self.classes[0].plan
        vectors = np.concatenate([c.vectors.reshape(-1, first.stored_width) for c in self.classes])
        selections = b"".join(c.selection for c in self.classes)
        tensors: dict[str, np.ndarray] = {_TENSOR: vectors.astype(NUMPY_TYPES[first.storage_type])}
        if selections:
            tensors[_SELECTIONS] = np.frombuffer(selections, np.uint8)
        if self.has_codes:
            tensors[_CODES] = np.frombuffer(b"".join(c.codes for c in self.classes), np.uint8)
        entries = [_ClassEntry.of(c, bool(self.recipe.candidates)).to_json() for c in self.classes]
        return write_file(
            tensors,
            json.dumps(_stored_recipe(self.recipe, first), ensure_ascii=False, sort_keys=True, separators=(",", ":")),
            json.dumps(entries, ensure_ascii=False, separators=(",", ":")),
            self.recipe.file_format,
        )

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the bundle") -> Bundle:
        """Read a bundle.

        Args:
            data: Contents of the file.
            name: What errors call it.

        Raises:
            BundleError: It is no bundle, of another format, damaged, or says what no bundle says.
        """
        name = printable(name)
        file = read_file(data, name)
        try:
            recipes, entries = _readers()
            recipe, plan = recipes.validate_json(file.recipe).split()
            if file.format != recipe.file_format:
                raise ValueError(f"its format is {file.format}, but its payload is one of {recipe.file_format}")
            _check_recipe(recipe, frozenset(file.tensors))
            read = cls(recipe, _read_classes(entries.validate_json(file.classes), recipe, plan, file.tensors))
        except ValidationError as error:
            raise BundleError(f"{name} is damaged: {_first_reason(error)}; get it again") from None
        except (ValueError, D3MError) as error:
            reason = printable(error).removesuffix("; get it again")
            raise BundleError(f"{name} is damaged: {reason}; get it again") from None
        if read.to_bytes() != data:
            raise BundleError(f"{name} is damaged: it is not written as d3m-assets writes it; get it again")
        read.__dict__["sha256"] = hashlib.sha256(data).hexdigest()  # else it would be written once more for it
        return read

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle file.

        Raises:
            BundleError: It does not exist or is no bundle.
        """
        if Path(path).exists() and not Path(path).is_file():
            raise BundleError(f"the bundle {path} is no regular file")  # a pipe would be waited for
        try:
            return cls.from_bytes(Path(path).read_bytes(), str(path))
        except (OSError, ValueError) as error:
            raise BundleError(f"the bundle {path} cannot be read: {error}") from error
        except MemoryError:
            raise BundleError(f"the bundle {path} does not fit into memory") from None

    def token_of(self, class_index: int, prompt: int) -> str:
        """Placeholder token of one learned prompt."""
        return placeholder_token(self.classes[class_index].prompts.class_id, prompt)

    def training_numbers(self, distilled: DistilledClass) -> np.ndarray | None:
        """Rising numbers of the samples that are a class's training set, int ``[K]``; None: samples are taken as they come.

        Those that its selection keeps of the candidates, and its coded images behind them.

        Raises:
            BundleError: Its code is no selection of the recipe.
        """
        codes = self.code_numbers(distilled)
        if distilled.selection:
            kept = decode_selection(distilled.selection, self.recipe.candidates, self.recipe.kept)
        elif self.generates and codes:
            kept = np.arange(codes.start)
        else:
            return None
        return np.concatenate([kept, np.arange(codes.start, codes.stop)])

    def code_numbers(self, distilled: DistilledClass) -> range:
        """Numbers of a class's coded images: behind all that its training set is generated or selected from.

        Empty, at that place, where no image is coded.
        """
        if not self.generates:
            first = 0
        elif distilled.selection:
            first = self.recipe.candidates
        else:
            first = self.recipe.kept or self.generation_settings().images_per_class
        return range(first, first + self._coded_count(distilled))

    def first_fresh(self, distilled: DistilledClass) -> int:
        """The first sample of a class behind its training set, its candidates and its coded images."""
        return self.code_numbers(distilled).stop

    def samples(self, distilled: DistilledClass, count: int) -> np.ndarray:
        """Numbers of the first ``count`` samples of a class: its training set, then fresh ones behind all candidates.

        Raises:
            BundleError: The class has coded images alone, and fewer of them.
        """
        if not self.generates:
            self._check_coded(distilled, count)
        return samples_in_order(self.training_numbers(distilled), self.first_fresh(distilled), count)

    def training_images(self, distilled: DistilledClass) -> int:
        """Images of a class that the training set has."""
        selected = self.training_numbers(distilled)
        return self.first_fresh(distilled) if selected is None else len(selected)

    def coded_images(self, distilled: DistilledClass) -> np.ndarray:
        """The decoded images of a class, uint8 ``[N, H, W, C]`` at the stored size.

        Raises:
            StageError: The code is damaged.
        """
        return _decoded(distilled.codes, self._stored_shape)

    def check_images_per_class(self, count: int) -> None:
        """Refuse more images of each class than there are where all are coded; a generating bundle has any number.

        Raises:
            BundleError: A class has fewer.
        """
        if not self.generates:
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

        return code_header(distilled.codes, self._stored_shape).count if self.has_codes else 0

    @property
    def _stored_shape(self) -> tuple[int, int, int]:
        return self.recipe.image_height, self.recipe.image_width, self.recipe.channels

    def byte_counts(self) -> BundleBytes:
        """Bytes of the vectors, of the file and of the models it needs, all classes together."""
        return BundleBytes(
            vectors=sum(c.plan.payload for c in self.classes) if self.generates else None,
            selections=sum(len(c.selection) for c in self.classes) if self.recipe.criterion else None,
            file=len(self.to_bytes()),
            codes=sum(len(c.codes) for c in self.classes) if self.has_codes else None,
            foundation=self.recipe.foundation_bytes if self.generates else None,
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
        if not self.generates:  # it is decoded by no model
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


def _read_classes(
    entries: list[_ClassEntry], recipe: Recipe, shared_plan: EmbeddingPlan, tensors: Mapping[str, bytes]
) -> tuple[DistilledClass, ...]:
    """The classes from their entries, which share the tensors out in their order.

    Args:
        entries: Of the header.
        recipe: The bundle's.
        shared_plan: Storage of the bundle's vectors.
        tensors: Bytes of the file's tensors.

    Raises:
        D3MError, ValueError: They do not fit together, or a payload is none.
    """
    vectors = np.frombuffer(tensors[_TENSOR], NUMPY_TYPES[shared_plan.storage_type])
    vectors = vectors.reshape(-1, shared_plan.stored_width)
    check_stored(vectors, shared_plan)
    left = _Left(vectors, memoryview(tensors.get(_SELECTIONS, b"")), memoryview(tensors.get(_CODES, b"")))
    classes = tuple(_read_class(entry, recipe, shared_plan, left) for entry in entries)
    if not classes:
        raise ValueError("no classes")
    for what, values in (
        ("name", [c.prompts.class_name for c in classes]),
        ("number", [c.prompts.class_id for c in classes]),
        ("key", [c.prompts.class_key for c in classes]),
    ):
        if len(set(values)) < len(classes):
            raise ValueError(f"two classes of one {what}")
    if len(left.vectors) or left.selections or left.codes:
        raise ValueError(
            f"{len(left.vectors)} vectors, {len(left.selections)} bytes of selections and {len(left.codes)} bytes of codes "
            "belong to no class"
        )
    return classes


@dataclass
class _Left:
    """What of the tensors no class has taken yet: vectors ``[N, stored_width]``, selections, image codes."""

    vectors: np.ndarray
    selections: memoryview
    codes: memoryview

    def take_vectors(self, prompts: int, vectors: int, width: int) -> np.ndarray:
        """The next vectors, ``[prompts, vectors, width]``.

        Raises:
            ValueError: There are too few.
        """
        taken, self.vectors = np.split(self.vectors, [prompts * vectors])
        return taken.reshape(prompts, vectors, width)

    def take_selection(self, length: int) -> bytes:
        """The next code of a selection, shorter where there are too few bytes."""
        taken, self.selections = bytes(self.selections[:length]), self.selections[length:]
        return taken

    def take_codes(self, length: int) -> bytes:
        """The next image code, shorter where there are too few bytes."""
        taken, self.codes = bytes(self.codes[:length]), self.codes[length:]
        return taken


def _read_class(entry: _ClassEntry, recipe: Recipe, shared_plan: EmbeddingPlan, left: _Left) -> DistilledClass:
    """A class from its entry, with its part of the tensors.

    Raises:
        D3MError, ValueError: Its payload is none.
    """
    words, differences = entry.words(recipe), entry.differences
    if differences.key is None and not re.fullmatch(SAFE_KEY, entry.class_name):
        raise ValueError(f"class {entry.class_name!r} lacks a key")
    if bool(entry.prompts * entry.vectors) != (PROMPTS in recipe.parts):
        raise ValueError(f"class {entry.class_name!r} has {entry.prompts} x {entry.vectors} vectors")
    if PROMPTS not in recipe.parts:
        return DistilledClass.coded(words, _read_code(entry, recipe.bytes_per_class, recipe, left))
    plan = replace(shared_plan, prompts=entry.prompts, vectors=entry.vectors)
    vectors = left.take_vectors(plan.prompts, plan.vectors, plan.stored_width)
    selection = b""
    if recipe.candidates and not differences.all:
        selection = left.take_selection(selection_bytes(recipe.candidates, recipe.kept))
        check_selection(selection, recipe.candidates, recipe.kept)
    allowed = recipe.bytes_per_class - plan.payload - len(selection)
    return DistilledClass(words, plan, vectors, selection, _read_code(entry, allowed, recipe, left))


def _read_code(entry: _ClassEntry, allowed: int, recipe: Recipe, left: _Left) -> bytes:
    """The image code of a class, if it is one of at most ``allowed`` bytes; empty where the recipe has none.

    Raises:
        StageError, ValueError: It is none, or there is one beside a recipe that has none.
    """
    from d3m_assets.evaluation.codecs.reading import code_header

    length = entry.differences.codes or 0
    if CODES not in recipe.parts and not length:
        return b""
    if CODES not in recipe.parts or not 0 < length <= min(allowed, len(left.codes)):
        raise ValueError(
            f"class {entry.class_name!r} has {length} bytes of image codes, of which a budget of {recipe.bytes_per_class} bytes "
            f"leaves {allowed}, and the file {len(left.codes)}"
        )
    code = left.take_codes(length)
    code_header(code, (recipe.image_height, recipe.image_width, recipe.channels))
    return code


@lru_cache(maxsize=2)
def _decoded(codes: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from d3m_assets.evaluation.codecs.reading import read_code

    images = read_code(codes, shape)
    images.flags.writeable = False  # it is shared by all who ask
    return images


def _stored_recipe(recipe: Recipe, plan: EmbeddingPlan) -> dict[str, Any]:
    """The recipe and how vectors are stored, as JSON values; without what is not used."""
    values = {**asdict(recipe), "storage_type": plan.storage_type, "width": plan.width, "norms": plan.norms}
    return {name: value for name, value in values.items() if value or name not in _OPTIONAL_FIELDS}


def _check_recipe(recipe: Recipe, tensors: frozenset[str]) -> None:
    """Refuse a recipe that could not generate images, or whose payload is not in the file.

    Raises:
        BudgetError, ValueError: It could not.
    """
    Budget.parse(recipe.budget)
    given, known = recipe.generation, GenerationSettings(**recipe.generation).fingerprint()
    # A later version may know more settings than the file; what the file has is written as its own version writes it.
    if not given.keys() <= known.keys() or json.dumps(given) != json.dumps({name: known[name] for name in given}):
        raise ValueError("its generation settings are none of this version; upgrade d3m-assets")
    if recipe.candidates and not 1 <= recipe.kept <= recipe.candidates:
        raise ValueError(f"a selection of {recipe.kept} of {recipe.candidates} samples")
    if recipe.channels not in (1, 3):
        raise ValueError(f"images of {recipe.channels} channels")
    if (_CODES in tensors) != (CODES in recipe.parts) or _TENSOR not in tensors:
        raise ValueError("image codes that the recipe does not have, or none where it has them")


def _first_reason(error: ValidationError) -> str:
    """What is wrong, without the value, which may be long."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = " ".join(str(part) for part in first["loc"])
    return f"{printable(place, 60)}: {printable(first['msg'], 200)}".removeprefix(": ")
