"""What automation asks for: part of the plan, named by its fingerprints so that it is not asked for twice.

A run key is used up by the run that carries it, even when that run fails; so it counts the runs that asked for the same
before, and what failed can be asked for again, once at each tick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from d3m_assets.orchestration.jobs import run_config
from d3m_assets.planning.planner import PlanEntry, Planner

REQUEST_TAG = "d3m/request"


@dataclass(frozen=True)
class RunRequest:
    """Artefacts in the state that the plan expects, each as a short hash."""

    parts: frozenset[str]

    @classmethod
    def of(cls, planner: Planner, entries: Sequence[PlanEntry]) -> RunRequest:
        """The request for ``entries`` as they are expected now."""
        expected = (f"{entry.key}={planner.spec(entry.key).fingerprint}" for entry in entries)
        return cls(frozenset(hashlib.sha256(text.encode()).hexdigest()[:10] for text in expected))

    @property
    def name(self) -> str:
        """Short name, the same for the same request."""
        return hashlib.sha256(",".join(sorted(self.parts)).encode()).hexdigest()[:16]

    def to_dagster(self, job: str, instance: dg.DagsterInstance, limit: int) -> dg.RunRequest:
        """A run of ``job`` with a key that no earlier run for the same request had."""
        earlier = instance.get_runs_count(dg.RunsFilter(tags={REQUEST_TAG: self.name}))
        return dg.RunRequest(
            run_key=f"{self.name}-{earlier}", run_config=run_config(limit), tags={REQUEST_TAG: self.name}, job_name=job
        )
