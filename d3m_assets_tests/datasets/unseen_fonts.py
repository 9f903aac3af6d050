"""A second dataset: characters in fonts that the embedded foundation model never saw."""

from pathlib import Path

from PIL import Image


def write_unseen_fonts(
    folder: Path, characters: str = "AKg4", *, train: int = 16, test: int = 8, side: int = 12, seed: int = 0
) -> Path:
    """Write ``folder/{train,test}/<character> in print/NNN.png``, grey, ``side`` px, all different.

    Args:
        folder: Where to.
        characters: One class each; digits and letters.
        train: Images of a class in train.
        test: Images of a class in test.
        side: Width and height in px.
        seed: Equal seeds write equal images.

    Returns:
        ``folder``.
    """
    from d3m_assets.foundation.embedded.characters import render

    for k, character in enumerate(characters):
        # Printed only: the held-out skeletons of the pen are kin to those of the training hand.
        drawn = render(
            train + test, 800_000_000 + 1000 * seed + k, characters=character, pen_share=0.0, held_out=True
        ).images
        for i, image in enumerate(drawn):
            target = folder / ("train" if i < train else "test") / f"{character} in print" / f"{i:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((side, side), Image.Resampling.BOX).save(target)
    return folder
