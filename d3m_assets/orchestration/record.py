"""Do a stage's work and record every artefact as it finishes.

Shape, chosen by trying three in Dagster 1.13.27: one step takes many partitions, logs one ``AssetMaterialization`` a
partition at the moment it is committed, and yields an output that makes no events of its own. A plain return
materialises all partitions at the end or, after a failure, none; yielding nothing makes Dagster skip the stages
below in the same run.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.source_asset import (
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as EVENTS_ALREADY_LOGGED,
)
from pydantic import Field

from d3m_assets.orchestration.metadata import describe
from d3m_assets.orchestration.partitions import artefact_key, partition_key
from d3m_assets.orchestration.resources import PipelineResource, log_progress
from d3m_assets.pipeline import ASSETS, Outcome, Pipeline
from d3m_assets.store import ArtefactKey

Context = dg.AssetExecutionContext | dg.OpExecutionContext


class StageConfig(dg.Config):
    """Run configuration of every asset; the defaults are right for automation."""

    force: bool = Field(False, description="Make again what is up to date.")


@dataclass(frozen=True)
class Failure:
    """An artefact that could not be made, and why, in words for the user."""

    key: ArtefactKey
    message: str


@dataclass
class Result:
    """What became of the artefacts of one stage."""

    made: list[ArtefactKey] = field(default_factory=list)
    unchanged: list[ArtefactKey] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def run_asset(
    context: dg.AssetExecutionContext, config: StageConfig, pipelines: PipelineResource, *, needs_device: bool
) -> dg.Output[None]:
    """Body of every asset: bring the partitions of this run up to date.

    Raises:
        dagster.Failure: Some partitions failed; those that finished are recorded all the same.
    """
    asset = context.asset_key.to_user_string()
    pipeline = pipelines.of_run(context.run.run_id, log_progress(context.log))
    partitions = [None] if context.assets_def.partitions_def is None else context.partition_keys
    keys = [artefact_key(asset, partition) for partition in partitions]
    try:
        with pipelines.device_lease(context.log.info) if needs_device else contextlib.nullcontext():
            result = work(context, pipeline, asset, keys, force=config.force)
    except Exception as error:
        # The retry policy is there for killed processes; a defect would only fail the same way again.
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error
    if result.failures:
        raise failure(result.failures)
    return dg.Output(None, metadata={EVENTS_ALREADY_LOGGED: True})


def work(
    context: Context,
    pipeline: Pipeline,
    asset: str,
    keys: Sequence[ArtefactKey],
    *,
    force: bool = False,
) -> Result:
    """Make ``keys`` of ``asset`` and log one materialisation for each, also for those that were up to date.

    Args:
        context: Of the asset or op that runs; only its log is used.
        pipeline: Does the work.
        asset: Stage.
        keys: Artefacts of that stage.
        force: Make again what is up to date.

    Returns:
        What was made, what was not, and why.
    """
    result = Result()
    known = set(pipeline.keys(asset))
    for key in keys:
        if reason := pipeline.not_needed(key):
            # In the UI everything can be asked for at once; what the settings do without must not fail what they need.
            context.log.info("%s is not made: %s", key, reason)
        elif key not in known:
            result.failures.append(Failure(key, f"{key} is not in the dataset and settings any more"))
    inputs = _newest_inputs(context.instance, asset)
    for outcome in pipeline.materialise(asset, [key for key in keys if key in known], force=force):
        if outcome.error is not None or outcome.manifest is None:
            result.failures.append(Failure(outcome.key, str(outcome.error)))
            context.log.error(str(outcome.error))
        else:
            (result.unchanged if outcome.skipped else result.made).append(outcome.key)
            context.log_event(_materialisation(context, pipeline, outcome, inputs))
    return result


def failure(failures: Sequence[Failure]) -> dg.Failure:
    """All failures as one, not to be retried: what failed once in the same place fails again."""
    shown = "; ".join(f.message for f in failures[:3]) + ("; …" if len(failures) > 3 else "")
    return dg.Failure(
        f"{len(failures)} failed: {shown}",
        metadata={"failed": dg.MetadataValue.json([{"artefact": str(f.key), "error": f.message} for f in failures])},
        allow_retries=False,
    )


def _materialisation(
    context: Context, pipeline: Pipeline, outcome: Outcome, inputs: dict[str, int | None]
) -> dg.AssetMaterialization:
    key, manifest = outcome.key, outcome.manifest
    assert manifest is not None
    try:
        described = pipeline.describe(key)
    except Exception as error:
        # The artefact is committed: a preview that fails, for whatever reason, must not make it look failed.
        context.log.warning("no preview of %s: %r", key, error)
        described = {}
    metadata = describe(pipeline.store, key, manifest, described)
    metadata["state"] = "was up to date, nothing done" if outcome.skipped else "made by this run"
    tags = {
        "dagster/data_version": manifest.fingerprint,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": ASSETS[key.asset].code_version,
    }
    # With these, Dagster's own staleness agrees with the plan as far as it goes. An asset that is upstream without
    # being an input (lineage only) gets no pointer, so that its news do not count.
    for upstream, newest in inputs.items():
        prints = [p for name, p in manifest.inputs.items() if name.partition(" [")[0] == upstream]
        pointer = newest if prints else None
        tags[f"dagster/input_data_version/{upstream}"] = _joined(prints or _current(pipeline, upstream))
        tags[f"dagster/input_event_pointer/{upstream}"] = "NULL" if pointer is None else str(pointer)
    return dg.AssetMaterialization(key.asset, metadata=metadata, partition=partition_key(key), tags=tags)


def _joined(prints: Sequence[str]) -> str:
    if not prints:  # the settings do without that asset; so Dagster calls the version of what was never made
        return "INITIAL"
    return prints[0] if len(prints) == 1 else hashlib.sha256("".join(sorted(prints)).encode()).hexdigest()


def _current(pipeline: Pipeline, asset: str) -> list[str]:
    return [pipeline.spec(key).fingerprint for key in pipeline.keys(asset)]


def _newest_inputs(instance: dg.DagsterInstance, asset: str) -> dict[str, int | None]:
    """Storage id of the newest materialisation of each input, None for one that has none."""
    newest: dict[str, int | None] = {}
    for upstream in ASSETS[asset].deps:
        records = instance.fetch_materializations(dg.AssetKey(upstream), limit=1).records
        newest[upstream] = records[0].storage_id if records else None
    return newest
