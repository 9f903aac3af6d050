"""Textual inversion of many classes (Gal et al. 2022), as D3M uses it to distil a dataset.

The latents of a class are encoded once and only the new rows are parameters. All prompts of the classes in a batch are
learned in one forward pass; which classes share a batch changes the rounding of sums and nothing else, and on a processor
not even that (``exact``). A row is a direction at the norm of the token table (Directional Textual Inversion,
arXiv 2512.13672), learned by Adam on the sphere, or, where the settings say so, a whole vector, learned by AdamW as in
Gal et al.

The loss on a fixed batch of latents, noise and timesteps is evaluated every few steps. The best rows by it are kept; a
class whose loss has settled leaves the batch, and the next one that waits takes its place.

``optimizers`` has the update rules, ``objective`` the loss and its gradient, ``class_batch`` which classes are learned
together, ``inversion_state`` what is kept of a class; here is how a class begins, and the loop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.distillation.class_batch import ClassBatch, Outcome
from d3m_assets.distillation.inversion_state import ClassState, InversionTask
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.latents import encode as encode_latents
from d3m_assets.distillation.objective import DenoisingObjective
from d3m_assets.distillation.optimizers import Optimizer, make_optimizer
from d3m_assets.distillation.packing import MemoryProbe, Packing
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.errors import StageError
from d3m_assets.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.settings import InversionSettings
    from d3m_assets.foundation.files import FoundationFiles
    from d3m_assets.foundation.loading import Foundation

CODE_VERSION = "3"
"""Raised whenever a change here, or in the modules named above and the image encoder's, changes the embeddings of a class."""

_START_NOISE = 0.3
"""Norm of the noise that parts the prompts of a class at the start; their common word has norm 1."""


def invert(
    foundation: Foundation,
    tasks: Sequence[InversionTask],
    settings: InversionSettings,
    seed: int,
    progress: Progress = silent,
    *,
    classes_per_batch: int = 1,
    probe: MemoryProbe | None = None,
    cache: LatentCache | None = None,
    states: Path | None = None,
    save_every: float = 30.0,
    exact: bool = False,
) -> Iterator[Outcome]:
    """Learn the prompts of classes, several in one batch.

    Args:
        foundation: The frozen model.
        tasks: The classes; each has at least as many images as prompts.
        settings: Steps, samples, learning rate and when to stop.
        seed: Root of the random streams.
        progress: Told of every step.
        classes_per_batch: Most classes learned at a time. Halved when the device runs out of memory.
        probe: Measures the device's memory: the batch then begins with one class and takes in as many as fit. None: it is
            filled up to ``classes_per_batch`` at once.
        cache: Where latents of image files are kept.
        states: Folder where the state of unfinished classes is kept, so that a stopped run goes on where it was.
        save_every: Seconds between two such saves.
        exact: Whether the vectors of a class must be, bit by bit, those that it would get alone. Batches are compared
            with that at their first two steps; on a device that rounds them differently, classes are learned one at a time.

    Yields:
        Position of a class in ``tasks`` and what was learned, as each finishes; or why it could not be: its images cannot
        be read, its loss is not finite, or it alone does not fit into the device's memory. The others go on.

    Raises:
        ValueError: A plan stores norms that the optimizer does not learn, or lacks those that it learns.
        StageError: The model predicts neither noise nor velocity.
    """
    from d3m_assets.distillation.text import extended_tables

    optimizer = make_optimizer(settings, foundation.layout)
    if any(bool(task.plan.norms) != optimizer.learns_norms for task in tasks):
        raise ValueError("plans have norms if and only if whole vectors are learned (directional=False)")
    objective = DenoisingObjective(foundation, settings, seed, optimizer)
    packing = Packing(classes_per_batch) if probe is None else Packing.to_measure(classes_per_batch)

    def prepare(position: int, task: InversionTask) -> ClassState:
        return prepare_class(foundation, position, task, settings, seed, optimizer, cache=cache, states=states)

    with extended_tables(foundation) as learned_rows:
        batch = ClassBatch(
            tasks,
            prepare,
            objective,
            learned_rows,
            packing,
            probe=probe,
            progress=progress,
            save_every=save_every,
            exact=exact,
        )
        while batch.unfinished:
            yield from batch.fill()
            filled = len(batch.active)
            yield from batch.evaluate()
            yield from batch.retire()
            if batch.active and len(batch.active) == filled:  # otherwise a class that waits takes the free place first
                yield from batch.step()


def prepare_class(
    foundation: Foundation,
    position: int,
    task: InversionTask,
    settings: InversionSettings,
    seed: int,
    optimizer: Optimizer,
    *,
    cache: LatentCache | None = None,
    states: Path | None = None,
) -> ClassState:
    """Encode a class's images, assign them to its prompts and lay these out; what a stopped run left is taken up.

    Args:
        foundation: The frozen model.
        position: Of the task among all.
        task: The class.
        settings: Of the inversion.
        seed: Root of the random streams.
        optimizer: Decides what rows are.
        cache: Where latents of image files are kept.
        states: Folder of the states of unfinished classes.

    Raises:
        DatasetError: An image cannot be read.
        StageError: The autoencoder gives latents that are not finite, or the vectors do not fit into the text encoder.
    """
    import torch

    from d3m_assets.distillation.text import learned_ids

    prompts, plan = task.prompts, task.plan
    latents = _class_latents(foundation, task, cache)
    labels = cluster(latents.astype(np.float32), plan.prompts, seed)
    clusters = [np.flatnonzero(labels == prompt) for prompt in range(plan.prompts)]
    # With fewer distinct images than prompts some clusters are empty; their prompts learn the whole class.
    empty = [not len(images) for images in clusters]
    clusters = [images if len(images) else np.arange(len(latents)) for images in clusters]
    if starts_from_images(foundation.files, prompts, settings):
        directions = _directions_of_images(foundation, prompts, latents, clusters, empty, plan.vectors, seed)
    else:
        directions = _directions_of_words(foundation, prompts, plan.prompts, plan.vectors, seed)
    rows = optimizer.initial_rows(directions.to(foundation.device))
    state = ClassState(
        position=position,
        task=task,
        latents=torch.from_numpy(latents),
        clusters=clusters,
        token_ids=[
            learned_ids(foundation, prompts, plan.prompts, plan.vectors, template)
            for template in range(len(prompts.templates))
        ],
        rows=rows,
        optimizer_state=optimizer.initial_state(rows),
        best_rows=rows,
        layout=foundation.layout,
        state_file=None if states is None else states / _state_name(foundation, task, settings, seed, latents),
    )
    state.restore()
    return state


def start_facts(
    files: FoundationFiles, prompts: ClassPrompts, settings: InversionSettings, vectors: int
) -> dict[str, Any]:
    """What the start of a class's vectors depends on beside the model's fingerprint and the prompts, as JSON values.

    Args:
        files: Of the model.
        prompts: Of the class.
        settings: Of the inversion.
        vectors: Of a prompt.

    Raises:
        StageError: They are to start from images, but the model has no image encoder.
    """
    if starts_from_images(files, prompts, settings):
        return {"image_encoder": files.image_encoder_digest}
    starts = prompts.starts(vectors)
    return {"starts": starts} if len(set(starts)) > 1 else {}


def starts_from_images(files: FoundationFiles, prompts: ClassPrompts, settings: InversionSettings) -> bool:
    """Whether the vectors of a class start from its images.

    Args:
        files: Of the model.
        prompts: Of the class.
        settings: Of the inversion.

    Raises:
        StageError: They are to, but the model has no image encoder.
    """
    if settings.initialization == "auto":
        return files.image_encoder is not None and not prompts.has_initializer
    if settings.initialization == "images" and files.image_encoder is None:
        raise StageError(
            f"inversion.initialization is images, but {files.name} has no image encoder; set it to words or auto"
        )
    return settings.initialization == "images"


def _class_latents(foundation: Foundation, task: InversionTask, cache: LatentCache | None) -> np.ndarray:
    """Latents of a class's images, float16 ``[N, C, h, w]``, all finite."""
    if isinstance(task.images, ImageFiles):
        latents = (cache or LatentCache(Path(), 0)).get(foundation, task.images)
    else:
        latents = encode_latents(foundation, task.images)
    if not np.isfinite(latents).all():
        raise StageError(
            f"the latents of class {task.prompts.class_name} are not finite numbers: the autoencoder of "
            f"{foundation.files.name} fails on one of its images; take that image out, or use a device with float32"
        )
    return latents


def _state_name(
    foundation: Foundation, task: InversionTask, settings: InversionSettings, seed: int, latents: np.ndarray
) -> str:
    """File name of a class's state: the hash of all that decides about its vectors."""
    inputs = [
        foundation.files.fingerprint,
        task.prompts.to_json(),
        task.plan.facts(),
        seed,
        settings.fingerprint(),
        hashlib.sha256(latents.tobytes()).hexdigest(),
        CODE_VERSION,
    ]
    inputs += start_facts(foundation.files, task.prompts, settings, task.plan.vectors).values()
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return f"{digest[:32]}.safetensors"


def cluster(latents: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Assign a class's latents to clusters of similar images by k-means.

    Args:
        latents: float ``[N, ...]``.
        clusters: At most N.
        seed: Of the start.

    Returns:
        int ``[N]``; clusters are numbered from the largest.
    """
    if clusters == 1:
        return np.zeros(len(latents), np.int64)
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    flat = latents.reshape(len(latents), -1).astype(np.float64)
    with threadpool_limits(1), warnings.catch_warnings():
        # One thread: the order of additions, and so the result, would depend on how many there are. And with fewer
        # distinct images than clusters some stay empty, which is dealt with.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = KMeans(clusters, n_init=4, random_state=seed % 2**32).fit_predict(flat)
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return np.argsort(order)[labels]


def _directions_of_images(
    foundation: Foundation,
    prompts: ClassPrompts,
    latents: np.ndarray,
    clusters: Sequence[np.ndarray],
    whole: Sequence[bool],
    vectors: int,
    seed: int,
) -> torch.Tensor:
    """Unit rows ``[len(clusters) * vectors, D]``: the mean direction of each cluster's images.

    Noise parts further vectors of a prompt from its first, and prompts that learn the ``whole`` class from each other.
    """
    import torch

    seen = foundation.embed_latents(torch.from_numpy(latents)).cpu()
    layout = foundation.layout
    means = torch.stack([layout.unit(seen[torch.from_numpy(images)].mean(0, keepdim=True)) for images in clusters])
    noise = torch.randn(len(clusters), vectors, layout.width, generator=random_stream(seed, prompts.class_key, "start"))
    noise[~torch.tensor(whole), 0] = 0
    return layout.unit(means + _START_NOISE * layout.unit(noise)).flatten(0, 1)


def _directions_of_words(
    foundation: Foundation, prompts: ClassPrompts, count: int, vectors: int, seed: int
) -> torch.Tensor:
    """Unit rows ``[count * vectors, D]``: each vector is the sum of the tokens of its words, plus noise that parts the prompts."""
    import torch

    sums = []
    for encoder in foundation.text_encoders:
        table = encoder.table.detach().float().cpu()
        ids = [encoder.tokenizer(text, add_special_tokens=False).input_ids for text in prompts.starts(vectors)]
        sums.append(torch.stack([table[tokens].sum(0) for tokens in ids]))
    layout = foundation.layout
    word = layout.unit(torch.cat(sums, -1))
    noise = torch.randn(count, vectors, layout.width, generator=random_stream(seed, prompts.class_key, "start"))
    return layout.unit(word + _START_NOISE * layout.unit(noise)).flatten(0, 1)
