"""Stages of the method: prompts, inverted embeddings, the synthetic pool and the bundle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import decode_png, encode_png
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
from d3m_assets.distillation.generation import Sample, generate
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass, remove_old_states
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.packing import MOST_CLASSES, UNMEASURED_CLASSES, CudaMemory
from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.distillation.vectors import to_stored
from d3m_assets.errors import D3MError
from d3m_assets.exports.token_import import ImportedEmbeddings
from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import Progress, ProgressEvent
from d3m_assets.stages.artefacts import (
    Made,
    loaded_autoencoder,
    loaded_foundation,
    model_of,
    required,
    share_out,
    to_json,
    to_parquet,
    where,
)
from d3m_assets.stages.dataset import image_table
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.settings import InversionSettings


def foundation_model(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """Where the frozen model is, and what identifies it."""
    files = pipeline.foundation_files
    facts = {
        "name": files.name, "path": str(files.source), "fingerprint": files.fingerprint, "text_width": files.text_width,
        "text_length": files.text_length, "image_size": files.image_size, "bytes": files.weight_bytes,
    }  # fmt: skip
    return Made(key, {"foundation.json": to_json(facts)}, facts)


def class_prompts(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """How a class is put into words."""
    prompts = pipeline.prompts(required(key.class_key))
    metrics = {"prompt": prompts.learned(0), "class-name prompt": prompts.by_name(), "initializer": prompts.initializer}
    return Made(key, {"prompts.json": to_json(prompts.to_json())}, metrics)


def stored_prompts(pipeline: Pipeline, class_key: str) -> ClassPrompts:
    """The stored ``class_prompts`` of a class."""
    stored = pipeline.store.read(ArtefactKey("class_prompts", class_key), "prompts.json")
    return ClassPrompts.from_json(json.loads(stored))


def _inversion_work(item: tuple[Any, ...], progress: Progress) -> list[tuple[int, InvertedClass | D3MError]]:
    model, tasks, settings, seed, cache, states = item
    foundation = loaded_foundation(*model)
    return list(invert(foundation, tasks, settings, seed, progress, cache=cache, states=states,
                       **_batch(foundation.device, settings)))  # fmt: skip


def _batch(device: torch.device, settings: InversionSettings) -> dict[str, Any]:
    """How many classes ``invert`` learns together: as many as asked for, or as a GPU is found to hold."""
    if settings.classes_per_batch is not None:
        return {"classes_per_batch": settings.classes_per_batch}
    if device.type == "cuda":
        return {"classes_per_batch": MOST_CLASSES, "probe": CudaMemory(device)}
    # On a processor one class fills a core already.
    return {"classes_per_batch": 1 if device.type == "cpu" else UNMEASURED_CLASSES}


def inverted_embeddings(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Learn the vectors of classes; each is yielded as it finishes."""
    settings, home = pipeline.settings, pipeline.settings.home.absolute()
    tasks: dict[ArtefactKey, InversionTask] = {}
    for key in keys:
        try:
            if imported := pipeline.imported_embeddings(required(key.class_key)):
                yield _imported(pipeline, key, imported)
                continue
            tasks[key] = _inversion_task(pipeline, key)
        except D3MError as error:
            yield Made(key, error=error)
    # The longest first, so that no worker is left with a long one at the end.
    ordered = sorted(tasks, key=lambda k: -tasks[k].plan.prompts)
    cache = LatentCache(home / "cache" / "latents", int(settings.latent_cache_gib * 2**30))
    cache.trim()
    states = home / "cache" / "inversion"
    remove_old_states(states)
    for key, result in _inverted(
        pipeline, {k: tasks[k] for k in ordered}, cache, states, seed=settings.seed, stage="inverted_embeddings"
    ):
        if isinstance(result, D3MError):
            yield Made(key, error=result)
            continue
        yield _embeddings(key, tasks[key], result)
        _remove_states(pipeline, key, [result.state] if result.state else [])


def _remove_states(pipeline: Pipeline, key: ArtefactKey, states: Sequence[Path]) -> None:
    """Remove states of a finished inversion whose artefact was handed to the store, unless the store refused it."""
    stored = pipeline.store.manifest(key)
    if stored and stored.fingerprint == pipeline.spec(key).fingerprint:
        for state in states:
            state.unlink(missing_ok=True)


def _inverted(
    pipeline: Pipeline,
    tasks: Mapping[ArtefactKey, InversionTask],
    cache: LatentCache,
    states: Path,
    *,
    seed: int,
    stage: str,
) -> Iterator[tuple[ArtefactKey, InvertedClass | D3MError]]:
    """Invert classes: on a processor few at a time in every worker, on a GPU in one batch that is kept full.

    Several GPUs share the classes; nothing of one class is needed for another, so they do not talk to each other.
    """
    settings, model, keys = pipeline.settings.inversion, model_of(pipeline), list(tasks)
    if len(pipeline.devices) == 1 and not pipeline.on_cpu:

        def report(event: ProgressEvent) -> None:
            pipeline.progress(ProgressEvent(stage, event.done, event.total, event.detail))

        report(ProgressEvent("", 0, len(tasks) * settings.steps, "loading the foundation model"))
        left = dict(enumerate(keys))
        try:
            foundation = loaded_foundation(*model)
            for position, result in invert(
                foundation, list(tasks.values()), settings, seed, report, cache=cache, states=states,
                **_batch(foundation.device, settings),
            ):  # fmt: skip
                yield left.pop(position), result
        except D3MError as error:  # of the model, not of a class
            yield from ((key, error) for key in left.values())
        return
    # On a processor one class fills a core already, and its result must not depend, to the last bit, on which classes it
    # shares a batch with: a killed run finishes the rest and ends with the same bytes.
    size = _group(pipeline)
    if not pipeline.on_cpu:
        size = min(size, math.ceil(len(keys) / len(pipeline.devices)))
    groups = [keys[i : i + size] for i in range(0, len(keys), size)]
    items = [(model, [tasks[k] for k in group], settings, seed, cache, states) for group in groups]
    names = [", ".join(where(k) for k in group[:5]) for group in groups]
    for index, found in share_out(pipeline, stage, _inversion_work, items, names):
        if isinstance(found, D3MError):
            yield from ((key, found) for key in groups[index])
        else:
            yield from ((groups[index][position], result) for position, result in found)


def _group(pipeline: Pipeline) -> int:
    """Classes that a worker is given at a time.

    Results are stored when a group is finished: on a GPU a few batches long, so that it is full and a stop costs little.
    """
    asked = pipeline.settings.inversion.classes_per_batch
    return asked or 1 if pipeline.on_cpu else 4 * (asked or UNMEASURED_CLASSES)


def _embeddings(key: ArtefactKey, task: InversionTask, learned: InvertedClass) -> Made:
    from safetensors.numpy import save

    plan = task.plan
    tensors = {placeholder_token(task.prompts.class_id, p): v for p, v in enumerate(learned.vectors)}
    record = {
        "plan": plan.facts(), "steps": learned.losses[-1][0], "best_step": learned.best_step,
        "stop_reason": learned.stop_reason, "losses": learned.losses, "cluster_sizes": learned.cluster_sizes,
        "prompts": [task.prompts.learned(p) for p in range(plan.prompts)],
    }  # fmt: skip
    if learned.packing is not None:
        record["batch"] = asdict(learned.packing)
    metrics = {
        "payload_bytes": plan.payload, "prompts": plan.prompts, "vectors": plan.vectors,
        "loss_begin": learned.losses[0][1], "loss_best": min(loss for _, loss in learned.losses),
        "stop_reason": learned.stop_reason,
    }  # fmt: skip
    return Made(key, {"embeddings.safetensors": save(tensors), "training.json": to_json(record)}, metrics)


def _imported(pipeline: Pipeline, key: ArtefactKey, imported: ImportedEmbeddings) -> Made:
    """Embeddings that the user already has, as artefact, stored as learned ones are."""
    from safetensors.numpy import save

    plan, rows = _plan_of(pipeline, key), imported.rows(pipeline.foundation_files.text_widths)
    prompts = stored_prompts(pipeline, required(key.class_key))
    stored = _imported_vectors(pipeline, key, imported)
    tensors = {placeholder_token(prompts.class_id, p): v for p, v in enumerate(stored)}
    record = {
        "plan": plan.facts(), "imported_from": [file.name for file in imported.files], "sha256": imported.sha256,
        "norms": np.linalg.norm(rows, axis=-1).round(4).tolist(), "losses": [], "cluster_sizes": [],
        "prompts": [prompts.learned(p) for p in range(plan.prompts)],
    }  # fmt: skip
    metrics = {"payload_bytes": plan.payload, "prompts": plan.prompts, "vectors": plan.vectors,
               "imported_from": ", ".join(record["imported_from"])}  # fmt: skip
    return Made(key, {"embeddings.safetensors": save(tensors), "training.json": to_json(record)}, metrics)


def _imported_vectors(pipeline: Pipeline, key: ArtefactKey, imported: ImportedEmbeddings) -> np.ndarray:
    widths = pipeline.foundation_files.text_widths
    return np.stack(list(to_stored(imported.rows(widths), _plan_of(pipeline, key), widths)))


def _plan_of(pipeline: Pipeline, key: ArtefactKey) -> EmbeddingPlan:
    return pipeline.embedding_plan(required(key.class_key), required(key.budget))


def _inversion_task(pipeline: Pipeline, key: ArtefactKey) -> InversionTask:
    class_key = required(key.class_key)
    rows = image_table(pipeline, "train", class_key)
    files = ImageFiles(
        tuple(rows["uri"]), tuple(rows["sha256"]), pipeline.scan().channels, pipeline.settings.inversion.flip
    )
    return InversionTask(stored_prompts(pipeline, class_key), files, _plan_of(pipeline, key))


def read_vectors(pipeline: Pipeline, key: ArtefactKey) -> np.ndarray:
    """Stored vectors ``[prompts, vectors, D]`` of one class and budget."""
    from safetensors.numpy import load

    tensors = load(pipeline.store.read(key, "embeddings.safetensors"))
    return np.stack([tensors[name] for name in sorted(tensors)])


def drawing_work(item: tuple[Any, ...], progress: Progress) -> tuple[np.ndarray, list[Sample]]:
    """Draw the pool of one class, in a worker."""
    model, prompts, settings, seed, channels, vectors, plan, count, autoencoder = item
    return generate(
        loaded_foundation(*model), prompts, settings, seed, count=count, vectors=vectors, plan=plan, channels=channels,
        autoencoder=loaded_autoencoder(autoencoder, model), progress=progress,
    )  # fmt: skip


def drawing_item(
    pipeline: Pipeline, prompts: ClassPrompts, vectors: np.ndarray | None = None, plan: EmbeddingPlan | None = None, *,
    seed: int | None = None, count: int | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """What :func:`drawing_work` needs; without ``vectors`` it draws from the class name.

    ``seed`` and ``count`` are those of the settings unless given.
    """
    s = pipeline.settings
    wanted = s.generation.images_per_class if count is None else count
    root = s.seed if seed is None else seed
    return (model_of(pipeline), prompts, s.generation, root, pipeline.scan().channels, vectors, plan, wanted,
            pipeline.tiny_autoencoder)  # fmt: skip


def synthetic_pool(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Draw the pools of classes; each is yielded as it finishes."""
    items, ready = [], []
    for key in keys:
        class_key, budget = required(key.class_key), required(key.budget)
        source = ArtefactKey("inverted_embeddings", class_key, budget)
        try:
            vectors = read_vectors(pipeline, source)
            plan = pipeline.embedding_plan(class_key, budget)
            items.append(drawing_item(pipeline, stored_prompts(pipeline, class_key), vectors, plan))
            ready.append((key, source))
        except D3MError as error:
            yield Made(key, error=error)
    names = [where(key) for key, _ in ready]
    for index, result in share_out(pipeline, "synthetic_pool", drawing_work, items, names):
        key, source = ready[index]
        if isinstance(result, D3MError):
            yield Made(key, error=result)
            continue
        images, samples = result
        table = pool_table(items[index][1], images, samples).assign(
            embeddings_fingerprint=pipeline.spec(source).fingerprint,
            raw_dataset_fingerprint=pipeline.spec(ArtefactKey("raw_dataset", key.class_key)).fingerprint,
            foundation_fingerprint=pipeline.foundation_files.fingerprint,
        )
        yield Made(key, {"pool.parquet": to_parquet(table)}, {"images": len(table), "size": images.shape[1]})


def distillation_seed(pipeline: Pipeline, distillation: int) -> int:
    """Root of the random numbers of one of several distillations; the first has the seed of the settings."""
    if distillation == 0:
        return pipeline.settings.seed
    digest = hashlib.sha256(f"{pipeline.settings.seed} distillation {distillation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def repeated_pools(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Distil again under other seeds; a class and budget is yielded when its last repetition is drawn.

    First all vectors are learned, which are small; then images are drawn, class by class. A stopped run goes on from the
    states of the inversion, as that of ``inverted_embeddings`` does.
    """
    s, home = pipeline.settings, pipeline.settings.home.absolute()
    cache, states = (
        LatentCache(home / "cache" / "latents", int(s.latent_cache_gib * 2**30)),
        home / "cache" / "inversion",
    )
    repetitions = range(1, s.distillations)
    tasks: dict[ArtefactKey, InversionTask] = {}
    vectors: dict[ArtefactKey, dict[int, np.ndarray]] = {key: {} for key in keys}
    unfinished: dict[ArtefactKey, list[Path]] = {key: [] for key in keys}
    failed: dict[ArtefactKey, D3MError] = {}
    for key in keys:
        try:
            if imported := pipeline.imported_embeddings(required(key.class_key)):
                given = _imported_vectors(pipeline, key, imported)
                vectors[key] = dict.fromkeys(repetitions, given)
            else:
                tasks[key] = _inversion_task(pipeline, key)
        except D3MError as error:
            failed[key] = error
    ordered = {k: tasks[k] for k in sorted(tasks, key=lambda k: -tasks[k].plan.prompts)}
    for r in repetitions if ordered else ():
        seed, stage = distillation_seed(pipeline, r), f"repeated_pools: vectors {r}"
        for key, result in _inverted(pipeline, ordered, cache, states, seed=seed, stage=stage):
            if isinstance(result, D3MError):
                failed[key] = result
                continue
            vectors[key][r] = np.stack(list(result.vectors))
            unfinished[key] += [result.state] if result.state else []
    yield from (Made(key, error=error) for key, error in failed.items())
    wanted = [(key, r) for key in keys if key not in failed for r in repetitions]
    items = [_repeated_drawing(pipeline, key, r, vectors[key][r]) for key, r in wanted]
    names = [f"{where(key)}, distillation {r}" for key, r in wanted]
    drawn: dict[ArtefactKey, dict[int, Any]] = {key: {} for key, _ in wanted}
    for index, result in share_out(pipeline, "repeated_pools", drawing_work, items, names):
        key, r = wanted[index]
        drawn[key][r] = result
        if len(drawn[key]) == len(repetitions):
            yield _repeated(pipeline, key, vectors[key], drawn.pop(key))
            _remove_states(pipeline, key, unfinished[key])


def _repeated_drawing(pipeline: Pipeline, key: ArtefactKey, distillation: int, vectors: np.ndarray) -> tuple[Any, ...]:
    prompts, seed = stored_prompts(pipeline, required(key.class_key)), distillation_seed(pipeline, distillation)
    return drawing_item(pipeline, prompts, vectors, _plan_of(pipeline, key), seed=seed)


def _repeated(
    pipeline: Pipeline, key: ArtefactKey, vectors: Mapping[int, np.ndarray], drawn: Mapping[int, Any]
) -> Made:
    from safetensors.numpy import save

    for result in drawn.values():
        if isinstance(result, D3MError):
            return Made(key, error=result)
    prompts = stored_prompts(pipeline, required(key.class_key))
    tables = [pool_table(prompts, *drawn[r]).assign(distillation=r) for r in sorted(drawn)]
    table = pd.concat(tables, ignore_index=True)
    learned = save({f"distillation-{r}": vectors[r] for r in sorted(drawn)})
    return Made(key, {"pools.parquet": to_parquet(table), "embeddings.safetensors": learned}, {"images": len(table)})


def stored_vectors(pipeline: Pipeline, class_key: str, budget: str, distillation: int = 0) -> np.ndarray:
    """Stored vectors ``[prompts, vectors, D]`` of a class at a budget, of one of several distillations."""
    from safetensors.numpy import load

    if distillation == 0:
        return read_vectors(pipeline, ArtefactKey("inverted_embeddings", class_key, budget))
    stored = pipeline.store.read(ArtefactKey("repeated_pools", class_key, budget), "embeddings.safetensors")
    return load(stored)[f"distillation-{distillation}"]


def pool_table(prompts: ClassPrompts, images: np.ndarray, samples: Sequence[Sample]) -> pd.DataFrame:
    """One row an image; ``image`` is laid out as the Hugging Face ``Image`` feature is."""
    rows = [
        {"image": {"bytes": encode_png(image), "path": f"{prompts.class_name}/{s.index:05d}.png"},
         "class_id": prompts.class_id, "class_name": prompts.class_name, "index": s.index, "seed": s.seed,
         "prompt_index": s.prompt_index, "prompt": s.prompt}
        for image, s in zip(images, samples, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def pool_images(table: pd.DataFrame) -> np.ndarray:
    """Decoded images of a pool, uint8 ``[N, H, W, C]``."""
    return np.stack([decode_png(image["bytes"]) for image in table["image"]])


def distilled_bundle(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """The vectors of all classes at a budget, in one file."""
    budget, settings, scan = required(key.budget), pipeline.settings, pipeline.scan()
    files = pipeline.foundation_files
    classes = []
    for class_key in pipeline.catalog()["class_key"]:
        vectors = read_vectors(pipeline, ArtefactKey("inverted_embeddings", class_key, budget))
        plan = pipeline.embedding_plan(class_key, budget)
        classes.append(DistilledClass(stored_prompts(pipeline, class_key), plan, vectors))
    noise, tiny = files.config("scheduler"), pipeline.tiny_autoencoder
    decoder: dict[str, Any] = {} if tiny is None else {
        "autoencoder": tiny.name, "autoencoder_fingerprint": tiny.fingerprint, "autoencoder_bytes": tiny.weight_bytes
    }  # fmt: skip
    recipe = Recipe(
        budget=budget, bytes_per_class=pipeline.budget_bytes(budget), dataset=pipeline.dataset_name,
        image_height=scan.image_height, image_width=scan.image_width, channels=scan.channels,
        foundation=pipeline.foundation_name, foundation_fingerprint=files.fingerprint,
        foundation_bytes=files.weight_bytes, generation=settings.generation.drawing(),
        scheduler=f"{noise.get('beta_schedule')} {noise.get('prediction_type')}", seed=settings.seed,
        templates=settings.prompts.templates, keep_class_name=settings.prompts.keep_class_name,
        **decoder,
    )  # fmt: skip
    bundle = Bundle(recipe, tuple(classes))
    data = bundle.to_bytes()
    return Made(key, {"bundle.safetensors": data}, {"payload_bytes": bundle.payload, "bundle_bytes": len(data)})
