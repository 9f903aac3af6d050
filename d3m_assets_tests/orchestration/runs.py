"""Runs as the UI and the daemon start them, in this process, and what they leave in the event log."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def run_assets(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    first: str | None = None,
    last: str | None = None,
    *,
    force: bool = False,
) -> dg.ExecuteInProcessResult:
    """One run over assets and, with ``first``, the range of their partitions up to ``last``."""
    tags = {}
    if first is not None:
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
    config: dict[str, Any] = {"ops": {asset: {"config": {"force": force}} for asset in assets}}
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        tags=tags,
        run_config=config | QUIET,
        raise_on_error=False,
    )


def launch(
    definitions: dg.Definitions, instance: dg.DagsterInstance, request: dg.RunRequest
) -> dg.ExecuteInProcessResult:
    """What the daemon does with the request of a tick, in this process."""
    job = definitions.resolve_job_def(str(request.job_name))
    return job.execute_in_process(
        instance=instance,
        run_config={**request.run_config, **QUIET},
        tags={**request.tags, "dagster/run_key": str(request.run_key)},
        raise_on_error=False,
    )


def events(instance: dg.DagsterInstance, asset: str) -> list[dg.AssetMaterialization]:
    """Materialisations of an asset, newest first."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records
    return [m for record in records if (m := record.event_log_entry.asset_materialization)]


def counts(instance: dg.DagsterInstance, asset: str) -> dict[str | None, int]:
    """How often each partition was recorded."""
    return dict(Counter(event.partition for event in events(instance, asset)))


def failed_partitions(definitions: dg.Definitions, instance: dg.DagsterInstance, asset: str) -> set[str]:
    """Partitions that the UI shows as failed."""
    partitions = definitions.resolve_assets_def(asset).partitions_def
    assert partitions is not None
    with partition_loading_context(dynamic_partitions_store=instance):
        status = get_and_update_asset_status_cache_value(instance, dg.AssetKey(asset), partitions)
        assert status is not None
        return set(status.deserialize_failed_partition_subsets(partitions).get_partition_keys())
