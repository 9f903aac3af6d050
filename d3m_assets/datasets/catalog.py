"""The class catalog: every class that was ever seen, with its permanent id, its key and the number of its images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from d3m_assets.datasets.names import class_keys, natural, normalized
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
    names = [normalized(name) for name in class_names]
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
