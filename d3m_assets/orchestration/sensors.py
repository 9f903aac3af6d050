"""Sensors: ``dataset_classes`` follows the dataset.

It asks for each thing once. What failed is not asked for again until it changes, or the nightly schedule or a person
asks: a sensor that retries fails for ever at every tick (368,000 failed runs in two weeks, elsewhere).
"""

import json

import dagster as dg

from d3m_assets.errors import D3MError
from d3m_assets.orchestration.launch import fail_abandoned_runs
from d3m_assets.orchestration.partitions import CLASSES, class_changes
from d3m_assets.orchestration.requests import RunRequest, unfinished_run
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.planning.planner import first_of_each_asset
from d3m_assets.settings import Settings


def build_sensor(job: dg.JobDefinition, settings: Settings) -> dg.SensorDefinition:
    """The sensor ``dataset_classes`` over ``job``."""
    status = dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name="dataset_classes",
        job=job,
        minimum_interval_seconds=60,
        default_status=status,
        description="Notices new, changed and vanished classes and has everything distilled that they touch.",
    )
    def dataset_classes(
        context: dg.SensorEvaluationContext, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult:
        planner = pipelines.fresh()
        try:
            plan = planner.plan()
            added, vanished = class_changes(context.instance, planner.context.values("class"))
        except D3MError as error:
            # The dataset is being copied, or broken: say so, change nothing, look again at the next tick.
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        classes = dg.DynamicPartitionsDefinition(name=CLASSES)
        changes: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if added:
            changes.append(classes.build_add_request(added))
        if vanished:
            changes.append(classes.build_delete_request(vanished))

        pending = plan.pending()
        limit = settings.automation.max_partitions_per_tick
        request = RunRequest.of(planner, first_of_each_asset(pending, limit))
        asked = set(json.loads(context.cursor)) if context.cursor else set()
        asked &= RunRequest.of(planner, pending).parts
        fail_abandoned_runs(context.instance, settings)
        if running := unfinished_run(context.instance, job.name):
            requests, reason = [], f"run {running} is at it; {len(pending)} artefacts pending"
        elif request.parts - asked:
            requests, reason = [request.to_dagster(job.name, context.instance, limit)], None
            asked |= request.parts
        else:
            requests = []
            behind = f"{len(pending)} artefacts failed before, or wait for one that did; see the last run"
            reason = behind if pending else "everything is up to date"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=reason,
            dynamic_partitions_requests=changes,
            cursor=json.dumps(sorted(asked)),
        )

    return dataset_classes
