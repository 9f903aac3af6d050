"""The events by which Dagster learns of an artefact: its metadata, and versions with which Dagster's staleness agrees."""

from __future__ import annotations

import logging
from typing import Any

import dagster as dg

from d3m_assets.errors import StoreUnavailableError
from d3m_assets.orchestration.metadata import describe
from d3m_assets.orchestration.partitions import partition_key
from d3m_assets.orchestration.sources import Observed, joined
from d3m_assets.planning.asset import Asset
from d3m_assets.planning.planner import Planner
from d3m_assets.store import ArtefactKey, Manifest, asset_of


class EventsOfAsset:
    """Makes the events of an asset's artefacts.

    Args:
        instance: Knows what is upstream; it is told of sources that changed.
        planner: Reads the store.
        asset: Whose artefacts they are.
        log: Told of previews that fail.

    Raises:
        D3MError: A source of the asset cannot be read.
    """

    def __init__(self, instance: dg.DagsterInstance, planner: Planner, asset: Asset, log: logging.Logger) -> None:
        self._planner, self._asset, self._log = planner, asset, log
        self._inputs, self._observed = _newest_inputs(instance, asset), Observed(instance, planner, asset)
        self._expected: dict[str, str] = {}

    def event(self, key: ArtefactKey, manifest: Manifest, state: str) -> dg.AssetMaterialization | dg.AssetObservation:
        """The event of an artefact: for a replicate beyond the first an observation of its partition."""
        if key.replicate:
            metadata = self._metadata(key, manifest, state) | {"replicate": key.replicate}
            return dg.AssetObservation(self._asset.name, metadata=metadata, partition=partition_key(key))
        return self.materialization(key, manifest, state)

    def materialization(self, key: ArtefactKey, manifest: Manifest, state: str) -> dg.AssetMaterialization:
        """The materialisation of an artefact of replicate 0.

        Args:
            key: Which.
            manifest: Its commit record.
            state: How it came about, for people.
        """
        tags = _version_tags(self._planner, self._asset, manifest, self._inputs, self._expected)
        return dg.AssetMaterialization(
            self._asset.name,
            metadata=self._metadata(key, manifest, state),
            partition=partition_key(key),
            tags=tags | self._observed.tags(key),
        )

    def _metadata(self, key: ArtefactKey, manifest: Manifest, state: str) -> dict[str, Any]:
        try:
            preview = self._planner.preview(key)
        except StoreUnavailableError:
            raise  # what is recorded now would be without a preview for good
        except Exception as error:
            # The artefact is committed: a preview that fails, for whatever reason, must not make it look failed.
            self._log.warning("no preview of %s: %r", key, error)
            preview = {}
        return describe(self._planner.store, key, manifest, preview) | {"state": state}


def _version_tags(
    planner: Planner, asset: Asset, manifest: Manifest, newest: dict[str, int | None], expected: dict[str, str]
) -> dict[str, str]:
    """Tags with which Dagster's own staleness agrees with the plan as far as it goes.

    An asset that is upstream without being an input (lineage only) gets no pointer, so that its news do not count. Its
    version is the same for all partitions and is kept in ``expected``: it would be joined from all its fingerprints again
    for each of a thousand classes.
    """
    tags = {
        "dagster/data_version": manifest.fingerprint,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": asset.code_version,
    }
    for upstream, pointer in newest.items():
        prints = [p for name, p in manifest.inputs.items() if asset_of(name) == upstream]
        if not prints and upstream not in expected:
            expected[upstream] = joined([planner.spec(key).fingerprint for key in planner.keys(upstream)])
        version = joined(prints) if prints else expected[upstream]
        tags[f"dagster/input_data_version/{upstream}"] = version
        tags[f"dagster/input_event_pointer/{upstream}"] = str(pointer) if prints and pointer is not None else "NULL"
    return tags


def _newest_inputs(instance: dg.DagsterInstance, asset: Asset) -> dict[str, int | None]:
    """Storage id of the newest materialisation of each input, None for one that has none."""
    newest: dict[str, int | None] = {}
    for upstream in asset.deps:
        records = instance.fetch_materializations(dg.AssetKey(upstream.name), limit=1).records
        newest[upstream.name] = records[0].storage_id if records else None
    return newest
