"""Formats that images are exported in, a module each."""

from __future__ import annotations

from d3m_assets.exports.formats.hugging_face import HuggingFaceWriter
from d3m_assets.exports.formats.image_folder import ImageFolderWriter
from d3m_assets.exports.formats.web_dataset import WebDatasetWriter
from d3m_assets.exports.formats.writer import FormatWriter

FORMATS: dict[str, type[FormatWriter]] = {
    "folder": ImageFolderWriter,
    "huggingface": HuggingFaceWriter,
    "webdataset": WebDatasetWriter,
}
"""By the name that a user chooses them by."""
