"""Compare ways of choosing samples at equal bytes, on the validation part of the train split; the test split is never opened.

    .venv/bin/python -m benchmarks.selection --output benchmarks/results/selection-DATE.md

Two datasets: the digits, and printed letters in fonts that the embedded model never saw, 32 x 32. At each budget the rows of
:data:`DISTILLED` are distilled ``--distillations`` times, nothing selected against selected and int8 against int4 vectors, and
``--students`` students are trained on each training set. The rows of :data:`CHOICES` are other choices from the same samples:
criteria, candidates, samples kept.
"""

import argparse
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.choose import MADE, measure, spread, words
from benchmarks.record import surroundings
from d3m_assets.assets.context import Context
from d3m_assets.assets.inverted_embeddings import embedding_plan, selection_plan
from d3m_assets.assets.rows import training_set
from d3m_assets.assets.sample_selection import SampleSelection, real_features
from d3m_assets.assets.selection_model import see
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import pool_images, read_pool
from d3m_assets.distillation.selection import CRITERIA, Candidates, selection_bytes
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.datasets.unseen_fonts import write_unseen_fonts

LETTERS = "AEGKRSXbdq"
BUDGETS = {"digits": ("64B", "320B"), "letters": ("1024B",)}
INT4, INT8 = {"inversion.storage_type": "int4"}, {"inversion.storage_type": "int8"}
NONE = {"selection.criterion": "none"}
DISTILLED = {
    "int8, nothing selected": INT8 | NONE,
    "int4, nothing selected": INT4 | NONE,
    "int8, centres": INT8,
    "int4, centres": INT4,
}
"""Rows that are distilled as their settings say."""


@dataclass(frozen=True)
class Choice:
    """Samples of the pool of the row before it that are chosen otherwise.

    Attributes:
        criterion: By what; empty: the first samples, as they come.
        kept: How many.
        candidates: From how many; None: from all that the bytes can address.
    """

    criterion: str
    kept: int
    candidates: int | None = None

    def __str__(self) -> str:
        candidates = "the first samples" if not self.criterion else f"of {self.candidates or 'all'}"
        return f"the same samples, {self.criterion or 'none'}: {self.kept} {candidates}"


CHOICES = (
    Choice("", 100),
    Choice("herding", 100),
    Choice("recognised", 100),
    Choice("centres", 100, 200),
    Choice("centres", 50, 150),
    Choice("centres", 50, 250),
)
LAST = "int4, centres"
"""Rows that share vectors and pool with the last of :data:`DISTILLED`, whose bytes suffice for each of them."""


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
            **{
                "students.seeds": tuple(range(seed * students, (seed + 1) * students)),
                "evaluation.distillations": 1,
                "generation.images_per_class": 100,  # so that there are candidates enough for every choice
                **changes,
            },
        )
    )


def made(pipeline: Pipeline, budget: str) -> tuple[Context, float]:
    """Make what a row needs; what may read it, and the seconds it took."""
    begun = time.monotonic()
    for asset in MADE:
        for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
            if outcome.error:
                raise outcome.error
    return pipeline.reading(ArtefactKey("student_metrics", None, budget)), time.monotonic() - begun


def distilled_row(context: Context, budget: str, seconds: float) -> dict:
    """Students of the training set that the settings make."""
    data = synthetic_images(context, budget)
    keys = context.inputs.keys(SampleSelection, budget=budget)
    item = context.item(keys[0])
    vectors, selection = embedding_plan(context, item), selection_plan(context, item.budget)
    recognised = [context.inputs.manifest(key).metrics.get("recognised", float("nan")) for key in keys]
    return {
        "accuracy": measure(context, "D3M", lambda seed: data, budget),
        "vectors": f"{vectors.prompts} x {vectors.vectors}",
        "bytes": vectors.payload + selection.bytes,
        "candidates": selection.candidates,
        "kept": len(data) / len(keys),
        "recognised": float(np.mean(recognised)),
        "worst": min(recognised),
        "seconds": seconds,
    }


def chosen_row(pipeline: Pipeline, context: Context, budget: str, choice: Choice, base: dict) -> dict:
    """Students of other samples of the same pools."""
    plan = embedding_plan(context, context.item(context.inputs.keys(SampleSelection, budget=budget)[0]))
    images, begun = [], time.monotonic()
    for c in context.dataset.classes:
        reading = pipeline.reading(ArtefactKey(SampleSelection.name, c.key, budget))
        pool = pool_images(read_pool(context, c.key, budget))[: choice.candidates]
        numbers = np.arange(choice.kept)
        if choice.criterion:
            seen, real = see(reading, pool), real_features(reading, c.key)
            own = seen.probabilities[:, c.position]
            data = Candidates(seen.features, own, seen.predicted == c.position, real, context.settings.seed)
            numbers = CRITERIA[choice.criterion](data, choice.kept)
        images.append(pool[numbers])
    candidates = choice.candidates or base["candidates"]
    size = selection_bytes(candidates, choice.kept) if choice.criterion else 0
    return base | {
        "accuracy": measure(context, "D3M", lambda seed: training_set(images), budget),
        "bytes": plan.payload + size,
        "candidates": candidates if choice.criterion else choice.kept,
        "kept": float(np.mean([len(i) for i in images])),
        "seconds": time.monotonic() - begun,
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
    parser.add_argument("--rows", nargs="+", choices=DISTILLED, default=list(DISTILLED), help="by default all")
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
            lines: list[dict[str, str]] = []

            def add(name: str, rows: list[dict], title: str, lines: list = lines) -> None:
                lines.append(as_line(name, rows))
                print(title, *lines[-1].values(), sep=" | ", flush=True)
                parts[-1] = f"\n## {title}\n\n{as_markdown(lines)}\n"
                if given.output:
                    given.output.write_text("".join(parts))

            title = f"{dataset.capitalize()}, {budget[:-1]} bytes a class"
            for name in given.rows:
                of_row: dict[str, list[dict]] = {}
                for seed in range(given.distillations):
                    pipeline = open_pipeline(folder, dataset, budget, seed, given.students, DISTILLED[name])
                    context, seconds = made(pipeline, budget)
                    base = distilled_row(context, budget, seconds)
                    of_row.setdefault(name, []).append(base)
                    for choice in CHOICES if name == LAST else ():
                        row = chosen_row(pipeline, context, budget, choice, base)
                        of_row.setdefault(str(choice), []).append(row)
                        print(title, seed, as_line(str(choice), [row]), flush=True)
                    pipeline.context.close()
                for row, values in of_row.items():
                    add(row, values, title)


if __name__ == "__main__":
    main()
