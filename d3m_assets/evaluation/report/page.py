"""The page: what the template is filled with, in the order of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d3m_assets.errors import StageError
from d3m_assets.evaluation.audit import Finding
from d3m_assets.evaluation.methods import D3M, WHOLE_TRAIN
from d3m_assets.evaluation.report.origins import Origin, origin_rows
from d3m_assets.evaluation.report.plots import titled_plot
from d3m_assets.evaluation.report.samples import sample_rows
from d3m_assets.evaluation.report.tables import (
    MAX_CLASSES,
    audit_rows,
    augmentation_scores,
    baseline_tables,
    class_table,
    confusion_table,
    detail_rows,
    label_scores,
    score_rows,
    variant_tables,
    verdict_card,
)
from d3m_assets.evaluation.statistics import (
    LABEL_WORDS,
    MARGIN,
    Comparison,
    crossing_sentence,
    main_parts,
    part_words,
    parts,
    percent,
    seeds_sentence,
    summarize,
    verdict,
    verdict_comparisons,
)
from d3m_assets.ledger import CONDITIONAL_KINDS, byte_size, ledger_groups, shared_needs

if TYPE_CHECKING:
    from jinja2 import Template


def render_report(
    metrics: pd.DataFrame,
    ledger: pd.DataFrame,
    samples: Mapping[str, Mapping[str, np.ndarray]],
    provenance: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    dataset: str = "",
    audits: Mapping[str, Mapping[str, Any]] | None = None,
    findings: Mapping[str, Sequence[Finding]] | None = None,
    agreement: Sequence[Mapping[str, Any]] = (),
    teacher_accuracy: float | None = None,
    origins: Mapping[str, Sequence[Origin]] | None = None,
) -> str:
    """Render the report of one distillation.

    Args:
        metrics: Student rows of every method and budget
            (:func:`d3m_assets.evaluation.metrics.student_metrics`).
        ledger: Bytes, one row an item, as from :func:`d3m_assets.ledger.distillation_ledger`.
        samples: Example images, title to class name to uint8 ``[N, H, W, C]``; titles in the order shown, the
            first eight images of each class.
        provenance: Where it comes from, name to value; a mapping as value becomes a group of its own.
        class_names: Names of the classes by position.
        dataset: Name of the dataset.
        audits: Budget to summary of its audit (:class:`d3m_assets.evaluation.audit.Audit`) with ``class_name`` in each
            class and, where they were computed, the scores of :mod:`d3m_assets.evaluation.scores`; null for NaN.
        findings: Budget to what the audit's thresholds say of it.
        agreement: What a teacher says of the pool, one row a budget: budget, images, off_class (count), agrees and
            probability (fractions), least and least_class (the class with which it agrees least).
        teacher_accuracy: Of the teacher that rows ask, on the images that students are evaluated on, as a fraction.
        origins: Where a few distilled images come from, by class name.

    Returns:
        A complete HTML document. The same input gives the same text.

    Raises:
        StageError: If metrics were made by different recipes, are missing, or do not fit the classes; or if
            the ledger lacks a column.
    """
    summary = summarize(metrics)
    if wrong := {len(a) for a in metrics["class_accuracy"]} - {len(class_names)}:
        raise StageError(f"metrics have {wrong.pop()} classes, the report {len(class_names)}; run `d3m distill`.")
    accounts = ledger_groups(ledger)  # first, as it refuses ledgers that the others could not read
    against = verdict_comparisons(metrics)
    comparisons = against[0] if against else []
    notes = [*_notes(metrics, summary), *shared_needs(ledger), *_teacher(teacher_accuracy)]
    chains = origin_rows(origins or {}, class_names)
    return _template().render(
        dataset=dataset,
        class_table=class_table(metrics, summary, class_names),
        confusion=confusion_table(metrics, main_parts(metrics)[0].of(summary), class_names),
        sample_titles=list(samples),
        sample_classes=sample_rows(samples, class_names),
        origins=chains,
        origin_anchors={chain["name"]: chain["anchor"] for chain in chains},
        n_classes=len(class_names),
        n_hidden=max(0, len(class_names) - MAX_CLASSES),
        agreement=list(agreement),
        **_faults(audits or {}, findings or {}),
        ledger=accounts,
        soft_labels=bool(set(CONDITIONAL_KINDS) & set(ledger["kind"])),
        recipe=_groups(_recipes(metrics)),
        provenance=_groups(provenance),
        notes=notes,
        **_results(metrics, summary, comparisons),
    )


def _results(metrics: pd.DataFrame, summary: pd.DataFrame, comparisons: list[Comparison]) -> dict[str, Any]:
    """Variables of the template that tell of accuracies: headlines, cards, tables and plots."""
    first, *others = verdict(metrics)
    unsure = seeds_sentence([c for of_one in verdict_comparisons(metrics) for c in of_one])
    names = part_words(parts(metrics))
    return {
        "split": summary["split"].iloc[0],
        "n_evaluated": int(summary["n_evaluated"].iloc[0]),
        "students": sorted(set(summary["n"])),
        "distillations": int(summary["distillations"].max()),
        "headline": first,
        "other_headlines": [*others, *([unsure] if unsure else [])],
        "margin": f"{MARGIN * 100:.0f}",
        "details": detail_rows(metrics),
        "crossing": crossing_sentence(parts(metrics)[0].of(summary)),
        "cards": [verdict_card(summary, comparison, names) for comparison in comparisons],
        "against": baseline_tables(metrics, names),
        "variants": variant_tables(metrics, names),
        "groups": [{"title": names[part], "rows": part.of(summary).to_dict("records")} for part in names],
        "ours": D3M,
        "label_scores": label_scores(summary, comparisons),
        "augmentation_scores": augmentation_scores(summary),
        "plots": [titled_plot(part.of(summary), names[part]) for part in main_parts(metrics)],
    }


def _faults(audits: Mapping[str, Mapping[str, Any]], findings: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    """Variables of the template that tell of the pools themselves."""
    return {
        "audits": audit_rows(audits, findings),
        "clean": bool(audits) and not any(findings.values()),
        "scores": score_rows(audits),
    }


def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("d3m_assets.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": byte_size, "percent": percent}
    return environment.get_template("report.html.j2")


def _recipes(metrics: pd.DataFrame) -> dict[str, Any]:
    """The recipe that all rows share, what other networks have of their own, and how each kind of soft labels was made."""
    found: dict[str, Any] = {}
    names = part_words(parts(metrics))
    for part, words in names.items():
        recipe = json.loads(part.of(metrics)["recipe"].iloc[0])
        soft = recipe.pop("labels", None)
        if not found:
            found["Recipe of every student"] = recipe
        own = {k: v for k, v in recipe.items() if v != found["Recipe of every student"].get(k)}
        if own:
            found[f"Recipe of students: {words}"] = own
        if soft:
            found[LABEL_WORDS[part.labels]] = soft
    return found


def _notes(metrics: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    notes = []
    reached, images = [], 0
    for part, words in part_words(main_parts(metrics)).items():
        own = part.of(summary)
        for row in own[own["method"] == WHOLE_TRAIN].to_dict("records"):
            images, kind = row["n_train_images"], f" ({words[0].lower()}{words[1:]})" if words else ""
            reached.append(f"{percent(row['mean'])} %{kind}")
    if reached:
        notes.append(f"The whole train split, {images:,} images, reaches {', '.join(reached)}.")
    return notes


def _teacher(accuracy: float | None) -> list[str]:
    """A sentence about the teacher: trained by another recipe, it is no row of the table."""
    if accuracy is None:
        return []
    return [f"The teacher itself, one network trained by a recipe of its own, reaches {percent(accuracy)} %."]


def _groups(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split a mapping into titled groups of words; values without a group come first, without a title."""
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    groups: list[tuple[str, Mapping[str, Any]]] = [("", plain)] if plain else []
    groups += [(k, v) for k, v in values.items() if isinstance(v, Mapping)]
    return [
        {"title": title, "items": {str(k).replace("_", " "): _words(v) for k, v in items.items()}}
        for title, items in groups
    ]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)
