"""Work of a job: what is pending of it by the planner, and the FLOPs of making that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from d3m_assets.assets.class_prompts import prompts_of
from d3m_assets.assets.codec_choice import CodecChoice
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.encoded_images import encoded_baselines
from d3m_assets.assets.foundation_metrics import FoundationMetrics, renderable
from d3m_assets.assets.frontier_metrics import FrontierMetrics
from d3m_assets.assets.inverted_embeddings import (
    InvertedEmbeddings,
    class_selection_plan,
    embedding_plan,
    imported_embeddings,
)
from d3m_assets.assets.payload_choice import PayloadChoice
from d3m_assets.assets.pool_audit import PoolAudit
from d3m_assets.assets.reference_metrics import ReferenceMetrics
from d3m_assets.assets.rows import baseline_seeds, kept_images
from d3m_assets.assets.selection_model import RECIPE, SelectionModel
from d3m_assets.assets.student_metrics import StudentMetrics
from d3m_assets.assets.synthetic_pool import SyntheticPool, class_name_generation
from d3m_assets.assets.teacher_model import TeacherModel
from d3m_assets.assets.whole_dataset_metrics import WholeDatasetMetrics
from d3m_assets.cost_estimate.counting import count
from d3m_assets.cost_estimate.model_work import ModelWork
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.objective import FIXED_SAMPLES
from d3m_assets.distillation.packing import MOST_CLASSES
from d3m_assets.distillation.settings import CODES, PROMPTS, GenerationSettings, InversionSettings
from d3m_assets.evaluation.baselines import BASELINES
from d3m_assets.evaluation.codec_choice import FINALISTS
from d3m_assets.evaluation.settings import Architecture, StudentSettings
from d3m_assets.evaluation.students import student_image_size
from d3m_assets.foundation.files import EMBEDDED
from d3m_assets.ledger import Budget, holds_real_image, largest_budget
from d3m_assets.planning.planner import Plan

Kind: TypeAlias = Literal["inversion", "generation", "encoding", "training"]
"""Work that has a speed of its own: optimizer steps of vectors, sampling with decoding, encoding, training of classifiers."""

DECODED_AT_ONCE = 8
"""Images that the autoencoder decodes together on a GPU, unless set."""
STEPS_OF_THE_SCRIPT, BATCH_OF_THE_SCRIPT = 3000, 4
"""Of diffusers' textual_inversion example, as its README calls it: max_train_steps, train_batch_size x gradient accumulation."""


@dataclass(frozen=True)
class Stage:
    """One kind of work of a job.

    Attributes:
        name: What is done.
        kind: Which speed it has.
        amount: How much, in words.
        flops: Of all of it.
        operations: PyTorch operations that follow each other on a GPU, which takes a while to launch each, however small.
    """

    name: str
    kind: Kind
    amount: str
    flops: float
    operations: float = 0


def evaluations(settings: InversionSettings) -> int:
    """How often the loss of a class on its fixed batch is looked at."""
    return len({*range(0, settings.steps + 1, settings.check_every), settings.steps})


def inversion_flops(model: ModelWork, settings: InversionSettings, prompts: int, samples: int) -> int:
    """FLOPs of learning the vectors of one class.

    Args:
        model: Work of the model.
        settings: Steps and evaluations.
        prompts: Prompts of the class.
        samples: Samples of one step, of all prompts.
    """
    step = samples * model.predict_gradient.flops + prompts * model.prompt_gradient.flops
    fixed = prompts * max(1, math.ceil(FIXED_SAMPLES / prompts))
    evaluation = fixed * model.predict.flops + prompts * model.encode_prompt.flops
    return settings.steps * step + evaluations(settings) * evaluation


def inversion_operations(model: ModelWork, settings: InversionSettings, batches: int) -> int:
    """Operations of learning batches of classes, one batch after the other."""
    step = model.predict_gradient.operations + model.prompt_gradient.operations
    evaluation = model.predict.operations + model.encode_prompt.operations
    return batches * (settings.steps * step + evaluations(settings) * evaluation)


def generation_flops(model: ModelWork, settings: GenerationSettings, images: int, prompts: int = 1) -> int:
    """FLOPs of generating images of one class: whole batches, as the engine computes them.

    Args:
        model: Work of the model.
        settings: Sampler steps, guidance and batch.
        images: That are kept.
        prompts: Prompts of the class.
    """
    computed = math.ceil(images / settings.batch_size) * settings.batch_size
    low, high = settings.guidance_interval
    guided = 0.0 if math.isclose(settings.guidance_scale, 1.0) else high - low
    image = settings.steps * (1 + guided) * model.predict.flops + model.decode_image.flops
    return round(computed * image) + (prompts + 1) * model.encode_prompt.flops


def generation_operations(model: ModelWork, settings: GenerationSettings, images: int) -> int:
    """Operations of generating images of one class, batch after batch."""
    decodings = math.ceil(settings.batch_size / (settings.decode_batch_size or DECODED_AT_ONCE))
    batch = settings.steps * model.predict.operations + decodings * model.decode_image.operations
    return math.ceil(images / settings.batch_size) * batch


@dataclass(frozen=True)
class TrainingWork:
    """Work of training a classifier.

    Attributes:
        image: FLOPs of one image in one step.
        step: Operations of a step.
        forward: FLOPs of one image through the network.
    """

    image: int
    step: int
    forward: int


def training_work(settings: StudentSettings, n_classes: int, channels: int, side: int) -> TrainingWork:
    """Count the work of a classifier that is trained."""
    import torch

    from d3m_assets.evaluation.architectures import build_student

    with torch.device("meta"):
        network = build_student(settings, n_classes, channels, side).train()
        images = torch.zeros(2, channels, side, side)  # batch normalisation wants two
        labels = torch.zeros(2, dtype=torch.int64)

    def step() -> None:
        torch.nn.functional.cross_entropy(network(images), labels).backward()

    def forward() -> None:
        with torch.no_grad():
            network(images)

    counted = count(step, network)
    return TrainingWork(counted.flops // 2, counted.operations, count(forward, network).flops // 2)


def inversion_task(context: Context, item: Item) -> InversionTask:
    """The class as the inversion plans it, without its images."""
    return InversionTask(prompts_of(context, item), np.empty(0), embedding_plan(context, item))


def pending_stages(context: Context, plan: Plan, model: ModelWork) -> list[Stage]:
    """The work of making what a plan lists as missing or out of date; stages without work are left out.

    Reading images, clustering, coding of real images, the search for neighbours and the report are not counted.

    Args:
        context: Of the pipeline.
        plan: From the planner.
        model: Work of its model.
    """
    pending: dict[str, list[Item]] = {}
    for entry in plan.pending():
        pending.setdefault(entry.key.asset, []).append(context.item(entry.key))
    return [
        stage
        for stage in (
            *_inversion(context, pending.get(InvertedEmbeddings.name, []), model),
            _pools(context, pending.get(SyntheticPool.name, []), model),
            _class_name_images(context, pending, model),
            _fresh_images(context, pending, model),
            *_classifiers(context, pending),
        )
        if stage is not None and stage.flops
    ]


def _inversion(context: Context, items: Sequence[Item], model: ModelWork) -> list[Stage]:
    settings = context.settings.inversion
    learned = [item for item in items if imported_embeddings(context, item) is None]
    if not learned:
        return []
    views = 2 if settings.flip else 1
    images = {item.dataset_class.key: views * item.dataset_class.n_train for item in learned}
    repeats = 1 if fits_cache(context, model) else len(learned) / len(images)
    encoded = round(sum(images.values()) * repeats)
    again = f", {repeats:g} times each: they exceed latent_cache_gib" if repeats > 1 else ""
    tasks = [inversion_task(context, item) for item in learned]
    shapes = {(t.plan.prompts, t.samples(settings.samples_per_step)) for t in tasks}
    samples = sum(t.samples(settings.samples_per_step) for t in tasks)
    of_shape = {shape: inversion_flops(model, settings, *shape) for shape in shapes}
    flops = sum(of_shape[t.plan.prompts, t.samples(settings.samples_per_step)] for t in tasks)
    steps = f"up to {settings.steps}" if settings.patience is not None else f"{settings.steps}"
    by_replicate = Counter(item.replicate for item in learned)
    batches = sum(math.ceil(count_ / MOST_CLASSES) for count_ in by_replicate.values())
    amount = f"{len(learned):,} x {steps} steps, {samples / len(learned):,.3g} samples a step"
    operations = inversion_operations(model, settings, batches)
    return [
        Stage("encoding of images", "encoding", f"{encoded:,} images{again}", encoded * model.encode_image.flops),
        Stage("inversion", "inversion", amount, flops, operations),
    ]


def latents_bytes(context: Context, model: ModelWork) -> int:
    """Bytes of the latents of all training images, as they are kept."""
    views = 2 if context.settings.inversion.flip else 1
    return views * sum(c.n_train for c in context.dataset.classes) * model.latent_bytes


def fits_cache(context: Context, model: ModelWork) -> bool:
    """Whether latents are encoded once for all budgets and replicates."""
    return latents_bytes(context, model) <= context.settings.latent_cache_gib * 2**30


def _pools(context: Context, items: Sequence[Item], model: ModelWork) -> Stage | None:
    if not items or context.settings.payload == CODES:  # codes are decoded
        return None
    settings, flops, operations, images = context.settings.generation, 0, 0, 0
    for item in items:
        candidates = class_selection_plan(context, item).candidates
        images += candidates
        flops += generation_flops(model, settings, candidates, embedding_plan(context, item).prompts)
        operations += generation_operations(model, settings, candidates)
    return Stage("generation", "generation", f"{images:,} images of {_sampling(settings)}", flops, operations)


def _sampling(settings: GenerationSettings) -> str:
    guided = "" if math.isclose(settings.guidance_scale, 1.0) else " with guidance"
    return f"{settings.steps} steps{guided}"


def _class_name_images(context: Context, pending: Mapping[str, Sequence[Item]], model: ModelWork) -> Stage | None:
    if FoundationMetrics.name not in pending:
        return None
    count_, classes = kept_images(context), len(context.dataset.classes) * context.settings.distillations
    settings = class_name_generation(context)
    flops = classes * generation_flops(model, settings, count_)
    amount = f"{classes * count_:,} images of {_sampling(settings)}"
    operations = classes * generation_operations(model, settings, count_)
    return Stage("images of class names", "generation", amount, flops, operations)


def _fresh_images(context: Context, pending: Mapping[str, Sequence[Item]], model: ModelWork) -> Stage | None:
    budgets = [item.budget for item in pending.get(StudentMetrics.name, ())]
    if "fresh" not in context.settings.evaluation.variants or context.settings.payload != PROMPTS:
        return None
    if largest_budget(context.budgets, context.dataset.shape) not in budgets:
        return None
    students, classes = context.settings.students, len(context.dataset.classes)
    each, sets = math.ceil(students.steps * students.batch_size / classes), context.settings.distillations
    generation = context.settings.generation
    flops = sets * classes * generation_flops(model, generation, each)
    operations = sets * classes * generation_operations(model, generation, each)
    return Stage("fresh samples", "generation", f"{sets * classes * each:,} images", flops, operations)


def student_side(context: Context, settings: StudentSettings) -> int:
    """Side of a student's input, in pixels."""
    shape = context.dataset.shape
    return student_image_size(settings, shape.height, shape.width)


def _classifiers(context: Context, pending: Mapping[str, Sequence[Item]]) -> list[Stage]:
    """Students, and the networks that select, teach and audit."""
    settings, test = context.settings, int(context.dataset.catalog["n_test"].sum())
    by_network = students_to_train(context, pending)
    flops = operations = 0
    for architecture, students in by_network.items():
        of_network = settings.students.of(architecture)
        work = classifier_work(context, of_network)
        flops += students * (of_network.steps * of_network.batch_size * work.image + test * work.forward)
        operations += students * of_network.steps * work.step
    students = sum(by_network.values())
    amount = f"up to {students:,} students, {settings.students.steps:,} steps of {settings.students.batch_size}"
    stages = [Stage("students", "training", amount, flops, operations)] if students else []
    if SelectionModel.name in pending and settings.selection.features is None:
        network = StudentSettings(width=RECIPE.width, steps=RECIPE.steps, batch_size=RECIPE.batch_size)
        stages.append(_classifier(context, "network of the selection", network))
    if TeacherModel.name in pending and settings.teacher.checkpoint is None:
        recipe = settings.teacher
        network = StudentSettings(width=recipe.width, steps=recipe.steps, batch_size=recipe.batch_size)
        stages.append(_classifier(context, "teacher", network))
    if PoolAudit.name in pending:
        stages.append(_classifier(context, "network of the audit", StudentSettings(steps=settings.audit.steps)))
    return stages


def _classifier(context: Context, name: str, settings: StudentSettings) -> Stage:
    """A single network that is trained on the train split."""
    work = classifier_work(context, settings)
    flops = settings.steps * settings.batch_size * work.image
    amount = f"ConvNet-3, {settings.steps:,} steps of {settings.batch_size}"
    return Stage(name, "training", amount, flops, settings.steps * work.step)


def classifier_work(context: Context, settings: StudentSettings) -> TrainingWork:
    """Work of training a classifier of the dataset."""
    classes, channels = len(context.dataset.classes), context.dataset.scan.channels
    return training_work(settings, classes, channels, student_side(context, settings))


def students_to_train(context: Context, pending: Mapping[str, Sequence[Item]]) -> dict[Architecture, int]:
    """Most students that pending tables train, by network: what was trained before is not trained again."""
    settings, evaluation = context.settings, context.settings.evaluation
    first = settings.students.architecture
    networks = list(dict.fromkeys([first, *evaluation.architectures]))
    kinds, seeds = len(evaluation.labels), len(settings.students.seeds)
    rows = 0  # with every network
    further = 0  # students of these rows beyond the seeds
    single = 0  # with the first network only
    unaugmented = int("unaugmented" in evaluation.variants and "hard" in evaluation.labels)

    def equal_ipc(budgets: Sequence[Budget]) -> int:
        if "equal-ipc" not in evaluation.variants:
            return 0
        return kinds * sum(holds_real_image(budget, context.dataset.shape) for budget in budgets)

    for item in pending.get(StudentMetrics.name, ()):
        rows += kinds
        single += equal_ipc([item.budget]) + unaugmented
        single += kinds if "rejection" in evaluation.variants else 0
        largest = item.budget == largest_budget(context.budgets, context.dataset.shape)
        single += (
            sum(kind != "soft stored" for kind in evaluation.labels)
            if "fresh" in evaluation.variants and largest
            else 0
        )
    choices = 0
    for asset in (ReferenceMetrics, FrontierMetrics):
        for item in pending.get(asset.name, ()):
            for budget in asset().budgets(context, item):
                raw = sum(name in BASELINES for name in evaluation.baselines)
                raw = raw if holds_real_image(budget, context.dataset.shape) else 0
                encoded = encoded_baselines(context)
                rows += kinds * (raw + len(encoded))
                of_drawn, of_chosen = (
                    len(baseline_seeds(context, budget, drawn=each)) - seeds for each in (True, False)
                )
                further += kinds * (of_drawn * bool(raw) + of_chosen * (max(0, raw - 1) + len(encoded)))
                choices += FINALISTS * kinds * sum(not baseline.lossless for baseline in encoded)
            single += unaugmented if asset is ReferenceMetrics else 0
    choices += FINALISTS * len(pending.get(CodecChoice.name, ()))
    single += 2 * len(pending.get(PayloadChoice.name, ()))  # on what prompts and what codes give
    rows += kinds if WholeDatasetMetrics.name in pending else 0
    if FoundationMetrics.name in pending:
        drawn = context.model.name == EMBEDDED and all(renderable(name) for name in context.dataset.class_names)
        rows += kinds * (2 if drawn else 1)
        further += kinds * (len(settings.baseline_seeds(drawn=True)) - seeds) if drawn else 0
        single += equal_ipc(context.budgets)
    counted = {network: rows * seeds + further for network in networks}
    counted[first] += single * seeds + choices
    return {network: students for network, students in counted.items() if students}
