"""Compare settings on the validation part of the train split; the test split is never opened.

    .venv/bin/python benchmarks/choose.py "" "generation.guidance_scale=1" "inversion.steps=300 inversion.learning_rate=0.2"

Each argument is one variant of the settings ("" is the defaults). Prints, for every variant and budget, the validation
accuracy (mean and sample standard deviation over the students' seeds) of students trained on the distilled pool, and
once those of the baselines.
"""

import argparse
import tempfile
import time
from pathlib import Path

from d3m_assets.evaluation.baselines import affordable_images, random_real
from d3m_assets.evaluation.metrics import student_metrics
from d3m_assets.evaluation.students import LabelledImages
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.stages.dataset import image_table, labelled_images
from d3m_assets.stages.evaluation import rendered_characters, synthetic_images

MADE = ("class_catalog", "raw_dataset", "foundation_model", "class_prompts", "inverted_embeddings", "synthetic_pool")


def measure(pipeline: Pipeline, name: str, sets, budget: str = "") -> str:
    """Mean and standard deviation of validation accuracy, in per cent."""
    validation = labelled_images(pipeline, image_table(pipeline, "validation"), "validation")
    rows = student_metrics(name, sets, validation, pipeline.settings.students, budget=budget)
    return f"{100 * rows['accuracy'].mean():5.1f} ± {100 * rows['accuracy'].std():.1f}"


def main() -> None:
    """Measure all variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=[""])
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--store", type=Path, help="keep artefacts here; default: a new temporary folder")
    given = parser.parse_args()
    folder = given.store or Path(tempfile.mkdtemp(prefix="d3m-choose-"))
    for variant in given.variants:
        overrides = dict(item.split("=", 1) for item in variant.split())
        pipeline = Pipeline(load_settings(**{"home": folder, "storage": str(folder / "store"), **overrides}))
        begun = time.monotonic()
        for asset in MADE:
            for outcome in pipeline.materialise(asset, pipeline.keys(asset)):
                if outcome.error:
                    raise outcome.error
        spent = time.monotonic() - begun
        found = []
        for budget in pipeline.settings.budgets:
            data = synthetic_images(pipeline, budget)
            found.append(f"{budget} {measure(pipeline, 'D3M', lambda seed, data=data: data, budget)}")
        print(f"{variant or 'defaults':60} {'   '.join(found)}   ({spent:.0f} s)", flush=True)
    if given.baselines:
        scan, rows = pipeline.scan(), image_table(pipeline, "train")
        for budget in pipeline.settings.budgets:
            n = affordable_images(pipeline.budget_bytes(budget), scan.image_height, scan.image_width, scan.channels)

            def draw(seed: int, n: int = n) -> LabelledImages:
                return labelled_images(pipeline, random_real(rows, n, seed), "train")

            print(f"{'random real images':60} {budget} {measure(pipeline, 'random', draw)}", flush=True)
        names = list(pipeline.catalog()["class_name"])
        print(f"{'rendered characters':60} {measure(pipeline, 'r', lambda s: rendered_characters(pipeline, names, s))}")
        whole = labelled_images(pipeline, rows, "train")
        print(f"{'whole train split':60} {measure(pipeline, 'w', lambda seed: whole)}")


if __name__ == "__main__":
    main()
