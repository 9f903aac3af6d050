"""What several commands show: problems in the data, the table of students, the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d3m_assets.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.datasets.problems import DatasetProblem
    from d3m_assets.pipeline import Pipeline


def show_problems(pipeline: Pipeline) -> None:
    """What is wrong with the images, or the model for them: a line, or a table where there is more than one kind."""
    from d3m_assets.assets.foundation_model import model_problems

    show_problem_table([*pipeline.context.dataset.scan.problems, *model_problems(pipeline.context)])


def show_problem_table(problems: Sequence[DatasetProblem]) -> None:
    """Problems as a line on stderr, or as a table where there is more than one kind."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from d3m_assets.datasets.problems import problem_rows

    rows = [
        # Names of classes and files stand in every part of a problem.
        {field: printable(value) for field, value in asdict(row).items()}
        for row in problem_rows(problems)
    ]
    # Wide enough to keep file names in one piece in a log.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160, markup=False, highlight=False)
    if len(rows) == 1:
        (row,) = rows
        more = f" ({row['count']} of them)" if row["count"] != "1" else ""
        place = f" in class {row['class_name']}" if row["class_name"] else ""
        console.print(
            f"{row['severity']}{place}: {row['where']} {row['what']}{more}; {row['remedy']}",
            soft_wrap=True,
        )
    elif rows:
        columns = {
            "severity": "",
            "class_name": "class",
            "what": "what",
            "count": "how many",
            "where": "where",
            "remedy": "what to do",
        }
        table = Table(*columns.values(), title="Problems in the data")
        for row in rows:
            table.add_row(*(row[field] for field in columns))
        console.print(table)


def copy_report(pipeline: Pipeline) -> Path:
    """The report under a name that stays the same, for a browser's bookmark."""
    from d3m_assets.assets.distillation_report import PAGE, DistillationReport
    from d3m_assets.store import ArtefactKey

    target = pipeline.settings.home.absolute() / PAGE
    content = pipeline.store.read(ArtefactKey(DistillationReport.name), PAGE)
    if not target.exists() or target.read_bytes() != content:
        part = target.with_name(f"{target.name}.{os.getpid()}.part")  # another command may end at the same moment
        part.write_bytes(content)
        part.replace(target)
    return target


def stored_metrics(pipeline: Pipeline) -> pd.DataFrame:
    """Every trained student that is stored, one row each."""
    from d3m_assets.assets.distillation_report import DistillationReport, all_metrics
    from d3m_assets.store import ArtefactKey

    return all_metrics(pipeline.reading(ArtefactKey(DistillationReport.name)))


def metrics_text(pipeline: Pipeline) -> str:
    """The table of students, then what is better than what."""
    from d3m_assets.evaluation.methods import HEADLINE, VARIANTS
    from d3m_assets.evaluation.statistics import (
        Comparison,
        budgeted_baselines,
        compare_all,
        format_table,
        headline,
        seeds_sentence,
        significance_words,
        summarize,
        verdict_comparisons,
    )

    metrics = stored_metrics(pipeline)
    lines = ["\n" + format_table(summarize(metrics)) + "\n"]
    comparisons: list[Comparison] = []
    told = verdict_comparisons(metrics)
    # The verdict first, then the baselines that are not part of it.
    others = [r for r in budgeted_baselines(metrics) if r not in HEADLINE]
    for against in [*told, *(compare_all(metrics, reference=reference) for reference in others)]:
        comparisons += against
        lines.append(headline(against))
    if unsure := seeds_sentence([c for against in told for c in against]):
        lines.append(unsure)
    for method, reference in VARIANTS.items():
        if method in set(metrics["method"]):
            of_variant = compare_all(metrics, method=method, reference=reference)
            comparisons += of_variant
            lines.append(f"{method}: {headline(of_variant)}")
    if comparisons:
        lines.append(f"Verdicts by {significance_words(comparisons)}.")
    return "\n".join(lines)
