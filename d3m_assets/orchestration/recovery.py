"""What the store has and Dagster lacks: after a process was killed between the two, or with a new database.

The store is the truth. Every run of any kind begins with this, and so does a tick of the sensor.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import dagster as dg

from d3m_assets.orchestration.dagster_private import event_log_kept_open, latest_materialized_versions
from d3m_assets.orchestration.events import EventsOfAsset
from d3m_assets.orchestration.partitions import partition_key
from d3m_assets.planning.planner import Plan, Planner
from d3m_assets.progress import ProgressEvent

STATE = "found in the store, made by an earlier run"
"""What the metadata of these events says instead of "made by this run"."""

logger = logging.getLogger(__name__)


def unrecorded(instance: dg.DagsterInstance, planner: Planner, plan: Plan) -> Iterator[dg.AssetMaterialization]:
    """Materialisations of all up-to-date artefacts whose version is not the last that Dagster knows of the partition.

    Replicates beyond the first are no partitions and are left out.

    Args:
        instance: Is asked, a query an asset, and told of nothing but changed sources.
        planner: Reads the store.
        plan: What is up to date.

    Yields:
        In the order of the graph. Each has to be recorded before the next is asked for: it names what is upstream.
    """
    for asset in planner.graph:
        current = [
            entry.key for entry in plan.of(asset.name) if entry.state == "up to date" and not entry.key.replicate
        ]
        if not current:
            continue
        known = latest_materialized_versions(instance, asset.name, partitioned=bool(asset.partitions))
        lacking = [key for key in current if known.get(partition_key(key)) != planner.spec(key).fingerprint]
        if not lacking:
            continue
        events = EventsOfAsset(instance, planner, asset, logger)
        for done, key in enumerate(lacking):
            planner.context.progress(ProgressEvent("record", done, len(lacking), f"{key}, found in the store"))
            if (manifest := planner.store.manifest(key)) is not None:  # else another process has just replaced it
                yield events.materialization(key, manifest, STATE)


def recover(instance: dg.DagsterInstance, planner: Planner, plan: Plan, seconds: float = math.inf) -> None:
    """Record what :func:`unrecorded` finds, in no run; the rest is left to the next time after some ``seconds``."""
    deadline = time.monotonic() + seconds
    with event_log_kept_open(instance):
        for event in unrecorded(instance, planner, plan):
            instance.report_runless_asset_event(event)
            if time.monotonic() > deadline:
                return
