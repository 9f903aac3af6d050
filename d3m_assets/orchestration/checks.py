"""Asset checks, each over a whole asset: partitioned checks are lost in runs that take many partitions (1.13.27).

None blocks: what is wrong with one class is no reason to stop the others, and makers verify what they read.
"""

from collections.abc import Callable, Collection, Iterator

import dagster as dg

from d3m_assets.errors import D3MError
from d3m_assets.orchestration.dagster_private import latest_check_evaluation
from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.planning.asset import Asset, Check, Graph, Problem
from d3m_assets.planning.planner import Planner

SHOWN = 20


def checks_of(graph: Graph) -> Iterator[tuple[Asset, Check]]:
    """Every check of the graph with its asset."""
    for asset in graph:
        for check in asset.checks:
            yield asset, check


def problems(
    planner: Planner, asset: Asset, check: Check, verified: dict[str, list[Problem]] | None = None
) -> list[Problem]:
    """What a check finds.

    Args:
        planner: Reads the artefacts.
        asset: Whose check it is.
        check: Which.
        verified: What :meth:`Planner.verify` found before, by asset; it is added to, so that several checks of an asset
            read its artefacts once.
    """
    if check.staleness:
        return planner.stale(planner.graph.with_upstream(asset.name))
    verified = {} if verified is None else verified
    if asset.name not in verified:
        verified[asset.name] = planner.verify(asset.name)
    return [problem for problem in verified[asset.name] if problem.check in ("", check.name)]


def result(
    planner: Planner, asset: Asset, check: Check, verified: dict[str, list[Problem]] | None = None
) -> dg.AssetCheckResult:
    """Evaluate one check. Problems are errors when one of them is; the metadata holds the first 20.

    What cannot be read at all is a problem, too: a check that raises keeps showing its last result, most often a green one.
    """
    try:
        found = problems(planner, asset, check, verified)
    except (D3MError, OSError) as error:
        return unevaluated(asset, check, error)
    severe = any(problem.severity == "error" for problem in found)
    return dg.AssetCheckResult(
        passed=not found,
        asset_key=asset.name,
        check_name=check.name,
        severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
        description="; ".join(problem.message for problem in found[:3]) or "no problem",
        metadata={
            "problems": len(found),
            "shown": dg.MetadataValue.json([problem.message for problem in found[:SHOWN]]),
        },
    )


def unevaluated(asset: Asset, check: Check, error: Exception) -> dg.AssetCheckResult:
    """A failed check for what could not even be looked at."""
    message = f"could not be checked: {error}"
    return dg.AssetCheckResult(
        passed=False,
        asset_key=asset.name,
        check_name=check.name,
        severity=dg.AssetCheckSeverity.ERROR,
        description=message,
        metadata={"problems": 1, "shown": dg.MetadataValue.json([message])},
    )


def evaluate(
    context: dg.OpExecutionContext,
    planner: Planner,
    assets: Collection[str],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Record the checks on ``assets``, and all checks of staleness, from inside an op, as their own steps would.

    Args:
        context: They are logged to it.
        planner: Finds what is wrong.
        assets: Names of assets.
        stop: Asked when a check was evaluated; true leaves its result and the rest out.
    """
    verified: dict[str, list[Problem]] = {}
    for asset, check in checks_of(planner.graph):
        if asset.name in assets or check.staleness:
            found = result(planner, asset, check, verified)
            if stop():
                return
            log(context, found)


def log(context: dg.OpExecutionContext, found: dg.AssetCheckResult) -> None:
    """Record the result of a check from inside an op."""
    context.log_event(evaluation(found))  # type: ignore[arg-type] # taken by log_event, missing from its annotation


def evaluation(found: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """The event of a result."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey.from_coercible(found.asset_key or ""),
        check_name=str(found.check_name),
        passed=found.passed,
        severity=found.severity,
        description=found.description,
        metadata=found.metadata,
        blocking=False,
    )


def changed_staleness(instance: dg.DagsterInstance, planner: Planner) -> list[dg.AssetCheckEvaluation]:
    """The checks of staleness whose result, by the plan, is another one than Dagster shows."""
    changed = []
    for asset, check in checks_of(planner.graph):
        if check.staleness:
            now = evaluation(result(planner, asset, check))
            last = latest_check_evaluation(instance, asset.name, check.name)
            if last is None or (last.passed, last.metadata.get("shown")) != (now.passed, now.metadata.get("shown")):
                changed.append(now)
    return changed


def build_checks(graph: Graph) -> list[dg.AssetChecksDefinition]:
    """Definitions of all checks."""
    return [_definition(asset, check) for asset, check in checks_of(graph)]


def _definition(asset: Asset, check: Check) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset.name, name=check.name, description=check.description)
    def evaluated(
        context: dg.AssetCheckExecutionContext, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.AssetCheckResult:
        return result(pipelines.of_run(context.run.run_id), asset, check)

    return evaluated
