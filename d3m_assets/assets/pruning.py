"""What the store keeps of classes, budgets, settings and assets that are gone, and of students that no table names."""

from __future__ import annotations

from dataclasses import dataclass

from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.graph import GRAPH
from d3m_assets.assets.measuring import FILE, STUDENTS, MeasuredAsset
from d3m_assets.planning.planner import Planner
from d3m_assets.store import ArtefactKey, Store


@dataclass(frozen=True)
class Leftovers:
    """What can be removed from a store.

    Attributes:
        artefacts: Those that the dataset, the settings or the graph have no place for.
        students: Digests of kept results of students that no table in the store names.
        bytes: Size of the artefacts' data files.
    """

    artefacts: tuple[ArtefactKey, ...]
    students: tuple[str, ...]
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


def leftovers(planner: Planner) -> Leftovers:
    """What the current dataset and settings would never read again.

    A result of a student is kept when a table that stays names it.

    Raises:
        D3MError: The dataset, the settings or the store cannot be used.
    """
    extra = planner.plan().extra
    manifests = [manifest for key in extra if (manifest := planner.store.look(key).manifest)]
    size = sum(record.bytes for manifest in manifests for record in manifest.files.values())
    gone, named = set(extra), set()
    for asset in GRAPH:
        if isinstance(asset, MeasuredAsset):
            for key in planner.store.keys(asset.name):
                if key not in gone:
                    table = from_parquet(planner.store.read(key, FILE))
                    named |= set(table["student"]) if "student" in table else set()
    students = tuple(digest for digest in planner.store.records(STUDENTS) if digest not in named)
    return Leftovers(tuple(extra), students, size)
