"""Write the README's verdict, pictures and table from the artefacts of one stored run, so that no figure is typed by hand.

Run: D3M_EVALUATION__TABLE=frontier .venv/bin/python scripts/readme.py
"""

import subprocess
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from d3m_assets.assets.context import Context
from d3m_assets.assets.distillation_report import all_metrics, sample_grids
from d3m_assets.evaluation.methods import D3M, VARIANTS
from d3m_assets.evaluation.report.plots import accuracy_plot
from d3m_assets.evaluation.statistics import (
    ARCHITECTURE_WORDS,
    MARGIN,
    Comparison,
    compare_all,
    crossing_sentence,
    headline,
    parts,
    percent,
    significance_words,
    summarize,
    verdict,
)
from d3m_assets.ledger import Budget
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey

REPORT = ArtefactKey("distillation_report")
ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- begin: scripts/readme.py -->", "<!-- end -->"
VERDICT_BEGIN = "<!-- begin: verdict of scripts/readme.py -->"
FRONTIER = "docs/frontier.svg"
TILE, PER_CLASS = 34, 2
SIGNS = {"better": "▲", "worse": "▼", "not distinguishable": "≈"}


def command(pipeline: Pipeline) -> str:
    """The command of the run."""
    table = pipeline.context.settings.evaluation.table
    return "bash scripts/distill" + ("" if table == "quick" else f" --set evaluation.table={table}")


def measured(pipeline: Pipeline) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Students of the first part of the table, without variants, and their summary."""
    every = all_metrics(pipeline.reading(REPORT))
    metrics = parts(every)[0].of(every)
    metrics = metrics[~metrics["method"].isin(list(VARIANTS))]
    return metrics, summarize(metrics)


def verdict_text(pipeline: Pipeline) -> str:
    """The verdict, coded real images first, and the crossing with them; how many seeds would do is in the report."""
    metrics, summary = measured(pipeline)
    first, *others = verdict(metrics)
    told = " ".join(sentence for sentence in (*others, crossing_sentence(summary)) if sentence)
    name = pipeline.context.dataset.name
    return (
        f"**D3M, which this package distills, on {name}: {first[0].lower()}{first[1:]}** {told}\n\n"
        f"![Accuracy against bytes of a class]({FRONTIER})"
    )


def columns_of(summary: pd.DataFrame, context: Context) -> list[Budget]:
    """Budgets that D3M was distilled at and those below them, by bytes; what lies between and above is in the picture."""
    shape = context.dataset.shape
    least = min(budget.bytes(shape) for budget in context.budgets)
    known = {budget.name: budget for budget in context.budgets}
    for name in summary["budget"].unique():
        if name and name not in known and Budget.parse(name).bytes(shape) < least:
            known[name] = Budget.parse(name)
    return sorted(known.values(), key=lambda budget: budget.bytes(shape))


def table(pipeline: Pipeline) -> str:
    """Accuracy of every method at every budget, with date and commit; hard labels and the first network only."""
    context: Context = pipeline.reading(REPORT)
    every, (metrics, summary) = all_metrics(context), measured(pipeline)
    first = parts(every)[0]
    budgets = columns_of(summary, context)
    sizes = [f"{budget.bytes(context.dataset.shape):,} B" for budget in budgets]
    titles = [size if b.unit == "bytes" else f"{b}, {size}" for b, size in zip(budgets, sizes, strict=True)]
    comparisons: list[Comparison] = []
    lines = [f"| trained on | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for method, rows in summary.groupby("method", sort=False):
        cells = {row.budget: percent(row.mean, row.half_width) for row in rows.itertuples()}
        compared = compare_all(metrics, reference=method) if method != D3M else []
        comparisons += compared
        signs = {c.budget: f" {SIGNS.get(c.outcome, f'(too few {c.lacking})')}" for c in compared}
        found = [cells.get(b.name, cells.get("", "–")) + signs.get(b.name, "") for b in budgets]
        lines.append(f"| {method} | {' | '.join(found)} |")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    report = pipeline.store.manifest(REPORT)
    ours = int(summary.loc[summary["method"] == D3M, "n"].max())
    least, most = summary["n"].min(), summary["n"].max()
    students = f"{least} to {most}" if least < most else str(most)
    images = summary["n_evaluated"].max()
    distillations = int(summary["distillations"].max())
    note = (
        f"Accuracy in % on {images} real test images, hard labels, {ARCHITECTURE_WORDS[first.architecture]}, weights of the "
        f"last step, mean of {students} students ({ours} of D3M) and 95 % interval, over the means of distillations "
        f"where there are several ({distillations} here); `{command(pipeline)}` of {report.created[:10]}, written at commit "
        f"{commit.stdout.strip()}. The last rows have no budget. ▲ D3M is better, ▼ worse, ≈ not distinguishable within "
        f"{MARGIN * 100:.0f} points "
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


def frontier(pipeline: Pipeline) -> None:
    """Accuracy against bytes of every method."""
    _, summary = measured(pipeline)
    (ROOT / FRONTIER).parent.mkdir(exist_ok=True)
    (ROOT / FRONTIER).write_text(accuracy_plot(summary, on_white=True))


def replaced(text: str, begin: str, new: str) -> str:
    """A text with what stands between a marker and the next end."""
    before, rest = text.split(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{new}\n{END}{after}"


def main() -> None:
    """Rewrite README.md between the markers."""
    pipeline = Pipeline(load_settings())
    if behind := pipeline.plan().pending():
        raise SystemExit(f"{len(behind)} artefacts are not up to date; run `{command(pipeline)}` first")
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(), VERDICT_BEGIN, verdict_text(pipeline))
    readme.write_text(replaced(text, BEGIN, table(pipeline)))
    picture(pipeline)
    frontier(pipeline)


if __name__ == "__main__":
    main()
