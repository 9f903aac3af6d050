"""The stage that looks for faults in a synthetic pool, before anything is trained on it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.errors import D3MError
from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import ProgressEvent
from d3m_assets.stages.artefacts import Made, required, to_json, to_parquet, where
from d3m_assets.stages.dataset import image_table, labelled_images
from d3m_assets.stages.evaluation import synthetic_images
from d3m_assets.store import ArtefactKey
from d3m_assets.workers import one_thread

if TYPE_CHECKING:
    import torch

    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.audit import ImageSet


SCORES = ("precision", "recall", "density", "coverage")


def pool_audit(pipeline: Pipeline, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Audit the pools of budgets against the train split and the validation part; never the test split."""
    from d3m_assets.evaluation.audit import ImageSet, audit_pool

    if not keys:
        return
    settings, catalog = pipeline.settings.audit, pipeline.catalog()
    pipeline.progress(ProgressEvent("pool_audit", 0, len(keys), "training the network that sees features"))
    try:
        rows = image_table(pipeline, "train")
        train = labelled_images(pipeline, rows, "train")
        network, side = feature_network(pipeline, train)
        real = _seen(train, train, network, side)
        held_out_rows = image_table(pipeline, "validation")
        if len(held_out_rows):
            held_out = _seen(labelled_images(pipeline, held_out_rows, "validation"), train, network, side)
        else:
            held_out = ImageSet(real.labels[:0], {name: points[:0] for name, points in real.spaces.items()})
    except D3MError as error:
        yield from (Made(key, error=error) for key in keys)
        return
    for done, key in enumerate(keys):
        pipeline.progress(ProgressEvent("pool_audit", done, len(keys), where(key)))
        try:
            pool = _seen(synthetic_images(pipeline, required(key.budget)), train, network, side)
            with one_thread():
                found = audit_pool(pool, real, held_out, n_classes=len(catalog), quantile=settings.quantile,
                                   neighbours=settings.neighbours)  # fmt: skip
        except D3MError as error:
            yield Made(key, error=error)
            continue
        summary = found.summary | _scores(real, pool, len(catalog))
        of_classes = zip(catalog["class_name"], summary.pop("class_scores"), summary["classes"], strict=True)
        summary["classes"] = [{"class_name": name, **c, **scored} for name, scored, c in of_classes]
        table = _with_names(found.images, catalog, rows)
        files = {"images.parquet": to_parquet(table), "audit.json": to_json(_without_nan(summary))}
        metrics = {name: summary[name] for name in ("images", "memorised", "near_duplicate", "off_class", *SCORES)}
        spreads = [c["spread"] for c in summary["classes"] if not math.isnan(c["spread"])]
        yield Made(key, files, metrics | {"smallest spread": min(spreads, default=float("nan"))})


def stored_audit(pipeline: Pipeline, key: ArtefactKey) -> dict[str, Any]:
    """The stored summary of an audit; null for what is not a number."""
    found: dict[str, Any] = json.loads(pipeline.store.read(key, "audit.json"))
    return found


def feature_network(pipeline: Pipeline, train: LabelledImages) -> tuple[torch.nn.Module, int]:
    """The network whose features are compared, and the side in px of its input: a ConvNet-3 trained on the train split."""
    from d3m_assets.evaluation.settings import StudentSettings
    from d3m_assets.evaluation.students import student_image_size, train_student

    students = pipeline.settings.students
    settings = StudentSettings(steps=pipeline.settings.audit.steps, image_size=students.image_size, flip=students.flip)
    side = student_image_size(settings, *train.images.shape[1:3])
    network = train_student(
        train.resized(side, train.images.shape[3]), settings, n_classes=len(pipeline.catalog()), seed=pipeline.settings.seed,
        device=pipeline.device,
    )  # fmt: skip
    return network, side


def _seen(images: LabelledImages, train: LabelledImages, network: torch.nn.Module, side: int) -> ImageSet:
    """Images as pixels, at the size real ones are stored in, and as features."""
    from d3m_assets.evaluation.architectures import last_features
    from d3m_assets.evaluation.audit import ImageSet

    height, width, channels = train.images.shape[1:]
    features = last_features(network, images.resized(side, channels).images)
    return ImageSet.of(images.resized(min(height, width), channels), features)


def _scores(real: ImageSet, pool: ImageSet, n_classes: int) -> dict[str, Any]:
    """Precision, recall, density and coverage of a pool in features, together and of every class."""
    from d3m_assets.evaluation.scores import NEIGHBOURS, class_coverage, coverage_scores

    ours, theirs = pool.spaces["features"], real.spaces["features"]
    classes = class_coverage(theirs, real.labels, ours, pool.labels, n_classes=n_classes)
    return {
        **asdict(coverage_scores(theirs, ours)),
        "scores_k": NEIGHBOURS,
        "class_scores": [asdict(c) for c in classes],
    }


def _with_names(images: pd.DataFrame, catalog: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Positions replaced by what they stand for: classes by id and name, training images by their path."""
    label = images["label"].to_numpy()
    named = {
        "class_id": catalog["class_id"].to_numpy()[label],
        "class_name": catalog["class_name"].to_numpy()[label],
        "index": images.groupby("label").cumcount().to_numpy(),
        "judged_class": catalog["class_name"].to_numpy()[images["judged_class"].to_numpy()],
    }
    paths = train["relative_path"].to_numpy()
    named |= {name: paths[images[name].to_numpy()] for name in images.columns if name.endswith("_nearest")}
    others = images.drop(columns=["label", *(n for n in named if n in images)])
    return pd.DataFrame(named).join(others)


def _without_nan(value: Any) -> Any:
    """The same with null for what is not a number, which JSON cannot write."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
