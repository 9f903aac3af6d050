"""A token table with rows behind it: frozen words in front, learned or composed vectors after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class TokenTable(nn.Module):
    """Stands in for a text encoder's token embedding.

    Ids below the table's size give its rows; ids from there on give ``rows``, which are set before a forward pass:
    the vectors being learned (textual inversion) or sums of words and images (training of the embedded model). A text encoder
    offers no way in for embeddings, so the embedding layer is what gets replaced.

    Args:
        weight: float ``[V, D]``, the table.
        norm: If given, every row of the table is used at this Euclidean norm.
        trainable: Whether the table itself is learned.
    """

    def __init__(self, weight: torch.Tensor, *, norm: float | None = None, trainable: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(weight.detach().clone(), requires_grad=trainable)
        self.norm = norm
        self.rows: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The table as it is used, float ``[V, D]``."""
        return self.table if self.norm is None else F.normalize(self.table, dim=-1) * self.norm

    def merge(
        self, words: Sequence[Sequence[int]], images: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> None:
        """Set ``rows`` to normalised sums of table rows and image embeddings.

        Args:
            words: For each new row the ids of the words that it sums; may be none where an image is added.
            images: float ``[len(words), D]``, added to the sums.
            weights: float ``[len(words)]``, the weight of each image; 0 leaves it out.
        """
        if not words:
            self.rows = None
            return
        flat = torch.tensor([i for group in words for i in group], dtype=torch.int64)
        offsets = torch.tensor([0, *(len(group) for group in words[:-1])]).cumsum(0)
        total = F.embedding_bag(flat, self.weight, offsets, mode="sum")
        if images is not None and weights is not None:
            total = total + weights.unsqueeze(-1) * images
        self.rows = F.normalize(total, dim=-1) * (self.norm or 1.0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[..., D]`` of int64 ids ``[...]``."""
        size = self.table.shape[0]
        found = F.embedding(ids.clamp(max=size - 1), self.weight)
        if self.rows is None:
            return found
        extra = F.embedding((ids - size).clamp(min=0), self.rows.to(found.dtype))
        return torch.where((ids >= size).unsqueeze(-1), extra, found)
