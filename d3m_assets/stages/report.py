"""The stage that tells: the report, with its ledger, sample grids and provenance."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from d3m_assets.datasets.images import load_images
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.ledger import Kind, LedgerLine, distillation_ledger
from d3m_assets.pipeline import METRIC_ASSETS, Pipeline
from d3m_assets.stages.artefacts import Made, read_table, required, to_parquet
from d3m_assets.stages.audit import stored_audit
from d3m_assets.stages.dataset import image_table
from d3m_assets.stages.distillation import pool_images
from d3m_assets.stages.evaluation import TEACHER_FILE, all_metrics
from d3m_assets.stages.pool_labels import agreement_rows
from d3m_assets.stages.rows import stored_label_bytes
from d3m_assets.stages.teacher import stored_teacher
from d3m_assets.store import ArtefactKey
from d3m_assets.workers import cores


def distillation_report(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """The report of everything that was measured."""
    from d3m_assets.evaluation.audit import findings
    from d3m_assets.evaluation.report import render_report

    audits = {required(k.budget): stored_audit(pipeline, k) for k in pipeline.keys("pool_audit")}
    metrics = all_metrics(pipeline)
    catalog, budgets = pipeline.catalog(), pipeline.settings.budgets
    page = render_report(
        metrics, _ledger(pipeline), sample_grids(pipeline), _provenance(pipeline),
        class_names=list(catalog["class_name"]), dataset=pipeline.dataset_name, audits=audits,
        findings={budget: findings(summary, pipeline.settings.audit) for budget, summary in audits.items()},
        agreement=agreement_rows(pipeline), teacher_accuracy=_teacher_accuracy(pipeline),
    )  # fmt: skip
    facts = {"classes": len(catalog), "budgets": len(budgets), "students": len(metrics)}
    return Made(key, {"report.html": page.encode(), "metrics.parquet": to_parquet(metrics)}, facts)


def _teacher_accuracy(pipeline: Pipeline) -> float | None:
    key = ArtefactKey("whole_dataset_metrics")
    manifest = pipeline.store.manifest(key)
    if manifest is None or TEACHER_FILE not in manifest.files:
        return None
    return float(json.loads(pipeline.store.read(key, TEACHER_FILE))["accuracy"])


def _ledger(pipeline: Pipeline) -> pd.DataFrame:
    kinds, catalog = pipeline.settings.evaluation.labels, pipeline.catalog()
    bundles, pools = {}, {}
    for key in pipeline.keys("distilled_bundle"):
        name = required(key.budget)
        bundles[name] = Bundle.from_bytes(pipeline.store.read(key, "bundle.safetensors"), str(key)).byte_counts()
        pools[name] = sum(_bytes(pipeline, k) for k in pipeline.keys("synthetic_pool") if k.budget == name)
    # A teacher labels every batch or says which images to leave out during training: it has to be there.
    teacher = None
    if "soft teacher" in kinds or "rejection" in pipeline.settings.evaluation.variants:
        asked: Kind = "for soft labels" if "soft teacher" in kinds else "for rejection"
        teacher = LedgerLine("teacher", "shared", asked, int(stored_teacher(pipeline).facts["bytes"]))
    return distillation_ledger(
        bundles,
        pools,
        train_images=int(catalog["n_train"].sum()),
        shape=pipeline.image_shape,
        labelled_images=pipeline.settings.generation.images_per_class * len(catalog),
        label_bytes=stored_label_bytes(pipeline) if "soft stored" in kinds else 0,
        teacher=teacher,
    )


def _bytes(pipeline: Pipeline, key: ArtefactKey) -> int:
    manifest = pipeline.store.manifest(key)
    return sum(f.bytes for f in manifest.files.values()) if manifest else 0


def sample_grids(pipeline: Pipeline) -> dict[str, dict[str, np.ndarray]]:
    """First images of every class: real, drawn from the class name, and distilled at every budget."""
    from d3m_assets.evaluation.report.samples import IMAGES_PER_SAMPLE
    from d3m_assets.evaluation.report.tables import MAX_CLASSES

    catalog = pipeline.catalog().head(MAX_CLASSES)
    scan, grids = pipeline.scan(), {}
    real, named = {}, {}
    drawn = read_table(pipeline, ArtefactKey("foundation_metrics"), "pool.parquet")
    for key, name, class_id in zip(catalog["class_key"], catalog["class_name"], catalog["class_id"], strict=True):
        rows = image_table(pipeline, "train", key).sort_values("sha256").head(IMAGES_PER_SAMPLE)
        size = (scan.image_height, scan.image_width)
        real[name] = load_images(list(rows["uri"]), size=size, channels=scan.channels)
        named[name] = pool_images(drawn[drawn["class_id"] == class_id].head(IMAGES_PER_SAMPLE))
    grids["real"], grids["class-name prompt"] = real, named
    for budget in pipeline.settings.budgets:
        grids[f"D3M {budget}"] = {
            name: pool_images(
                read_table(pipeline, ArtefactKey("synthetic_pool", key, budget), "pool.parquet").head(IMAGES_PER_SAMPLE)
            )
            for key, name in zip(catalog["class_key"], catalog["class_name"], strict=True)
        }
    return grids


def _provenance(pipeline: Pipeline) -> dict[str, Any]:
    s = pipeline.settings
    teacher = {}
    if pipeline.keys("teacher_model"):
        facts = stored_teacher(pipeline).facts
        shown = ("kind", "accuracy", "temperature", "n_validation", "image_size", "bytes", "recipe")
        teacher = {"teacher": {name: facts[name] for name in shown}}
    packages = ("d3m-assets", "torch", "diffusers", "transformers", "dagster", "numpy", "pandas")
    return {
        "dataset": s.dataset, "dataset fingerprint": pipeline.scan().fingerprint,
        "foundation model": s.foundation, "foundation fingerprint": pipeline.foundation_files.fingerprint,
        "measured on the test split": [
            f"{key} ({manifest.metrics['test images']} images)"
            for asset in METRIC_ASSETS for key in pipeline.keys(asset) if (manifest := pipeline.store.manifest(key))
        ],
        "seed": s.seed, "validation fraction": s.validation_fraction,
        "prompts": s.prompts.model_dump(mode="json"), "inversion": s.inversion.model_dump(mode="json"),
        "generation": s.generation.model_dump(mode="json"), "students": s.students.model_dump(mode="json"),
        "evaluation": s.evaluation.model_dump(mode="json"), **teacher,
        "versions": {p: _version(p) for p in packages} | {"Python": platform.python_version()},
        "made": _made(pipeline), "report written at commit": _commit(), "report written on": _hardware(pipeline),
        "command": "d3m distill, with the settings above",
    }  # fmt: skip


def _commit() -> str:
    """Commit of the checkout that this package runs from, where it runs from one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "not run from a checkout"
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _hardware(pipeline: Pipeline) -> str:
    """The device by its own name, cores and system."""
    name = platform.processor() or platform.machine()
    if pipeline.device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(pipeline.device)
    elif Path("/proc/cpuinfo").is_file():
        models = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name"))  # fmt: skip
        name = next(models, name)
    return f"{name}, {cores()} cores, {platform.system()} {platform.machine()}, device {pipeline.device}"


def _made(pipeline: Pipeline) -> str:
    """When the artefacts were made that the report tells of; several runs may lie between."""
    keys = [key for asset in (*METRIC_ASSETS, "inverted_embeddings") for key in pipeline.keys(asset)]
    times = sorted(manifest.created for key in keys if (manifest := pipeline.store.manifest(key)))
    return f"{times[0]} to {times[-1]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed as a package"
