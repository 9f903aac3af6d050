import math

import numpy as np
import pytest

from d3m_assets.errors import StageError
from d3m_assets.evaluation.codecs.arithmetic import Decoder, coded_bits, encode, tree_bits


def _random(seed, n, contexts, share):
    draw = np.random.default_rng(seed)
    return draw.integers(0, contexts, n), (draw.random(n) < share).astype(int)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("n", [0, 1, 7, 3000])
def test_what_is_decoded_is_what_was_encoded_at_the_length_that_was_expected(n, share):
    contexts, bits = _random(n, n, 5, share)
    data = encode(contexts.tolist(), bits.tolist())
    decoder = Decoder(data)
    assert [decoder.bit(context) for context in contexts.tolist()] == bits.tolist()
    expected = coded_bits(contexts, bits) / 8
    # Zeros at the end are not stored: the decoder reads them beyond it.
    assert expected - 4 <= len(data) <= expected + 2


def test_the_length_is_that_of_the_adaptive_probabilities_one_after_the_other():
    contexts, bits = _random(0, 200, 3, 0.2)
    seen, total = {c: [0.4, 0.4] for c in range(3)}, 0.0
    for context, bit in zip(contexts.tolist(), bits.tolist(), strict=True):
        total -= math.log2(seen[context][bit] / sum(seen[context]))
        seen[context][bit] += 1
    assert coded_bits(contexts, bits) == pytest.approx(total)


def test_skewed_bits_take_about_their_entropy_and_random_ones_themselves():
    _, skewed = _random(1, 20_000, 1, 0.05)
    entropy = -(0.05 * math.log2(0.05) + 0.95 * math.log2(0.95)) * 20_000 / 8
    assert len(encode([0] * 20_000, skewed.tolist())) == pytest.approx(entropy, rel=0.05)
    _, even = _random(1, 20_000, 1, 0.5)
    assert len(encode([0] * 20_000, even.tolist())) == pytest.approx(2500, rel=0.01)


def test_numbers_are_trees_of_bits():
    draw = np.random.default_rng(0)
    contexts, values = draw.integers(0, 4, 300), draw.integers(0, 19, 300)
    nodes, bits = tree_bits(contexts, values, 5)
    decoder = Decoder(encode(nodes.tolist(), bits.tolist()))
    assert [decoder.tree(context, 5) for context in contexts.tolist()] == values.tolist()
    with pytest.raises(StageError, match="do not have 4 bits"):
        tree_bits(contexts, values, 4)
