import numpy as np
import pytest

from d3m_assets.foundation.embedded.captions import CaptionBatch, ImageSets
from d3m_assets.foundation.embedded.characters import render
from d3m_assets.foundation.embedded.models import build_tokenizer


@pytest.mark.parametrize("image_share", [0.0, 0.5, 1.0])
def test_captions_become_ids_that_point_at_words_sums_and_images(image_share):
    tokenizer = build_tokenizer()
    captions = CaptionBatch(tokenizer, image_share)
    drawn = captions(render(60, 0), np.arange(60), np.random.default_rng(0))
    assert drawn.ids.shape == (60, 24)
    rows = len(drawn.words)
    assert rows == len(drawn.image_of) == len(drawn.weights)
    used = drawn.ids[drawn.ids >= len(tokenizer)]
    assert sorted(used.tolist()) == list(range(len(tokenizer), len(tokenizer) + rows))
    assert all(0 <= i < len(tokenizer) for group in drawn.words for i in group)
    # A row holds words, an image or both; the image is the one that the caption describes.
    for row, (words, image, weight) in enumerate(zip(drawn.words, drawn.image_of, drawn.weights, strict=True)):
        assert (image >= 0) == (weight > 0)
        assert words or image >= 0
        if image >= 0:
            assert (drawn.ids[image] == len(tokenizer) + row).any()
    unconditional = (drawn.ids[:, 1:] == tokenizer.eos_token_id).all(1).sum()
    assert 0 < unconditional < 20
    with_image = sum(i >= 0 for i in drawn.image_of)
    assert with_image == 0 if image_share == 0 else with_image >= 0.3 * (60 - unconditional)


def test_image_sets_hold_like_images_and_the_image_itself():
    drawn = render(500, 0)
    sets, rng = ImageSets(drawn), np.random.default_rng(0)
    lengths = set()
    for index in range(100):
        members = sets(index, rng)
        lengths.add(len(members))
        assert members[0] == index
        assert (drawn.characters[members] == drawn.characters[index]).all()
        assert (drawn.attributes[members][:, [5, 7]] == drawn.attributes[index, [5, 7]]).all()
    assert lengths == {1, 2, 4, 8}
