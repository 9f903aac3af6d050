"""Compare ways of choosing samples at equal bytes, on the validation part of the train split; the test split is never opened.

    .venv/bin/python -m benchmarks.selection --output benchmarks/results/selection-DATE.md

Two datasets: the digits, and printed letters in fonts that the embedded model never saw, 32 x 32. At each budget every row of
:data:`VARIANTS` is distilled ``--distillations`` times and ``--students`` students are trained on each training set: nothing
selected against the criteria, int8 against int4 vectors, candidates and samples kept. Rows that share vectors or pools make
them once.
"""

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.choose import measure, spread, words
from benchmarks.record import surroundings
from d3m_assets.assets.inverted_embeddings import embedding_plan, selection_plan
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.datasets.unseen_fonts import write_unseen_fonts

LETTERS = "AEGKRSXbdq"
MADE = (
    "class_catalog", "raw_dataset", "foundation_model", "class_prompts", "inverted_embeddings", "synthetic_pool",
    "selection_model", "sample_selection",
)  # fmt: skip
BUDGETS = {"digits": ("64B", "320B"), "letters": ("1024B",)}
INT4, INT8 = {"inversion.storage_type": "int4"}, {"inversion.storage_type": "int8"}
NONE = {"selection.criterion": "none"}
VARIANTS = {
    "int8, nothing selected": INT8 | NONE,
    "int4, nothing selected": INT4 | NONE,
    "int8, centres": INT8,
    "int4, centres": INT4,
    "int4, herding": INT4 | {"selection.criterion": "herding"},
    "int4, recognised": INT4 | {"selection.criterion": "recognised"},
    "int4, centres, 200 candidates": INT4 | {"selection.candidates": 200},
    "int4, centres, 50 kept of 150": INT4 | {"selection.kept": 50, "selection.candidates": 150},
    "int4, centres, 50 kept of 250": INT4 | {"selection.kept": 50, "selection.candidates": 250},
}


def open_pipeline(folder: Path, dataset: str, budget: str, seed: int, students: int, changes: dict) -> Pipeline:
    """The pipeline of one row, distillation and budget; the store is shared by the rows of a dataset and a distillation."""
    source = "digits" if dataset == "digits" else str(folder / "printed")
    return Pipeline(
        load_settings(
            dataset=source,
            home=folder,
            storage=str(folder / f"store-{dataset}-{seed}"),
            budgets=(budget,),
            seed=seed,
            validation_fraction=0.3,
            **{"students.seeds": tuple(range(seed * students, (seed + 1) * students))},
            **changes,
        )
    )


def measured(pipeline: Pipeline, budget: str) -> dict:
    """Make what a row needs and train its students."""
    begun = time.monotonic()
    for asset in MADE:
        for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
            if outcome.error:
                raise outcome.error
    spent = time.monotonic() - begun
    context = pipeline.reading(ArtefactKey("student_metrics", None, budget))
    data = synthetic_images(context, budget)
    accuracies = measure(context, "D3M", lambda seed: data, budget)
    item = context.item(context.inputs.keys(SampleSelection, budget=budget)[0])
    vectors, selection = embedding_plan(context, item), selection_plan(context, item.budget)
    facts = [context.inputs.manifest(key).metrics for key in context.inputs.keys(SampleSelection, budget=budget)]
    recognised = [fact["recognised"] for fact in facts if "recognised" in fact]
    pipeline.context.close()
    return {
        "accuracy": accuracies,
        "vectors": f"{vectors.prompts} x {vectors.vectors}",
        "bytes": vectors.payload + selection.bytes,
        "candidates": selection.candidates,
        "kept": float(np.mean([fact["kept"] for fact in facts])),
        "recognised": float(np.mean(recognised)) if recognised else float("nan"),
        "worst": min(recognised, default=float("nan")),
        "seconds": spent,
    }


def as_line(variant: str, rows: list[dict]) -> dict[str, str]:
    """A row of the table from its distillations."""
    first, means = rows[0], [float(np.mean(row["accuracy"])) for row in rows]
    every = [accuracy for row in rows for accuracy in row["accuracy"]]
    line = {
        "row": variant,
        "vectors": first["vectors"],
        "bytes": str(first["bytes"]),
        "candidates": str(first["candidates"]),
        "kept": f"{np.mean([row['kept'] for row in rows]):.0f}",
        "recognised, worst class": "–",
        "accuracy": words(*spread(means)) + f" ({', '.join(f'{100 * a:.1f}' for a in every)})",
        "seconds": f"{np.mean([row['seconds'] for row in rows]):.0f}",
    }
    if not np.isnan(first["recognised"]):
        shares = [np.mean([row[name] for row in rows]) for name in ("recognised", "worst")]
        line["recognised, worst class"] = " %, ".join(f"{100 * share:.0f}" for share in shares) + " %"
    return line


def as_markdown(lines: list[dict[str, str]]) -> str:
    """Lines as a table."""
    table = pd.DataFrame(lines)
    rows = [table.columns.tolist(), ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measure all rows at all budgets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distillations", type=int, default=1, help="seeds of each row")
    parser.add_argument("--students", type=int, default=2, help="students of each distillation")
    parser.add_argument("--datasets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--budgets", nargs="+", help="in place of those of each dataset")
    parser.add_argument("--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="by default all")
    parser.add_argument("--store", type=Path, help="keep artefacts here; default: a new temporary folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write after every row")
    given = parser.parse_args()
    folder = given.store or Path(tempfile.mkdtemp(prefix="d3m-selection-"))
    if "letters" in given.datasets and not (folder / "printed").exists():
        write_unseen_fonts(folder / "printed", LETTERS, train=300, test=1, side=32)
    facts = surroundings("cpu")
    parts = [
        f"# Selection of samples, {facts['date'][:10]}\n\n`{shlex.join(['python', '-m', 'benchmarks.selection', *sys.argv[1:]])}`, "
        f"commit {facts['commit'][:7]}, {facts['hardware']['device']}, torch {facts['versions']['torch']}, cores shared with "
        f"other work.\n\nAccuracy in per cent on the validation part (30 % of the train split): mean of {given.distillations} "
        f"distillations (with a 95 % interval over them where there are several), in brackets every student, "
        f"{given.students} a distillation. Recognised: share of the candidates that the selecting network takes for their "
        "class. Seconds are of making what the rows above had not made yet. The test split was not opened.\n"
    ]
    for dataset in given.datasets:
        for budget in given.budgets or BUDGETS[dataset]:
            parts.append("")
            lines = []
            for variant in given.rows:
                rows = [
                    measured(open_pipeline(folder, dataset, budget, s, given.students, VARIANTS[variant]), budget)
                    for s in range(given.distillations)
                ]
                lines.append(as_line(variant, rows))
                print(dataset, budget, *lines[-1].values(), sep=" | ", flush=True)
                parts[-1] = f"\n## {dataset.capitalize()}, {budget[:-1]} bytes a class\n\n{as_markdown(lines)}\n"
                if given.output:
                    given.output.write_text("".join(parts))


if __name__ == "__main__":
    main()
