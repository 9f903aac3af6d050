"""Sources of the graph as external assets, whose versions Dagster is told of.

Dagster calls a partition stale when what it was made from has another version than it had then. So the files of a dataset
are assets that nobody materialises: the sensor, and every run that reads them, reports a version that changed as an
observation, and what is made from them records which observation it followed. A version that did not change is not
reported: each event stays in the database.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import dagster as dg

from d3m_assets.orchestration.dagster_private import DATA_VERSION_TAG, EVENTS_ALREADY_LOGGED, latest_observed_versions
from d3m_assets.orchestration.partitions import Partitions, partition_key
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.planning.asset import Asset, Graph
from d3m_assets.planning.planner import Planner
from d3m_assets.planning.source import Source
from d3m_assets.store import ArtefactKey


def build_sources(graph: Graph, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """One external asset for every source of the graph; in the UI it can be observed by hand, too."""
    return [_definition(source, partitions) for source in graph.sources]


def _definition(source: type[Source], partitions: Partitions) -> dg.AssetsDefinition:
    # Observable, for Dagster 1.13.27 passes over observations of other external assets that have no partitions.
    @dg.multi_observable_source_asset(
        name=f"observe_{source.name}",
        specs=[
            dg.AssetSpec(
                source.name,
                description=source.description,
                group_name=source.group,
                partitions_def=partitions.of_dimensions(source.partitions),
            )
        ],
    )
    def observed(
        context: dg.AssetExecutionContext, pipelines: dg.ResourceParam[PipelineResource]
    ) -> Iterator[dg.Output[None]]:
        planner = pipelines.of_run(context.run.run_id)
        for observation in changes(context.instance, planner, [source]):
            context.instance.report_runless_asset_event(observation)
        yield dg.Output(None, source.name, metadata={EVENTS_ALREADY_LOGGED: True})

    return observed


def changes(
    instance: dg.DagsterInstance, planner: Planner, sources: Iterable[type[Source]] | None = None
) -> list[dg.AssetObservation]:
    """Observations of what has another version than was last reported.

    Args:
        instance: Holds what was reported.
        planner: Sees the versions.
        sources: Of these; None: of all of the graph.

    Raises:
        D3MError: A source cannot be read.
    """
    found = []
    for source in planner.graph.sources if sources is None else sources:
        known = latest_observed_versions(instance, source.name, partitioned=bool(source.partitions))
        for key, version in planner.source_versions(source).items():
            partition = partition_key(key)
            if known.get(partition) != version:
                tags = {DATA_VERSION_TAG: version}
                found.append(dg.AssetObservation(source.name, partition=partition, tags=tags))
    return found


class Observed:
    """The sources of an asset as a run sees them: reports what changed, and names what the asset's artefacts followed.

    Args:
        instance: Is told.
        planner: Sees the versions.
        asset: Reads the sources.

    Raises:
        D3MError: A source cannot be read.
    """

    def __init__(self, instance: dg.DagsterInstance, planner: Planner, asset: Asset) -> None:
        # A run that has scanned the dataset before somebody changed it says what it saw; the next tick of the sensor says
        # what there is now, and what the run made is stale.
        for observation in changes(instance, planner, asset.sources):
            instance.report_runless_asset_event(observation)
        self._versions = {source.name: planner.source_versions(source) for source in asset.sources}
        self._pointers = {name: _newest(instance, name) for name in self._versions}

    def tags(self, key: ArtefactKey) -> dict[str, str]:
        """Tags of the materialisation of an artefact, by which Dagster knows which observations it followed."""
        tags = {}
        for name, versions in self._versions.items():
            tags[f"dagster/input_data_version/{name}"] = joined(_of_artefact(versions, key))
            tags[f"dagster/input_event_pointer/{name}"] = self._pointers[name]
        return tags


def joined(versions: Sequence[str]) -> str:
    """One version for several."""
    if not versions:  # so Dagster calls the version of what was never made
        return "INITIAL"
    return versions[0] if len(versions) == 1 else hashlib.sha256("".join(sorted(versions)).encode()).hexdigest()


def _of_artefact(versions: Mapping[ArtefactKey, str], key: ArtefactKey) -> list[str]:
    return [
        version
        for k, version in versions.items()
        if (k.class_key == key.class_key or None in (k.class_key, key.class_key))
        and (k.budget == key.budget or None in (k.budget, key.budget))
    ]


def _newest(instance: dg.DagsterInstance, source: str) -> str:
    records = instance.fetch_observations(dg.AssetKey(source), limit=1).records
    return str(records[0].storage_id) if records else "NULL"
