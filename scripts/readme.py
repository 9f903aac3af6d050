"""Write the README's table and picture from the artefacts of the last full table, so that no figure is typed by hand.

Run: D3M_EVALUATION__TABLE=full D3M_STUDENTS__SEEDS=0,1,2 .venv/bin/python scripts/readme.py
"""

import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from d3m_assets.assets.context import Context
from d3m_assets.assets.distillation_report import all_metrics, sample_grids
from d3m_assets.evaluation.methods import D3M, VARIANTS
from d3m_assets.evaluation.statistics import (
    ARCHITECTURE_WORDS,
    Comparison,
    compare_all,
    headline,
    parts,
    percent,
    significance_words,
    summarize,
)
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey

REPORT = ArtefactKey("distillation_report")
ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- begin: scripts/readme.py -->", "<!-- end -->"
TILE, PER_CLASS = 34, 2
SIGNS = {"better": "▲", "worse": "▼", "not distinguishable": "≈", "too few students": ""}
COMMAND = "bash scripts/distill --set evaluation.table=full --set students.seeds=0,1,2"


def table(pipeline: Pipeline) -> str:
    """Accuracy of every method at every budget, with date and commit; hard labels and the first network only."""
    context: Context = pipeline.reading(REPORT)
    every = all_metrics(context)
    first = parts(every)[0]
    metrics = first.of(every)
    summary = summarize(metrics[~metrics["method"].isin(list(VARIANTS))])
    budgets = [budget.name for budget in context.budgets]
    columns = [f"{budget}, {budget.bytes(context.dataset.shape):,} B" for budget in context.budgets]
    comparisons: list[Comparison] = []
    lines = [f"| trained on | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for method, rows in summary.groupby("method", sort=False):
        cells = {row.budget: percent(row.mean, row.half_width) for row in rows.itertuples()}
        compared = compare_all(metrics, reference=method) if method != D3M else []
        comparisons += compared
        signs = {c.budget: f" {SIGNS[c.outcome]}" for c in compared}
        found = [cells.get(budget, cells.get("", "")) + signs.get(budget, "") for budget in budgets]
        lines.append(f"| {method} | {' | '.join(found)} |")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    report = pipeline.store.manifest(REPORT)
    students, images = summary["n"].max(), summary["n_evaluated"].max()
    note = (
        f"Accuracy in % on {images} real test images, hard labels, {ARCHITECTURE_WORDS[first.architecture]}, weights of the "
        f"last step, mean of {students} students and 95 % interval, each of a distillation of its own where images are "
        f"distilled or generated; `{COMMAND}` of {report.created[:10]}, written at commit {commit.stdout.strip()}. The last rows "
        "have no budget. ▲ D3M is better, ▼ worse, ≈ not distinguishable "
        f"({significance_words(comparisons)})."
    )
    soft = [c for c in compare_all(every) if c.part.labels != "hard" and c.part.architecture == first.architecture]
    return "\n".join([*lines, "", note, *(["", headline(soft)] if soft else [])])


def picture(pipeline: Pipeline) -> None:
    """Real, class-name and distilled images of every class, side by side."""
    grids = sample_grids(pipeline.reading(REPORT))
    font, left = ImageFont.load_default(13), 150
    names = list(pipeline.context.dataset.class_names)
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
        raise SystemExit(f"{len(behind)} artefacts are not up to date; run `{COMMAND}` first")
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(pipeline)}\n{END}{after}")
    picture(pipeline)


if __name__ == "__main__":
    main()
