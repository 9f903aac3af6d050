import pytest
import torch

from d3m_assets.distillation.text import encode, extended_tables, learned_ids
from d3m_assets.errors import StageError


def test_every_vector_reaches_the_text_encoder(foundation, words):
    prompts = words("3")
    ids = learned_ids(foundation, prompts, 2, 3, 0)
    assert [-1 - i for i in ids.flatten().tolist() if i < 0] == [0, 1, 2, 3, 4, 5]
    with extended_tables(foundation) as rows, torch.inference_mode():
        vectors = torch.randn(6, 64)
        rows.set(vectors)
        before = encode(foundation, ids).states
        vectors[5] += 1
        rows.set(vectors)
        after = encode(foundation, ids).states
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_vectors_that_do_not_fit_are_refused(foundation, words):
    with pytest.raises(StageError, match="24 tokens"):
        learned_ids(foundation, words("3"), 1, 30, 0)
