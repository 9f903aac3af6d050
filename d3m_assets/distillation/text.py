"""Prompts to text states, with rows of our own behind the token table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import torch

    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.foundation.tokens import TokenTable


@contextmanager
def extended_table(foundation: Foundation) -> Iterator[TokenTable]:
    """The text encoder with a :class:`TokenTable` in place of its token embedding, for the time of the context."""
    from d3m_assets.foundation.tokens import TokenTable

    plain = foundation.text_encoder.get_input_embeddings()
    table = TokenTable(plain.weight).to(plain.weight.device)
    foundation.text_encoder.set_input_embeddings(table)
    try:
        yield table
    finally:
        foundation.text_encoder.set_input_embeddings(plain)


def tokenize(foundation: Foundation, prompts: Sequence[str]) -> torch.Tensor:
    """Padded token ids, int64 ``[N, L]``, of plain prompts."""
    tokenizer = foundation.tokenizer
    ids = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                    return_tensors="pt").input_ids  # fmt: skip
    return ids.to(foundation.device)


def learned_ids(
    foundation: Foundation, prompts: ClassPrompts, count: int, vectors: int, template: int, first_row: int = 0
) -> torch.Tensor:
    """Token ids of a class's learned prompts.

    The tokenizer is left as it is: the placeholder is cut out of the text and the ids of its rows are put in, so that
    thousands of classes cost nothing and nothing can be merged, folded or truncated silently.

    Args:
        foundation: Its tokenizer lays out the words around the placeholder.
        prompts: Of the class.
        count: Learned prompts of the class.
        vectors: Vectors of each.
        template: Which template.
        first_row: Row of the first vector behind the table.

    Returns:
        int64 ``[count, L]``; ids from the table's size on are rows.

    Raises:
        StageError: The vectors do not fit into the text encoder beside the template.
    """
    import torch

    tokenizer = foundation.tokenizer
    length, size = tokenizer.model_max_length, len(foundation.table)
    lines = []
    for prompt in range(count):
        text = prompts.learned(prompt, template)
        before, after = text.split(placeholder_token(prompts.class_id, prompt))
        rows = [size + first_row + prompt * vectors + v for v in range(vectors)]
        words = [
            tokenizer(part, add_special_tokens=False).input_ids if part.strip() else [] for part in (before, after)
        ]
        line = [tokenizer.bos_token_id, *words[0], *rows, *words[1]]
        if len(words[0]) + 2 + vectors > length:
            raise StageError(
                f"class {prompts.class_name}: {vectors} vectors do not fit into the {length} tokens of the text encoder "
                f"beside the template {prompts.templates[template]!r}; shorten it or lower inversion.vectors_per_prompt"
            )
        line = line[: length - 1] + [tokenizer.eos_token_id]
        lines.append(line + [tokenizer.pad_token_id] * (length - len(line)))
    return torch.tensor(lines, device=foundation.device)


def encode(foundation: Foundation, ids: torch.Tensor) -> torch.Tensor:
    """Text states ``[N, L, D]`` of token ids ``[N, L]``."""
    return foundation.text_encoder(ids).last_hidden_state
