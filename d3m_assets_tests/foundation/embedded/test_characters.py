import numpy as np
import pytest

from d3m_assets.foundation.embedded.characters import (
    ATTRIBUTES,
    CHARACTERS,
    FONTS,
    HELD_OUT_FONTS,
    TEMPLATES,
    caption,
    caption_words,
    render,
)
from d3m_assets.foundation.embedded.skeletons import SEGMENTS, pen_skeletons, segments


def test_equal_seeds_draw_equal_images():
    a, b, other = render(40, 3), render(40, 3), render(40, 4)
    assert a.images.tobytes() == b.images.tobytes()
    assert a.images.tobytes() != other.images.tobytes()
    assert a.images.shape == (40, 32, 32)
    assert a.images.dtype == np.uint8


def test_asked_for_characters_are_drawn_in_turn():
    drawn = render(6, 0, characters="7Q")
    assert [CHARACTERS[c] for c in drawn.characters] == ["7", "Q"] * 3


def ink(drawn, attribute, word):
    """Mean brightness of white-on-black pen-drawn images with a word."""
    names = list(ATTRIBUTES)
    code = drawn.attributes[:, names.index(attribute)] == ATTRIBUTES[attribute].index(word)
    white = drawn.attributes[:, names.index("polarity")] == 0
    return drawn.images[code & white].mean()


def test_words_say_what_was_drawn():
    drawn = render(600, 1, characters="0")
    assert ink(drawn, "weight", "thin") < ink(drawn, "weight", "bold") < ink(drawn, "weight", "heavy")
    assert ink(drawn, "size", "small") < ink(drawn, "size", "large")
    polarity = drawn.attributes[:, list(ATTRIBUTES).index("polarity")]
    corners = drawn.images[:, :2, :2].mean((1, 2))
    assert corners[polarity == 0].mean() < 60 < 180 < corners[polarity == 1].mean()


def test_slant_leans_the_right_way():
    drawn = render(400, 2, characters="1", pen_share=1.0)
    slant = drawn.attributes[:, list(ATTRIBUTES).index("slant")]
    white = drawn.attributes[:, list(ATTRIBUTES).index("polarity")] == 0
    x = np.arange(32)

    def lean(code):
        images = drawn.images[(slant == code) & white].astype(float)
        images -= images.min((1, 2), keepdims=True)
        top, bottom = images[:, :12].sum(1), images[:, 20:].sum(1)
        return np.mean((top @ x) / top.sum(1) - (bottom @ x) / bottom.sum(1))

    back, upright, forward = (lean(code) for code in (0, 1, 2))
    assert back < upright < forward


def test_every_character_has_a_skeleton_of_unit_height():
    bank = pen_skeletons(CHARACTERS)
    assert set(bank) == set(CHARACTERS)
    assert all(options for options in bank.values())
    for options in bank.values():
        for _, array in options:
            assert array.shape == (SEGMENTS, 2, 2)
            assert np.isfinite(array).all()
            assert np.ptp(array[..., 1]) <= 1.001


def test_a_corner_stays_a_corner():
    corner = segments([[(0, 0), (1, 0), (1, 0), (1, 1)]], smooth=True).reshape(-1, 2)
    assert np.abs(corner - [0.5, -0.5]).sum(1).min() < 1e-6


def test_held_out_fonts_are_not_trained_on():
    assert not set(FONTS) & set(HELD_OUT_FONTS)
    assert render(40, 3).images.tobytes() != render(40, 3, held_out=True).images.tobytes()


def test_captions_name_the_character_and_only_known_words():
    drawn, rng = render(200, 5), np.random.default_rng(0)
    known, alone = set(caption_words()), 0
    for i in range(200):
        opening, words = caption(drawn, i, rng)
        assert opening in TEMPLATES
        assert set(words) <= known
        alone += len(words) == 1
        character = CHARACTERS[drawn.characters[i]].lower()
        assert words[-1] == character or words[-1] in known - set("abcdefghijklmnopqrstuvwxyz0123456789")
    assert alone > 20  # class names on their own must be learned, too


@pytest.mark.parametrize("character", ["7", "g"])
def test_nothing_touches_every_border(character):
    drawn = render(50, 6, characters=character)
    white = drawn.attributes[:, list(ATTRIBUTES).index("polarity")] == 0
    assert drawn.images[white].max((1, 2)).min() > 60  # there is ink in every image


def test_scanned_characters_fill_the_field_and_are_made_of_blocks():
    drawn = render(400, 4, characters="38")
    names = list(ATTRIBUTES)
    resolution = drawn.attributes[:, names.index("resolution")]
    white = drawn.attributes[:, names.index("polarity")] == 0
    scanned = drawn.images[(resolution == ATTRIBUTES["resolution"].index("scanned")) & white].astype(float)
    assert len(scanned) > 60
    # Ink over the whole height of the first and of the last row of blocks, which a smaller character only grazes.
    blocks = scanned.reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert blocks[:, 0].max(1).mean() > 185
    assert blocks[:, -1].max(1).mean() > 185
    assert scanned.min((1, 2)).max() == 0  # nothing but ink on black
    sharp = drawn.images[(resolution == 0) & white].astype(float)

    def fine_detail(images):
        blocks = images.reshape(-1, 8, 4, 8, 4).mean((2, 4), keepdims=True)
        return np.abs(images.reshape(-1, 8, 4, 8, 4) - blocks).mean()

    assert fine_detail(scanned) < 0.8 * fine_detail(sharp)
