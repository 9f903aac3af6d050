"""Write the README's table and picture from the artefacts of the last `d3m distill`, so that no figure is typed by hand.

Run: .venv/bin/python scripts/readme.py
"""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from d3m_assets.evaluation.statistics import compare_all, headline, percent, summarise
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.stages.evaluation import all_metrics
from d3m_assets.stages.report import sample_grids
from d3m_assets.store import ArtefactKey

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- begin: scripts/readme.py -->", "<!-- end -->"
TILE, PER_CLASS = 34, 2


def table(pipeline: Pipeline) -> str:
    """The metrics as a markdown table, with date and commit."""
    metrics = all_metrics(pipeline)
    metrics = metrics[metrics["labels"] == "hard"]  # soft labels belong into another table
    lines = ["| trained on | budget | bytes a class | accuracy, % |", "|---|---|---|---|"]
    for row in summarise(metrics).itertuples():
        size = "" if np.isnan(row.bytes_per_class) else f"{row.bytes_per_class:,.0f}"
        lines.append(f"| {row.method} | {row.budget} | {size} | {percent(row.mean, row.half_width)} |")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    summary = summarise(metrics)
    network = " and ".join(dict.fromkeys(summary["architecture"]))
    students, images = summary["n"].max(), summary["n_evaluated"].max()
    report = pipeline.store.manifest(ArtefactKey("distillation_report"))
    note = (
        f"{images} real test images, hard labels, {network}, weights of the last step, mean of {students} students "
        "and 95 % interval; "
        f"`d3m distill` of {report.created[:10]}, written at commit {commit.stdout.strip()}."
    )
    return "\n".join([*lines, "", note, "", headline(compare_all(metrics))])


def picture(pipeline: Pipeline) -> None:
    """Real, class-name and distilled images of every class, side by side."""
    grids = sample_grids(pipeline)
    font, left = ImageFont.load_default(13), 150
    names = list(pipeline.catalog()["class_name"])
    sheet = Image.new("L", (left + len(names) * PER_CLASS * TILE, len(grids) * TILE), 255)
    draw = ImageDraw.Draw(sheet)
    for row, (title, by_class) in enumerate(grids.items()):
        draw.text((4, row * TILE + 9), title, fill=0, font=font)
        for column, name in enumerate(names):
            for k, image in enumerate(by_class[name][:PER_CLASS]):
                tile = Image.fromarray(image[:, :, 0]).resize((TILE - 2, TILE - 2), Image.Resampling.NEAREST)
                sheet.paste(tile, (left + (column * PER_CLASS + k) * TILE + 1, row * TILE + 1))
    (ROOT / "docs").mkdir(exist_ok=True)
    sheet.save(ROOT / "docs" / "samples.png", optimize=True)


def main() -> None:
    """Rewrite README.md between the markers."""
    pipeline = Pipeline(load_settings())
    if behind := pipeline.plan().pending():
        raise SystemExit(f"{len(behind)} artefacts are not up to date; run `d3m distill` first")
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(pipeline)}\n{END}{after}")
    picture(pipeline)


if __name__ == "__main__":
    main()
