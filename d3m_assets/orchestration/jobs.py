"""Jobs: ``distill`` brings everything up to the last asset up to date, ``verify`` evaluates all checks in one step.

Assets with different partitions cannot share a run, and a run for each asset costs 0.4 s from a shell and 20 s
through the queue. So ``distill`` is one op that goes through the assets and records what it makes as materialisations:
one run, one model in memory, and 25 ms an artefact.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from d3m_assets.addresses import mask_error, masked
from d3m_assets.errors import D3MError
from d3m_assets.orchestration import checks, record
from d3m_assets.orchestration.dagster_private import event_log_kept_open
from d3m_assets.orchestration.partitions import register_classes
from d3m_assets.orchestration.recovery import unrecorded
from d3m_assets.orchestration.resources import PipelineResource, device_request, log_progress
from d3m_assets.orchestration.run_process import name_process
from d3m_assets.orchestration.unfinished import DISTILL, makers_at_work
from d3m_assets.planning.asset import Asset, Graph
from d3m_assets.planning.planner import Outcome, Plan, Planner, Tally
from d3m_assets.settings import AutomationSettings, Settings
from d3m_assets.store import ArtefactKey

DISTILL_OP = "distill_pending"
VERIFY = "verify"
VERIFY_OP = "evaluate_checks"


class DistillConfig(dg.Config):
    """Run configuration of the job ``distill``."""

    limit: int | None = Field(None, description="Most artefacts of each asset to work on; none: all pending.")
    artefacts: list[str] | None = Field(
        None, description='Artefacts to work on, such as "class_prompts [cat]"; none: all pending.'
    )


def run_config(limit: int | None = None, artefacts: Sequence[str] | None = None) -> dict[str, Any]:
    """Run configuration of the job ``distill`` with a limit, or with the artefacts to work on."""
    config = {"limit": limit, "artefacts": None if artefacts is None else list(artefacts)}
    return {"ops": {DISTILL_OP: {"config": config}}}


def distill(
    context: dg.OpExecutionContext,
    pipelines: PipelineResource,
    planner: Planner,
    *,
    plan: Plan | None = None,
    limit: int | None = None,
    artefacts: Collection[str] | None = None,
    log: Callable[[str], object] = lambda text: None,
) -> Tally:
    """Work through what the plan lists, asset by asset; what does not depend on a failure goes on.

    Args:
        context: Of the op; materialisations and checks are logged to it.
        pipelines: For the lease of the device, which is held while a model is used and given back between.
        planner: Makes the plan and does the work. What another process makes in the meantime is found to be up to date.
        plan: A plan that was just made; None: one is made.
        limit: Most artefacts of each asset, None for no limit.
        artefacts: Those to work on, as ``str(key)``; None: all that are pending.
        log: Told when there is a wait for the device.
    """
    register_classes(context.instance, planner.context.values("class"))

    def materialize(asset: str, keys: Sequence[ArtefactKey]) -> Iterable[Outcome]:
        return record.work(context, planner, planner.graph[asset], keys, False)

    def before(asset: Asset) -> contextlib.AbstractContextManager[object]:
        return pipelines.device_lease(log) if asset.device else contextlib.nullcontext()

    with event_log_kept_open(context.instance):
        plan = plan or planner.plan()
        for event in unrecorded(context.instance, planner, plan):
            context.log_event(event)
        tally = planner.work_through(plan, limit=limit, selected=artefacts, materialize=materialize, before=before)
        checks.evaluate(context, planner, tally.assets)
    return tally


def build_distill(
    settings: Settings,
    *,
    plan: Plan | None = None,
    finished: Callable[[Tally], None] = lambda tally: None,
    log: Callable[[str], object] | None = None,
) -> dg.JobDefinition:
    """The job ``distill``; its run asks launchers for a GPU, unless the device is the CPU or Ray's workers compute.

    Args:
        settings: For the device.
        plan: As for :func:`distill`.
        finished: Called with what was done, before failures are raised.
        log: Told when there is a wait for the device; None: the run's log is.
    """
    tags = device_request(settings)

    @dg.op(
        name=DISTILL_OP,
        out=dg.Out(dg.Nothing),
        tags=tags,
        description="Bring every artefact that is missing or out of date up to date, in dependency order.",
    )
    def distill_pending(
        context: dg.OpExecutionContext, config: DistillConfig, pipelines: dg.ResourceParam[PipelineResource]
    ) -> None:
        try:
            name_process(context, settings)
            planner = pipelines.of_run(context.run.run_id, log_progress(context.log))
            tally = distill(
                context,
                pipelines,
                planner,
                plan=plan,
                limit=config.limit,
                artefacts=None if config.artefacts is None else frozenset(config.artefacts),
                log=log or context.log.info,
            )
        except Exception as error:
            mask_error(error)
            raise
        finally:
            pipelines.close()
        finished(tally)
        context.log.info(
            "%d made, %d failed, %d blocked by a failure, %d left for another run",
            *(len(tally.made), len(tally.failed), len(tally.blocked), len(tally.deferred)),
        )
        if tally.failed:
            raise record.failure([masked(str(outcome.error)) for outcome in tally.failed])

    # The run's own process is isolation enough for its one step; a second process would start for 5 to 14 s more.
    @dg.job(name=DISTILL, description=__doc__, tags=tags, executor_def=dg.in_process_executor)
    def job() -> None:
        distill_pending()

    return job


def build_verify(graph: Graph, automation: AutomationSettings) -> dg.JobDefinition:
    """The job ``verify``: all checks in one step, so that the dataset is scanned once.

    It does not say what is missing or stale while another run is making it: beside such a run it ends without a word, and
    when one begins it stops. With a limit of age, it also confirms what is up to date: records it again without making it.
    """

    @dg.op(name=VERIFY_OP, out=dg.Out(dg.Nothing), description="Evaluate all asset checks.")
    def evaluate_checks(context: dg.OpExecutionContext, pipelines: dg.ResourceParam[PipelineResource]) -> None:
        def beside_makers() -> bool:
            if running := makers_at_work(context.instance):
                context.log.info("run %s is making artefacts; checks are left to it and to the next time", running)
            return running is not None

        if beside_makers():
            return
        try:
            try:
                planner = pipelines.of_run(context.run.run_id, log_progress(context.log))
                plan = planner.plan()
            except D3MError as error:
                for asset, check in checks.checks_of(graph):
                    checks.log(context, checks.unevaluated(asset, check, error))
                # Green, the run would look as if all had been checked, and nobody would be told.
                mask_error(error)
                raise dg.Failure(f"nothing could be checked: {error}", allow_retries=False) from error
            checks.evaluate(context, planner, graph.names, beside_makers)
            if automation.max_age_hours is not None and not makers_at_work(context.instance):
                _confirm(context, planner, plan)
        finally:
            pipelines.close()

    @dg.job(name=VERIFY, description="Evaluate all asset checks.", executor_def=dg.in_process_executor)
    def job() -> None:
        evaluate_checks()

    return job


def _confirm(context: dg.OpExecutionContext, planner: Planner, plan: Plan) -> None:
    # A freshness policy looks at the time of the last materialisation, and what does not change is not made again.
    for asset in planner.graph:
        if asset.freshness_policy:
            keys = [entry.key for entry in plan.of(asset.name) if entry.state == "up to date"]
            for _ in record.work(context, planner, asset, keys, False):
                pass
