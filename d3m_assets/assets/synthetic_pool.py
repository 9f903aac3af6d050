"""``synthetic_pool``: labelled images of the payload of a class: generated, all candidates of its selection, or coded."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.class_prompts import ClassPrompts, read_prompts
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.image_codes import ImageCodes, codes_key, read_images, read_numbers
from d3m_assets.assets.inverted_embeddings import (
    RECORD,
    InvertedEmbeddings,
    class_selection_plan,
    embedding_plan,
    read_vectors,
    vectors_key,
)
from d3m_assets.assets.raw_dataset import RawDataset
from d3m_assets.datasets.images import contact_sheet, decode_png, encode_png
from d3m_assets.datasets.labelled_images import resize_to_square
from d3m_assets.distillation import generation
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.generation import Sample, generate
from d3m_assets.distillation.prompts import ClassPrompts as Prompts
from d3m_assets.distillation.settings import BOTH, CODES, GenerationSettings
from d3m_assets.errors import D3MError, StageError
from d3m_assets.exports.image_record import CODED, image_name
from d3m_assets.foundation.model import ModelReference
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.planning.versions import Version, stored_version
from d3m_assets.progress import Progress
from d3m_assets.store import ArtefactKey, Manifest, Store, asset_of

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.datasets.dataset import DatasetClass

FILE = "pool.parquet"
PREVIEW_IMAGES = 30


class SyntheticPool(Asset):
    """Labelled images generated from the vectors of a class, of which ``sample_selection`` keeps the training set.

    With ``payload=codes`` the decoded images of the class; with ``both`` and ``auto`` codes are decoded where they are used. A
    cache: the payload can always give them again.
    """

    group = "distillation"
    partitions = ("class", "budget")
    replicated = True
    deps = (InvertedEmbeddings, ImageCodes, ClassPrompts, FoundationModel)
    kinds = frozenset({"pytorch", "parquet"})
    code_version = generation.CODE_VERSION
    device = True
    checks = (
        Check("complete_and_of_the_right_classes", "Every stored pool has all its images, labelled with its class."),
    )

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How images are generated, how many, and their channels; of coded images their shape."""
        if context.settings.payload == CODES:
            return {"image": context.image_shape}
        described = generation_fingerprint(context, item.seed) | {"channels": context.dataset.scan.channels}
        candidates = class_selection_plan(context, item).candidates
        if candidates != context.settings.generation.images_per_class:
            described["candidates"] = candidates
        return described

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """Codes, or what images are generated from: with another payload a new code must not generate them again."""
        if context.settings.payload == CODES:
            return (ImageCodes,)
        return (InvertedEmbeddings, ClassPrompts, FoundationModel)

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Generate or decode the pools of classes; each is yielded as it finishes."""
        if context.settings.payload == CODES:
            yield from super().make(context, items)
            return
        jobs: dict[Item, GenerationJob] = {}
        for item in items:
            try:
                own = context.for_item(item)
                jobs[item] = generation_job(own, _source(own, item))
            except D3MError as error:
                yield Made(item.key, error=error)
        ready, labels = list(jobs), [item.label for item in jobs]
        for index, result in context.map_in_workers(self.name, generate_images, list(jobs.values()), labels):
            item = ready[index]
            if isinstance(result, D3MError):
                yield Made(item.key, error=result)
                continue
            images, samples = result
            table = pool_table(jobs[item].prompts, images, samples).assign(**_lineage(context.for_item(item), item))
            yield Made(item.key, {FILE: to_parquet(table)}, {"images": len(table), "size": images.shape[1]})

    def make_one(self, context: Context, item: Item) -> Made:
        """Decode the pool of a class whose payload is image codes."""
        table = coded_table(context, item.dataset_class, item.budget.name, item.replicate)
        return Made(item.key, {FILE: to_parquet(table)}, {"coded images": len(table)})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """A contact sheet, and where the first images come from."""
        table = from_parquet(context.inputs.read(item.key, FILE))
        images = pool_images(table.head(PREVIEW_IMAGES))
        if is_coded(table):
            return {"rows": len(table), "coded_images_png": contact_sheet(images, 10, 4)}
        return {
            "rows": len(table),
            "synthetic_images_png": contact_sheet(images, 10, 2),
            "lineage": lineage_table(context, item, table.head(5)),
        }

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Whether all images are there, and of the class."""
        table = from_parquet(context.inputs.read(item.key, FILE))
        coded, dataset_class = context.settings.payload == CODES, item.dataset_class
        expected = max(1, len(table)) if coded else class_selection_plan(context, item).candidates
        if is_coded(table) != coded:
            yield Finding(f"images of another payload than {context.settings.payload}")
        if list(table["index"]) != list(range(expected)):
            yield Finding(f"{len(table)} images, not samples 0 to {expected - 1}")
        if set(table["class_id"]) != {dataset_class.class_id} or set(table["class_name"]) != {dataset_class.name}:
            yield Finding(f"images of class {sorted(set(table['class_name']))}, not of {dataset_class.name}")


CLASS_NAME_GUIDANCE = 2.0
"""Least guidance of class-name prompts: with less they teach students less, learned vectors do not
(``benchmarks/results/defaults-2026-11-28.md``), and what D3M is compared with should not be weakened by what suits D3M."""


def class_name_generation(context: Context) -> GenerationSettings:
    """How images of class names alone are sampled."""
    settings = context.settings.generation
    return settings.model_copy(update={"guidance_scale": max(settings.guidance_scale, CLASS_NAME_GUIDANCE)})


def generation_fingerprint(context: Context, seed: int, settings: GenerationSettings | None = None) -> dict[str, Any]:
    """What decides about generated images beside model, prompts and vectors.

    Args:
        context: Says how they are sampled, and by which autoencoder they are decoded.
        seed: Root of the random streams.
        settings: How they are sampled, where it is not as D3M's.
    """
    generation_settings = (settings or context.settings.generation).fingerprint()
    tiny = context.model.tiny_autoencoder
    if tiny is not None:
        generation_settings |= {"autoencoder": tiny.fingerprint}
    return {"generation": generation_settings, "seed": seed, "device": context.device_kind}


@dataclass(frozen=True)
class GenerationJob:
    """Images of one class that a worker generates.

    Attributes:
        model: Of the foundation model.
        prompts: Of the class.
        settings: Sampler, steps, guidance.
        seed: Root of the random streams.
        count: Images.
        channels: 1 makes them grey.
        vectors: Stored vectors ``[prompts, vectors, stored_width]``; None generates from the class name.
        plan: How the vectors were planned.
    """

    model: ModelReference
    prompts: Prompts
    settings: GenerationSettings
    seed: int
    count: int
    channels: int
    vectors: np.ndarray | None = None
    plan: EmbeddingPlan | None = None


def generation_job(context: Context, source: ArtefactKey, count: int | None = None) -> GenerationJob:
    """The job that generates images from stored vectors, at the seed of their replicate.

    Args:
        context: Of an asset that declares the vectors and the prompts of the class as inputs.
        source: Key of the ``inverted_embeddings``.
        count: Images; None: all candidates of the class's selection.
    """
    item = context.item(source)
    count = class_selection_plan(context, item).candidates if count is None else count
    prompts, plan = read_prompts(context, item.dataset_class.key), embedding_plan(context, item)
    return _job(context, prompts, item.seed, count, read_vectors(context, source), plan)


def class_name_job(context: Context, prompts: Prompts, seed: int, count: int) -> GenerationJob:
    """The job that generates ``count`` images from the name of a class alone."""
    return replace(_job(context, prompts, seed, count), settings=class_name_generation(context))


def _job(
    context: Context,
    prompts: Prompts,
    seed: int,
    count: int,
    vectors: np.ndarray | None = None,
    plan: EmbeddingPlan | None = None,
) -> GenerationJob:
    settings, channels = context.settings.generation, context.dataset.scan.channels
    return GenerationJob(context.model.reference, prompts, settings, seed, count, channels, vectors, plan)


def generate_images(job: GenerationJob, progress: Progress) -> tuple[np.ndarray, list[Sample]]:
    """Generate the images of a job, in a worker: uint8 ``[count, H, W, channels]``, and where each came from."""
    return generate(
        job.model.load(),
        job.prompts,
        job.settings,
        job.seed,
        count=job.count,
        vectors=job.vectors,
        plan=job.plan,
        channels=job.channels,
        autoencoder=job.model.load_autoencoder(),
        progress=progress,
    )


def pool_table(prompts: Prompts, images: np.ndarray, samples: Sequence[Sample]) -> pd.DataFrame:
    """One row an image; ``image`` is laid out as the Hugging Face ``Image`` feature is."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "image": {"bytes": encode_png(image), "path": f"{prompts.class_name}/{image_name(sample.index)}"},
                "class_id": prompts.class_id,
                "class_name": prompts.class_name,
                "index": sample.index,
                "seed": sample.seed,
                "prompt_index": sample.prompt_index,
                "prompt": sample.prompt,
            }
            for image, sample in zip(images, samples, strict=True)
        ]
    )


def coded_table(context: Context, dataset_class: DatasetClass, budget: str, replicate: int = 0) -> pd.DataFrame:
    """One row an image that is decoded from the stored code of a class, as :func:`pool_table` has them, with its origin.

    Beside generated images, with ``payload=both``, they have the size of those.
    """
    import pandas as pd

    source = codes_key(context, dataset_class.key, budget, replicate)
    images, numbers = read_images(context, source), read_numbers(context, source)
    if context.settings.payload == BOTH:
        images = resize_to_square(images, context.model.files.image_size, context.dataset.scan.channels)
    codes = context.inputs.manifest(source)
    assert codes is not None  # its code was just read
    columns = {
        "image": [
            {"bytes": encode_png(image), "path": f"{dataset_class.name}/{image_name(k)}"}
            for k, image in zip(numbers, images, strict=True)
        ],
        "class_id": dataset_class.class_id,
        "class_name": dataset_class.name,
        "index": numbers,
        "origin": CODED,
        "codes_fingerprint": codes.fingerprint,
        "raw_dataset_fingerprint": _raw_dataset(codes),
    }
    return pd.DataFrame(columns, index=range(len(numbers)))


def is_coded(table: pd.DataFrame) -> bool:
    """Whether the images of a pool are coded real images."""
    return "origin" in table


def _source(context: Context, item: Item) -> ArtefactKey:
    return vectors_key(context, item.dataset_class.key, item.budget.name, item.replicate)


def _lineage(context: Context, item: Item) -> dict[str, str]:
    """Fingerprints of what a pool was made from, for every row of it."""
    embeddings = context.inputs.manifest(_source(context, item))
    assert embeddings is not None  # its vectors were just read
    return {
        "embeddings_fingerprint": embeddings.fingerprint,
        "raw_dataset_fingerprint": _raw_dataset(embeddings),
        "foundation_fingerprint": context.model.files.fingerprint,
    }


def _raw_dataset(payload: Manifest) -> str:
    """Fingerprint of the real images that a payload was made from."""
    return next((p for name, p in payload.inputs.items() if asset_of(name) == RawDataset.name), "")


def lineage_table(context: Context, item: Item, rows: pd.DataFrame) -> pd.DataFrame:
    """Where images of a pool come from, by name: class, prompt, seed, vectors, real images, model.

    Args:
        context: Reading the pool.
        item: The pool.
        rows: Some of its rows.
    """
    import pandas as pd

    source = _source(context, item)
    stored = context.inputs.manifest(source)
    sizes: list[int] = json.loads(context.inputs.read(source, RECORD))["cluster_sizes"] if stored else []
    model = context.model

    def origin(row: dict[Hashable, Any]) -> dict[str, Any]:
        fingerprint, prompt = row["embeddings_fingerprint"], row["prompt_index"]
        current = stored is not None and stored.fingerprint == fingerprint
        learned = (
            f"{source}, learned {stored.created}" if stored and current else f"replaced since ({fingerprint[:12]})"
        )
        same_model = model.files.fingerprint == row["foundation_fingerprint"]
        return {
            "image": row["index"],
            "class": row["class_name"],
            "prompt": row["prompt"],
            "seed": row["seed"],
            "vectors": learned,
            "learned from real images": f"{sizes[prompt]} of {sum(sizes)}" if current and sizes else "not recorded",
            "model": model.name if same_model else f"another ({row['foundation_fingerprint'][:12]})",
        }

    return pd.DataFrame([origin(row) for row in rows.to_dict("records")])


def pool_images(table: pd.DataFrame) -> np.ndarray:
    """Decoded images of a pool, uint8 ``[N, H, W, C]``."""
    return np.stack([decode_png(image["bytes"]) for image in table["image"]])


def read_pool(context: Context, class_key: str, budget: str, replicate: int = 0) -> pd.DataFrame:
    """The stored pool of a class."""
    (key,) = context.inputs.keys(SyntheticPool, class_key=class_key, budget=budget, replicate=replicate)
    return from_parquet(context.inputs.read(key, FILE))


def pool_versions(store: Store, bundle: Version, class_keys: Iterable[str]) -> dict[str, Version]:
    """The stored pools that were made from the payloads of a bundle, by class key.

    Raises:
        StageError: A pool was made from other vectors or codes.
    """
    found: dict[str, Version] = {}
    for key in class_keys:
        pool = stored_version(store, ArtefactKey(SyntheticPool.name, key, bundle.key.budget))
        if pool is None:
            continue
        vectors, codes = (str(ArtefactKey(a.name, key, bundle.key.budget)) for a in (InvertedEmbeddings, ImageCodes))
        of_pool, of_bundle = pool.manifest.inputs, bundle.manifest.inputs
        same_vectors = of_pool.get(vectors) == of_bundle.get(vectors)
        if not same_vectors or (codes in of_pool and of_pool[codes] != of_bundle.get(codes)):
            raise StageError(
                f"{pool.key} was generated from another version of the {'codes' if same_vectors else 'vectors'} than the bundle; "
                "`d3m distill` brings both up to date"
            )
        found[key] = pool
    return found
