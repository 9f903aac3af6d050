"""What automation asks for: part of the plan, named by its fingerprints so that it is not asked for twice.

A run key is used up by the run that carries it, even when that run fails; so it counts the runs that asked for the same
before, and what failed can be asked for again, once at each tick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from d3m_assets.orchestration.jobs import run_config
from d3m_assets.planning.planner import PlanEntry, Planner

REQUEST_TAG = "d3m/request"


@dataclass(frozen=True)
class RunRequest:
    """Artefacts in the state that the plan expects.

    Attributes:
        artefacts: What they are called, ``str(key)``.
        parts: Each with its expected fingerprint, as a short hash.
    """

    artefacts: tuple[str, ...]
    parts: frozenset[str]

    @classmethod
    def of(cls, planner: Planner, entries: Sequence[PlanEntry]) -> RunRequest:
        """The request for ``entries`` as they are expected now."""
        return cls(tuple(str(entry.key) for entry in entries), frozenset(part(planner, entry) for entry in entries))

    @property
    def name(self) -> str:
        """Short name, the same for the same request."""
        return hashlib.sha256(",".join(sorted(self.parts)).encode()).hexdigest()[:16]

    def to_dagster(
        self, job: str, instance: dg.DagsterInstance, tags: Mapping[str, str] | None = None
    ) -> dg.RunRequest:
        """A run of ``job`` for these artefacts, tagged, with a key that no earlier run for the same request had."""
        earlier = instance.get_runs_count(dg.RunsFilter(tags={REQUEST_TAG: self.name}))
        return dg.RunRequest(
            run_key=f"{self.name}-{earlier}",
            run_config=run_config(artefacts=self.artefacts),
            tags={REQUEST_TAG: self.name} | dict(tags or {}),
            job_name=job,
        )


def part(planner: Planner, entry: PlanEntry) -> str:
    """Short hash of an artefact in the state that the plan expects."""
    return hashlib.sha256(f"{entry.key}={planner.spec(entry.key).fingerprint}".encode()).hexdigest()[:10]


def select(
    planner: Planner, pending: Sequence[PlanEntry], limit: int, *, asked: Collection[str] = (), turn: int = 0
) -> list[PlanEntry]:
    """Entries that one run can make: nothing that they need is pending, unless it is among them.

    What waits for a failed input takes no place under the limit from what could be made.

    Args:
        planner: Of the plan.
        pending: Of its entries, in dependency order.
        limit: Most entries of each asset.
        asked: Entries that are left out, as :func:`part` names them.
        turn: Which ``limit`` entries of each asset: as it counts up, all have their turn, however many fail every time.
    """
    unready = {str(entry.key) for entry in pending}
    selected = []
    for asset in planner.graph.names:
        of_asset = [
            entry
            for entry in pending
            if entry.key.asset == asset
            and not unready & planner.spec(entry.key).inputs.keys()
            and part(planner, entry) not in asked
        ]
        start = turn * limit % len(of_asset) if len(of_asset) > limit else 0
        chosen = (of_asset[start:] + of_asset[:start])[:limit]
        unready -= {str(entry.key) for entry in chosen}
        selected += chosen
    return selected
