"""``inverted_embeddings``: the learned prompt vectors of a class, the distilled data itself."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.class_prompts import ClassPrompts, prompts_of, read_prompts
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import from_parquet, to_json, to_parquet
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.payload_bytes import codes_beside_prompts, prompt_bytes
from d3m_assets.assets.previews import line_plot_png
from d3m_assets.assets.raw_dataset import RawDataset, image_rows
from d3m_assets.distillation import inversion, latents
from d3m_assets.distillation.budgets import (
    EmbeddingPlan,
    StorageType,
    least_selection_bytes,
    plan_embeddings,
    plan_selection,
    plan_storage_type,
)
from d3m_assets.distillation.inversion import invert, start_facts, starts_from_images
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass, remove_old_states
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.packing import MOST_CLASSES, UNMEASURED_CLASSES, CudaMemory, classes_on_a_processor
from d3m_assets.distillation.prompts import placeholder_token
from d3m_assets.distillation.selection import SelectionPlan
from d3m_assets.distillation.settings import PARTS, PROMPTS, InversionSettings
from d3m_assets.distillation.vectors import to_stored
from d3m_assets.errors import BudgetError, D3MError, FoundationError
from d3m_assets.exports.token_import import ImportedEmbeddings, find_embeddings
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.model import ModelReference
from d3m_assets.ledger import Budget
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.planning.versions import Version
from d3m_assets.progress import Progress, ProgressEvent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    import torch

VECTORS, RECORD = "embeddings.safetensors", "training.json"
MEMBERS = "learned_from.parquet"
"""The training images that each prompt was learned from: columns prompt, relative_path, sha256."""


class InvertedEmbeddings(Asset):
    """The learned prompt vectors of a class within a budget (textual inversion): the distilled data itself."""

    group = "distillation"
    partitions = ("class", "budget")
    replicated = True
    deps = (RawDataset, ClassPrompts, FoundationModel)
    kinds = frozenset({"pytorch"})
    code_version = f"{inversion.CODE_VERSION}.{latents.CODE_VERSION}"
    device = True
    checks = (Check("finite_and_within_budget", "Every stored embedding is finite and no larger than its budget."),)

    def unused(self, settings: Settings) -> str:
        """They are not learned where all classes are stored as image codes."""
        return no_prompts(settings)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How the vectors are learned and how many there are; or which files of the user's they are."""
        plan, settings = embedding_plan(context, item), context.settings.inversion
        # The width follows from the foundation model, which is an input.
        planned = {name: value for name, value in plan.facts().items() if name != "width"}
        if imported := imported_embeddings(context, item):
            return {"imported": list(imported.sha256), "plan": planned}
        learned = {
            "inversion": settings.fingerprint(),
            "seed": item.seed,
            "device": context.device_kind,
            "plan": planned,
        }
        return learned | start_facts(context.model.files, prompts_of(context, item), settings, plan.vectors)

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Learn the vectors of classes; each is yielded as it finishes."""
        cache, states = latent_cache(context), context.states
        cache.trim()
        remove_old_states(states)
        tasks: dict[Item, InversionTask] = {}
        paths: dict[Item, Sequence[str]] = {}
        for item in items:
            try:
                if imported := imported_embeddings(context, item):
                    yield _imported(context.for_item(item), item, imported)
                else:
                    tasks[item], paths[item] = inversion_task(context.for_item(item), item)
            except D3MError as error:
                yield Made(item.key, error=error)
        # The longest first, so that no worker is left with a long one at the end.
        ordered = {item: tasks[item] for item in sorted(tasks, key=lambda item: -tasks[item].plan.prompts)}
        for item, result in _invert(context, ordered, cache, states, self.name):
            if isinstance(result, D3MError):
                yield Made(item.key, error=result)
            else:
                yield _made(context, item, tasks[item], paths[item], result)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The prompt, and how the loss fell."""
        record = json.loads(context.inputs.read(item.key, RECORD))
        if not record["losses"]:
            return {"prompt": record["prompts"][0]}
        import pandas as pd

        return {
            "prompt": record["prompts"][0],
            "loss_curve_png": line_plot_png(record["losses"], "step"),
            "cluster sizes": str(record["cluster_sizes"]),
            "loss by step": pd.DataFrame(record["losses"], columns=["step", "loss"]),
        }

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Whether the vectors are numbers and within their budget."""
        vectors = read_vectors(context, item.key)
        allowed = prompt_bytes(context, item.budget)
        if not np.isfinite(vectors.astype(np.float32)).all() or not np.any(vectors, axis=-1).all():
            yield Finding("a vector is zero or not finite")
        if vectors.nbytes > allowed:
            yield Finding(f"{vectors.nbytes} bytes of vectors, but the budget allows {allowed}")


def no_prompts(settings: Settings) -> str:
    """Why no prompts are learned; empty if they are."""
    return "" if PROMPTS in PARTS[settings.payload] else f"payload is {settings.payload}"


def embedding_plan(context: Context, item: Item) -> EmbeddingPlan:
    """Prompts and vectors of a class: what its selection leaves of the budget, but never more prompts than it has images.

    Raises:
        BudgetError: The budget cannot hold one vector, or the user's embeddings.
    """
    if imported := imported_embeddings(context, item):
        return _imported_plan(context, item, imported)
    # A class with no readable image is planned like any other, and cannot be made until it is mended.
    images = max(1, item.dataset_class.n_train)

    def plan() -> EmbeddingPlan:
        settings, files = context.settings.inversion, context.model.files
        return plan_embeddings(
            item.budget.name,
            prompt_bytes(context, item.budget) - selection_plan(context, item.budget).bytes,
            width=files.text_width,
            vectors_per_prompt=settings.vectors_per_prompt,
            storage_type=storage_type(context, item.budget),
            max_prompts=min(settings.max_prompts, images),
            max_vectors=max(1, files.text_length // 2),
            norms=_norms(context),
            codes=codes_beside_prompts(context, item.budget),
        )

    return context.once(("embedding plan", item.budget.name, images), plan)


def selection_plan(context: Context, budget: Budget) -> SelectionPlan:
    """How many samples of a class are generated at a budget, how many are kept, and the bytes of saying which.

    Raises:
        BudgetError: More are to be kept than generated.
    """

    def plan() -> SelectionPlan:
        settings, images = context.settings.selection, context.settings.generation.images_per_class
        if settings.criterion == "none":
            return SelectionPlan(images, images)
        vectors, width = context.settings.inversion.vectors_per_prompt or 1, context.model.files.text_width
        prompt = EmbeddingPlan(1, vectors, storage_type(context, budget), width, _norms(context))
        return plan_selection(
            prompt_bytes(context, budget),
            prompt.payload,
            images=images,
            candidates=settings.candidates,
            kept=settings.kept,
        )

    return context.once(("selection plan", budget.name), plan)


def storage_type(context: Context, budget: Budget) -> StorageType:
    """The number format of the vectors of a budget: what the settings say, or what its bytes are best spent on."""
    settings, choice = context.settings, context.settings.inversion.storage_type
    if choice != "auto":
        return choice
    if settings.imported_embeddings is not None:
        return "int8"  # what the user has learned is kept as it is
    selection, least = settings.selection, 0
    if selection.criterion != "none":
        images = settings.generation.images_per_class
        least = least_selection_bytes(images=images, candidates=selection.candidates, kept=selection.kept)
    return plan_storage_type(
        prompt_bytes(context, budget),
        width=context.model.files.text_width,
        vectors_per_prompt=settings.inversion.vectors_per_prompt,
        norms=_norms(context),
        selection=least,
    )


def class_selection_plan(context: Context, item: Item) -> SelectionPlan:
    """The selection plan of a class: the budget's; without a selection where imported embeddings leave it no room."""
    plan = selection_plan(context, item.budget)
    if not plan.bytes or imported_embeddings(context, item) is None:
        return plan
    fits = embedding_plan(context, item).payload + plan.bytes <= prompt_bytes(context, item.budget)
    return plan if fits else SelectionPlan(plan.kept, plan.kept)


def _norms(context: Context) -> int:
    """Norms that are stored with each vector."""
    return 0 if context.settings.inversion.directional else len(context.model.files.text_widths)


def imported_embeddings(context: Context, item: Item) -> ImportedEmbeddings | None:
    """Embeddings of a class that the user already has; None: they are learned.

    Raises:
        BundleError: The files are not usable.
    """
    folder = context.settings.imported_embeddings
    if folder is None:
        return None

    def find() -> dict[str, ImportedEmbeddings]:
        return find_embeddings(folder.expanduser(), context.dataset.class_names, context.model.files.text_widths)

    return context.once("imported embeddings", find).get(item.dataset_class.name)


def _imported_plan(context: Context, item: Item, imported: ImportedEmbeddings) -> EmbeddingPlan:
    stored, width = storage_type(context, item.budget), context.model.files.text_width
    plan = EmbeddingPlan(len(imported.files), imported.vectors, stored, width, _norms(context))
    allowed = item.budget.bytes(context.dataset.shape)
    if plan.payload > allowed:
        raise BudgetError(
            f"the imported embeddings of class {item.dataset_class.name} take {plan.payload} bytes as "
            f"{plan.storage_type}, but the budget {item.budget} allows {allowed}; raise the budget to "
            f"{plan.payload}B or take the files out of {imported.files[0].parent}"
        )
    return plan


def latent_cache(context: Context) -> LatentCache:
    """Where latents of training images are kept on this machine."""
    return LatentCache(context.cache / "latents", int(context.settings.latent_cache_gib * 2**30))


@dataclass(frozen=True)
class InversionJob:
    """Classes that one worker inverts together.

    Attributes:
        model: The foundation model.
        tasks: The classes.
        settings: Of the inversion.
        seed: Root of the random streams.
        cache: Where latents are kept.
        states: Folder of the states of unfinished classes.
        image_encoder: Digest of the encoder that vectors may start from, part of their fingerprint; empty: there is none.
    """

    model: ModelReference
    tasks: tuple[InversionTask, ...]
    settings: InversionSettings
    seed: int
    cache: LatentCache
    states: Path
    image_encoder: str = ""

    def run(self, progress: Progress) -> Iterator[tuple[int, InvertedClass | D3MError]]:
        """Position of each class in ``tasks`` and what was learned, as each finishes.

        Raises:
            FoundationError: This machine has another image encoder than the one that started the job.
        """
        foundation = self.model.load()
        if foundation.files.image_encoder_digest != self.image_encoder:
            raise FoundationError(
                f"{foundation.files.path} has another image encoder, or none, on {platform.node()} than where the job began; "
                "give every machine that computes the same files of the model"
            )
        return invert(
            foundation,
            self.tasks,
            self.settings,
            self.seed,
            progress,
            cache=self.cache,
            states=self.states,
            **_batch_size(
                foundation.device, self.settings, processor_batch(foundation.files, self.tasks, self.settings)
            ),
        )


def _run(job: InversionJob, progress: Progress) -> list[tuple[int, InvertedClass | D3MError]]:
    _remove_old_states_here(job.states)
    return list(job.run(progress))


@cache
def _remove_old_states_here(folder: Path) -> None:
    """Once in each worker: on another machine the folder may be another one."""
    remove_old_states(folder)


def processor_batch(files: FoundationFiles, tasks: Iterable[InversionTask], settings: InversionSettings) -> int:
    """Classes that a processor learns together: as many as asked for, or so many that overhead is small."""
    if settings.classes_per_batch is not None:
        return settings.classes_per_batch
    samples = max((task.samples(settings.samples_per_step) for task in tasks), default=settings.samples_per_step)
    return classes_on_a_processor(samples, int(files.config("unet")["sample_size"]))


def _batch_size(device: torch.device, settings: InversionSettings, on_processor: int) -> dict[str, Any]:
    """How many classes ``invert`` learns together: as many as asked for, or as a GPU is found to hold.

    Args:
        device: Where to.
        settings: Of the inversion.
        on_processor: Classes that a processor learns together. Their results must not depend, to the last bit, on which
            they are: a killed run finishes the rest and ends with the same bytes.
    """
    if device.type == "cpu":
        return {"classes_per_batch": on_processor, "exact": True}
    if settings.classes_per_batch is not None:
        return {"classes_per_batch": settings.classes_per_batch}
    if device.type == "cuda":
        return {"classes_per_batch": MOST_CLASSES, "probe": CudaMemory(device)}
    return {"classes_per_batch": UNMEASURED_CLASSES}


def _invert(
    context: Context, tasks: Mapping[Item, InversionTask], cache: LatentCache, states: Path, stage: str
) -> Iterator[tuple[Item, InvertedClass | D3MError]]:
    """Invert classes: on a processor a few in every worker, on a GPU in one batch a replicate that is kept full.

    Several GPUs share the classes; nothing of one class is needed for another, so they do not talk to each other.
    """
    replicates = [[i for i in tasks if i.replicate == r] for r in dict.fromkeys(item.replicate for item in tasks)]

    def job(group: Sequence[Item]) -> InversionJob:
        settings, of_group = context.settings.inversion, tuple(tasks[item] for item in group)
        encoder = context.model.files.image_encoder_digest
        return InversionJob(context.model.reference, of_group, settings, group[0].seed, cache, states, encoder)

    workers = context.workers
    if workers.in_process and not workers.on_cpu:
        for items in replicates:
            yield from _invert_here(context, items, job(items), stage)
        return
    groups = [group for items in replicates for group in _groups(context, items, tasks)]
    labels = [", ".join(item.label for item in group[:5]) for group in groups]
    for index, result in context.map_in_workers(stage, _run, [job(group) for group in groups], labels):
        if isinstance(result, D3MError):
            yield from ((item, result) for item in groups[index])
        else:
            yield from ((groups[index][position], learned) for position, learned in result)


def _invert_here(
    context: Context, items: Sequence[Item], job: InversionJob, stage: str
) -> Iterator[tuple[Item, InvertedClass | D3MError]]:
    def report(event: ProgressEvent) -> None:
        context.progress(ProgressEvent(stage, event.done, event.total, event.detail))

    report(ProgressEvent("", 0, len(items) * job.settings.steps, "loading the foundation model"))
    unfinished = dict(enumerate(items))
    try:
        for position, result in job.run(report):
            yield unfinished.pop(position), result
    except D3MError as error:  # of the model, not of a class
        yield from ((item, error) for item in unfinished.values())


def _groups(context: Context, items: Sequence[Item], tasks: Mapping[Item, InversionTask]) -> list[list[Item]]:
    """The classes of a replicate as workers are given them.

    Results are stored when a group is finished, so that on a processor it is one batch; or, where classes leave before
    others (``patience``) and on a GPU, a few batches long: full, and a stop costs little. On a processor, classes that take
    more samples in a step do not share a group with those that take fewer, of which a batch has more.
    """
    settings, workers = context.settings.inversion, context.workers
    if not workers.on_cpu:
        return _even_groups(items, workers.count, 4 * (settings.classes_per_batch or UNMEASURED_CLASSES))
    alike: dict[int, list[Item]] = {}
    for item in items:
        alike.setdefault(tasks[item].samples(settings.samples_per_step), []).append(item)
    groups = []
    for same in alike.values():
        batch = processor_batch(context.model.files, [tasks[same[0]]], settings)
        groups += _even_groups(same, workers.count, batch if settings.patience is None else 4 * batch)
    return groups


def _even_groups(items: Sequence[Item], workers: int, most: int) -> list[list[Item]]:
    """Groups of at most so many items, as many for each worker, whose sizes differ by one at most."""
    count = min(len(items), workers * math.ceil(len(items) / (workers * most)))
    bounds = [len(items) * k // count for k in range(count + 1)]
    return [list(items[begin:end]) for begin, end in pairwise(bounds)]


def inversion_task(context: Context, item: Item) -> tuple[InversionTask, Sequence[str]]:
    """What is to be learned of a class, and the paths of its images below the dataset."""
    rows = image_rows(context, "train", item.dataset_class.key)
    files = ImageFiles(
        context.dataset.source,
        tuple(context.dataset.records(rows)),
        context.dataset.scan.channels,
        context.settings.inversion.flip,
    )
    task = InversionTask(read_prompts(context, item.dataset_class.key), files, embedding_plan(context, item))
    return task, tuple(rows["relative_path"])


def _made(context: Context, item: Item, task: InversionTask, paths: Sequence[str], learned: InvertedClass) -> Made:
    from safetensors.numpy import save

    plan, by_images = task.plan, starts_from_images(context.model.files, task.prompts, context.settings.inversion)
    tensors = {placeholder_token(task.prompts.class_id, p): v for p, v in enumerate(learned.vectors)}
    record = {
        "plan": plan.facts(),
        "start": "images" if by_images else f"words: {task.prompts.initializer}",
        "steps": learned.losses[-1][0],
        "best_step": learned.best_step,
        "stop_reason": learned.stop_reason,
        "losses": learned.losses,
        "cluster_sizes": learned.cluster_sizes,
        "prompts": [task.prompts.learned(p) for p in range(plan.prompts)],
    }
    if learned.packing is not None:
        record["batch"] = asdict(learned.packing)
    metrics = {
        "payload_bytes": plan.payload,
        "prompts": plan.prompts,
        "vectors": plan.vectors,
        "loss_begin": learned.losses[0][1],
        "loss_best": min(loss for _, loss in learned.losses),
        "stop_reason": learned.stop_reason,
    }
    files = {VECTORS: save(tensors), RECORD: to_json(record)}
    if isinstance(task.images, ImageFiles):
        files[MEMBERS] = _members(learned.members, paths, task.images.sha256)
    return Made(item.key, files, metrics, stored=lambda: _remove_state(learned))


def _members(members: Sequence[Sequence[int]], paths: Sequence[str], sha256: Sequence[str]) -> bytes:
    """The images of each prompt as a parquet file; a mirrored image is the image it was made from."""
    import pandas as pd

    images = [(p, k) for p, positions in enumerate(members) for k in sorted({i % len(paths) for i in positions})]
    table = pd.DataFrame(
        {
            "prompt": [prompt for prompt, _ in images],
            "relative_path": [paths[k] for _, k in images],
            "sha256": [sha256[k] for _, k in images],
        }
    )
    # zstd, unlike the default, makes the hex digits half as long.
    return to_parquet(table, compression="zstd")


def _remove_state(learned: InvertedClass) -> None:
    if learned.state is not None:
        learned.state.unlink(missing_ok=True)


def _imported(context: Context, item: Item, imported: ImportedEmbeddings) -> Made:
    """Embeddings that the user already has as an artefact, stored as learned ones are."""
    from safetensors.numpy import save

    plan, widths = embedding_plan(context, item), context.model.files.text_widths
    rows = imported.rows(widths)
    prompts = read_prompts(context, item.dataset_class.key)
    tensors = {placeholder_token(prompts.class_id, p): v for p, v in enumerate(to_stored(rows, plan, widths))}
    record = {
        "plan": plan.facts(),
        "imported_from": [file.name for file in imported.files],
        "sha256": imported.sha256,
        "norms": np.linalg.norm(rows, axis=-1).round(4).tolist(),
        "losses": [],
        "cluster_sizes": [],
        "prompts": [prompts.learned(p) for p in range(plan.prompts)],
    }
    metrics = {
        "payload_bytes": plan.payload,
        "prompts": plan.prompts,
        "vectors": plan.vectors,
        "imported_from": ", ".join(record["imported_from"]),
    }
    return Made(item.key, {VECTORS: save(tensors), RECORD: to_json(record)}, metrics)


def read_vectors(context: Context, key: ArtefactKey) -> np.ndarray:
    """Stored vectors ``[prompts, vectors, stored_width]`` of one class, budget and replicate."""
    from safetensors.numpy import load

    tensors = load(context.inputs.read(key, VECTORS))
    return np.stack([tensors[name] for name in sorted(tensors)])


def vectors_key(context: Context, class_key: str, budget: str, replicate: int = 0) -> ArtefactKey:
    """The declared input that holds the vectors of a class."""
    (key,) = context.inputs.keys(InvertedEmbeddings, class_key=class_key, budget=budget, replicate=replicate)
    return key


def training_facts(version: Version, prompt: int | None = None) -> dict[str, Any]:
    """How vectors were learned: of the current version from its record, of a replaced one what its commit record says."""
    facts: dict[str, Any] = {}
    if version.has(RECORD):
        record = json.loads(version.read(RECORD))
        if "imported_from" in record:
            return {"imported from": record["imported_from"], "sha256": list(record["sha256"])}
        losses = record["losses"]
        # Versions before there was a choice do not say.
        facts = {"started from": record["start"]} if "start" in record else {}
        facts |= {
            "steps": record["steps"],
            "best step": record["best_step"],
            "stop reason": record["stop_reason"],
            "loss": f"{losses[0][1]:.4f} at the start, {min(loss for _, loss in losses):.4f} at the best step",
        }
        sizes = record["cluster_sizes"]
        facts["learned from"] = f"{sizes[prompt] if prompt is not None else sum(sizes)} images"
        return facts
    metrics = version.manifest.metrics
    if "imported_from" in metrics:
        return {"imported from": metrics["imported_from"]}
    if metrics.get("loss_best") is not None:
        facts["loss"] = f"{metrics['loss_begin']:.4f} at the start, {metrics['loss_best']:.4f} at the best step"
        facts["stop reason"] = metrics["stop_reason"]
    return facts


def learned_from(version: Version, prompt: int | None = None) -> list[dict[str, str]] | None:
    """The real images that vectors were learned from, by path below the dataset and SHA-256; None: it was not recorded.

    Args:
        version: Of ``inverted_embeddings``.
        prompt: Of one prompt; None: of all.
    """
    if not version.has(MEMBERS):
        return None
    table = from_parquet(version.read(MEMBERS))
    if prompt is not None:
        table = table[table["prompt"] == prompt]
    table = table.drop_duplicates("relative_path").sort_values("relative_path")
    return [
        {"relative_path": str(p), "sha256": str(s)}
        for p, s in zip(table["relative_path"], table["sha256"], strict=True)
    ]
