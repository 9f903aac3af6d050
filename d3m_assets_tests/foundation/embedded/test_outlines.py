import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from d3m_assets.errors import SettingsError
from d3m_assets.foundation.embedded import outlines
from d3m_assets.foundation.embedded.characters import (
    ATTRIBUTES,
    CHARACTERS,
    FIRST_SHAPE,
    SYMBOLS,
    UNSEEN_SYMBOLS,
    caption,
    render,
)
from d3m_assets.foundation.embedded.outlines import build_outlines, load_outlines
from d3m_assets.foundation.embedded.skeletons import random_skeleton

TTF = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Two fonts and a copy of one, a font without letters, and a file that is none, in folders of packages."""
    folder = tmp_path_factory.mktemp("fonts")
    for package, file, name in (
        ("fonts-a", "DejaVuSans.ttf", "plain.ttf"),
        ("fonts-a", "DejaVuSans.ttf", "copy.ttf"),
        ("fonts-klee", "DejaVuSansMono.ttf", "mono.ttf"),
        ("fonts-a", "STIXSizOneSymReg.ttf", "signs.ttf"),
    ):
        (folder / package).mkdir(exist_ok=True)
        shutil.copy(TTF / file, folder / package / name)
    (folder / "fonts-a" / "broken.ttf").write_bytes(b"no font")
    return folder


@pytest.fixture(scope="module")
def bank(fonts, tmp_path_factory):
    return build_outlines(fonts, tmp_path_factory.mktemp("banks") / "bank")


def test_a_bank_holds_each_usable_font_once(bank):
    assert bank.fields.shape == (2, len(CHARACTERS + SYMBOLS + UNSEEN_SYMBOLS), 64, 64)
    assert [s["package"] for s in bank.sources] == ["fonts-a", "fonts-klee"]
    assert bank.is_hand.tolist() == [False, True]
    assert bank.styles == ["", "mono"]
    one = bank.field(0, CHARACTERS.index("l")) > 0
    wide = bank.field(0, CHARACTERS.index("M")) > 0
    assert 0 < one.any(0).sum() < 20 < wide.any(0).sum()


def test_a_bank_of_other_fonts_is_refused(fonts, bank, tmp_path):
    target = tmp_path / "bank"
    first = build_outlines(fonts, target)
    assert first.fields.tobytes() == bank.fields.tobytes() == load_outlines(target).fields.tobytes()
    fewer = tmp_path / "fewer"
    shutil.copytree(fonts / "fonts-klee", fewer / "fonts-klee")
    with pytest.raises(SettingsError, match="drawn from other fonts"):
        build_outlines(fewer, target)
    with pytest.raises(SettingsError, match="scripts/fonts"):
        build_outlines(tmp_path / "nothing", tmp_path / "bank2")


def test_no_package_is_on_both_sides():
    trained = {*outlines.HAND_PACKAGES, *outlines.PRINT_PACKAGES}
    assert not trained & {*outlines.HELD_OUT_HAND_PACKAGES, *outlines.HELD_OUT_PRINT_PACKAGES}
    assert not set(SYMBOLS) & set(UNSEEN_SYMBOLS)


def test_all_characters_alike_and_symbols_without_a_name(bank):
    drawn = render(3100, 1, digit_share=10 / 62, pen_share=0.3, outlines=bank, symbol_share=0.12)
    counts = np.bincount(drawn.characters, minlength=len(CHARACTERS + SYMBOLS))
    assert 0.09 < counts[62:].sum() / 3100 < 0.15
    assert counts[len(CHARACTERS + SYMBOLS) :].sum() == 0  # the unseen ones stay unseen
    assert counts[:10].mean() == pytest.approx(counts[10:62].mean(), rel=0.25)
    rng = np.random.default_rng(0)
    names = {caption(drawn, i, rng)[1][-1] for i in np.flatnonzero(drawn.characters >= 62)}
    assert names == {"character"}
    hand = drawn.attributes[:, list(ATTRIBUTES).index("hand")]
    assert 0.5 < (hand == 0).mean() < 0.75  # the pen's, and the half of the prints that imitate a hand


def test_random_shapes_have_no_name_and_recur_in_other_hands(bank):
    drawn = render(3000, 1, outlines=bank, symbol_share=0.1, shape_share=0.3)
    shapes = np.flatnonzero(drawn.characters >= FIRST_SHAPE)
    assert 0.27 < len(shapes) / 3000 < 0.33
    rng = np.random.default_rng(0)
    assert {caption(drawn, i, rng)[1][-1] for i in shapes} == {"character"}
    numbers, counts = np.unique(drawn.characters[shapes], return_counts=True)
    assert len(numbers) > 700
    again = numbers[counts > 1][0]
    first, second = drawn.images[drawn.characters == again][:2]
    assert (first != second).any()
    assert (random_skeleton(3) == random_skeleton(3)).all()
    assert (random_skeleton(3) != random_skeleton(4)).any()
