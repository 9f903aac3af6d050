"""Outlines of characters in many fonts, turned once into a bank of signed-distance fields.

The fonts come from Debian packages (``scripts/fonts FOLDER`` brings them): ``FOLDER/train/<package>/<file>`` is drawn in
training, ``FOLDER/heldout/<package>/<file>`` is what the model card measures with. The lists below name whole packages,
so that no family is on both sides. Nothing was chosen by looking at a data set of images.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from d3m_assets.foundation.embedded.characters import CHARACTERS, SYMBOLS, UNSEEN_SYMBOLS
from d3m_assets.foundation.embedded.distance_fields import FIELD, SCALE, Outlines, distance_field

HAND_PACKAGES = (
    "fonts-bwht", "fonts-comic-neue", "fonts-dancingscript", "fonts-dkg-handwriting", "fonts-ecolier-court",
    "fonts-femkeklaver", "fonts-humor-sans", "fonts-kristi", "fonts-sjfonts", "fonts-smc-chilanka",
    "fonts-tomsontalks", "fonts-yusei-magic",
)  # fmt: skip
PRINT_PACKAGES = (
    "fonts-anonymous-pro", "fonts-cabin", "fonts-cantarell", "fonts-clear-sans", "fonts-comfortaa",
    "fonts-courier-prime", "fonts-crosextra-caladea", "fonts-crosextra-carlito", "fonts-dosis", "fonts-dustin",
    "fonts-ebgaramond", "fonts-freefont-ttf", "fonts-inconsolata", "fonts-junction", "fonts-jura", "fonts-karla",
    "fonts-lato", "fonts-liberation", "fonts-linuxlibertine", "fonts-ocr-b", "fonts-oldstandard", "fonts-open-sans",
    "fonts-opendyslexic", "fonts-osifont", "fonts-paratype", "fonts-play", "fonts-quattrocento", "fonts-quicksand",
    "fonts-roadgeek", "fonts-sil-andika", "fonts-sil-gentium-basic", "fonts-texgyre", "fonts-tlwg-garuda-ttf",
    "fonts-tlwg-kinnari-ttf", "fonts-tlwg-loma-ttf", "fonts-tlwg-norasi-ttf", "fonts-tlwg-sawasdee-ttf",
    "fonts-tlwg-umpush-ttf", "fonts-tuffy", "fonts-vollkorn", "fonts-yanone-kaffeesatz",
)  # fmt: skip
HELD_OUT_HAND_PACKAGES = ("fonts-breip", "fonts-klee", "fonts-rufscript", "fonts-tlwg-purisa-ttf")
HELD_OUT_PRINT_PACKAGES = ("fonts-allerta", "fonts-b612", "fonts-goudybookletter", "fonts-prociono")

_SKIPPED = ("dingbat", "symbol", "ornament", "initial", "math", "shadow", "outline", "keyboard", "libertine_k",
            "_dr", "smallcap", "-sc", "hairline", "chess", "variable", "[")  # fmt: skip


def _draw_font(file: Path) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Fields, presence and style of one font; nothing if it lacks a digit or a letter, or cannot be read."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    drawn = CHARACTERS + SYMBOLS + UNSEEN_SYMBOLS
    try:
        known = FT2Font(str(file)).get_charmap()
        font = ImageFont.truetype(str(file), 96)
    except (OSError, RuntimeError):
        return None
    present = np.array([ord(c) in known for c in drawn])
    if not present[: len(CHARACTERS)].all():
        return None
    fields = np.zeros((len(drawn), FIELD, FIELD), np.int8)
    for i, character in enumerate(drawn):
        if present[i]:
            field = distance_field(font, character)
            if field is None:
                present[i] = False
            else:
                fields[i] = np.clip(np.round(field * SCALE), -127, 127)
    if not present[: len(CHARACTERS)].all():
        return None
    name = " ".join(part or "" for part in font.getname()).lower() + " " + file.name.lower()
    style = "mono" if any(w in name for w in ("mono", "courier", "cursor", "typewriter")) else ""
    style += " italic" if any(w in name for w in ("italic", "oblique")) else ""
    return fields, present, style.strip()


def build_outlines(fonts: Path, bank: Path, *, processes: int = 1) -> Outlines:
    """Draw every usable font of a folder once and store the bank.

    Fonts that lack a digit or a letter, and copies of one already drawn, are left out.

    Args:
        fonts: Folder that holds a folder for each package.
        bank: Folder to write ``fields.npy`` and ``fonts.json`` to; read from there when it exists.
        processes: Worker processes.

    Returns:
        The bank; ``fields`` is mapped from the disk.

    Raises:
        SettingsError: ``fonts`` holds no usable font, or others than the stored bank was drawn from.
    """
    import torch.multiprocessing as mp

    from d3m_assets.errors import SettingsError

    files = [
        f
        for f in sorted(fonts.glob("*/*"))
        if f.suffix.lower() in (".ttf", ".otf") and not any(w in f.name.lower() for w in _SKIPPED)
    ]
    hashes = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    record = bank / "fonts.json"
    if record.exists():
        stored = json.loads(record.read_text())
        if stored["files"] != hashes:
            raise SettingsError(f"{bank} was drawn from other fonts than those of {fonts}; name another --work folder")
        return load_outlines(bank)
    bank.mkdir(parents=True, exist_ok=True)
    with mp.get_context("spawn").Pool(processes) as pool:
        drawn = pool.map(_draw_font, files, chunksize=4)
    seen: set[bytes] = set()
    kept: list[tuple[int, Any]] = []
    for i, result in enumerate(drawn):
        if result is None:
            continue
        key = hashlib.sha256(result[0][: len(CHARACTERS)].tobytes()).digest()
        if key not in seen:
            seen.add(key)
            kept.append((i, result))
    if not kept:
        raise SettingsError(
            f"{fonts} holds no font (.ttf or .otf in a folder for each package) with all digits and letters; "
            "bring some with scripts/fonts"
        )
    np.save(bank / "fields.npy", np.stack([r[0] for _, r in kept]))
    np.save(bank / "present.npy", np.stack([r[1] for _, r in kept]))
    sources = [
        {"package": files[i].parent.name, "file": files[i].name, "sha256": hashes[i], "style": r[2]} for i, r in kept
    ]
    record.write_text(json.dumps({"files": hashes, "fonts": sources}, indent=1) + "\n")
    return load_outlines(bank)


def load_outlines(bank: Path) -> Outlines:
    """Read a bank that :func:`build_outlines` wrote."""
    sources = json.loads((bank / "fonts.json").read_text())["fonts"]
    hands = {*HAND_PACKAGES, *HELD_OUT_HAND_PACKAGES}
    return Outlines(
        fields=np.load(bank / "fields.npy", mmap_mode="r"),
        present=np.load(bank / "present.npy"),
        styles=[s["style"] for s in sources],
        is_hand=np.array([s["package"] in hands for s in sources]),
        sources=[{k: s[k] for k in ("package", "file", "sha256")} for s in sources],
    )
