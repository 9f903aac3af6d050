"""``distillation_report``: the verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets import provenance
from d3m_assets.addresses import masked
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.distilled_bundle import DistilledBundle, read_bundle
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.foundation_metrics import FoundationMetrics, read_class_name_pool
from d3m_assets.assets.frontier_metrics import FrontierMetrics
from d3m_assets.assets.image_codes import ImageCodes
from d3m_assets.assets.measuring import MeasuredAsset, read_metrics
from d3m_assets.assets.origins import image_origins
from d3m_assets.assets.payload_choice import PayloadChoice, chosen_parts, read_coded, read_distilled
from d3m_assets.assets.pool_audit import PoolAudit, read_audit
from d3m_assets.assets.pool_labels import PoolLabels, agreement_rows
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, real_images
from d3m_assets.assets.reference_metrics import ReferenceMetrics
from d3m_assets.assets.rows import kept_images, label_bytes
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.student_metrics import StudentMetrics
from d3m_assets.assets.synthetic_pool import SyntheticPool, pool_images
from d3m_assets.assets.teacher_model import TeacherModel, read_teacher
from d3m_assets.assets.whole_dataset_metrics import TEACHER_FILE, WholeDatasetMetrics
from d3m_assets.compute.devices import cores
from d3m_assets.distillation.settings import BOTH, CODES, PROMPTS
from d3m_assets.errors import StageError
from d3m_assets.ledger import Kind, LedgerLine, distillation_ledger
from d3m_assets.planning.asset import Asset, Check, Made
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    import pandas as pd

PAGE, METRICS = "report.html", "metrics.parquet"
MEASURED: tuple[type[MeasuredAsset], ...] = (
    StudentMetrics,
    ReferenceMetrics,
    FrontierMetrics,
    FoundationMetrics,
    WholeDatasetMetrics,
)
"""Assets whose artefacts are rows of the table, in the order of the table."""


class DistillationReport(Asset):
    """The verdict: accuracy against bytes for all methods, samples, ledger and provenance, in one HTML file."""

    group = "evaluation"
    deps = (
        StudentMetrics,
        ReferenceMetrics,
        FrontierMetrics,
        WholeDatasetMetrics,
        FoundationMetrics,
        DistilledBundle,
        SyntheticPool,
        SampleSelection,
        ImageCodes,
        PayloadChoice,
        RawDataset,
        TeacherModel,
        PoolLabels,
        PoolAudit,
    )
    kinds = frozenset({"html"})
    freshness_policy = True
    code_version = "5"
    checks = (
        Check(
            "nothing_stale",
            "No artefact is missing or out of date. Run `d3m status` for the same list in a shell.",
            staleness=True,
        ),
    )

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Its title, and from where on the findings of audits are reported."""
        return {"dataset": context.dataset.name, "audit": context.settings.audit.model_dump(mode="json")}

    def make_one(self, context: Context, item: Item) -> Made:
        """The report of everything that was measured."""
        from d3m_assets.evaluation.audit import findings
        from d3m_assets.evaluation.report import render_report

        audits = {str(key.budget): read_audit(context, key) for key in context.inputs.keys(PoolAudit)}
        metrics = all_metrics(context)
        page = render_report(
            metrics,
            ledger(context),
            sample_grids(context),
            _provenance(context),
            class_names=list(context.dataset.class_names),
            dataset=context.dataset.name,
            audits=audits,
            findings={budget: findings(summary, context.settings.audit) for budget, summary in audits.items()},
            agreement=agreement_rows(context),
            teacher_accuracy=_teacher_accuracy(context),
            origins=image_origins(context),
        )
        facts = {
            "classes": len(context.dataset.classes),
            "budgets": len(context.budgets),
            "students": len(metrics),
        }
        return Made(item.key, {PAGE: page.encode(), METRICS: to_parquet(metrics)}, facts)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The verdict, the accuracies, and where the file is."""
        from d3m_assets.evaluation.statistics import summarize, verdict

        metrics = from_parquet(context.inputs.read(item.key, METRICS))
        columns = ["method", "labels", "architecture", "augmentation", "budget", "mean", "half_width"]
        return {
            "verdict": " ".join(verdict(metrics)),
            "file": context.inputs.uri(item.key, PAGE),
            "summary": summarize(metrics)[columns],
        }


def all_metrics(context: Context) -> pd.DataFrame:
    """Every trained student that is stored, one row each.

    Raises:
        StageError: There is none.
    """
    import pandas as pd

    keys = [key for asset in MEASURED for key in context.inputs.keys(asset) if context.inputs.manifest(key)]
    if not keys:
        raise StageError("no student has been measured yet; run `d3m distill`")
    return pd.concat([read_metrics(context, key) for key in keys], ignore_index=True)


def _teacher_accuracy(context: Context) -> float | None:
    (key,) = context.inputs.keys(WholeDatasetMetrics)
    manifest = context.inputs.manifest(key)
    if manifest is None or TEACHER_FILE not in manifest.files:
        return None
    return float(json.loads(context.inputs.read(key, TEACHER_FILE))["accuracy"])


def ledger(context: Context) -> pd.DataFrame:
    """Bytes of everything that was distilled, one row an item."""
    evaluation = context.settings.evaluation
    bundles = {str(k.budget): read_bundle(context, k).byte_counts() for k in context.inputs.keys(DistilledBundle)}
    pools = {
        budget: sum(_stored_bytes(context, k) for k in context.inputs.keys(SyntheticPool, budget=budget))
        for budget in bundles
    }
    # A teacher labels every batch or says which images to leave out during training: it has to be there.
    teacher = None
    if "soft teacher" in evaluation.labels or "rejection" in evaluation.variants:
        kind: Kind = "for soft labels" if "soft teacher" in evaluation.labels else "for rejection"
        teacher = LedgerLine("teacher", "shared", kind, int(read_teacher(context).facts["bytes"]))
    classes = context.dataset.classes
    return distillation_ledger(
        bundles,
        pools,
        train_images=sum(c.n_train for c in classes),
        shape=context.dataset.shape,
        labelled_images=kept_images(context) * len(classes),
        label_bytes=label_bytes(context) if "soft stored" in evaluation.labels else 0,
        teacher=teacher,
    )


def _stored_bytes(context: Context, key: ArtefactKey) -> int:
    manifest = context.inputs.manifest(key)
    return manifest.bytes if manifest else 0


def sample_grids(context: Context) -> dict[str, dict[str, np.ndarray]]:
    """First images of every class: real, generated from the class name, and distilled at every budget."""
    from d3m_assets.evaluation.report.samples import IMAGES_PER_SAMPLE
    from d3m_assets.evaluation.report.tables import MAX_CLASSES

    classes = context.dataset.classes[:MAX_CLASSES]
    real, named = {}, {}
    by_name = read_class_name_pool(context)
    for c in classes:
        rows = image_rows(context, "train", c.key).sort_values("sha256").head(IMAGES_PER_SAMPLE)
        real[c.name] = real_images(context, rows)
        named[c.name] = pool_images(by_name[by_name["class_id"] == c.class_id].head(IMAGES_PER_SAMPLE))
    grids = {"real": real, "class-name prompt": named}
    for budget in context.budgets:
        grids[f"D3M {budget}"] = {
            c.name: pool_images(read_distilled(context, c.key, budget.name).head(IMAGES_PER_SAMPLE)) for c in classes
        }
        if len(chosen_parts(context, budget.name)) > 1:  # the first of them are generated
            coded = {c.name: read_coded(context, c.key, budget.name).head(IMAGES_PER_SAMPLE) for c in classes}
            grids[f"D3M {budget}, coded"] = {name: pool_images(rows) for name, rows in coded.items()}
        rejected = {c.name: read_distilled(context, c.key, budget.name, kept=False) for c in classes}
        if all(len(rows) for rows in rejected.values()):
            grids[f"D3M {budget}, rejected"] = {
                name: pool_images(rows.head(IMAGES_PER_SAMPLE)) for name, rows in rejected.items()
            }
    return grids


def _provenance(context: Context) -> dict[str, Any]:
    settings, model = context.settings, context.model
    teacher = {}
    if context.inputs.keys(TeacherModel):
        facts = read_teacher(context).facts
        shown = ("kind", "accuracy", "temperature", "n_validation", "image_size", "bytes", "recipe")
        teacher = {"teacher": {name: facts[name] for name in shown}}
    measured = [key for asset in MEASURED for key in context.inputs.keys(asset)]
    manifests = {key: manifest for key in measured if (manifest := context.inputs.manifest(key))}
    times = sorted(manifest.created for manifest in manifests.values())
    return {
        "dataset": masked(settings.dataset),
        "dataset fingerprint": context.dataset.scan.fingerprint,
        "foundation model": settings.foundation,
        "foundation fingerprint": model.files.fingerprint,
        "measured on the test split": [
            f"{key} ({manifest.metrics['test images']} images)" for key, manifest in manifests.items()
        ],
        "seed": settings.seed,
        "validation fraction": settings.validation_fraction,
        **({} if settings.payload == PROMPTS else {"payload": settings.payload}),
        **({"codes share": settings.codes_share} if settings.payload == BOTH else {}),
        "prompts": settings.prompts.model_dump(mode="json"),
        **({} if settings.payload == CODES else {"inversion": settings.inversion.model_dump(mode="json")}),
        "generation": settings.generation.model_dump(mode="json"),
        "students": settings.students.model_dump(mode="json"),
        # The name of a table and budgets without a row decide about nothing that is shown.
        "evaluation": settings.evaluation.model_dump(mode="json", exclude={"table", "reference_budgets"}),
        **teacher,
        "versions": provenance.versions(),
        "made": f"{times[0]} to {times[-1]}",
        "report written at commit": provenance.commit(),
        "made on": sorted({str(m.provenance["hardware"]) for m in manifests.values() if "hardware" in m.provenance}),
        "report written on": provenance.hardware("cpu", cores()),
        "command": "d3m distill, with the settings above",
    }
