"""Where the first distilled images of each class come from, as the report shows it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.assets.context import Context
from d3m_assets.assets.image_codes import coded_from, codes_key
from d3m_assets.assets.inverted_embeddings import InvertedEmbeddings, learned_from, training_facts
from d3m_assets.assets.payload_choice import chosen_parts, read_coded
from d3m_assets.assets.sample_selection import read_selected
from d3m_assets.assets.synthetic_pool import SyntheticPool
from d3m_assets.datasets.images import decode_png, load_images
from d3m_assets.distillation.settings import CODES, PROMPTS
from d3m_assets.planning.versions import made

if TYPE_CHECKING:
    from d3m_assets.datasets.dataset import DatasetClass
    from d3m_assets.evaluation.report.origins import Origin
    from d3m_assets.planning.versions import Version

MOST_ORIGINS = 2
"""Prompts, and coded images, of a class at a budget of which the first image is shown."""
REAL_IMAGES = 4


def image_origins(context: Context) -> dict[str, list[Origin]]:
    """Chains of the first images of every class at every budget, by class name; of many classes, the first.

    Args:
        context: Of an asset that declares the pools as inputs; what those were made from is read through them.
    """
    from d3m_assets.evaluation.report.tables import MAX_CLASSES

    return {
        c.name: [origin for budget in context.budgets for origin in _origins(context, c, budget.name)]
        for c in context.dataset.classes[:MAX_CLASSES]
    }


def _origins(context: Context, dataset_class: DatasetClass, budget: str) -> list[Origin]:
    parts = chosen_parts(context, budget)
    return [
        *(_generated_origins(context, dataset_class, budget) if PROMPTS in parts else []),
        *(_coded_origins(context, dataset_class, budget) if CODES in parts else []),
    ]


def _generated_origins(context: Context, dataset_class: DatasetClass, budget: str) -> list[Origin]:
    """The first image of the first prompts of a class, each with the real images that its prompt was learned from."""
    from d3m_assets.evaluation.report.origins import Origin

    (key,) = context.inputs.keys(SyntheticPool, class_key=dataset_class.key, budget=budget, replicate=0)
    pool = context.inputs.version(key)
    assert pool is not None  # its images are on the page
    vectors = next(
        (found for name in pool.input_names(InvertedEmbeddings.name) if (found := pool.made_from(name))), None
    )
    origins = []
    rows = read_selected(context, dataset_class.key, budget).drop_duplicates("prompt_index").head(MOST_ORIGINS)
    for row in rows.to_dict("records"):
        prompt = int(row["prompt_index"])
        images = learned_from(vectors, prompt) if vectors is not None else None
        real, paths = _real_images(context, [image["relative_path"] for image in images or ()])
        origins.append(
            Origin(
                image=decode_png(row["image"]["bytes"]),
                budget=budget,
                index=int(row["index"]),
                prompt=str(row["prompt"]),
                seed=str(row["seed"]),
                vectors=_vectors(vectors, prompt),
                made=_made(vectors),
                real=real,
                real_count=None if images is None else len(images),
                real_paths=paths,
                command=f"d3m lineage --pool {budget} --class {shlex.quote(dataset_class.name)} --index {row['index']}",
            )
        )
    return origins


def _coded_origins(context: Context, dataset_class: DatasetClass, budget: str) -> list[Origin]:
    """The first coded images of a class, each beside the real image that it is."""
    from d3m_assets.evaluation.report.origins import Origin

    codes = context.inputs.version(codes_key(context, dataset_class.key, budget))
    origins = []
    for row in read_coded(context, dataset_class.key, budget).head(MOST_ORIGINS).to_dict("records"):
        index = int(row["index"])
        members = coded_from(codes, index) if codes is not None else None
        real, paths = _real_images(context, [] if members is None else members["relative_path"].tolist())
        origins.append(
            Origin(
                image=decode_png(row["image"]["bytes"]),
                budget=budget,
                index=index,
                prompt="none: a coded real image",
                seed="none",
                vectors=_codes(codes),
                made=_made(codes),
                real=real,
                real_count=None if members is None else len(members),
                real_paths=paths,
                command=f"d3m lineage --pool {budget} --class {shlex.quote(dataset_class.name)} --index {index}",
            )
        )
    return origins


def _codes(codes: Version | None) -> list[str]:
    if codes is None:
        return ["not known to the store"]
    return [f"{codes.key}, version {codes.manifest.fingerprint[:12]}", f"codec: {codes.manifest.metrics['codec']}"]


def _real_images(context: Context, paths: list[str]) -> tuple[np.ndarray, list[str]]:
    """The first of some real images, at their stored size, and their paths."""
    shape = context.dataset.shape
    dataset = context.dataset
    records = [record for path in paths if (record := dataset.record(path))][:REAL_IMAGES]
    size = (shape.height, shape.width)
    images = load_images(dataset.source.read, records, size=size, channels=dataset.scan.channels)
    return images, [record.relative_path for record in records]


def _vectors(vectors: Version | None, prompt: int) -> list[str]:
    if vectors is None:
        return ["not known to the store"]
    facts = training_facts(vectors, prompt)
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "learned from"]
    return [f"{vectors.key}, version {vectors.manifest.fingerprint[:12]}", *lines]


def _made(vectors: Version | None) -> list[str]:
    if vectors is None:
        return []
    facts = made(vectors)
    return [f"{name}: {value}" for name, value in facts.items() if name != "versions"]
