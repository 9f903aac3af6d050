"""Schedules: ``nightly_distill`` has done what the plan lists, also what failed before; ``nightly_verify`` checks.

The sensor asks for each thing once; a schedule asks again.
"""

import dagster as dg

from d3m_assets.addresses import mask_error
from d3m_assets.orchestration import alerts
from d3m_assets.orchestration.launch import fail_abandoned_runs
from d3m_assets.orchestration.requests import RunRequest, select
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.orchestration.unfinished import makers_at_work
from d3m_assets.settings import Settings

BY_SCHEDULE = {"d3m/requested_by": "nightly_distill"}
"""Tag of its runs: how many there were says whose turn it is."""


def build_schedules(job: dg.JobDefinition, verify: dg.JobDefinition, settings: Settings) -> list[dg.ScheduleDefinition]:
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
        try:
            planner = pipelines.fresh()
            pending = planner.plan().pending()
        except Exception as error:
            mask_error(error)
            # A skipped tick looks as if there were nothing to do; this one is red, and somebody is told. Also of defects.
            alerts.unusable(context.instance, settings.automation, error, context.log, at_once=True)
            raise
        alerts.usable(context.instance)
        if not pending:
            return dg.SkipReason("everything is up to date")
        fail_abandoned_runs(context.instance, settings)
        if running := makers_at_work(context.instance):
            return dg.SkipReason(f"run {running} is at it; {len(pending)} artefacts pending")
        limit = settings.automation.max_partitions_per_tick
        turn = context.instance.get_runs_count(dg.RunsFilter(tags=BY_SCHEDULE))
        request = RunRequest.of(planner, select(planner, pending, limit, turn=turn))
        return request.to_dagster(job.name, context.instance, BY_SCHEDULE)

    @dg.schedule(
        name="nightly_verify",
        job=verify,
        cron_schedule=settings.automation.verify_cron,
        default_status=status,
        description="Evaluates all asset checks, unless a run is making what they would call missing or stale.",
    )
    def nightly_verify(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        fail_abandoned_runs(context.instance, settings)
        if running := makers_at_work(context.instance):
            return dg.SkipReason(f"run {running} is making artefacts; it evaluates the checks of what it makes")
        return dg.RunRequest()

    return [nightly_distill, nightly_verify]
