"""A description of an export for programs that read Croissant, the dataset format of MLCommons."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from d3m_assets.errors import BundleError
from d3m_assets.exports.dataset_card import PAPER
from d3m_assets.exports.formats.writer import ExportPlan, FormatWriter


def check_installed() -> None:
    """Refuse to go on without mlcroissant.

    Raises:
        BundleError: It is not installed.
    """
    if importlib.util.find_spec("mlcroissant") is None:
        raise BundleError(
            "croissant.json is written by mlcroissant, which is not installed; install the extra: "
            "pip install 'd3m-assets[croissant]', or leave --croissant away"
        )


def describe(folder: Path, plan: ExportPlan, writer: FormatWriter) -> bytes:
    """``croissant.json`` of a finished export: its files, its images with their labels, and its classes.

    Args:
        folder: The export.
        plan: What was written.
        writer: The writer of its format.
    """
    import mlcroissant as mlc

    recipe = plan.bundle.recipe
    parts = writer.croissant()
    metadata = mlc.Metadata(
        name=_name(f"{recipe.dataset}-{recipe.budget}"),
        description=f"{plan.total} {plan.made} images of {len(plan.counts)} classes: {recipe.dataset} distilled by d3m-assets, "
        f"bundle {plan.bundle.sha256}.",
        license=[recipe.licence],
        url=PAPER,
        cite_as=f"D3M, {PAPER}",
        version="1.0.0",
        distribution=parts.distribution,
        record_sets=[
            mlc.RecordSet(
                id="classes",
                name="classes",
                key="classes/label",
                data_types=["sc:Enumeration"],
                fields=[
                    mlc.Field(id="classes/label", name="label", data_types=[mlc.DataType.INTEGER]),
                    mlc.Field(id="classes/name", name="name", data_types=[mlc.DataType.TEXT]),
                ],
                data=[{"classes/label": i, "classes/name": name} for i, name in enumerate(plan.class_names)],
            ),
            mlc.RecordSet(
                id="images",
                name="images",
                fields=[
                    mlc.Field(
                        id="images/image", name="image", data_types=[mlc.DataType.IMAGE_OBJECT], source=parts.image
                    ),
                    parts.label,
                ],
            ),
        ],
    )
    return (json.dumps(metadata.to_json(), indent=1, ensure_ascii=False) + "\n").encode()


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.rstrip("/").rpartition("/")[2]) or "dataset"
