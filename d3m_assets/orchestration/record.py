"""Make artefacts of an asset and record each as it finishes.

Shape, chosen by trying three in Dagster 1.13.27: one step takes many partitions, logs one ``AssetMaterialization`` a
partition at the moment it is committed, and yields an output that makes no events of its own. A plain return
materialises all partitions at the end or, after a failure, none; yielding nothing makes Dagster skip the assets
below in the same run.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import dagster as dg
from pydantic import Field

from d3m_assets.addresses import mask_error, masked
from d3m_assets.errors import D3MError
from d3m_assets.orchestration.dagster_private import EVENTS_ALREADY_LOGGED, event_log_kept_open
from d3m_assets.orchestration.events import EventsOfAsset
from d3m_assets.orchestration.partitions import artefact_key, partition_key, register_classes
from d3m_assets.orchestration.recovery import recover
from d3m_assets.orchestration.resources import PipelineResource, log_progress
from d3m_assets.orchestration.run_process import name_process
from d3m_assets.planning.asset import Asset
from d3m_assets.planning.planner import Outcome, Plan, Planner, Tally
from d3m_assets.store import ArtefactKey

Context = dg.AssetExecutionContext | dg.OpExecutionContext


class AssetConfig(dg.Config):
    """Run configuration of every asset; the defaults are right for automation."""

    force: bool = Field(False, description="Make again what is up to date.")


def run_asset(
    context: dg.AssetExecutionContext, config: AssetConfig, pipelines: PipelineResource, asset: Asset
) -> dg.Output[None]:
    """Body of every Dagster asset: bring the partitions of this run up to date.

    Raises:
        dagster.Failure: Some partitions failed; those that finished are recorded all the same.
    """
    try:
        return _run_asset(context, config, pipelines, asset)
    except Exception as error:
        mask_error(error)
        raise
    finally:
        pipelines.close()


def _run_asset(
    context: dg.AssetExecutionContext, config: AssetConfig, pipelines: PipelineResource, asset: Asset
) -> dg.Output[None]:
    planner = pipelines.of_run(context.run.run_id, log_progress(context.log))
    partitions = [None] if context.assets_def.partitions_def is None else context.partition_keys
    keys = {artefact_key(asset, partition) for partition in partitions}
    tally = Tally()
    try:
        name_process(context, pipelines.settings)
        if "class" not in asset.partitions:  # else an instance that is new would have no classes to choose from
            register_classes(context.instance, planner.context.values("class"))
        if pipelines.first_of_run(context.run.run_id):
            with contextlib.suppress(D3MError):  # of what this asset may not even need
                recover(context.instance, planner, _beside(context, planner.plan(), partitions))
        required = list(_of_partitions(context, planner, asset, keys))
        lease = pipelines.device_lease(context.log.info) if asset.device else contextlib.nullcontext()
        with event_log_kept_open(context.instance):
            for outcome in _work_upstream(context, planner, asset, required):
                if outcome.error is not None:
                    tally.add(outcome)
            with lease:
                for outcome in work(context, planner, asset, required, config.force):
                    tally.add(outcome)
    except Exception as error:
        # The retry policy is there for killed processes; a defect would only fail the same way again.
        raise dg.Failure(masked(f"{type(error).__name__}: {error}"), allow_retries=False) from error
    unknown = sorted(keys - set(planner.possible_keys(asset.name)), key=str)
    failed = [f"{key} is not in the dataset and settings any more" for key in unknown]
    failed += [masked(str(outcome.error)) for outcome in tally.failed]
    if failed:
        raise failure(failed)
    return dg.Output(None, metadata={EVENTS_ALREADY_LOGGED: True})


def _beside(context: dg.AssetExecutionContext, plan: Plan, partitions: Sequence[str | None]) -> Plan:
    """A plan without the partitions that this run was launched for: each step records its own."""
    assets = {asset.to_user_string() for asset in context.run.asset_selection or ()}
    own = set(partitions)
    entries = [entry for entry in plan.entries if entry.key.asset not in assets or partition_key(entry.key) not in own]
    return replace(plan, entries=entries)


def _of_partitions(
    context: Context, planner: Planner, asset: Asset, partitions: set[ArtefactKey]
) -> Iterator[ArtefactKey]:
    """The artefacts of some partitions, all replicates of them, that the settings require."""
    for key in planner.possible_keys(asset.name):
        if ArtefactKey(key.asset, key.class_key, key.budget) in partitions:
            if reason := planner.skip_reason(key):
                # In the UI everything can be asked for at once; what the settings do without must not fail the rest.
                context.log.info("%s is not made: %s", key, reason)
                metadata = {"not made": reason}
                context.log_event(dg.AssetObservation(asset.name, metadata=metadata, partition=partition_key(key)))
            else:
                yield key


def _work_upstream(
    context: Context, planner: Planner, asset: Asset, required: Sequence[ArtefactKey]
) -> Iterator[Outcome]:
    """Bring up to date what some artefacts of an asset are made from, as far as no model runs for it.

    Dagster makes assets of different partitions in a run each, and its daemon looks for the next every 30 s. Here records of
    images and prompts take milliseconds, so that one click on a class and budget is enough.
    """
    graph, classes = planner.graph, {key.class_key for key in required}
    if not required:
        return
    for upstream in graph:
        above = graph.with_upstream(upstream.name)
        if asset.name in above or upstream.name not in graph.with_upstream(asset.name):
            continue
        if not any(graph[name].device for name in above):
            every = planner.keys(upstream.name)
            keys = [key for key in every if key.class_key in {None, *classes} or None in classes]
            if pending := planner.pending(keys):
                yield from work(context, planner, upstream, pending, False)


def work(
    context: Context, planner: Planner, asset: Asset, keys: Sequence[ArtefactKey] | Iterator[ArtefactKey], force: bool
) -> Iterator[Outcome]:
    """Make artefacts of an asset and log an event for each, also for those that were up to date.

    A replicate beyond the first is no partition of Dagster's, so it is logged as an observation of its partition.
    """
    events = EventsOfAsset(context.instance, planner, asset, context.log)
    for outcome in planner.materialize(asset.name, list(keys), force=force):
        if outcome.error is not None or outcome.manifest is None:
            context.log.error(str(outcome.error))
        else:
            state = "was up to date, nothing done" if outcome.skipped else "made by this run"
            context.log_event(events.event(outcome.key, outcome.manifest, state))
        yield outcome


def failure(messages: Sequence[str]) -> dg.Failure:
    """All failures as one, not to be retried: what failed once in the same place fails again."""
    shown = "; ".join(messages[:3]) + ("; …" if len(messages) > 3 else "")
    return dg.Failure(
        f"{len(messages)} failed: {shown}",
        metadata={"failed": dg.MetadataValue.json(list(messages))},
        allow_retries=False,
    )
