"""Captions of the embedded model's training: drawings as token ids, with rows that sum words and image embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.foundation.embedded.characters import ATTRIBUTES, TEMPLATES, Rendered, caption, caption_words
from d3m_assets.foundation.embedded.models import TEXT_LENGTH

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer


@dataclass
class Captions:
    """Captions as token ids.

    Attributes:
        ids: int64 ``[B, 24]``; ids from the table's size on are rows that sum words and images.
        words: For each such row the ids of the words that it sums.
        image_of: For each such row the position in the batch of the image whose embedding it adds, or -1.
        weights: The weight of that embedding.
    """

    ids: torch.Tensor
    words: list[list[int]]
    image_of: list[int]
    weights: list[float]


class CaptionBatch:
    """Draws captions and lays them out as token ids, with sums of words and images as extra rows behind the table.

    Args:
        tokenizer: Of the model.
        image_share: Share of the captions (of those that are not empty) that hold an image embedding.
    """

    def __init__(self, tokenizer: CLIPTokenizer, image_share: float = 0.5) -> None:
        vocabulary = tokenizer.get_vocab()
        self.size = len(vocabulary)
        self.image_share = image_share
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        words = {w for t in TEMPLATES for w in t.split()} | set(caption_words())
        self.ids = {w: vocabulary[w + "</w>"] for w in words}

    def __call__(self, rendered: Rendered, indices: np.ndarray, rng: np.random.Generator) -> Captions:
        """Captions of some images.

        Args:
            rendered: The images.
            indices: int64 ``[B]``, which of them.
            rng: Source of randomness.
        """
        import torch

        out = Captions(torch.full((len(indices), TEXT_LENGTH), self.end, dtype=torch.int64), [], [], [])

        def row(words: list[int], image: int = -1, weight: float = 0.0) -> int:
            out.words.append([int(w) for w in words])
            out.image_of.append(image)
            out.weights.append(weight)
            return self.size + len(out.words) - 1

        for position, index in enumerate(indices):
            if rng.random() < 0.1:  # no caption at all, for classifier-free guidance
                out.ids[position, 0] = self.begin
                continue
            opening, words = caption(rendered, index, rng)
            ids = [self.ids[w] for w in words]
            kind, form = rng.random(), rng.random()
            if kind < self.image_share:
                if form < 0.5:  # as a learned prompt that keeps the class name
                    ids = [row([], position, 1.0), ids[-1]]
                elif form < 0.75:  # as one that does not
                    ids = [row([], position, 1.0)]
                else:  # a vector between words and an image: how exact it is shows in how far it is from the words
                    ids = [row(ids, position, rng.uniform(0.3, 2.0))]
            elif form < 0.6 and len(ids) > 1:
                groups = 1 if form < 0.4 else int(rng.integers(2, min(4, len(ids)) + 1))
                cuts = sorted(rng.choice(np.arange(1, len(ids)), groups - 1, replace=False)) if groups > 1 else []
                ids = [row(part.tolist()) for part in np.split(np.array(ids), cuts)]
            line = [self.begin, *(self.ids[w] for w in opening.split()), *ids][: TEXT_LENGTH - 1]
            out.ids[position, : len(line)] = torch.tensor(line)
        return out


class ImageSets:
    """Finds images like a given one: the same character, polarity and resolution.

    Args:
        rendered: The images.
    """

    sizes, shares = (1, 2, 4, 8), (0.5, 0.2, 0.2, 0.1)

    def __init__(self, rendered: Rendered) -> None:
        names = list(ATTRIBUTES)
        codes = rendered.attributes[:, [names.index("polarity"), names.index("resolution")]].astype(np.int64)
        self.key = (rendered.characters * 4 + codes[:, 0]) * 4 + codes[:, 1]
        self.order = np.argsort(self.key, kind="stable")
        self.sorted = self.key[self.order]

    def __call__(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """``index`` first, then 0, 1, 3 or 7 random images like it."""
        count = rng.choice(self.sizes, p=self.shares) - 1
        low, high = np.searchsorted(self.sorted, (self.key[index], self.key[index] + 1))
        return np.concatenate([[index], self.order[rng.integers(low, high, count)]])
