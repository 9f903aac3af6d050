"""What the bytes of a budget buy in prompts, vectors and the selection of samples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from d3m_assets.distillation.selection import MOST_CANDIDATES, SelectionPlan, most_candidates, selection_bytes
from d3m_assets.errors import BudgetError

StorageType = Literal["int4", "int8", "fp16"]
NUMPY_TYPES: dict[StorageType, type[np.generic]] = {"int4": np.uint8, "int8": np.int8, "fp16": np.float16}
"""What stored vectors are arrays of; int4: two numbers in a byte."""
_NORM_BYTES = 2
CANDIDATES_PER_KEPT = 3
"""Samples that are generated for each that is kept, where the bytes allow it and nothing else is asked for."""
FEWEST_CANDIDATES_PER_KEPT = 2
"""With fewer, a vector more is worth more than a selection."""
FEWEST_INT8_PROMPTS = 16
"""With fewer prompts in int8, twice as many in int4 are worth more; with more, they would not be prompts of one vector each
(``inversion.max_prompts``), and the time of an inversion grows with them."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """How a class's bytes are spent.

    Attributes:
        prompts: Learned prompts of a class, one for each cluster of its images.
        vectors: Vectors of each prompt.
        storage_type: Number format of a stored vector. A vector is stored as a direction, so int4 and int8 need no scale.
        width: Numbers in a vector.
        norms: Norms that are stored with each vector, float16, one for each text encoder; 0: those of the token tables.
    """

    prompts: int
    vectors: int
    storage_type: StorageType
    width: int
    norms: int = 0

    @property
    def stored_width(self) -> int:
        """Elements of the array that a vector is stored in, norms included."""
        numbers = (self.width + 1) // 2 if self.storage_type == "int4" else self.width
        return numbers + self.norms * _NORM_BYTES // np.dtype(NUMPY_TYPES[self.storage_type]).itemsize

    @property
    def payload(self) -> int:
        """Bytes of the vectors of a class."""
        size = np.dtype(NUMPY_TYPES[self.storage_type]).itemsize
        return self.prompts * self.vectors * self.stored_width * size

    def facts(self) -> dict[str, Any]:
        """As stored; without ``norms`` where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "norms" or value}


def split_bytes(allowed: int, codes_share: float) -> tuple[int, int]:
    """Split the bytes of a class between its prompts, selection included, and its image codes.

    Args:
        allowed: Bytes of the class.
        codes_share: Part of them that codes get, in (0, 1).

    Returns:
        Bytes of either, ``allowed`` together; those of the codes are rounded down.
    """
    codes = int(allowed * Fraction(str(codes_share)))  # as it is written: the float 0.29 is a little less
    return allowed - codes, codes


def plan_embeddings(
    budget: str,
    allowed: int,
    *,
    width: int,
    vectors_per_prompt: int | None = None,
    storage_type: StorageType = "int8",
    max_prompts: int = 32,
    max_vectors: int = 16,
    norms: int = 0,
    codes: int = 0,
) -> EmbeddingPlan:
    """Turn a budget into prompts and vectors.

    Bytes go to more prompts first (each learns one cluster of the class) and, past ``max_prompts``, to more vectors in
    each.

    Args:
        budget: Its name, for messages.
        allowed: Bytes a class may occupy.
        width: Length of a token embedding of the foundation model.
        vectors_per_prompt: A fixed number, or None to plan it.
        storage_type: Number format of a stored vector.
        max_prompts: Most prompts of a class.
        max_vectors: Most vectors of a prompt: they must fit into the text encoder beside the template.
        norms: Norms stored with each vector.
        codes: Bytes that the class's image codes get beside ``allowed``, for messages.

    Raises:
        BudgetError: Not even one prompt fits; the message names the smallest budget that can.
    """
    each = EmbeddingPlan(1, 1, storage_type, width, norms).payload
    needed = each * (vectors_per_prompt or 1)
    if vectors_per_prompt is not None and vectors_per_prompt > max_vectors:
        raise BudgetError(f"inversion.vectors_per_prompt={vectors_per_prompt}: at most {max_vectors} fit into a prompt")
    if allowed < needed and codes:
        raise BudgetError(
            f"the budget {budget} leaves {allowed} bytes a class to prompts beside {codes} for image codes, but one prompt of "
            f"this foundation model needs {needed}; give more bytes, a lower codes_share, payload=prompts or payload=codes"
        )
    if allowed < needed:
        raise BudgetError(
            f"the budget {budget} is {allowed} bytes a class, but one prompt of this foundation model needs {needed} "
            f"({vectors_per_prompt or 1} x {width} numbers as {storage_type}{' and a norm' if norms else ''}); the smallest budget "
            f"that can hold one is {needed}B"
        )
    total = allowed // each
    vectors = vectors_per_prompt or min(max_vectors, math.ceil(total / max_prompts))
    return EmbeddingPlan(min(max_prompts, total // vectors), vectors, storage_type, width, norms)


def plan_storage_type(
    allowed: int, *, width: int, vectors_per_prompt: int | None = None, norms: int = 0, selection: int = 0
) -> StorageType:
    """The number format of the vectors of a budget, for all its classes.

    int8 is twice the vectors of float16, at a rounding far below the noise of the inversion. int4, whose rounding turns a
    direction by a twentieth of a right angle, is worth it where int8 would buy few prompts.

    Args:
        allowed: Bytes a class may occupy.
        width: Length of a token embedding of the foundation model.
        vectors_per_prompt: A fixed number, or None.
        norms: Norms stored with each vector.
        selection: Bytes that are to be left for a selection.
    """
    prompt = EmbeddingPlan(1, vectors_per_prompt or 1, "int8", width, norms).payload
    return "int8" if (allowed - selection) // prompt >= FEWEST_INT8_PROMPTS else "int4"


def least_selection_bytes(*, images: int, candidates: int | None = None, kept: int | None = None) -> int:
    """Bytes of the smallest selection that is worth them, 0 where none is made of so many samples.

    Arguments are as of :func:`plan_selection`.
    """
    keep = kept or images
    fewest = candidates or FEWEST_CANDIDATES_PER_KEPT * keep
    return selection_bytes(fewest, keep) if fewest <= MOST_CANDIDATES else 0


def plan_selection(
    allowed: int,
    vector_bytes: int,
    *,
    images: int,
    candidates: int | None = None,
    kept: int | None = None,
) -> SelectionPlan:
    """Set bytes of a budget aside for a selection.

    As many vectors as leave room for the smallest selection that is worth its bytes; what they leave over buys more
    candidates. So the vectors get nearly all of a large budget.

    Args:
        allowed: Bytes a class may occupy.
        vector_bytes: Of the fewest vectors that a class can have: one prompt.
        images: Images of a class without a selection.
        candidates: A fixed number of samples to choose from, or None to plan it.
        kept: A fixed number of samples to keep, or None for ``images``.

    Returns:
        The plan; without a selection where its bytes and those of one prompt exceed the budget, or where it would be of more
        than :data:`~d3m_assets.distillation.selection.MOST_CANDIDATES` samples.

    Raises:
        BudgetError: More samples are to be kept than there are candidates.
    """
    keep = kept or images
    if candidates is not None and candidates < keep:
        raise BudgetError(
            f"selection.candidates={candidates} are fewer than the {keep} samples that are to be kept of them; raise it, or "
            f"lower {'selection.kept' if kept else 'generation.images_per_class or selection.kept'}"
        )
    fewest = candidates or FEWEST_CANDIDATES_PER_KEPT * keep
    if fewest > MOST_CANDIDATES:
        return SelectionPlan(keep, keep)
    needed = least_selection_bytes(images=images, candidates=candidates, kept=kept)
    if candidates == keep or vector_bytes + needed > allowed:
        return SelectionPlan(keep, keep)
    if candidates is None:
        left = allowed - (allowed - needed) // vector_bytes * vector_bytes
        fewest = most_candidates(keep, left, min(MOST_CANDIDATES, CANDIDATES_PER_KEPT * keep))
    return SelectionPlan(fewest, keep, selection_bytes(fewest, keep))
