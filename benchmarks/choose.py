"""Compare settings on the validation part of the train split; the test split is never opened.

    .venv/bin/python -m benchmarks.choose "" "generation.guidance_scale=1" "inversion.steps=300 inversion.learning_rate=0.2"

Each argument is one variant of the settings, "" being the defaults; the first is what the others are compared with. Every
variant is distilled ``--distillations`` times from different seeds, and ``--students`` students are trained on each pool.
For every variant and budget it prints the mean validation accuracy over the distillations with its 95 % t-interval, and the
mean difference to the first variant with that of a paired t-test (the same seeds of distillation and students). Variants with
other budgets are compared by their order, first with first; ``--class-names`` adds what class-name prompts alone reach with their
images. A table in Markdown is written to ``--output``.
"""

import argparse
import math
import shlex
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.record import surroundings
from d3m_assets.assets.context import Context
from d3m_assets.assets.foundation_metrics import class_name_pools, rendered_characters
from d3m_assets.assets.raw_dataset import image_rows, labelled_images
from d3m_assets.assets.reference_metrics import TrainingImages
from d3m_assets.assets.rows import real_images_allowed
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.evaluation.baselines import RANDOM_REAL
from d3m_assets.evaluation.metrics import student_metrics
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey

MADE = (
    "class_catalog", "raw_dataset", "foundation_model", "class_prompts", "inverted_embeddings", "selection_model",
    "codec_choice", "image_codes", "synthetic_pool", "sample_selection", "payload_choice",
)  # fmt: skip


def measure(context: Context, name: str, sets, budget: str = "") -> list[float]:
    """Validation accuracy (fraction) of every student."""
    validation = labelled_images(context, image_rows(context, "validation"), "validation")
    rows = student_metrics(name, sets, validation, context.settings.students, budget=budget)
    return [float(a) for a in rows["accuracy"]]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and half the 95 % t-interval; NaN with a single value."""
    from scipy import stats

    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return float(np.mean(values)), half


def words(mean: float, half: float, *, signed: bool = False) -> str:
    """A fraction and its half interval as percentages."""
    return f"{100 * mean:{'+' if signed else ''}.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def variant_accuracies(
    variant: str, folder: Path, distillations: int, students: int, class_names: bool = False
) -> pd.DataFrame:
    """One row a budget, distillation and student: position, budget, distillation, accuracy, seconds (of making all)."""
    overrides, rows = dict(item.split("=", 1) for item in variant.split()), []
    for seed in range(distillations):
        # A store for each seed, so that variants which share their embeddings learn them once.
        home = {"home": folder, "storage": str(folder / f"store-{seed}"), "seed": seed}
        seeds = {
            "students.seeds": tuple(range(seed * students, (seed + 1) * students)),
            "evaluation.distillations": 1,  # of this seed; the others have stores of their own
        }
        pipeline = Pipeline(load_settings(**(home | seeds | overrides)))
        begun = time.monotonic()
        for asset in MADE:
            for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
                if outcome.error:
                    raise outcome.error
        spent = time.monotonic() - begun
        sets = {}
        for budget in pipeline.settings.budgets:
            context = pipeline.reading(ArtefactKey("student_metrics", None, budget))
            sets[budget] = context, synthetic_images(context, budget)
        if class_names:
            context = pipeline.reading(ArtefactKey("foundation_metrics"))
            sets["class names"] = context, class_name_pools(context, [seed])[0][0]
        for position, (name, (context, data)) in enumerate(sets.items()):
            found = measure(context, name, lambda s, data=data: data)
            rows += [
                {"position": position, "budget": name, "distillation": seed, "accuracy": a, "seconds": spent}
                for a in found
            ]
        pipeline.context.close()
    return pd.DataFrame(rows)


def compared(found: dict[str, pd.DataFrame]) -> str:
    """A table in Markdown: variants, and for each budget accuracy and difference to the first."""
    first = next(iter(found.values()))
    budgets = list(dict.fromkeys(first["budget"]))
    lines = [f"| setting | {' | '.join(budgets)} |", "|---|" + "---|" * len(budgets)]
    for variant, rows in found.items():
        cells = []
        for position in range(len(budgets)):
            own, base = (
                r[r["position"] == position].groupby("distillation")["accuracy"].mean().to_numpy()
                for r in (rows, first)
            )
            cell = words(*spread(list(own)))
            if rows is not first and len(own) == len(base):
                cell += f" ({words(*spread(list(own - base)), signed=True)})"
            cells.append(cell)
        lines.append(f"| {variant or 'defaults'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=[""])
    parser.add_argument("--distillations", type=int, default=3, help="seeds of each variant")
    parser.add_argument("--students", type=int, default=2, help="students of each distillation")
    parser.add_argument("--class-names", action="store_true", help="also class-name prompts, without inversion")
    parser.add_argument("--baselines", action="store_true", help="also random real, rendered and all real images")
    parser.add_argument("--store", type=Path, help="keep artefacts here; default: a new temporary folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write after every variant")
    given = parser.parse_args()
    folder = given.store or Path(tempfile.mkdtemp(prefix="d3m-choose-"))
    found: dict[str, pd.DataFrame] = {}
    for variant in given.variants:
        found[variant] = variant_accuracies(variant, folder, given.distillations, given.students, given.class_names)
        print(compared(found).splitlines()[-1], f"({found[variant]['seconds'].mean():.0f} s)", flush=True)
        if given.output:
            facts = surroundings("cpu")
            counts = ["--distillations", str(given.distillations), "--students", str(given.students)]
            counts += ["--class-names"] if given.class_names else []
            command = shlex.join(["python", "-m", "benchmarks.choose", *given.variants, *counts])
            head = (
                f"# Validation accuracy of settings, {facts['date'][:10]}\n\n`{command}`, commit "
                f"{facts['commit'][:7]}, {facts['hardware']['device']}, torch {facts['versions']['torch']}.\n\n"
                f"In per cent on the validation part: mean of {given.distillations} distillations from different seeds, "
                f"{given.students} students each, and 95 % interval over the distillations; in brackets the difference to "
                "the first row, paired by seed. The test split was not opened.\n\n"
            )
            given.output.write_text(head + compared(found) + "\n")
    if given.baselines:
        print_baselines(Pipeline(load_settings(home=folder, storage=str(folder / "store-0"))))


def print_baselines(pipeline: Pipeline) -> None:
    """Validation accuracy of students of random real, of rendered and of all real images."""
    context = pipeline.reading(ArtefactKey("whole_dataset_metrics"))
    real = TrainingImages(context)
    for budget in context.budgets:
        n = real_images_allowed(context, budget)

        def draw(seed: int, n: int = n) -> LabelledImages:
            return real.training_set(RANDOM_REAL, n, seed)

        print(f"random real images {budget}: {words(*spread(measure(context, 'random', draw)))}", flush=True)
    names = list(context.dataset.class_names)
    drawn = measure(context, "rendered", lambda s: rendered_characters(context, names, s))
    print(f"rendered characters: {words(*spread(drawn))}")
    whole = labelled_images(context, image_rows(context, "train"), "train")
    print(f"whole train split: {words(*spread(measure(context, 'whole', lambda seed: whole)))}")


if __name__ == "__main__":
    main()
