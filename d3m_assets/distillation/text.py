"""Prompts to text states, with learned rows behind the token tables.

Token ids of prompts are int64 ``[E, N, L]``: E text encoders, N prompts, L tokens. A negative id -1 - r stands for
learned row r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.errors import StageError
from d3m_assets.foundation.loading import Foundation, TextEncoder, TextStates

if TYPE_CHECKING:
    import torch

    from d3m_assets.foundation.tokens import TokenTable


class LearnedRows:
    """Rows behind the token tables of all text encoders of a model.

    Args:
        foundation: The model.
        tables: Its extended token tables.
    """

    def __init__(self, foundation: Foundation, tables: Sequence[TokenTable]) -> None:
        self._layout, self._tables = foundation.layout, tables

    def set(self, rows: torch.Tensor | None) -> None:
        """Use float rows ``[R, D]``, at the norms that the text encoders shall see; None: no rows."""
        for i, table in enumerate(self._tables):
            table.rows = None if rows is None else self._layout.split(rows)[i]


@contextmanager
def extended_tables(foundation: Foundation) -> Iterator[LearnedRows]:
    """The text encoders with a :class:`TokenTable` in place of their token embedding, for the time of the context."""
    from d3m_assets.foundation.tokens import TokenTable

    plain = [encoder.model.get_input_embeddings() for encoder in foundation.text_encoders]
    tables = [TokenTable(embedding.weight).to(embedding.weight.device) for embedding in plain]
    rows = LearnedRows(foundation, tables)
    for encoder, table in zip(foundation.text_encoders, tables, strict=True):
        encoder.model.set_input_embeddings(table)
    try:
        yield rows
    finally:
        for encoder, embedding in zip(foundation.text_encoders, plain, strict=True):
            encoder.model.set_input_embeddings(embedding)


def tokenize(foundation: Foundation, prompts: Sequence[str]) -> torch.Tensor:
    """Padded token ids, int64 ``[E, N, L]``, of plain prompts."""
    import torch

    ids = []
    for encoder in foundation.text_encoders:
        length = encoder.tokenizer.model_max_length
        tokens = encoder.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids.append(tokens.input_ids)
    return torch.stack(ids).to(foundation.device)


def learned_ids(foundation: Foundation, prompts: ClassPrompts, count: int, vectors: int, template: int) -> torch.Tensor:
    """Token ids of a class's learned prompts, whose vectors are the rows from 0, prompt by prompt.

    The tokenizers are left as they are: the placeholder is cut out of the text and its rows are put in, so that
    thousands of classes cost nothing and nothing can be merged, folded or truncated silently.

    Args:
        foundation: Its tokenizers lay out the words around the placeholder.
        prompts: Of the class.
        count: Learned prompts of the class.
        vectors: Vectors of each.
        template: Which template.

    Returns:
        int64 ``[E, count, L]``.

    Raises:
        StageError: The vectors do not fit into the text encoder beside the template.
    """
    import torch

    ids = [
        [_learned_prompt_ids(encoder, prompts, prompt, vectors, template) for prompt in range(count)]
        for encoder in foundation.text_encoders
    ]
    return torch.tensor(ids, device=foundation.device)


def _learned_prompt_ids(
    encoder: TextEncoder, prompts: ClassPrompts, prompt: int, vectors: int, template: int
) -> list[int]:
    """Token ids ``[L]`` of one learned prompt for one text encoder."""
    tokenizer = encoder.tokenizer
    length = tokenizer.model_max_length
    before, after = prompts.learned(prompt, template).split(placeholder_token(prompts.class_id, prompt))
    words = [tokenizer(part, add_special_tokens=False).input_ids if part.strip() else [] for part in (before, after)]
    if len(words[0]) + 2 + vectors > length:
        raise StageError(
            f"class {prompts.class_name}: {vectors} vectors do not fit into the {length} tokens of the text encoder "
            f"beside the template {prompts.templates[template]!r}; shorten it or lower inversion.vectors_per_prompt"
        )
    rows = [-1 - prompt * vectors - v for v in range(vectors)]
    ids = [tokenizer.bos_token_id, *words[0], *rows, *words[1]][: length - 1] + [tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (length - len(ids))


def encode(foundation: Foundation, ids: torch.Tensor) -> TextStates:
    """Text states of token ids ``[E, N, L]``, laid out as the pipeline of the model does.

    One encoder: its last states. Two (SDXL): the last but one of each, side by side, and the second's pooled state,
    taken at the end token. transformers takes it at the highest id when a configuration still says
    ``eos_token_id: 2``, as those of SDXL do, and that would be a learned row.
    """
    import torch

    xl = len(foundation.text_encoders) > 1
    states, pooled = [], None
    for encoder, encoder_ids in zip(foundation.text_encoders, ids, strict=True):
        # Learned rows stand behind the token table.
        table_rows = torch.where(encoder_ids < 0, len(encoder.table) - 1 - encoder_ids, encoder_ids)
        output = encoder.model(table_rows, output_hidden_states=xl)
        if not xl:
            return TextStates(output.last_hidden_state)
        states.append(output.hidden_states[-2])
        end = (encoder_ids == encoder.tokenizer.eos_token_id).int().argmax(-1)
        pooled = output.last_hidden_state[torch.arange(len(encoder_ids), device=end.device), end]
    return TextStates(torch.cat(states, -1), foundation.text_encoders[-1].model.text_projection(pooled))


def empty_prompt(foundation: Foundation) -> TextStates:
    """Text states of the empty prompt, the unconditional half of classifier-free guidance: one row."""
    import torch

    empty = encode(foundation, tokenize(foundation, [""]))
    if not foundation.zero_empty_prompt or empty.pooled is None:
        return empty
    return TextStates(torch.zeros_like(empty.states), torch.zeros_like(empty.pooled))
