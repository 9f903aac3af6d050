"""What the command line does with an estimate: opens a pipeline for it, shows it, and asks before a large job."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from d3m_assets.assets.context import Item
from d3m_assets.assets.inverted_embeddings import InvertedEmbeddings, class_selection_plan
from d3m_assets.assets.synthetic_pool import SyntheticPool
from d3m_assets.cost_estimate.dataset_description import DatasetDescription
from d3m_assets.cost_estimate.estimate import Estimate, estimate
from d3m_assets.cost_estimate.job_work import inversion_task, students_to_train
from d3m_assets.errors import FoundationError, StageError
from d3m_assets.foundation.files import EMBEDDED
from d3m_assets.foundation.loading import find_configurations
from d3m_assets.pipeline import Pipeline, open_model
from d3m_assets.planning.planner import Plan
from d3m_assets.progress import Progress, silent
from d3m_assets.settings import Settings
from d3m_assets.store import Store

SMALL_SAMPLES, SMALL_IMAGES, SMALL_STUDENT_IMAGES = 1_000_000, 100_000, 2_000_000
"""Training samples of the embedded model's inversions, images that it generates, and images in all steps of all ConvNet-3
students. A job within all three takes minutes on any processor, so it is neither counted nor asked about."""


def pipeline_to_plan(settings: Settings, *, described: str | None = None, progress: Progress = silent) -> Pipeline:
    """A pipeline for an estimate: its model needs configurations only, its dataset may be numbers.

    Args:
        settings: Of the job.
        described: A dataset by its numbers (:meth:`DatasetDescription.parse`), in place of the one that the settings name.
        progress: Told how far the scan is.

    Raises:
        SettingsError: The description is impossible.
    """
    model = open_model(settings, find_configurations)
    if described is None:
        return Pipeline(settings, progress=progress, model=model)
    dataset = DatasetDescription.parse(described).dataset("described dataset", settings.validation_fraction)
    return Pipeline(settings, progress=progress, store=Store.open("memory://d3m-plan"), dataset=dataset, model=model)


def weights_are_here(settings: Settings) -> bool:
    """Whether the foundation model's weights are on this machine; of a hub id the configurations are fetched to know it.

    Raises:
        FoundationError: There is no such model.
    """
    if settings.foundation == EMBEDDED or Path(settings.foundation).expanduser().exists():
        return True
    folder = open_model(settings, find_configurations).files.path
    return any((folder / "unet").glob("*.safetensors"))


def show(found: Estimate, file: TextIO | None = None) -> None:
    """Print an estimate as a page."""
    from rich.console import Console

    from d3m_assets.cost_estimate.report import page

    stream = file or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 200, markup=False, highlight=False)
    for part in page(found):
        console.print(part)


def ask_before(pipeline: Pipeline, plan: Plan, *, yes: bool = False) -> None:
    """Show the plan of a large job and ask whether to begin; a small one begins without a word.

    Large is what is estimated to take ``plan.ask_above_hours`` or more on the device that it would run on; where that is not
    known, on the first of ``plan.gpus``.

    Args:
        pipeline: Of the job.
        plan: What it would make.
        yes: Begin without asking; the plan is shown all the same.

    Raises:
        StageError: The answer is no, or nobody can be asked.
    """
    limit = pipeline.settings.plan.ask_above_hours
    if _certainly_small(pipeline, plan):
        return
    try:
        found = estimate(pipeline, plan=plan)
    except FoundationError as error:  # a model may well work although its work cannot be counted
        print(f"This job cannot be estimated, so nothing is asked: {error}", file=sys.stderr)
        return
    if not found.stages or found.costs[0].hours < limit:
        return
    show(replace(found, alternatives=[]), sys.stderr)
    device, hours = found.costs[0].device, found.costs[0].hours
    words = f"about {hours:,.1f} hours on {f'{device.devices} x ' if device.devices > 1 else ''}{device.name}"
    if yes:
        return
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise StageError(
            f"not begun: this job takes {words}, and there is no terminal to ask at. Add --yes to begin it, or raise "
            f"plan.ask_above_hours={limit:g}"
        )
    print(f"This job takes {words}. Begin? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise StageError("not begun; nothing was made")


def _certainly_small(pipeline: Pipeline, plan: Plan) -> bool:
    """Whether a job is too small to be counted, which would take longer than a look at its numbers."""
    context, settings = pipeline.context, pipeline.settings
    pending = plan.pending()
    if not pending:
        return True
    students = settings.students
    if settings.foundation != EMBEDDED or {students.architecture, *settings.evaluation.architectures} != {"convnet-3"}:
        return False
    items: dict[str, list[Item]] = {}
    for entry in pending:
        items.setdefault(entry.key.asset, []).append(context.item(entry.key))
    tasks = [inversion_task(context, item) for item in items.get(InvertedEmbeddings.name, ())]
    samples = sum(task.samples(settings.inversion.samples_per_step) for task in tasks) * settings.inversion.steps
    images = sum(class_selection_plan(context, item).candidates for item in items.get(SyntheticPool.name, ()))
    images += len(context.dataset.classes) * settings.distillations * settings.generation.images_per_class
    trained = sum(students_to_train(context, items).values()) * students.steps * students.batch_size
    return samples <= SMALL_SAMPLES and images <= SMALL_IMAGES and trained <= SMALL_STUDENT_IMAGES
