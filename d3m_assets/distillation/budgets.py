"""What the bytes of a budget buy in prompts and vectors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from d3m_assets.errors import BudgetError

StorageType = Literal["int8", "fp16"]
BYTES_PER_NUMBER: dict[StorageType, int] = {"int8": 1, "fp16": 2}
_NORM_BYTES = 2


@dataclass(frozen=True)
class EmbeddingPlan:
    """How a class's bytes are spent.

    Attributes:
        prompts: Learned prompts of a class, one for each cluster of its images.
        vectors: Vectors of each prompt.
        storage_type: Number format of a stored vector. A vector is stored as a direction, so int8 needs no scale.
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
        """Numbers of the storage type that a vector takes, norms included."""
        return self.width + self.norms * _NORM_BYTES // BYTES_PER_NUMBER[self.storage_type]

    @property
    def payload(self) -> int:
        """Bytes charged to a class."""
        return self.prompts * self.vectors * self.stored_width * BYTES_PER_NUMBER[self.storage_type]

    def facts(self) -> dict[str, Any]:
        """As stored; without ``norms`` where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "norms" or value}


def plan_embeddings(
    budget: str,
    allowed: int,
    *,
    width: int,
    vectors_per_prompt: int | None = None,
    storage_type: Literal["auto", "int8", "fp16"] = "auto",
    max_prompts: int = 32,
    max_vectors: int = 16,
    norms: int = 0,
) -> EmbeddingPlan:
    """Turn a budget into prompts and vectors.

    Bytes go to more prompts first (each learns one cluster of the class) and, past ``max_prompts``, to more vectors in
    each. int8 rather than fp16: twice the vectors, and the rounding of a direction to 7 bits is far below the noise of
    the inversion.

    Args:
        budget: Its name, for messages.
        allowed: Bytes a class may occupy.
        width: Length of a token embedding of the foundation model.
        vectors_per_prompt: A fixed number, or None to plan it.
        storage_type: A fixed format, or "auto".
        max_prompts: Most prompts of a class.
        max_vectors: Most vectors of a prompt: they must fit into the text encoder beside the template.
        norms: Norms stored with each vector.

    Raises:
        BudgetError: Not even one prompt fits; the message names the smallest budget that can.
    """
    kind: StorageType = "int8" if storage_type == "auto" else storage_type
    each = EmbeddingPlan(1, 1, kind, width, norms).payload
    needed = each * (vectors_per_prompt or 1)
    if vectors_per_prompt is not None and vectors_per_prompt > max_vectors:
        raise BudgetError(f"inversion.vectors_per_prompt={vectors_per_prompt}: at most {max_vectors} fit into a prompt")
    if allowed < needed:
        raise BudgetError(
            f"the budget {budget} is {allowed} bytes a class, but one prompt of this foundation model needs {needed} "
            f"({vectors_per_prompt or 1} x {width} numbers as {kind}{' and a norm' if norms else ''}); the smallest budget "
            f"that can hold one is {needed}B"
        )
    total = allowed // each
    vectors = vectors_per_prompt or min(max_vectors, math.ceil(total / max_prompts))
    return EmbeddingPlan(min(max_prompts, total // vectors), vectors, kind, width, norms)
