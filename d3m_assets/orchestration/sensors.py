"""Sensors: ``dataset_classes`` follows the dataset.

It asks for each thing once. What failed is not asked for again until it changes, or the nightly schedule or a person
asks: a sensor that retries fails for ever at every tick (368,000 failed runs in two weeks, elsewhere).
"""

import contextlib
import json
from typing import Any

import dagster as dg

from d3m_assets.addresses import mask_error
from d3m_assets.errors import D3MError
from d3m_assets.orchestration import alerts, checks, sources
from d3m_assets.orchestration.launch import fail_abandoned_runs
from d3m_assets.orchestration.partitions import CLASSES, class_changes
from d3m_assets.orchestration.recovery import recover
from d3m_assets.orchestration.requests import RunRequest, select
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.orchestration.unfinished import makers_at_work
from d3m_assets.settings import Settings

SECONDS_TO_RECOVER = 15.0
"""Of a tick, which has 60 s: each artefact that is recorded takes the time of its preview."""


def build_sensor(job: dg.JobDefinition, settings: Settings) -> dg.SensorDefinition:
    """The sensor ``dataset_classes`` over ``job``."""
    status = dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name="dataset_classes",
        job=job,
        minimum_interval_seconds=60,
        default_status=status,
        description="Follows the dataset's classes; has distilled what is out of date and was not asked for before.",
    )
    def dataset_classes(
        context: dg.SensorEvaluationContext, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult:
        try:
            planner = pipelines.fresh()
            plan = planner.plan()
            added, vanished = class_changes(context.instance, planner.context.values("class"))
            events: list[Any] = [*sources.changes(context.instance, planner)]
        except Exception as error:
            mask_error(error)
            # The dataset is being copied, or broken: change nothing, look again at the next tick. This one is red for as long
            # as it lasts, since a skipped one looks as if there were nothing to do.
            alerts.unusable(context.instance, settings.automation, error, context.log)
            raise
        alerts.usable(context.instance)
        classes = dg.DynamicPartitionsDefinition(name=CLASSES)
        changes: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if added:
            changes.append(classes.build_add_request(added))
        if vanished:
            changes.append(classes.build_delete_request(vanished))

        pending = plan.pending()
        limit = settings.automation.max_partitions_per_tick
        asked = set(json.loads(context.cursor)) if context.cursor else set()
        asked &= RunRequest.of(planner, pending).parts
        request = RunRequest.of(planner, select(planner, pending, limit, asked=asked))
        fail_abandoned_runs(context.instance, settings)
        running = makers_at_work(context.instance)
        if not running:  # what is being made is not to be shown as stale
            events += checks.changed_staleness(context.instance, planner)
            with contextlib.suppress(D3MError):  # the next tick, or the run that this one asks for, tries again
                recover(context.instance, planner, plan, SECONDS_TO_RECOVER)
        if running:
            requests, reason = [], f"run {running} is at it; {len(pending)} artefacts pending"
        elif request.parts:
            requests, reason = [request.to_dagster(job.name, context.instance)], None
            asked |= request.parts
        else:
            requests = []
            behind = f"{len(pending)} artefacts failed before, or wait for one that did; see the last run"
            reason = behind if pending else "everything is up to date"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=reason,
            dynamic_partitions_requests=changes,
            asset_events=events,
            cursor=json.dumps(sorted(asked)),
        )

    return dataset_classes
