"""Looking at what is stored: what the UI shows of an artefact, and whether its content is sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import contact_sheet, load_images
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.errors import D3MError, StageError
from d3m_assets.pipeline import METRIC_ASSETS, Pipeline, Problem
from d3m_assets.stages.artefacts import read_table, required
from d3m_assets.stages.audit import stored_audit
from d3m_assets.stages.dataset import image_table
from d3m_assets.stages.distillation import pool_images, read_vectors
from d3m_assets.stages.teacher import loaded_teacher, stored_teacher
from d3m_assets.store import ArtefactKey

SAMPLES_SHOWN = 30
"""Images on a contact sheet."""
_SUMMARY = ["method", "budget", "labels", "architecture", "augmentation", "mean", "half_width", "n", "n_train_images"]


def describe(pipeline: Pipeline, key: ArtefactKey) -> dict[str, Any]:
    """What is worth showing of a stored artefact: see :meth:`Pipeline.describe`."""
    manifest = pipeline.store.manifest(key)
    if manifest is None:
        return {}
    shown: dict[str, Any] = {k: v for k, v in manifest.metrics.items() if v is not None}
    if key.asset == "class_catalog":
        table = read_table(pipeline, key, "catalog.parquet")
        shown |= {"rows": len(table), "classes_table": table.drop(columns="fingerprint")}
    elif key.asset == "raw_dataset":
        rows = image_table(pipeline, "train", key.class_key)
        scan = pipeline.scan()
        uris = list(rows.sort_values("sha256")["uri"].head(SAMPLES_SHOWN))
        size = _shown_size(scan.image_height, scan.image_width)
        shown |= {"rows": sum(int(manifest.metrics[s]) for s in ("train", "validation", "test"))}
        shown["real_images_png"] = contact_sheet(load_images(uris, size=size, channels=scan.channels), 10, 4)
    elif key.asset == "inverted_embeddings":
        record = json.loads(pipeline.store.read(key, "training.json"))
        shown |= {"prompt": record["prompts"][0]}
        if record["losses"]:
            shown |= {"loss_curve_png": _curve(record["losses"]), "cluster sizes": str(record["cluster_sizes"]),
                      "fixed-input loss": pd.DataFrame(record["losses"], columns=["step", "loss"])}  # fmt: skip
    elif key.asset == "synthetic_pool":
        table = read_table(pipeline, key, "pool.parquet")
        images = pool_images(table.head(SAMPLES_SHOWN))
        shown |= {"rows": len(table), "synthetic_images_png": contact_sheet(images, 10, 2),
                  "lineage": table.drop(columns="image").head(5)}  # fmt: skip
    elif key.asset == "repeated_pools":
        table = read_table(pipeline, key, "pools.parquet")
        first = table.groupby("distillation", sort=False).head(10)
        shown |= {
            "rows": len(table),
            "first images of every distillation_png": contact_sheet(pool_images(first), 10, 2),
        }
    elif key.asset == "pool_labels":
        table = read_table(pipeline, key, "labels.parquet")
        shown |= {"rows": len(table), "teacher's classes": table["teacher_class"].value_counts().reset_index()}
    elif key.asset in METRIC_ASSETS:
        from d3m_assets.evaluation.statistics import summarize

        summary = summarize(read_table(pipeline, key, "metrics.parquet"))
        shown |= {"rows": len(summary), "summary": summary[_SUMMARY]}
    elif key.asset == "pool_audit":
        audit = stored_audit(pipeline, key)
        shown |= {"rows": audit["images"], "classes_table": pd.DataFrame(audit["classes"])}
    elif key.asset == "distilled_bundle":
        bundle = Bundle.from_bytes(pipeline.store.read(key, "bundle.safetensors"), str(key))
        shown |= {"ledger": bundle.ledger(), "file": pipeline.store.uri(key, "bundle.safetensors")}
    elif key.asset == "distillation_report":
        from d3m_assets.evaluation.statistics import compare_all, headline, summarize

        metrics = read_table(pipeline, key, "metrics.parquet")
        shown |= {"verdict": headline(compare_all(metrics)), "file": pipeline.store.uri(key, "report.html"),
                  "summary": summarize(metrics)[["method", "labels", "architecture", "augmentation", "budget", "mean",
                                                "half_width"]]}  # fmt: skip
    elif key.asset == "teacher_model":
        record = json.loads(pipeline.store.read(key, "teacher.json"))
        shown["accuracy by class"] = pd.DataFrame(
            {"class": record["class_names"], "held-out accuracy": record["class_accuracy"]}
        )
    return shown


def _shown_size(height: int, width: int, longest: int = 64) -> tuple[int, int]:
    factor = min(1.0, longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _curve(losses: Sequence[Sequence[float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2.2), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in losses], [loss for _, loss in losses])
    axes.set_xlabel("step")
    axes.set_ylabel("loss on fixed inputs")
    out = BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def verify(pipeline: Pipeline, asset: str) -> list[Problem]:
    """Read what is stored of an asset: see :meth:`Pipeline.verify`."""
    inspectors: dict[str, Callable[[Pipeline, ArtefactKey], list[Problem]]] = {
        "inverted_embeddings": _verify_embeddings, "synthetic_pool": _verify_pool, "pool_audit": _verify_audit,
        "teacher_model": _verify_teacher,
    }  # fmt: skip
    if asset not in inspectors:
        raise StageError(f"{asset} cannot be verified; only {', '.join(inspectors)} can")
    problems = []
    for key in pipeline.keys(asset):
        try:
            if pipeline.store.manifest(key) is None:
                problems.append(Problem(key, f"{key} is missing; `d3m distill` makes it", "warning"))
                continue
            problems += inspectors[asset](pipeline, key)
        except (D3MError, OSError, ValueError, KeyError) as error:
            problems.append(Problem(key, f"{key} cannot be read: {error}"))
    return problems


def _verify_embeddings(pipeline: Pipeline, key: ArtefactKey) -> list[Problem]:
    vectors = read_vectors(pipeline, key)
    allowed = pipeline.budget_bytes(required(key.budget))
    found = []
    if not np.isfinite(vectors.astype(np.float32)).all() or not np.any(vectors, axis=-1).all():
        found.append("a vector is zero or not finite")
    if vectors.nbytes > allowed:
        found.append(f"{vectors.nbytes} bytes of vectors, but the budget allows {allowed}")
    return [Problem(key, f"{key}: {text}") for text in found]


def _verify_pool(pipeline: Pipeline, key: ArtefactKey) -> list[Problem]:
    table = read_table(pipeline, key, "pool.parquet")
    prompts = pipeline.prompts(required(key.class_key))
    wanted, found = pipeline.settings.generation.images_per_class, []
    if list(table["index"]) != list(range(wanted)):
        found.append(f"{len(table)} images, not samples 0 to {wanted - 1}")
    if set(table["class_id"]) != {prompts.class_id} or set(table["class_name"]) != {prompts.class_name}:
        found.append(f"images of class {sorted(set(table['class_name']))}, not of {prompts.class_name}")
    return [Problem(key, f"{key}: {text}") for text in found]


def _verify_audit(pipeline: Pipeline, key: ArtefactKey) -> list[Problem]:
    from d3m_assets.evaluation.audit import findings

    found = findings(stored_audit(pipeline, key), pipeline.settings.audit)
    return [Problem(key, f"{key}: {f.text}", f.severity, f.check) for f in found]


def _verify_teacher(pipeline: Pipeline, key: ArtefactKey) -> list[Problem]:
    from scipy.stats import binom  # type: ignore[import-untyped]

    loaded_teacher(stored_teacher(pipeline), "cpu")  # raises when it is of other classes or in another order
    record = json.loads(pipeline.store.read(key, "teacher.json"))
    share = image_table(pipeline, "validation")["class_id"].value_counts(normalize=True).max()
    n, accuracy = record["n_validation"], record["accuracy"]
    # Who always names the largest class is right as often, or by luck a little more often.
    if round(accuracy * n) <= binom.ppf(0.95, n, share):
        text = f"right on {accuracy:.0%} of {n} held-out images, no better than a guess; raise teacher.steps"
        return [Problem(key, f"{key}: {text}")]
    return []
