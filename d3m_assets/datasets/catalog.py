"""Classes: safe partition keys and permanent ids for names in any script."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from d3m_assets.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.datasets.source import Scan

COLUMNS = {
    "class_id": "int64",
    "class_key": "str",
    "class_name": "str",
    "n_train": "int64",
    "n_validation": "int64",
    "n_test": "int64",
    "fingerprint": "str",
    "active": "bool",
}
"""Columns of the catalog and their pandas dtypes."""

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
    name = normalised(class_name)
    return name if _SAFE.fullmatch(name) else _hashed_key(name, 6)


def _hashed_key(name: str, digest_length: int) -> str:
    folded = unicodedata.normalize("NFKC", name).lower()
    stem = re.sub(r"[^a-z0-9_.-]+", "-", folded).strip("-_.")[: 63 - digest_length].rstrip("-_.") or "class"
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:digest_length]}"


def normalised(class_name: str) -> str:
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
    wanted = [normalised(name) for name in class_names]
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


def assign_class_ids(class_names: Iterable[str], previous: pd.DataFrame | None = None) -> pd.DataFrame:
    """Give every class an id once and for ever.

    Args:
        class_names: The classes that exist now, in any order.
        previous: The catalog so far, with ``class_id``, ``class_key`` and ``class_name``.

    Returns:
        ``class_id``, ``class_key``, ``class_name`` and ``active``, sorted by id. Known names keep id and key;
        new ones follow the highest id in natural order of their names; names that are gone stay, not active.

    Raises:
        DatasetError: ``previous`` is no catalog, or a name is unusable.
    """
    import pandas as pd

    known = _identities(previous)
    names = [normalised(name) for name in class_names]
    keys = class_keys(names, {name: key for name, (_, key) in known.items()})
    next_id = max((class_id for class_id, _ in known.values()), default=-1) + 1
    fresh = sorted((name for name in names if name not in known), key=natural)
    known |= {name: (next_id + i, keys[name]) for i, name in enumerate(fresh)}
    present = set(names)
    rows = [(class_id, key, name, name in present) for name, (class_id, key) in known.items()]
    table = pd.DataFrame(sorted(rows), columns=["class_id", "class_key", "class_name", "active"])
    return table.astype({name: COLUMNS[name] for name in table.columns})


def _identities(previous: pd.DataFrame | None) -> dict[str, tuple[int, str]]:
    if previous is None:
        return {}
    needed = ["class_id", "class_key", "class_name"]
    wrong = [f"lacks {name}" for name in needed if name not in previous.columns]
    wrong = wrong or [f"repeats a {name}" for name in needed if previous[name].duplicated().any()]
    if wrong:
        raise DatasetError(f"the previous class catalog {', '.join(wrong)}; delete class_catalog and rebuild it")
    ids, keys, names = (previous[column].tolist() for column in needed)
    return {str(name): (int(i), str(key)) for i, key, name in zip(ids, keys, names, strict=True)}


def class_catalog(scan: Scan, previous: pd.DataFrame | None = None) -> pd.DataFrame:
    """The catalog of a scanned dataset.

    Args:
        scan: What is there now.
        previous: The catalog so far, if any.

    Returns:
        One row a class with :data:`COLUMNS`, sorted by ``class_id``. A class that is gone has no images, an
        empty fingerprint and ``active`` False.

    Raises:
        DatasetError: ``previous`` is no catalog, or a name is unusable.
    """
    table = assign_class_ids(scan.classes, previous)
    found = [scan.classes.get(name) for name in table["class_name"]]
    for split in ("train", "validation", "test"):
        table[f"n_{split}"] = [len(images.of(split)) if images else 0 for images in found]
    table["fingerprint"] = [images.fingerprint if images else "" for images in found]
    return table[list(COLUMNS)].astype(COLUMNS)
