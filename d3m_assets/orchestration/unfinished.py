"""Runs that are under way: who must not be doubled, and who must not be spoken about yet."""

from __future__ import annotations

import dagster as dg

DISTILL = "distill"
"""The job that makes everything."""
ASSET_JOB = "__ASSET_JOB"
"""Dagster's name of the job in which assets run that were picked in the UI or in a backfill."""
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def unfinished_run(instance: dg.DagsterInstance, *jobs: str) -> str | None:
    """Id of a run of one of some jobs that waits or runs, None when there is none."""
    for job in jobs:
        if runs := instance.get_runs(filters=dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1):
            return runs[0].run_id
    return None


def makers_at_work(instance: dg.DagsterInstance) -> str | None:
    """Id of an unfinished run that makes artefacts, of ``distill`` or of assets picked in the UI; None: there is none."""
    return unfinished_run(instance, DISTILL, ASSET_JOB)
