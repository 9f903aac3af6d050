"""A few seconds of a job's real work on this machine: optimizer steps of vectors, sampling, and training of a student."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.assets.context import Context
from d3m_assets.compute.devices import device_name, one_thread
from d3m_assets.cost_estimate.job_work import classifier_work, generation_flops, inversion_flops, student_side
from d3m_assets.cost_estimate.model_work import ModelWork
from d3m_assets.cost_estimate.speed import Measurement
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.text import tokenize
from d3m_assets.errors import D3MError, FoundationError
from d3m_assets.progress import ProgressEvent

if TYPE_CHECKING:
    from d3m_assets.distillation.budgets import EmbeddingPlan

SECONDS = 2.0
"""About how long each kind of work is measured, unless one piece of it takes longer."""
MOST_PIECES = 10_000
STAGE = "measuring"


def measure(context: Context, model: ModelWork, plan: EmbeddingPlan) -> Measurement:
    """Speeds of this machine's device, on a processor those of one core.

    Args:
        context: Of the pipeline; its model is loaded.
        model: Work of that model.
        plan: Prompts and vectors of a class.

    Raises:
        FoundationError: The model cannot be loaded, for example because only its configurations are here.
    """
    try:
        foundation = context.model.reference.load()
    except FoundationError as error:
        raise FoundationError(f"nothing can be measured: {error}") from error
    settings, device = context.settings, foundation.device
    rng = np.random.default_rng(0)
    words = settings.prompts
    prompts = ClassPrompts.of(
        0,
        "0",
        "0",
        templates=words.templates,
        initializer=words.initializer,
        keep_class_name=words.keep_class_name,
    )
    images = rng.integers(0, 256, (max(4, plan.prompts), model.image_size, model.image_size, 3), np.uint8)
    task = InversionTask(prompts, images, plan)
    samples = task.samples(settings.inversion.samples_per_step)

    speeds: dict[str, float] = {}

    def inversion(steps: int) -> float:
        recipe = settings.inversion.model_copy(update={"steps": steps, "patience": None})
        for _, result in invert(foundation, [task], recipe, 0):
            if isinstance(result, D3MError):
                raise result
        return inversion_flops(model, recipe, plan.prompts, samples) + len(images) * model.encode_image.flops

    def generation(batches: int) -> float:
        # As large a batch as takes about the time, since small ones are slower.
        image = generation_flops(model, settings.generation.model_copy(update={"batch_size": 1}), 1)
        most = max(1, round(SECONDS * speeds["inversion"] / image))
        recipe = settings.generation.model_copy(update={"batch_size": min(settings.generation.batch_size, most)})
        count = batches * recipe.batch_size
        generate(foundation, prompts, recipe, 0, count=count)
        return generation_flops(model, recipe, count)

    def training(steps: int) -> float:
        from d3m_assets.evaluation.students import train_student

        recipe = settings.students.model_copy(update={"steps": steps})
        side, channels = student_side(context, recipe), context.dataset.scan.channels
        classes = len(context.dataset.classes)
        pixels = rng.integers(0, 256, (64, side, side, channels), np.uint8)
        train = LabelledImages(pixels, np.arange(64) % classes, "synthetic")
        train_student(train, recipe, n_classes=classes, seed=0, device=str(device))
        return steps * recipe.batch_size * classifier_work(context, recipe).image

    with one_thread() if device.type == "cpu" else nullcontext():
        tokenize(foundation, ["a"])  # the tokenizer's first use is no work of the job
        for done, (name, work) in enumerate(
            [("inversion", inversion), ("generation", generation), ("training", training)]
        ):
            context.progress(ProgressEvent(STAGE, done, 3, name))
            speeds[name] = _speed(work, device.type == "cuda")
    source = f"measured {datetime.now(UTC):%Y-%m-%d} on this machine by d3m plan --measure"
    name = device_name(str(device))
    return Measurement(name, model.parameters["unet"], model.image_size, speeds, source)


def _speed(work: Callable[[int], float], on_gpu: bool) -> float:
    """FLOP/s of ``work(n)``, which does n pieces and returns their FLOPs; the first piece warms up."""

    def timed(pieces: int) -> tuple[float, float]:
        import torch

        # On a processor its own time: what else runs on the machine now need not run beside the job.
        clock = time.perf_counter if on_gpu else time.process_time
        begun = clock()
        flops = work(pieces)
        if on_gpu:
            torch.cuda.synchronize()
        return flops, clock() - begun

    flops, seconds = timed(1)
    pieces = 1
    while seconds < SECONDS and pieces < MOST_PIECES:
        pieces = max(2 * pieces, min(10 * pieces, round(pieces * SECONDS / max(seconds, 1e-3))))
        flops, seconds = timed(pieces)
    return flops / seconds
