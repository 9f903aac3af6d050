"""What automation asks for: part of the plan, named by its fingerprints so that it is not asked for twice.

A run key is used up by the run that carries it, even when that run fails; so it counts the runs that had the same
wish before, and a failed wish can be asked for again, once at each tick.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from d3m_assets.pipeline import Pipeline, PlanEntry

WISH_TAG = "d3m/wish"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def select(pending: Sequence[PlanEntry], limit: int | None) -> list[PlanEntry]:
    """The first ``limit`` entries of each asset; the order of keys is the same in all, so that they fit together."""
    if limit is None:
        return list(pending)
    seen: dict[str, int] = {}
    chosen = []
    for entry in pending:
        seen[entry.key.asset] = seen.get(entry.key.asset, 0) + 1
        if seen[entry.key.asset] <= limit:
            chosen.append(entry)
    return chosen


@dataclass(frozen=True)
class Wish:
    """Artefacts in the state that the plan wants them, each as a short hash."""

    parts: frozenset[str]

    @classmethod
    def of(cls, pipeline: Pipeline, entries: Sequence[PlanEntry]) -> "Wish":
        """The wish for ``entries`` as they are wanted now."""
        wanted = (f"{entry.key}={pipeline.spec(entry.key).fingerprint}" for entry in entries)
        return cls(frozenset(hashlib.sha256(text.encode()).hexdigest()[:10] for text in wanted))

    @property
    def name(self) -> str:
        """Short name, the same for the same wish."""
        return hashlib.sha256(",".join(sorted(self.parts)).encode()).hexdigest()[:16]

    def request(self, job: str, instance: dg.DagsterInstance, limit: int) -> dg.RunRequest:
        """Ask for it: a run of ``job`` with a key that no earlier run for the same wish had."""
        earlier = instance.get_runs_count(dg.RunsFilter(tags={WISH_TAG: self.name}))
        return dg.RunRequest(
            run_key=f"{self.name}-{earlier}",
            run_config={"ops": {"distil_pending": {"config": {"limit": limit}}}},
            tags={WISH_TAG: self.name},
            job_name=job,
        )


def unfinished_run(instance: dg.DagsterInstance, job: str) -> str | None:
    """Id of a run of ``job`` that waits or runs, None when there is none."""
    runs = instance.get_runs(filters=dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1)
    return runs[0].run_id if runs else None
