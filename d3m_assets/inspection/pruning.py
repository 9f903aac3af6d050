"""What the store keeps though nothing needs it: of gone classes, budgets, settings and assets, and of replaced versions."""

from __future__ import annotations

from dataclasses import dataclass

from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.measuring import FILE, STUDENTS, MeasuredAsset
from d3m_assets.planning.planner import Plan, Planner
from d3m_assets.store import SUPERSEDED, ArtefactKey, Store


@dataclass(frozen=True)
class Leftovers:
    """What can be removed from a store.

    Attributes:
        artefacts: Those that the dataset, the settings or the graph have no place for.
        students: Digests of kept results of students that no table in the store names.
        superseded: Fingerprints of replaced versions whose commit record is kept and that nothing in the store names.
        bytes: Size of the artefacts' data files.
    """

    artefacts: tuple[ArtefactKey, ...]
    students: tuple[str, ...]
    superseded: tuple[str, ...]
    bytes: int

    def remove(self, store: Store) -> None:
        """Remove all of it.

        Raises:
            StoreError: The disk or service refuses.
        """
        for key in self.artefacts:
            store.delete(key)
        for digest in self.students:
            store.drop_record(STUDENTS, digest)
        for fingerprint in self.superseded:
            store.drop_record(SUPERSEDED, fingerprint)


def leftovers(planner: Planner) -> Leftovers:
    """What the current dataset and settings would never read again.

    A result of a student is kept when a table that stays names it, and while a table is missing or out of date: one that
    was interrupted goes on from them.

    Raises:
        D3MError: The dataset, the settings or the store cannot be used, or something in the store cannot be read.
    """
    plan = planner.plan()
    extra = plan.extra
    manifests = [manifest for key in extra if (manifest := planner.store.look(key).manifest)]
    size = sum(manifest.bytes for manifest in manifests)
    gone = set(extra)
    return Leftovers(tuple(extra), _unnamed_students(planner, plan, gone), _unnamed(planner.store, gone), size)


def _unnamed_students(planner: Planner, plan: Plan, gone: set[ArtefactKey]) -> tuple[str, ...]:
    tables = [asset.name for asset in planner.graph if isinstance(asset, MeasuredAsset)]
    if any(entry.key.asset in tables for entry in plan.pending()):
        return ()
    named: set[str] = set()
    for asset in tables:
        for key in planner.store.keys(asset):
            if key not in gone:
                table = from_parquet(planner.store.read(key, FILE))
                named |= set(table["student"]) if "student" in table else set()
    return tuple(digest for digest in planner.store.records(STUDENTS) if digest not in named)


def _unnamed(store: Store, gone: set[ArtefactKey]) -> tuple[str, ...]:
    """Replaced versions that no artefact which stays was made from, directly or through other replaced versions."""
    kept = store.records(SUPERSEDED)
    if not kept:
        return ()
    todo: list[str] = []
    for asset in store.assets():
        for key in store.keys(asset):
            # What cannot be read may name anything: it raises.
            if key not in gone and (manifest := store.manifest(key)):
                todo += manifest.inputs.values()
    replaced, named = set(kept), set()
    while todo:
        fingerprint = todo.pop()
        if fingerprint in replaced and fingerprint not in named:
            named.add(fingerprint)
            if found := store.superseded(fingerprint):
                todo += found[1].inputs.values()
    return tuple(fingerprint for fingerprint in kept if fingerprint not in named)
