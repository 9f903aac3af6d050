"""Names of classes in any script: one spelling, an order, keys of partitions, and names of folders on any operating system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain

from d3m_assets.errors import DatasetError

SAFE_KEY = "[a-z0-9][a-z0-9_.-]{0,63}"
"""Pattern of a partition key."""
LONGEST_NAME = 400
"""Characters of a class's name; it stands in prompts, in the header of a bundle and in every image's record."""
LONGEST_FOLDER = 200
"""Bytes of a folder's name; file systems take 143 to 255."""
_SAFE = re.compile(SAFE_KEY)
_ILLEGAL = frozenset('<>:"/\\|?*\x7f')
"""Separators, streams and drives, and what else Windows takes in no name."""
_INVISIBLE = frozenset(("Cc", "Cf", "Zl", "Zp"))
"""Unicode's categories of control characters, marks of direction and other formats, and separators of lines."""
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE)
"""Names that Windows gives to devices, in every folder and with any suffix."""


def class_key(class_name: str) -> str:
    """Partition key of a class, from its name alone, so that a new class never renames another.

    A name that is safe (lower-case ASCII letters, digits, ``_``, ``.``, ``-``; at most 64; starting with a
    letter or digit, not ending with ``.``) is its own key. Any other is folded (NFKC, lower case), unsafe runs become
    ``-``, and the start of the name's SHA-256 keeps apart names that fold to the same.

    Args:
        class_name: Any Unicode; canonically equivalent spellings (NFC, NFD) are the same name.

    Raises:
        DatasetError: The name is empty or not valid Unicode.
    """
    name = normalized(class_name)
    # Windows drops dots from the end of a folder's name.
    return name if _SAFE.fullmatch(name) and not name.endswith(".") else _hashed_key(name, 6)


def _hashed_key(name: str, digest_length: int) -> str:
    folded = unicodedata.normalize("NFKC", name).lower()
    stem = re.sub(r"[^a-z0-9_.-]+", "-", folded).strip("-_.")[: 63 - digest_length].rstrip("-_.") or "class"
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:digest_length]}"


def folder_name(class_name: str) -> str:
    """What the folder of a class is called: its name, wherever that stays within its parent folder on every operating system.

    Separators, drives, streams, names of devices, dots and spaces at the end, the front of what programs take for hidden, control
    characters and marks of direction are written as ``%`` and the hexadecimal digits of their UTF-8 bytes, as in addresses, and
    so is a ``%`` that would otherwise read like that: no two names have the same folder, and ``urllib.parse.unquote`` gives the
    name back, but for one that would be longer than :data:`LONGEST_FOLDER` bytes, which is cut and ends in ``%~`` and a part of
    its SHA-256.

    Args:
        class_name: Any text of at least one character that is valid Unicode.
    """
    last = len(class_name) - 1
    folder = "".join(
        _quoted(c)
        if c in _ILLEGAL
        or unicodedata.category(c) in _INVISIBLE
        or (c == "%" and re.match("%([0-9a-fA-F]{2}|~)", class_name[i : i + 3]))
        or (c in ". " and i == last)
        or (i == 0 and (_DEVICE.match(class_name) or class_name.startswith((".", "__MACOSX"))))
        else c
        for i, c in enumerate(class_name)
    )
    if len(folder.encode()) <= LONGEST_FOLDER:
        return folder
    digest = hashlib.sha256(class_name.encode()).hexdigest()[:32]
    return folder.encode()[: LONGEST_FOLDER - 34].decode(errors="ignore") + f"%~{digest}"


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def normalized(class_name: str) -> str:
    """The name in Unicode's NFC form: macOS and Linux store the same folder name differently.

    Raises:
        DatasetError: The name is empty, very long or not valid Unicode.
    """
    try:
        class_name.encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"the class name {class_name!r} is not valid UTF-8; rename its folder (convmv does whole trees)"
        ) from None
    if not class_name:
        raise DatasetError("a class has an empty name; give it one")
    name = unicodedata.normalize("NFC", class_name)  # which is longer at times
    if len(name) > LONGEST_NAME:
        raise DatasetError(
            f"the class {name[:40]!r}… has a name of {len(name):,} characters; give it one of at most {LONGEST_NAME}"
        )
    return name


def class_keys(class_names: Iterable[str], taken: Mapping[str, str] | None = None) -> dict[str, str]:
    """Distinct keys for many names.

    Args:
        class_names: Names, in any order.
        taken: Keys given before, by name; they are kept.

    Returns:
        Key by normalised name: :func:`class_key`, or one with a longer hash where that is already taken.

    Raises:
        DatasetError: A name is empty, not valid Unicode, or given twice.
    """
    keys = dict(taken or {})
    used = set(keys.values())
    wanted = [normalized(name) for name in class_names]
    if twice := sorted(name for name, count in Counter(wanted).items() if count > 1):
        raise DatasetError(f"classes with the same name up to Unicode spelling: {', '.join(twice)}; merge them")
    for name in sorted(wanted, key=natural):
        if name not in keys:
            candidates = chain([class_key(name)], (_hashed_key(name, length) for length in (6, 12, 24, 48)))
            keys[name] = next(key for key in candidates if key not in used)
            used.add(keys[name])
    return {name: keys[name] for name in wanted}


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``"2"`` comes before ``"10"``."""
    # [0-9], not \d: int() and \d disagree about digits such as "²".
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(p), p) if p.isascii() and p.isdecimal() else (1, 0, p) for p in parts if p)
