"""A description of an export for programs that read Croissant, the dataset format of MLCommons."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from d3m_assets.errors import BundleError
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
    """TODO."""
    raise NotImplementedError
