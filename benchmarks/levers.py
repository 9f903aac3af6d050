"""Levers on what students learn at equal bytes, on the validation part of the train split; the test split is never opened.

    python -m benchmarks.levers --datasets digits=64B letters=1024B FOLDER=784B --distillations 3 --store FOLDER --output FILE

Every row of :data:`ROWS` is distilled at every budget from ``--distillations`` seeds, and ``--students`` students are trained on
each of its training sets. The first row that is asked for is what the others are compared with, paired by seed. A row is the
product's settings, or these and a way of learning or sampling that the product does not have (``benchmarks.learning_variants``).
All that a row stores is charged to it; where it does not fit into a budget, the table says so.

Datasets are the digits, printed letters in fonts that the embedded model never saw, and folders of images. Vectors, generated
images and results are kept in ``--store``: a call that was stopped goes on where it was, and other rows or seeds are added by
asking for them. What was made under other settings or by another model is made anew; of other images or by other code it is
not: take a new folder.
"""

import argparse
import hashlib
import io
import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import learning_variants
from benchmarks.choose import MADE, measure, spread, words
from benchmarks.learning_variants import (
    DiscriminativeObjective,
    SamplerObjective,
    learn,
    learn_in_basis,
    nearest_of_starts,
    shared_basis,
    words_and_images,
)
from benchmarks.record import surroundings
from d3m_assets.assets.class_prompts import read_prompts
from d3m_assets.assets.inverted_embeddings import embedding_plan, inversion_task, latent_cache, selection_plan
from d3m_assets.assets.rows import training_set
from d3m_assets.assets.sample_selection import SampleSelection, real_features
from d3m_assets.assets.selection_model import SelectionModel, read_selection_model, see
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.teacher_model import loaded_teacher
from d3m_assets.compute.workers import end_with_parent
from d3m_assets.distillation import generation, inversion, selection
from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass
from d3m_assets.distillation.latents import ImageFiles
from d3m_assets.distillation.selection import CRITERIA, Candidates
from d3m_assets.distillation.settings import BOTH, CODES
from d3m_assets.errors import BudgetError, StageError
from d3m_assets.evaluation.metrics import test_split_reads
from d3m_assets.evaluation.teacher import Teacher
from d3m_assets.foundation.loading import Foundation
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.datasets.unseen_fonts import write_unseen_fonts

CODE_VERSION = "1"
"""Raised whenever a change here or in ``learning_variants`` changes a row."""
LETTERS = "AEGKRSXbdq"
BUDGETS = {"digits": ("64B", "320B"), "letters": ("1024B",)}
BASE = ("class_catalog", "raw_dataset", "foundation_model", "class_prompts", "selection_model")
JUDGED = "4096B"
"""A budget that has room for a selection, whatever the rows have: the selecting network belongs to none."""
BASES = (16, 8, 4)
"""Sizes of a shared basis; the largest whose bytes are at most half of what is left beside the selection."""
FEW = {"generation.images_per_class": "10"}
NO_SELECTION = {"selection.criterion": "none"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        settings: Of the product, where they differ from its defaults.
        learning: "denoising" as the product does; "discriminative", "sampler", "starts", "words and images" or
            "basis" as ``learning_variants`` has them.
        weight: Of the term that the way of learning adds to the denoising error.
        cluster_weights: Whether prompts are used in proportion to the sizes of their clusters, for a byte a prompt.
    """

    settings: dict[str, str] = field(default_factory=dict)
    learning: str = "denoising"
    weight: float = 0.0
    cluster_weights: bool = False


ROWS = {
    "defaults": Row(),
    "no selection": Row(NO_SELECTION),
    "recognised": Row({"selection.criterion": "recognised"}),
    "herding": Row({"selection.criterion": "herding"}),
    "int4": Row({"inversion.storage_type": "int4"}),
    "int8": Row({"inversion.storage_type": "int8"}),
    "fp16": Row({"inversion.storage_type": "fp16"}),
    "shared basis": Row(learning="basis"),
    "cluster weights": Row(cluster_weights=True),
    "cluster weights, no selection": Row(NO_SELECTION, cluster_weights=True),
    "10 images": Row(FEW),
    "10 images, cluster weights": Row(FEW, cluster_weights=True),
    "10 images, no selection": Row(FEW | NO_SELECTION),
    "10 images, cluster weights, no selection": Row(FEW | NO_SELECTION, cluster_weights=True),
    "discriminative 0.1": Row(learning="discriminative", weight=0.1),
    "discriminative 0.3": Row(learning="discriminative", weight=0.3),
    "discriminative 1": Row(learning="discriminative", weight=1.0),
    "discriminative 0.3, no selection": Row(NO_SELECTION, learning="discriminative", weight=0.3),
    "cluster starts": Row(learning="starts"),
    "through the sampler": Row(learning="sampler", weight=0.1),
    "start from words, 150 steps": Row({"inversion.initialization": "words", "inversion.steps": "150"}),
    "25 steps": Row({"inversion.steps": "25"}),
    "50 steps": Row({"inversion.steps": "50"}),
    "100 steps": Row({"inversion.steps": "100"}),
    "150 steps": Row({"inversion.steps": "150"}),
    "start from words and images, 50 steps": Row({"inversion.steps": "50"}, learning="words and images"),
    "start from words and images, 100 steps": Row({"inversion.steps": "100"}, learning="words and images"),
    "noisy timesteps": Row({"inversion.timestep_power": "0.5"}),
    "300 steps": Row({"inversion.steps": "300"}),
    "200 images": Row({"generation.images_per_class": "200"}),
    "100 candidates": Row({"selection.candidates": "100"}),
    "codes": Row({"payload": CODES}),
    "both": Row({"payload": BOTH}),
}


@dataclass(frozen=True)
class Cell:
    """What a row is measured on.

    Attributes:
        dataset: "digits", "letters" or a folder.
        budget: Name of the budget.
        seed: Of the distillation and, with ``students``, of the students.
    """

    dataset: str
    budget: str
    seed: int

    @property
    def title(self) -> str:
        """Dataset and budget in words."""
        name = self.dataset if self.dataset in BUDGETS else Path(self.dataset).name
        return f"{name}, {self.budget.removesuffix('B')} bytes a class"


@dataclass(frozen=True)
class Options:
    """What all rows have in common.

    Attributes:
        folder: Where everything is kept.
        students: Of each distillation.
        settings: Of the product; a row's own come before them.
    """

    folder: Path
    students: int
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Distilled:
    """Learned vectors of all classes, as they are given to the generator.

    Attributes:
        vectors: Of each class ``[prompts, vectors, stored_width]``.
        plan: In which number format these are.
        cluster_sizes: Of each class, training images of each prompt; None: prompts are used in turn.
        bytes: Charged to a class, the selection left out.
        layout: Prompts and vectors in words.
        seconds: Of a processor, that learning took.
    """

    vectors: list[np.ndarray]
    plan: EmbeddingPlan
    cluster_sizes: list[list[int]] | None
    bytes: int
    layout: str
    seconds: float


def open_pipeline(options: Options, cell: Cell, changes: Mapping[str, str]) -> Pipeline:
    """The pipeline of a cell; its store is shared by all rows and budgets of a dataset, a seed and a payload."""
    first, students, folder = cell.seed * options.students, options.students, options.folder
    if cell.dataset == "letters" and not (folder / "letters").exists():
        drawn = write_unseen_fonts(folder / f"letters.{os.getpid()}.part", LETTERS, train=300, test=1, side=32)
        drawn.rename(folder / "letters")
    source = {"digits": "digits", "letters": str(folder / "letters")}.get(cell.dataset, cell.dataset)
    # What another payload makes again of the same artefacts stays away from those that other rows read.
    own = f"-{changes['payload']}" if "payload" in changes else ""
    return Pipeline(
        load_settings(
            **(
                {
                    "dataset": source,
                    "home": folder,
                    "storage": str(folder / f"store-{_digest([source])[:8]}-{cell.seed}{own}"),
                    "budgets": (cell.budget,),
                    "seed": cell.seed,
                    "device": "cpu",
                    "workers": 1,
                    "validation_fraction": 0.3,
                    "students.seeds": tuple(range(first, first + students)),
                    "evaluation.distillations": 1,
                }
                | options.settings
                | changes
            )
        )
    )


def make(pipeline: Pipeline, assets: Sequence[str]) -> None:
    """Make artefacts that are not there yet."""
    for asset in assets:
        for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
            if outcome.error:
                raise outcome.error


def measured(options: Options, cell: Cell, name: str) -> dict[str, Any]:
    """Result of a row in a cell, from the folder if it is there.

    Where the row does not fit into the budget, the only entry is "unfit", which says why.
    """
    row = ROWS[name]
    pipeline = open_pipeline(options, cell, row.settings)
    try:
        file = options.folder / "results" / f"{_digest(_row_facts(options, cell, row, pipeline))}.json"
        if file.exists():
            return json.loads(file.read_text())
        try:
            stored = "payload" in row.settings
            result = _of_product(cell, pipeline) if stored else _of_prompts(options, cell, row, pipeline)
        except BudgetError as error:
            result = {"unfit": str(error)}
        _write(file, json.dumps(result).encode())
        return result
    finally:
        pipeline.context.close()


def _row_facts(options: Options, cell: Cell, row: Row, pipeline: Pipeline) -> dict[str, Any]:
    """What decides about the result of a row, the code left out."""
    return {
        "row": asdict(row),
        "cell": asdict(cell),
        "settings": dict(options.settings),
        "students": options.students,
        "model": [pipeline.context.model.files.fingerprint, pipeline.context.model.files.image_encoder_digest],
        "code": [CODE_VERSION, inversion.CODE_VERSION, generation.CODE_VERSION, selection.CODE_VERSION],
    }


def _of_product(cell: Cell, pipeline: Pipeline) -> dict[str, Any]:
    """Accuracy of students of what the product makes from start to end, coded real images among it."""
    begun = time.process_time()
    make(pipeline, MADE)
    context = pipeline.reading(ArtefactKey("student_metrics", None, cell.budget))
    data = synthetic_images(context, cell.budget)
    return {
        "accuracy": measure(context, "levers", lambda seed: data, cell.budget),
        "kept": len(data) / len(context.dataset.classes),
        "seconds": time.process_time() - begun,
    }


def _of_prompts(options: Options, cell: Cell, row: Row, pipeline: Pipeline) -> dict[str, Any]:
    """Accuracy of students of a row, and what their training sets are made of."""
    make(pipeline, [asset for asset in BASE if asset != SelectionModel.name])
    with _judge(options, cell) as judge:
        distilled = _distilled(options, cell, row, pipeline, judge)
        plan = selection_plan(pipeline.context, pipeline.context.budgets[0])
        pools = [_pool(options, pipeline, distilled, k, plan.candidates) for k in range(len(distilled.vectors))]
        begun, images, recognised = time.process_time(), [], []
        for c, (pool, _) in zip(pipeline.context.dataset.classes, pools, strict=True):
            reading = judge.reading(ArtefactKey(SampleSelection.name, c.key, JUDGED))
            seen = see(reading, pool)
            candidates = Candidates(
                seen.features,
                seen.probabilities[:, c.position],
                seen.predicted == c.position,
                real_features(reading, c.key),
                cell.seed,
            )
            recognised.append(float(candidates.recognised.mean()))
            criterion = pipeline.settings.selection.criterion
            images.append(pool[CRITERIA[criterion](candidates, plan.kept) if plan.bytes else np.arange(plan.kept)])
    context = pipeline.reading(ArtefactKey("student_metrics", None, cell.budget))
    accuracy = measure(context, "levers", lambda seed: training_set(images), cell.budget)
    spent = time.process_time() - begun
    return {
        "accuracy": accuracy,
        "layout": distilled.layout,
        "bytes": distilled.bytes + plan.bytes,
        "candidates": plan.candidates,
        "kept": float(np.mean([len(of_class) for of_class in images])),
        "recognised": float(np.mean(recognised)),
        "worst": min(recognised),
        "learning": distilled.seconds,
        "seconds": distilled.seconds + sum(seconds for _, seconds in pools) + spent,
    }


@contextmanager
def _judge(options: Options, cell: Cell) -> Iterator[Pipeline]:
    """A pipeline that has the selecting network, also for rows that select nothing or have no room for it."""
    pipeline = open_pipeline(options, replace(cell, budget=JUDGED), {"selection.criterion": "centres"})
    try:
        make(pipeline, BASE)
        yield pipeline
    finally:
        pipeline.context.close()


def _distilled(options: Options, cell: Cell, row: Row, pipeline: Pipeline, judge: Pipeline) -> Distilled:
    """Learned vectors of all classes, from the folder if they are there.

    Raises:
        BudgetError: What the row stores does not fit.
    """
    context, classes = pipeline.context, pipeline.context.dataset.classes
    keys = [ArtefactKey("inverted_embeddings", c.key, cell.budget) for c in classes]
    items = [context.item(key) for key in keys]
    # One plan for all classes, that of the class with the fewest images.
    plan = min((embedding_plan(context, item) for item in items), key=lambda plan: plan.prompts)
    tasks = [
        replace(inversion_task(pipeline.reading(key), item)[0], plan=plan)
        for key, item in zip(keys, items, strict=True)
    ]
    allowed = items[0].budget.bytes(context.dataset.shape) - selection_plan(context, items[0].budget).bytes
    if row.learning == "basis":
        return _in_basis(options, cell, tasks, pipeline, allowed)
    shares = 0
    if row.cluster_weights:
        if plan.prompts > 1:
            each = plan.payload // plan.prompts + 1
            plan = replace(plan, prompts=max(1, min(plan.prompts, allowed // each)))
        shares = plan.prompts if plan.prompts > 1 else 0
        tasks = [replace(task, plan=plan) for task in tasks]

    def network() -> Teacher:
        reading = judge.reading(ArtefactKey(SampleSelection.name, classes[0].key, JUDGED))
        return loaded_teacher(read_selection_model(reading), context.device)

    def learned(foundation: Foundation) -> list[InvertedClass]:
        return _learned(foundation, tasks, row, pipeline, network)

    facts = {"learning": row.learning, "weight": row.weight}
    found, sizes, seconds = _kept_vectors(options, tasks, pipeline, facts, learned)
    layout = f"{plan.prompts} x {plan.vectors}, {plan.storage_type}"
    return Distilled(found, plan, sizes if row.cluster_weights else None, plan.payload + shares, layout, seconds)


def _learned(
    foundation: Foundation, tasks: Sequence[InversionTask], row: Row, pipeline: Pipeline, network: Callable[[], Teacher]
) -> list[InvertedClass]:
    """Learn the vectors of all classes in the way of a row."""
    settings, seed, cache = pipeline.settings.inversion, pipeline.settings.seed, latent_cache(pipeline.context)
    objective = learning_variants.plain(foundation, settings, seed)
    optimizer = objective.optimizer
    if row.learning == "discriminative":
        objective = DiscriminativeObjective(foundation, settings, seed, optimizer, row.weight)
    elif row.learning == "sampler":
        objective = SamplerObjective(foundation, settings, seed, optimizer, row.weight, network())
    start = {"starts": nearest_of_starts, "words and images": words_and_images}.get(row.learning)
    together = row.learning == "discriminative"
    return learn(foundation, tasks, objective, cache, start=start, together=together)


def _in_basis(
    options: Options, cell: Cell, tasks: Sequence[InversionTask], pipeline: Pipeline, allowed: int
) -> Distilled:
    """Vectors that are combinations of a basis of the vectors that the product learns."""
    width = tasks[0].plan.width
    shared = {rank: math.ceil(rank * width / len(tasks)) for rank in BASES}  # int8, once for all classes
    learned = len(tasks) * tasks[0].plan.prompts * tasks[0].plan.vectors
    rank = next((rank for rank, size in shared.items() if rank <= learned and 2 * size <= allowed), None)
    if rank is None:
        raise BudgetError(f"{allowed} bytes a class and {learned} vectors are too few for a shared basis")
    given = pipeline.settings.inversion
    most = min(given.max_prompts, *(c.n_train for c in pipeline.context.dataset.classes))
    plan = plan_embeddings(cell.budget, allowed - shared[rank], width=rank, storage_type="int4", max_prompts=most)

    def whole(foundation: Foundation) -> list[InvertedClass]:
        return learn(foundation, tasks, learning_variants.plain(foundation, given, cell.seed), cache)

    def combined(foundation: Foundation) -> list[InvertedClass]:
        basis = shared_basis(vectors, foundation.layout, rank)
        return learn_in_basis(foundation, coefficients, given, cell.seed, cache, basis)

    cache = latent_cache(pipeline.context)
    vectors, _, before = _kept_vectors(options, tasks, pipeline, {"learning": "denoising", "weight": 0.0}, whole)
    coefficients = [replace(task, plan=plan) for task in tasks]
    facts = {"learning": "basis", "of": tasks[0].plan.facts()}
    found, _, seconds = _kept_vectors(options, coefficients, pipeline, facts, combined)
    layout = f"{plan.prompts} x {plan.vectors}, {plan.storage_type} in a basis of {rank}"
    fp16 = replace(plan, storage_type="fp16", width=width)
    return Distilled(found, fp16, None, plan.payload + shared[rank], layout, before + seconds)


def _kept_vectors(
    options: Options,
    tasks: Sequence[InversionTask],
    pipeline: Pipeline,
    way: Mapping[str, Any],
    make_them: Callable[[Foundation], list[InvertedClass]],
) -> tuple[list[np.ndarray], list[list[int]], float]:
    """Vectors and cluster sizes of every class, and the processor seconds of learning them; from the folder if they are there."""
    facts = {
        "way": dict(way),
        "images": [task.images.sha256 for task in tasks if isinstance(task.images, ImageFiles)],
        "prompts": [task.prompts.to_json() for task in tasks],
        "plan": tasks[0].plan.facts(),
        "inversion": pipeline.settings.inversion.fingerprint(),
        "start": [pipeline.settings.inversion.initialization, pipeline.context.model.files.image_encoder_digest],
        "seed": pipeline.settings.seed,
        "model": pipeline.context.model.files.fingerprint,
        "code": [CODE_VERSION, inversion.CODE_VERSION],
    }

    def learned() -> dict[str, np.ndarray]:
        results = make_them(pipeline.context.model.reference.load())
        vectors = {f"vectors {k}": result.vectors for k, result in enumerate(results)}
        return vectors | {f"sizes {k}": np.array(result.cluster_sizes) for k, result in enumerate(results)}

    arrays, seconds = _kept(options.folder / "vectors", facts, learned)
    places = range(len(tasks))
    return [arrays[f"vectors {k}"] for k in places], [arrays[f"sizes {k}"].tolist() for k in places], seconds


def _pool(
    options: Options, pipeline: Pipeline, distilled: Distilled, position: int, count: int
) -> tuple[np.ndarray, float]:
    """Samples of a class, uint8 ``[count, H, W, C]``, and the processor seconds of generating them; from the folder if there."""
    context, settings = pipeline.context, pipeline.settings
    c = context.dataset.classes[position]
    prompts = read_prompts(pipeline.reading(ArtefactKey("inverted_embeddings", c.key, context.budgets[0].name)), c.key)
    vectors, plan = distilled.vectors[position], distilled.plan
    if distilled.cluster_sizes is not None:
        # The generator takes prompts in turn, so each sample is given a prompt of its own.
        order = in_proportion(distilled.cluster_sizes[position], count)
        vectors, plan = vectors[order], replace(plan, prompts=count)
    facts = {
        "vectors": hashlib.sha256(vectors.tobytes()).hexdigest(),
        "plan": plan.facts(),
        "prompts": prompts.to_json(),
        "generation": settings.generation.fingerprint(),
        "seed": settings.seed,
        "count": count,
        "model": context.model.files.fingerprint,
        "code": [CODE_VERSION, generation.CODE_VERSION],
    }

    def generated() -> dict[str, np.ndarray]:
        images, _ = generate(
            context.model.reference.load(),
            prompts,
            settings.generation,
            settings.seed,
            count=count,
            vectors=vectors,
            plan=plan,
            channels=context.dataset.scan.channels,
        )
        return {"images": images}

    arrays, seconds = _kept(options.folder / "pools", facts, generated)
    return arrays["images"], seconds


def in_proportion(sizes: Sequence[int], count: int) -> np.ndarray:
    """Prompts of the samples of a class, as often as their clusters are large, however many samples are taken.

    Each sample goes to the prompt that is furthest behind, by the method of Sainte-Laguë. Sizes are rounded as a byte for each
    prompt stores them.

    Args:
        sizes: Of the clusters.
        count: Samples.

    Returns:
        int64 ``[count]``.
    """
    shares = np.maximum(1, np.round(255 * np.array(sizes) / max(sizes)))
    taken, order = np.zeros(len(shares)), np.empty(count, np.int64)
    for k in range(count):
        order[k] = np.argmax(shares / (2 * taken + 1))
        taken[order[k]] += 1
    return order


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: several processes may be at it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)


def _kept(
    folder: Path, facts: Mapping[str, Any], make_them: Callable[[], dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], float]:
    """Arrays and the processor seconds of making them, from the folder if they are there."""
    file = folder / f"{_digest(facts)}.npz"
    if not file.exists():
        begun, content = time.process_time(), io.BytesIO()
        arrays = make_them()
        np.savez(content, **arrays, seconds=np.array(time.process_time() - begun))
        _write(file, content.getvalue())
    with np.load(file) as stored:
        kept = {name: stored[name] for name in stored.files}
    return kept, float(kept.pop("seconds"))


Results = dict[tuple[str, Cell], dict[str, Any]]
"""Of rows in cells."""


def differences(results: Results, name: str, first: str, title: str | None = None) -> list[float]:
    """Mean accuracy of a row less that of the first row in the same cell, for the cells where both are known.

    Args:
        results: All of them.
        name: Of the row.
        first: Of the row that it is compared with.
        title: Of the cells; None: all.
    """
    found = []
    for (row, cell), result in results.items():
        base = results.get((first, cell), {})
        if row == name and title in (None, cell.title) and "accuracy" in result and "accuracy" in base:
            found.append(float(np.mean(result["accuracy"]) - np.mean(base["accuracy"])))
    return found


def as_markdown(results: Results, rows: Sequence[str]) -> str:
    """All results: differences to the first row at a glance, and a table for each dataset and budget."""
    titles = list(dict.fromkeys(cell.title for _, cell in results))
    lines = ["| row | " + " | ".join([*titles, "mean of all"]) + " |", "|---|" + "---|" * (len(titles) + 1)]
    for name in rows:
        cells = [_difference(differences(results, name, rows[0], title)) for title in titles]
        # Without an interval: cells of one seed or dataset are not independent.
        every = differences(results, name, rows[0])
        cells.append(f"{100 * np.mean(every):+.1f}" if every else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    parts = ["\n".join(lines)]
    for title in titles:
        columns = (
            "row",
            "vectors",
            "bytes",
            "kept of",
            "recognised, worst class",
            "accuracy",
            "difference",
            "processor seconds (learning)",
        )
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for name in rows:
            known = [result for (row, cell), result in results.items() if row == name and cell.title == title]
            if known:
                difference = _difference(differences(results, name, rows[0], title))
                lines.append(f"| {name} | {' | '.join([*_cells(known)[:5], difference, *_cells(known)[5:]])} |")
        parts.append(f"## {title[0].upper() + title[1:]}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _difference(values: list[float]) -> str:
    return words(*spread(values), signed=True) if values else "–"


def _cells(results: Sequence[dict[str, Any]]) -> list[str]:
    """Vectors, bytes, kept, recognised, accuracy and seconds of the distillations of a row in words."""
    fitting = [result for result in results if "unfit" not in result]
    if not fitting:
        return ["does not fit", *["–"] * 5]
    first = fitting[0]

    def mean(name: str) -> float:
        return float(np.mean([result[name] for result in fitting]))

    every = ", ".join(f"{100 * accuracy:.1f}" for result in fitting for accuracy in result["accuracy"])
    accuracy = words(*spread([float(np.mean(result["accuracy"])) for result in fitting])) + f" ({every})"
    if "candidates" not in first:
        return ["as stored", "≤ budget", f"{mean('kept'):.1f}", "–", accuracy, f"{mean('seconds'):.0f}"]
    return [
        first["layout"],
        str(first["bytes"]),
        f"{mean('kept'):.0f} of {first['candidates']}",
        f"{100 * mean('recognised'):.1f} %, {100 * mean('worst'):.1f} %",
        accuracy,
        f"{mean('seconds'):.0f} ({mean('learning'):.0f})",
    ]


def _prepare(options: Options, cells: Sequence[Cell], names: Sequence[str]) -> None:
    """Make what all rows of cells of one dataset need, so that no two workers write it."""
    stores = [ROWS[name].settings for name in names if "payload" in ROWS[name].settings]
    for cell in cells:
        with _judge(options, cell):
            pass
        for changes in stores:
            pipeline = open_pipeline(options, replace(cell, budget=JUDGED), changes)
            try:
                make(pipeline, BASE)
            finally:
                pipeline.context.close()


def _work(options: Options, cell: Cell, name: str) -> dict[str, Any]:
    """:func:`measured` in a worker, which may have opened no test split."""
    result = measured(options, cell, name)
    if len(test_split_reads()):
        raise StageError("a row has read the test split")
    return result


def cells_of(datasets: Sequence[str], distillations: int) -> list[Cell]:
    """Datasets as the command line has them, such as ``digits=64B,320B``, at their budgets and all seeds.

    Raises:
        ValueError: A folder has no budgets.
    """
    cells = []
    for given in datasets:
        dataset, _, budgets = given.rpartition("=") if "=" in given else (given, "", "")
        if dataset not in BUDGETS and not budgets:
            raise ValueError(f"{dataset} needs budgets: {dataset}=128B,784B")
        cells += [
            Cell(dataset, budget, seed)
            for budget in (budgets.split(",") if budgets else BUDGETS[dataset])
            for seed in range(distillations)
        ]
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows and write the table after every result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets", nargs="+", default=list(BUDGETS), help="digits, letters or FOLDER, with =BUDGET,..."
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="the first is compared with")
    parser.add_argument("--distillations", type=int, default=3, help="seeds of each row")
    parser.add_argument("--students", type=int, default=2, help="students of each distillation")
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of all rows")
    parser.add_argument("--workers", type=int, default=2, help="processes, each computing on one thread")
    parser.add_argument("--store", type=Path, help="keep everything here; default: a new temporary folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write after every result")
    given = parser.parse_args(arguments)
    try:
        cells = cells_of(given.datasets, given.distillations)
    except ValueError as error:
        parser.error(str(error))
    folder = (given.store or Path(tempfile.mkdtemp(prefix="d3m-levers-"))).absolute()
    options = Options(folder, given.students, dict(item.split("=", 1) for item in given.settings))
    facts = surroundings("cpu")
    words_given = sys.argv[1:] if arguments is None else arguments
    head = (
        f"# Levers at equal bytes, {facts['date'][:10]}\n\n`{shlex.join(['python', '-m', 'benchmarks.levers', *words_given])}`, "
        f"commit {facts['commit'][:7]}, {facts['hardware']['device']}, torch {facts['versions']['torch']}.\n\n"
        f"Per cent on the validation part (30 % of the train split): mean of {given.distillations} distillations from different "
        f"seeds, {given.students} students each (all of them in brackets), and 95 % interval over the distillations. The "
        "difference to the first row is paired by seed. Recognised: share of the candidates that the selecting network takes for "
        "their class. The test split was not opened.\n\n"
    )
    results: Results = {}
    ordered = [(name, cell) for name in given.rows for cell in cells]
    with ProcessPoolExecutor(given.workers, get_context("spawn"), _begin_worker) as pool:
        try:
            by_dataset = [[c for c in cells if c.dataset == d] for d in dict.fromkeys(c.dataset for c in cells)]
            list(pool.map(_prepare, *zip(*[(options, cells, given.rows) for cells in by_dataset], strict=True)))
            pending = {pool.submit(_work, options, cell, name): (name, cell) for name, cell in ordered}
            for future in as_completed(pending):
                name, cell = pending[future]
                results[name, cell] = future.result()
                shown = " | ".join(_cells([results[name, cell]]))
                print(f"{cell.title}, seed {cell.seed} | {name} | {shown}", flush=True)
                if given.output:
                    table = as_markdown({key: results[key] for key in ordered if key in results}, given.rows)
                    given.output.write_text(head + table)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
