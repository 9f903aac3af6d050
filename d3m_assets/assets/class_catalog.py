"""``class_catalog``: which classes there are, and the ids that they keep for ever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.dataset_files import DatasetFiles
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.datasets.names import natural
from d3m_assets.datasets.problems import listed_names, problem_rows
from d3m_assets.datasets.source import Scan
from d3m_assets.errors import DamagedError, StoreError
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.store import ArtefactKey, Store

if TYPE_CHECKING:
    import pandas as pd

FILE = "catalog.parquet"


class ClassCatalog(Asset):
    """Every class of the dataset with its permanent id, partition key, name and image counts."""

    group = "dataset"
    sources = (DatasetFiles,)
    kinds = frozenset({"pandas"})
    checks = (Check("images_are_sound", "Every image can be read, and stands in one class and split, once."),)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The dataset as it is."""
        return {"dataset": context.dataset.scan.fingerprint}

    def explain(self, context: Context, item: Item, reasons: Sequence[str]) -> Sequence[str]:
        """Which classes changed since the catalog was made."""
        changed = [reason.startswith("setting dataset ") for reason in reasons]
        if not any(changed):
            return reasons
        try:
            recorded = from_parquet(context.inputs.read(item.key, FILE))
        except (DamagedError, OSError, ValueError):
            return reasons
        before = dict(zip(recorded["class_name"], recorded["fingerprint"], strict=True))
        now = {name: images.fingerprint for name, images in context.dataset.scan.classes.items()}
        names = [name for name in sorted(before.keys() | now, key=natural) if before.get(name, "") != now.get(name, "")]
        named = f"classes changed: {listed_names(names)}" if names else "shape of the images changed"
        return [named if of_dataset else reason for reason, of_dataset in zip(reasons, changed, strict=True)]

    def make_one(self, context: Context, item: Item) -> Made:
        """The table of classes, retired ones included."""
        table = context.dataset.full_catalog
        active = table[table["active"]]
        metrics = {
            "classes": len(active),
            "retired": len(table) - len(active),
            "images": int(active["n_train"].sum()),
            "broken": sum(bool(images.errors) for images in context.dataset.scan.classes.values()),
        }
        return Made(item.key, {FILE: to_parquet(table)}, metrics)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The classes."""
        import pandas as pd

        table = from_parquet(context.inputs.read(item.key, FILE))
        shown = {"rows": len(table), "classes_table": table.drop(columns="fingerprint")}
        if rows := problem_rows(context.dataset.scan.problems):
            shown["problems_table"] = pd.DataFrame([asdict(row) for row in rows])
        return shown

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Everything that is wrong with the images of any class, as the table of problems has it."""
        for row in problem_rows(context.dataset.scan.problems):
            count = f"{row.count} times, " if row.count > 1 else ""
            yield Finding(f"class {row.class_name!r}: {count}{row.where} {row.what}; {row.remedy}", row.severity)


def stored_catalog(store: Store, scan: Scan) -> pd.DataFrame | None:
    """The catalog of earlier scans, which gave the classes their ids; None: there is none yet.

    Raises:
        StoreError: It is damaged, the store has the layout of an earlier version, or it is of another dataset.
        StoreUnavailableError: It cannot be read just now; the classes keep their ids.
    """
    key = ArtefactKey(ClassCatalog.name)
    try:
        if store.manifest(key) is None:
            _refuse_old_layout(store)
            return None
        previous = from_parquet(store.read(key, FILE))
    except (DamagedError, OSError, ValueError) as error:
        raise damaged_catalog(store, error) from error
    _refuse_other_dataset(store, previous, scan)
    return previous


def damaged_catalog(store: Store, what: object) -> StoreError:
    """The error of a catalog that is damaged for good; of all artefacts it alone cannot simply be made again."""
    return StoreError(
        f"the class catalog in {store.uri(ArtefactKey(ClassCatalog.name))} is damaged: {what}. It gives classes their permanent "
        "ids: restore it from a backup, or delete that folder and run `d3m distill` (ids are then given anew)"
    )


def _refuse_old_layout(store: Store) -> None:
    above = store.parent()
    if above is not None and above.manifest(ArtefactKey(ClassCatalog.name)):
        raise StoreError(
            f"{above.url} was written by an earlier version, which kept one dataset there; move what is in it into "
            f"{store.url}, or name another place with --storage"
        )


def _refuse_other_dataset(store: Store, previous: pd.DataFrame, scan: Scan) -> None:
    # A dataset of the same name elsewhere would retire every class of this one.
    if not previous["active"].any():
        return
    active = previous[previous["active"]]
    known, found = sorted(active["class_name"]), scan.classes
    prints = dict(zip(active["class_name"], active["fingerprint"], strict=True))
    same = any(name in found and found[name].fingerprint == prints[name] for name in known)
    if same or set(known) == set(found):
        return
    listed = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
    raise StoreError(
        f"{store.url} holds another dataset (classes {listed}), of which {scan.url} has none unchanged, and not all. "
        "Give one of them another name with the setting `name` (D3M_NAME), or another place with --storage"
    )
