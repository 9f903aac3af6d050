"""Schedules: ``nightly_distill`` has done what the plan lists, also what failed before; ``nightly_verify`` checks.

The sensor sees the dataset only; this one also sees changed settings, newer code and damaged files.
"""

import dagster as dg

from d3m_assets.errors import D3MError
from d3m_assets.orchestration.launch import fail_abandoned_runs
from d3m_assets.orchestration.requests import RunRequest, unfinished_run
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.planning.planner import first_of_each_asset
from d3m_assets.settings import Settings


def build_schedules(job: dg.JobDefinition, verify: object, settings: Settings) -> list[dg.ScheduleDefinition]:
    """``nightly_distill`` over ``job`` and ``nightly_verify`` over the job ``verify``."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.automation.enabled else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly_distill",
        job=job,
        cron_schedule=settings.automation.cron,
        default_status=status,
        description="Distills whatever is missing or out of date, and tries again what failed.",
    )
    def nightly_distill(
        context: dg.ScheduleEvaluationContext, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.RunRequest | dg.SkipReason:
        planner = pipelines.fresh()
        try:
            pending = planner.plan().pending()
        except D3MError as error:
            return dg.SkipReason(str(error))
        if not pending:
            return dg.SkipReason("everything is up to date")
        fail_abandoned_runs(context.instance, settings)
        if running := unfinished_run(context.instance, job.name):
            return dg.SkipReason(f"run {running} is at it; {len(pending)} artefacts pending")
        limit = settings.automation.max_partitions_per_tick
        request = RunRequest.of(planner, first_of_each_asset(pending, limit))
        return request.to_dagster(job.name, context.instance, limit)

    nightly_verify = dg.ScheduleDefinition(
        name="nightly_verify",
        job=verify,  # type: ignore[arg-type]
        cron_schedule=settings.automation.cron,
        default_status=status,
        description="Evaluates all asset checks.",
    )
    return [nightly_distill, nightly_verify]
