"""Names of classes in any script: one spelling, an order, and keys that are safe as file names and partition keys."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain

from d3m_assets.errors import DatasetError

_SAFE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def class_key(class_name: str) -> str:
    """Partition key of a class, from its name alone, so that a new class never renames another.

    A name that is safe (lower-case ASCII letters, digits, ``_``, ``.``, ``-``; at most 64; starting with a
    letter or digit) is its own key. Any other is folded (NFKC, lower case), unsafe runs become ``-``, and the
    start of the name's SHA-256 keeps apart names that fold to the same.

    Args:
        class_name: Any Unicode; canonically equivalent spellings (NFC, NFD) are the same name.

    Raises:
        DatasetError: The name is empty or not valid Unicode.
    """
    name = normalized(class_name)
    return name if _SAFE.fullmatch(name) else _hashed_key(name, 6)


def _hashed_key(name: str, digest_length: int) -> str:
    folded = unicodedata.normalize("NFKC", name).lower()
    stem = re.sub(r"[^a-z0-9_.-]+", "-", folded).strip("-_.")[: 63 - digest_length].rstrip("-_.") or "class"
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:digest_length]}"


def normalized(class_name: str) -> str:
    """The name in Unicode's NFC form: macOS and Linux store the same folder name differently.

    Raises:
        DatasetError: The name is empty or not valid Unicode.
    """
    try:
        class_name.encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"the class name {class_name!r} is not valid UTF-8; rename its folder (convmv does whole trees)"
        ) from None
    if not class_name:
        raise DatasetError("a class has an empty name; give it one")
    return unicodedata.normalize("NFC", class_name)


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
