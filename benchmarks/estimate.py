"""How near is what `d3m plan` says? Processor seconds of a distillation of the digits, planned and used, stage by stage.

    python -m benchmarks.estimate

Plans one distillation of both default budgets with one student a row, by the results of ``benchmarks.engine`` in the clone and
by `d3m plan --measure`, then makes it, asset by asset, and adds up the processor time of this process and of its workers, their
start included. The time of processors and not of the clock: what else runs on the machine counts for less, though it slows them.
Prints a table and writes a dated JSON file.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import surroundings, write_result

if TYPE_CHECKING:
    from d3m_assets.cost_estimate.estimate import Estimate
    from d3m_assets.settings import Settings

STAGES = {
    "inverted_embeddings": ("encoding of images", "inversion"),
    "synthetic_pool": ("generation",),
    "selection_model": ("network of the selection",),
    "teacher_model": ("teacher",),
    "pool_audit": ("network of the audit",),
    "reference_metrics frontier_metrics whole_dataset_metrics foundation_metrics student_metrics": (
        "images of class names",
        "students",
    ),
}
"""Assets, and the stages of the plan that are their work."""
UNPLANNED = "sample_selection codec_choice"
"""What students learn from, which the plan does not count."""


def used_seconds(settings: Settings, assets: str) -> float:
    """Processor seconds of making what is pending of some assets.

    Args:
        settings: Of the pipeline.
        assets: Their names, with blanks between.
    """
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(settings)
    plan = pipeline.plan()
    own = replace(plan, entries=[entry for entry in plan.pending() if entry.key.asset in assets.split()])
    begun = _processor_seconds()
    with closing(pipeline.context):  # ends the workers: only then is their time known
        done = pipeline.work_through(own)
    if done.failed or done.blocked:
        raise AssertionError(f"{assets}: {[str(outcome.error) for outcome in done.failed]}, not tried {done.blocked}")
    return _processor_seconds() - begun


def _processor_seconds() -> float:
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def planned_seconds(estimate: Estimate, stages: tuple[str, ...]) -> float:
    """Processor seconds of some stages by an estimate, all cores together."""
    device = estimate.costs[0].device
    return device.workers * device.seconds([stage for stage in estimate.stages if stage.name in stages])


def main() -> None:
    """Measure and print."""
    from d3m_assets.cost_estimate.estimate import estimate
    from d3m_assets.pipeline import Pipeline
    from d3m_assets.settings import load_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=None, help="result file; by default in benchmarks/results")
    given = parser.parse_args()
    rows, above = [], ("class_catalog", "raw_dataset", "foundation_model", "class_prompts")
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(
            home=Path(home), device="cpu", **{"evaluation.distillations": 1, "students.seeds": (0,)}
        )
        with closing(Pipeline(settings).context):
            by_benchmark = estimate(Pipeline(settings))
            by_measure = estimate(Pipeline(settings), measured=True)
        used_seconds(settings, " ".join(above))
        for assets, stages in STAGES.items():
            used = used_seconds(settings, assets)
            if assets == "selection_model":
                used_seconds(settings, UNPLANNED)
            planned = [planned_seconds(found, stages) for found in (by_benchmark, by_measure)]
            rows.append(
                {"stages": ", ".join(stages), "by benchmark": planned[0], "by --measure": planned[1], "used": used}
            )
            print(f"{rows[-1]['stages']}: {planned[0]:.1f}, {planned[1]:.1f} planned, {used:.1f} used", flush=True)
    names = ("by benchmark", "by --measure", "used")
    rows.append({"stages": "together"} | {name: sum(row[name] for row in rows) for name in names})
    print(f"\n| processor seconds | {' | '.join(names)} |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['stages']} | {' | '.join(f'{row[name]:.3g}' for name in names)} |")
    result = surroundings("cpu") | {"speeds by benchmark": by_benchmark.costs[0].device.source, "stages": rows}
    print(write_result("estimate", result, given.output))


if __name__ == "__main__":
    main()
