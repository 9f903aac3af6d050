"""Asset checks, each over a whole asset: partitioned checks are lost in runs that take many partitions (1.13.27).

None blocks: what is wrong with one class is no reason to stop the others, and the stages verify what they read.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import dagster as dg

from d3m_assets.orchestration.resources import PipelineResource
from d3m_assets.pipeline import Pipeline, Problem

SHOWN = 20


@dataclass(frozen=True)
class Check:
    """One check: what it is on, its name and how its problems are found."""

    asset: str
    name: str
    description: str
    problems: Callable[[Pipeline], Sequence[Problem]]


def _behind(pipeline: Pipeline, *assets: str) -> list[Problem]:
    entries = [e for e in pipeline.plan().pending() if not assets or e.key.asset in assets]
    return [Problem(e.key, f"{e.key} is {e.state}: {', '.join(e.reasons)}", "warning") for e in entries]


def _audited(pipeline: Pipeline, check: str) -> list[Problem]:
    return [p for p in pipeline.verify("pool_audit") if p.check in ("", check)]


CHECKS = (
    Check(
        "raw_dataset",
        "every_class_present",
        "Every class of the dataset is recorded as it is now.",
        lambda pipeline: _behind(pipeline, "class_catalog", "raw_dataset"),
    ),
    Check(
        "inverted_embeddings",
        "finite_and_within_budget",
        "Every stored embedding is finite and no larger than its budget.",
        lambda pipeline: pipeline.verify("inverted_embeddings"),
    ),
    Check(
        "synthetic_pool",
        "complete_and_of_the_right_classes",
        "Every stored pool has all its images, labelled with its class.",
        lambda pipeline: pipeline.verify("synthetic_pool"),
    ),
    *(
        Check("pool_audit", name, description, partial(_audited, check=name))
        for name, description in (
            ("not_memorised", "No class of a pool is made of copies of training images."),
            ("no_near_duplicates", "No class of a pool repeats itself."),
            ("of_their_class", "The images of every class look like real ones of that class."),
            ("no_class_collapsed", "Every class of a pool varies about as much as the real one."),
        )
    ),
    Check(
        "teacher_model",
        "knows_the_classes",
        "The teacher, where one is needed, is of the dataset's classes in their order, and better than a guess.",
        lambda pipeline: pipeline.verify("teacher_model"),
    ),
    Check(
        "distillation_report",
        "nothing_stale",
        "No artefact is missing or out of date. Run `d3m status` for the same list in a shell.",
        _behind,
    ),
)


def result(check: Check, pipeline: Pipeline) -> dg.AssetCheckResult:
    """Evaluate one check. Problems are errors when one of them is; the metadata holds the first 20."""
    problems = list(check.problems(pipeline))
    error = any(problem.severity == "error" for problem in problems)
    return dg.AssetCheckResult(
        passed=not problems,
        asset_key=check.asset,
        check_name=check.name,
        severity=dg.AssetCheckSeverity.ERROR if error else dg.AssetCheckSeverity.WARN,
        description="; ".join(problem.message for problem in problems[:3]) or "no problem",
        metadata={
            "problems": len(problems),
            "shown": dg.MetadataValue.json([problem.message for problem in problems[:SHOWN]]),
        },
    )


def evaluate(context: dg.OpExecutionContext, pipeline: Pipeline, assets: Collection[str]) -> None:
    """Record the checks on ``assets`` from inside an op, as their own steps would."""
    for check in CHECKS:
        if check.asset in assets:
            found = result(check, pipeline)
            context.log_event(
                dg.AssetCheckEvaluation(  # type: ignore[arg-type] # taken by log_event, missing from its annotation
                    asset_key=dg.AssetKey(check.asset),
                    check_name=check.name,
                    passed=found.passed,
                    severity=found.severity,
                    description=found.description,
                    metadata=found.metadata,
                    blocking=False,
                )
            )


def build_checks() -> list[dg.AssetChecksDefinition]:
    """Definitions of all checks."""
    return [_definition(check) for check in CHECKS]


def _definition(check: Check) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=check.asset, name=check.name, description=check.description)
    def evaluated(
        context: dg.AssetCheckExecutionContext, pipelines: dg.ResourceParam[PipelineResource]
    ) -> dg.AssetCheckResult:
        return result(check, pipelines.of_run(context.run.run_id))

    return evaluated
