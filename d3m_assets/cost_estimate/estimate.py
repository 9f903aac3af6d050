"""The estimate of a job, put together: what is made, its work, its time and money on devices, its memory, its rivals."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from d3m_assets.assets.context import Item
from d3m_assets.assets.frontier_metrics import FrontierMetrics
from d3m_assets.assets.inverted_embeddings import (
    InvertedEmbeddings,
    class_selection_plan,
    embedding_plan,
    processor_batch,
)
from d3m_assets.assets.payload_bytes import codes_beside_prompts
from d3m_assets.assets.pool_audit import PoolAudit
from d3m_assets.assets.reference_metrics import ReferenceMetrics
from d3m_assets.assets.selection_model import SelectionModel
from d3m_assets.assets.teacher_model import TeacherModel
from d3m_assets.assets.whole_dataset_metrics import WholeDatasetMetrics
from d3m_assets.cost_estimate.alternatives import Alternative, alternatives, model_bytes
from d3m_assets.cost_estimate.job_devices import device_here, job_devices, machine_memory, measured_file
from d3m_assets.cost_estimate.job_work import (
    DECODED_AT_ONCE,
    Stage,
    fits_cache,
    inversion_task,
    latents_bytes,
    pending_stages,
)
from d3m_assets.cost_estimate.measuring import measure
from d3m_assets.cost_estimate.model_work import ModelWork, count_model
from d3m_assets.cost_estimate.speed import (
    Device,
    keep_measured,
)
from d3m_assets.distillation.inversion_state import FEWEST_SAMPLES_PER_PROMPT
from d3m_assets.errors import SettingsError
from d3m_assets.foundation.loading import encoded_at_once
from d3m_assets.ledger import byte_size
from d3m_assets.pipeline import Pipeline
from d3m_assets.planning.planner import Plan

FREE_SHARE = 0.85
"""Part of a GPU's free memory that a batch of classes is let fill (distillation.packing)."""
HOLDING_IMAGES = frozenset(
    asset.name
    for asset in (SelectionModel, TeacherModel, PoolAudit, ReferenceMetrics, FrontierMetrics, WholeDatasetMetrics)
)
"""Assets that are made with all training images in memory."""
PROCESS_BYTES = 570_000_000
"""A worker process with a model of a few megabytes (benchmarks/results/memory-2026-11-23.json: 1,143 MB in two)."""


@dataclass(frozen=True)
class BudgetBytes:
    """What a budget is spent on in a class.

    Attributes:
        budget: Its name.
        allowed: Bytes of a class.
        prompts: Prompts of a class.
        vectors: Vectors of each.
        storage_type: Their number format.
        vector_bytes: Bytes of the vectors of a class.
        selection_bytes: Bytes of saying which samples are kept.
        candidates: Samples that are generated of a class.
        kept: Those that are kept.
        code_bytes: Bytes that are set aside for image codes beside them.
        classes: Classes of which this is true; others have fewer images than prompts.
    """

    budget: str
    allowed: int
    prompts: int
    vectors: int
    storage_type: str
    vector_bytes: int
    selection_bytes: int
    candidates: int
    kept: int
    code_bytes: int
    classes: int


@dataclass(frozen=True)
class Cost:
    """Time and money on one device.

    Attributes:
        device: Which.
        hours: Until the job is done.
        dollars: Rent of all devices for so long; None: unknown or not rented.
        least_memory: Bytes that the job needs at least on one device.
        classes_at_a_time: Classes that are inverted together in its memory; 0: not even one fits; None: does not apply.
    """

    device: Device
    hours: float
    dollars: float | None
    least_memory: int
    classes_at_a_time: int | None

    @property
    def fits(self) -> bool:
        """Whether the memory is enough, as far as it is known."""
        return self.device.memory_bytes is None or self.least_memory <= self.device.memory_bytes


@dataclass(frozen=True)
class Estimate:
    """A job before it is begun.

    Attributes:
        dataset: Its name, classes, images and shape in words.
        model: Its name, parts and where its numbers come from in words.
        pending: Artefacts to be made, by asset.
        current: Artefacts that are up to date.
        bytes: How each budget is spent.
        shared_bytes: Weights of the models that regeneration needs.
        stages: The work.
        costs: On each device, the first one first.
        host_bytes: Images that one process holds in the computer's memory for selection and evaluation.
        alternatives: What else could be done.
        compared_on: Name of the device that their hours are of: the first that the job fits on.
        runs: Dagster runs in words.
        run_counts: Dagster runs as numbers: of ``d3m distill``, a backfill of each partitioned asset, nights of the schedule.
        notes: What else to know before spending.
    """

    dataset: str
    model: str
    pending: dict[str, int]
    current: int
    bytes: list[BudgetBytes]
    shared_bytes: int
    stages: list[Stage]
    costs: list[Cost]
    host_bytes: int
    alternatives: list[Alternative]
    compared_on: str
    runs: str
    run_counts: dict[str, Any]
    notes: list[str]

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    def to_json(self) -> str:
        """As JSON text: seconds, bytes, FLOPs and dollars without prefixes."""
        described = asdict(self) | {"flops": self.flops}
        for cost, own in zip(described["costs"], self.costs, strict=True):
            cost["fits"] = own.fits
        return json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False)


def estimate(
    pipeline: Pipeline, *, plan: Plan | None = None, measured: bool = False, own_device: bool = True
) -> Estimate:
    """Estimate what is pending of a pipeline.

    Args:
        pipeline: Its model may have configurations only.
        plan: Just made; None: it is made.
        measured: Whether a few seconds of the real work are done first, to know this machine's speed.
        own_device: Whether this machine's device is listed, the first of all. No: only the GPUs of the settings.

    Raises:
        D3MError: Dataset, model or settings cannot be used.
    """
    context, settings = pipeline.context, pipeline.settings
    plan = plan or pipeline.plan()
    tiny = context.model.tiny_autoencoder
    model = count_model(context.model.files, tiny_autoencoder=None if tiny is None else tiny.path)
    items = [context.item(key) for key in pipeline.keys(InvertedEmbeddings.name) if key.replicate == 0]
    if measured and not items:
        raise SettingsError(
            "there are no vectors to learn with payload=codes, so nothing is measured; leave out --measure"
        )
    if measured:
        largest = max((embedding_plan(context, item) for item in items), key=lambda p: p.prompts * p.vectors)
        keep_measured(measured_file(pipeline), measure(context, model, largest))
    stages = pending_stages(context, plan, model)
    tasks = [inversion_task(context, item) for item in items]  # none where all classes are stored as image codes
    samples = max((task.samples(settings.inversion.samples_per_step) for task in tasks), default=0)
    fused = max(
        (
            task.samples(settings.inversion.samples_per_step)
            * min(len(tasks), processor_batch(context.model.files, [task], settings.inversion))
            for task in tasks
        ),
        default=0,
    )
    devices = job_devices(pipeline, model, own_device=own_device)
    costs = [_cost(device, stages, model, pipeline, samples, fused) for device in devices]
    counts, host = _run_counts(pipeline, plan), _host_bytes(pipeline, plan)
    compared = next((cost.device for cost in costs if cost.fits), costs[0].device)
    return Estimate(
        dataset=_dataset_words(pipeline),
        model=_model_words(pipeline, model),
        pending=dict(Counter(entry.key.asset for entry in plan.pending())),
        current=sum(entry.state == "up to date" for entry in plan.entries),
        bytes=_budget_bytes(pipeline, items),
        shared_bytes=model_bytes(pipeline, model) if items else 0,
        stages=stages,
        costs=costs,
        host_bytes=host,
        alternatives=alternatives(pipeline, model, items, compared),
        runs=_run_words(counts, pipeline),
        run_counts=counts,
        compared_on=compared.name,
        notes=_notes(pipeline, model, costs, stages, host),
    )


def _cost(
    device: Device, stages: Sequence[Stage], model: ModelWork, pipeline: Pipeline, samples: int, fused: int
) -> Cost:
    """Hours, money and memory of a device.

    Args:
        device: Which.
        stages: What is to be done.
        model: Its work.
        pipeline: The job.
        samples: Of a class in a step of inversion, at most.
        fused: Of all classes that a processor learns in one batch, at most.
    """
    seconds = device.seconds(stages)
    step = samples * model.predict_gradient.peak_bytes
    settings = pipeline.settings.generation
    encoding = encoded_at_once(pipeline.context.model.files.image_size) * model.encode_image.peak_bytes
    if device.is_cpu:
        # float32, twice as large; every worker has a model, and generation takes whole batches.
        guided = 1 if math.isclose(settings.guidance_scale, 1.0) else 2
        batch = settings.batch_size
        work = max(
            fused * model.predict_gradient.peak_bytes,
            encoding,
            batch * guided * model.predict.peak_bytes,
            (settings.decode_batch_size or batch) * model.decode_image.peak_bytes,
        )
        memory = device.workers * (PROCESS_BYTES + 2 * (model.weight_bytes + work))
        return Cost(device, seconds / 3600, device.dollars(seconds), memory, None)
    # Batches that do not fit are halved, down to one class or image; encoding and decoding are not.
    least = model.weight_bytes + max(
        step,
        encoding,
        (settings.decode_batch_size or DECODED_AT_ONCE) * model.decode_image.peak_bytes,
    )
    together = None
    if device.memory_bytes is not None and samples:
        together = int(FREE_SHARE * max(0, device.memory_bytes - model.weight_bytes) / max(1, step))
    return Cost(device, seconds / 3600, device.dollars(seconds), least, together)


def _budget_bytes(pipeline: Pipeline, items: Sequence[Item]) -> list[BudgetBytes]:
    context, shape = pipeline.context, pipeline.context.dataset.shape
    counted: Counter[BudgetBytes] = Counter()
    for item in items:
        plan, selection = embedding_plan(context, item), class_selection_plan(context, item)
        counted[
            BudgetBytes(
                item.budget.name,
                item.budget.bytes(shape),
                plan.prompts,
                plan.vectors,
                plan.storage_type,
                plan.payload,
                selection.bytes,
                selection.candidates,
                selection.kept,
                codes_beside_prompts(context, item.budget),
                0,
            )
        ] += 1
    return [replace(line, classes=classes) for line, classes in counted.items()]


def _dataset_words(pipeline: Pipeline) -> str:
    dataset = pipeline.context.dataset
    catalog, shape = dataset.catalog, dataset.shape
    counts = {name: int(catalog[f"n_{name}"].sum()) for name in ("train", "validation", "test")}
    kind = "grey" if shape.channels == 1 else "colour"
    held_out = f", {counts['validation']:,} held out" if counts["validation"] else ""
    return (
        f"{dataset.name}: {len(dataset.classes):,} classes, {counts['train']:,} training images{held_out}, "
        f"{counts['test']:,} test images, {shape.width}x{shape.height} {kind}"
    )


def _model_words(pipeline: Pipeline, model: ModelWork) -> str:
    total = sum(model.parameters.values()) / 1e6
    weights = "" if pipeline.context.model.files.has_weights else "; only its configurations are here"
    return f"{pipeline.context.model.name}: {total:,.1f} million parameters, images of {model.image_size} px{weights}"


def _run_counts(pipeline: Pipeline, plan: Plan) -> dict[str, Any]:
    """Dagster runs, by the backfill policies and the limit of a tick."""
    pending = plan.pending()
    settings, partitions = pipeline.settings, dict[str, set[tuple[str | None, str | None]]]()
    for entry in pending:
        if pipeline.graph[entry.key.asset].partitions:
            partitions.setdefault(entry.key.asset, set()).add((entry.key.class_key, entry.key.budget))
    most = settings.compute.partitions_per_run

    def runs(asset: str, count: int) -> int:
        return math.ceil(count / most) if most is not None and pipeline.graph[asset].device else 1

    of_assets = Counter(entry.key.asset for entry in pending)
    ticks = math.ceil(max(of_assets.values(), default=0) / settings.automation.max_partitions_per_tick)
    return {
        "distill": int(bool(pending)),
        "backfill": {asset: runs(asset, len(found)) for asset, found in partitions.items()},
        "nights": ticks,
    }


def _run_words(counts: dict[str, Any], pipeline: Pipeline) -> str:
    if not counts["distill"]:
        return "none: everything is up to date"
    words = "1 Dagster run by `d3m distill`"
    several = {asset: runs for asset, runs in counts["backfill"].items() if runs > 1}
    if several:
        words += f"; backfills take {', '.join(f'{runs:,} of {asset}' for asset, runs in several.items())}"
    if pipeline.settings.automation.enabled and counts["nights"] > 1:
        words += f"; by the clock alone at least {counts['nights']:,} runs (automation.max_partitions_per_tick)"
    return words


def _notes(
    pipeline: Pipeline, model: ModelWork, costs: Sequence[Cost], stages: Sequence[Stage], host: int
) -> list[str]:
    context, settings, notes = pipeline.context, pipeline.settings, []
    if not context.model.files.has_weights:
        notes.append("the weights of the model are not here: what was made with them cannot be told from what was not")
    if settings.compute.engine == "local" and not device_here(pipeline):
        notes.append(f"this machine has no device {settings.device}; the job is for another one")
    if settings.compute.engine == "ray" and settings.compute.workers is None and stages:
        notes.append(
            "compute.workers is not set, so times are those of one device of the cluster; all that it has room for share the work"
        )
    if not fits_cache(context, model) and any(stage.kind == "encoding" for stage in stages):
        size = latents_bytes(context, model)
        notes.append(
            f"latents of all images take {byte_size(size)}, more than latent_cache_gib={settings.latent_cache_gib:g}: with "
            f"latent_cache_gib={math.ceil(size / 2**30)} every image is encoded once for all budgets and replicates"
        )
    if settings.inversion.patience is None and settings.distillations > 1 and stages:
        notes.append(
            f"everything is distilled {settings.distillations} times, for honest intervals; "
            "evaluation.distillations=1 takes one of them"
        )
    here = machine_memory()
    if host > (here or math.inf):
        notes.append(
            f"training and test images are held in the memory of one process, {byte_size(host)}, and this machine has "
            f"{byte_size(here or 0)}; a copy of the dataset with smaller images needs less"
        )
    if small := [cost for cost in costs if not cost.fits]:
        names = ", ".join(cost.device.name for cost in small)
        notes.append(f"the memory of {names} does not hold the job{_remedy(pipeline, model, small)}")
    return notes


def _remedy(pipeline: Pipeline, model: ModelWork, small: Sequence[Cost]) -> str:
    """What makes a job fit into the largest of the devices that are too small, as the rest of a sentence."""
    room = max(cost.device.memory_bytes or 0 for cost in small) - model.weight_bytes
    settings = pipeline.settings
    decoded = settings.generation.decode_batch_size or DECODED_AT_ONCE
    encoded = encoded_at_once(pipeline.context.model.files.image_size)
    if encoded * model.encode_image.peak_bytes > room:
        size = byte_size(encoded * model.encode_image.peak_bytes)
        return f": the autoencoder encodes {encoded} images at a time, which takes {size} beside the weights"
    if decoded * model.decode_image.peak_bytes > room:
        return "; lower generation.decode_batch_size"
    samples = room // model.predict_gradient.peak_bytes
    if samples < FEWEST_SAMPLES_PER_PROMPT or any(cost.device.is_cpu for cost in small):
        return ""
    prompts = min(settings.inversion.max_prompts, samples // FEWEST_SAMPLES_PER_PROMPT)
    wanted = [f"inversion.max_prompts={prompts}"]
    if settings.inversion.samples_per_step > samples:
        wanted.append(f"inversion.samples_per_step={samples}")
    return f"; a class of {samples} samples a step would fit into the largest of them: {' and '.join(wanted)}"


def _host_bytes(pipeline: Pipeline, plan: Plan) -> int:
    """Bytes of the images that evaluation and selection hold in one process, at their stored size."""
    if not {entry.key.asset for entry in plan.pending()} & HOLDING_IMAGES:
        return 0
    catalog = pipeline.context.dataset.catalog
    images = int(catalog[["n_train", "n_validation", "n_test"]].to_numpy().sum())
    return images * pipeline.context.dataset.shape.bytes
