"""What else could be done with a dataset, and what that costs: each alternative made once for all classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from d3m_assets.assets.context import Item
from d3m_assets.assets.inverted_embeddings import class_selection_plan, embedding_plan
from d3m_assets.assets.payload_bytes import codes_beside_prompts
from d3m_assets.assets.rows import kept_images
from d3m_assets.assets.synthetic_pool import class_name_generation
from d3m_assets.cost_estimate.job_work import (
    BATCH_OF_THE_SCRIPT,
    STEPS_OF_THE_SCRIPT,
    Stage,
    classifier_work,
    generation_flops,
    generation_operations,
    inversion_flops,
    inversion_operations,
    inversion_task,
    student_side,
)
from d3m_assets.cost_estimate.model_work import ModelWork
from d3m_assets.cost_estimate.speed import Device
from d3m_assets.distillation.packing import MOST_CLASSES
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.pipeline import Pipeline

EPOCHS = 100
"""Passes over the whole train split of the alternative that trains on all of it."""


@dataclass(frozen=True)
class Alternative:
    """Another way to a training set, or the same one step further.

    Attributes:
        name: What it is.
        bytes_per_class: To be stored for a class.
        shared_bytes: To be stored once; what everyone has is not counted.
        flops: To make it.
        hours: On the device that they are compared on.
        note: What to know of it.
    """

    name: str
    bytes_per_class: float
    shared_bytes: int
    flops: float
    hours: float
    note: str = ""


def alternatives(pipeline: Pipeline, model: ModelWork, items: Sequence[Item], device: Device) -> list[Alternative]:
    """What the job's rivals cost, each made once for all classes, on one device."""
    context, settings = pipeline.context, pipeline.settings
    shape, classes = context.dataset.shape, len(context.dataset.classes)
    shared = model_bytes(pipeline, model)
    train = int(context.dataset.catalog["n_train"].sum())
    found: list[Alternative] = []

    def add(name: str, size: float, shared_bytes: int, stages: Sequence[Stage], note: str = "") -> None:
        flops = sum(stage.flops for stage in stages)
        found.append(Alternative(name, size, shared_bytes, flops, device.seconds(stages) / 3600, note))

    by_budget: dict[str, list[Item]] = {}
    for item in items:
        by_budget.setdefault(item.budget.name, []).append(item)
    for budget, of_budget in by_budget.items():
        sizes = [
            embedding_plan(context, i).payload
            + class_selection_plan(context, i).bytes
            + codes_beside_prompts(context, i.budget)
            for i in of_budget
        ]
        stages = _one_replicate(pipeline, model, of_budget)
        add(f"D3M at {budget}, once, not evaluated", sum(sizes) / len(sizes), shared, stages)
    kept = kept_images(context)
    sampling = class_name_generation(context)
    by_name = classes * generation_flops(model, sampling, kept)
    operations = classes * generation_operations(model, sampling, kept)
    stage = Stage("generation", "generation", "", by_name, operations)
    add("class-name prompts", 0, shared, [stage], f"{kept} images a class, nothing learned")
    # A vector and a model of its own for each class, images encoded in every step.
    sample = model.predict_gradient.flops + model.prompt_gradient.flops + model.encode_image.flops
    script = classes * STEPS_OF_THE_SCRIPT * BATCH_OF_THE_SCRIPT * sample
    vector = 4 * context.model.files.text_width
    step = model.predict_gradient.operations + model.prompt_gradient.operations + model.encode_image.operations
    stage = Stage("inversion", "inversion", "", script, classes * STEPS_OF_THE_SCRIPT * step)
    add("diffusers' textual_inversion script", vector, shared, [stage], f"{STEPS_OF_THE_SCRIPT} steps a class")
    largest = max(context.budgets, key=lambda budget: budget.bytes(shape))
    allowed = largest.bytes(shape)
    if allowed >= shape.bytes:
        images = allowed // shape.bytes
        note = f"{images:,} images a class, one byte a channel"
        add(f"random real images at {largest}", images * shape.bytes, 0, [], note)
    teacher = settings.teacher
    width = StudentSettings(width=teacher.width)
    work = classifier_work(context, width)
    images_seen = teacher.steps * teacher.batch_size
    stage = Stage("teacher", "training", "", images_seen * work.image, teacher.steps * work.step)
    if allowed >= shape.bytes:
        images = allowed // shape.bytes
        note = "clusters of what a teacher sees"
        add(f"real images by k-means at {largest}", images * shape.bytes, 0, [stage], note)
    students = settings.students
    side = student_side(context, students)
    work = classifier_work(context, students)
    steps = math.ceil(EPOCHS * train / students.batch_size)
    stage = Stage("whole", "training", "", float(EPOCHS) * train * work.image, steps * work.step)
    note = f"{students.architecture} at {side} px"
    add(f"a student for {EPOCHS} epochs of all images", train * shape.bytes / classes, 0, [stage], note)
    return found


def _one_replicate(pipeline: Pipeline, model: ModelWork, items: Sequence[Item]) -> list[Stage]:
    """Distilling a budget once from nothing, without evaluation."""
    context, settings = pipeline.context, pipeline.settings
    images = sum(item.dataset_class.n_train for item in items) * (2 if settings.inversion.flip else 1)
    learned = generated = operations = 0
    for item in items:
        task = inversion_task(context, item)
        samples = task.samples(settings.inversion.samples_per_step)
        learned += inversion_flops(model, settings.inversion, task.plan.prompts, samples)
        candidates = class_selection_plan(context, item).candidates
        generated += generation_flops(model, settings.generation, candidates, task.plan.prompts)
        operations += generation_operations(model, settings.generation, candidates)
    batches = math.ceil(len(items) / MOST_CLASSES)
    return [
        Stage("encoding", "encoding", "", images * model.encode_image.flops),
        Stage("inversion", "inversion", "", learned, inversion_operations(model, settings.inversion, batches)),
        Stage("generation", "generation", "", generated, operations),
    ]


def model_bytes(pipeline: Pipeline, model: ModelWork) -> int:
    """Weights of the foundation model: on disk where they are, else in float16 as they are usually sent."""
    files = pipeline.context.model.files
    own = files.weight_bytes if files.has_weights else 2 * sum(model.parameters.values())
    tiny = pipeline.context.model.tiny_autoencoder
    return own + (tiny.weight_bytes if tiny is not None else 0)
