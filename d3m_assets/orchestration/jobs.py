"""Jobs: ``distil`` brings everything up to the report up to date, ``verify`` evaluates all checks.

Assets with different partitions cannot share a run, and a run for each stage costs 0.4 s from a shell and 20 s
through the queue. So ``distil`` is one op that goes through the stages and records what it makes as materialisations
of the assets: one run, one model in memory, and 25 ms an artefact.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from pydantic import Field

from d3m_assets.orchestration import checks, record
from d3m_assets.orchestration.partitions import register_classes
from d3m_assets.orchestration.resources import PipelineResource, device_request, log_progress
from d3m_assets.orchestration.wishes import select
from d3m_assets.pipeline import ASSETS, Pipeline
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey

DISTIL = "distil"
VERIFY = "verify"


class DistilConfig(dg.Config):
    """Run configuration of the job ``distil``."""

    limit: int | None = Field(None, description="Most partitions of each asset to work on; none: all pending.")


@dataclass
class Distilled:
    """What one run of ``distil`` did.

    Attributes:
        made: Artefacts made, in order.
        failures: Those that failed, and why.
        blocked: Those not tried because an input failed.
        deferred: Those left for another run by the limit.
    """

    made: list[ArtefactKey] = field(default_factory=list)
    failures: list[record.Failure] = field(default_factory=list)
    blocked: list[ArtefactKey] = field(default_factory=list)
    deferred: list[ArtefactKey] = field(default_factory=list)


def distil(
    context: dg.OpExecutionContext,
    pipelines: PipelineResource,
    pipeline: Pipeline,
    *,
    limit: int | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Distilled:
    """Work through what the plan lists, stage by stage; what does not depend on a failure goes on.

    Args:
        context: Of the op; materialisations and checks are logged to it.
        pipelines: For the lease of the device.
        pipeline: Makes the plan and does the work.
        limit: Most partitions of each asset, None for no limit.
        say: Told when there is a wait for the device.
    """
    done = Distilled()
    register_classes(context.instance, pipeline.catalog()["class_key"])
    with pipelines.device_lease(say):
        # The plan is made under the lease: another process may just have done all of it.
        plan = pipeline.plan()
        chosen = {entry.key for entry in select(plan.pending(), limit)}
        unready = {str(entry.key) for entry in plan.pending()}
        for asset in ASSETS:
            pending = [entry.key for entry in plan.pending() if entry.key.asset == asset]
            ready = [key for key in pending if key in chosen and not unready & pipeline.spec(key).inputs.keys()]
            if ready:
                result = record.work(context, pipeline, asset, ready)
                done.made += result.made
                done.failures += result.failures
                unready -= {str(key) for key in result.made + result.unchanged}
            tried = set(ready)
            for key in pending:
                if key not in tried:
                    (done.blocked if _below_failure(key, pipeline, done) else done.deferred).append(key)
        touched = {key.asset for key in [*done.made, *(failure.key for failure in done.failures)]}
        checks.evaluate(context, pipeline, touched | {"distillation_report"})
    return done


def _below_failure(key: ArtefactKey, pipeline: Pipeline, done: Distilled) -> bool:
    unavailable = {str(failure.key) for failure in done.failures} | {str(blocked) for blocked in done.blocked}
    return bool(unavailable & pipeline.spec(key).inputs.keys())


def build_distil(
    settings: Settings,
    *,
    finished: Callable[[Distilled], None] = lambda done: None,
    say: Callable[[str], object] | None = None,
) -> dg.JobDefinition:
    """The job ``distil``; its run asks Ray and Kubernetes launchers for a GPU unless the device is the CPU.

    Args:
        settings: For the device.
        finished: Called with what was done, before failures are raised.
        say: Told when there is a wait for the device; None: the run's log is.
    """
    tags = device_request(settings.device)

    @dg.op(
        out=dg.Out(dg.Nothing),
        tags=tags,
        description="Bring every artefact that is missing or out of date up to date, in dependency order.",
    )
    def distil_pending(
        context: dg.OpExecutionContext, config: DistilConfig, pipelines: dg.ResourceParam[PipelineResource]
    ) -> None:
        pipeline = pipelines.of_run(context.run.run_id, log_progress(context.log))
        done = distil(context, pipelines, pipeline, limit=config.limit, say=say or context.log.info)
        finished(done)
        context.log.info(
            "%d made, %d failed, %d blocked by a failure, %d left for another run",
            *(len(done.made), len(done.failures), len(done.blocked), len(done.deferred)),
        )
        if done.failures:
            raise record.failure(done.failures)

    # The run's own process is isolation enough for its one step; a second process would start for 5 to 14 s more.
    @dg.job(name=DISTIL, description=__doc__, tags=tags, executor_def=dg.in_process_executor)
    def job() -> None:
        distil_pending()

    return job


def build_verify() -> Any:
    """The job ``verify``."""
    return dg.define_asset_job(
        VERIFY, selection=dg.AssetSelection.all_asset_checks(), description="Evaluate all asset checks."
    )
