"""What stages share: artefacts as they are handed to the store, and work as it is handed to the workers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from d3m_assets.errors import D3MError, StageError
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import Foundation, load_foundation
from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder, load_tiny_autoencoder
from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import ProgressEvent
from d3m_assets.store import ArtefactKey
from d3m_assets.workers import Work, own_device

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny


@dataclass(frozen=True)
class Made:
    """One artefact, ready for the store; or why there is none."""

    key: ArtefactKey
    files: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: D3MError | None = None


def where(key: ArtefactKey) -> str:
    """Class and budget of a key, for a progress line."""
    return " ".join(p for p in (key.budget, f"class {key.class_key}" if key.class_key else "") if p)


def share_out(
    pipeline: Pipeline, stage: str, work: Work, items: Sequence[Any], names: Sequence[str]
) -> Iterator[tuple[int, Any]]:
    """Have the workers do ``work`` on every item, and tell how far all of it is."""
    shares = [0.0] * len(items)

    def report(index: int, event: ProgressEvent) -> None:
        shares[index] = event.done / event.total if event.total else shares[index]
        detail = f"{names[index]} step {event.done}/{event.total} {event.detail}".rstrip()
        pipeline.progress(ProgressEvent(stage, round(1000 * sum(shares)), 1000 * len(items), detail))

    pipeline.progress(ProgressEvent(stage, 0, 1000 * len(items), "starting"))
    for index, result in pipeline.workers.run(work, items, report):
        shares[index] = 1.0
        pipeline.progress(ProgressEvent(stage, round(1000 * sum(shares)), 1000 * len(items), names[index]))
        yield index, result


Model: TypeAlias = tuple[FoundationFiles, str, bool]
"""What a worker needs to load the foundation model: its files, the device, and whether to compile the U-Net."""


def model_of(pipeline: Pipeline) -> Model:
    """The foundation model of a pipeline, not loaded."""
    return pipeline.foundation_files, pipeline.settings.device, pipeline.settings.compile_unet


@cache
def loaded_foundation(files: FoundationFiles, device: str, compile_unet: bool) -> Foundation:
    """The foundation model, loaded once in each process, on the device that the process was given."""
    return load_foundation(files, own_device() or device, compile_unet=compile_unet)


@cache
def loaded_autoencoder(files: TinyAutoencoder | None, model: Model) -> AutoencoderTiny | None:
    """The autoencoder that decodes in place of the model's own, loaded once in each process; None: there is none."""
    return None if files is None else load_tiny_autoencoder(files, loaded_foundation(*model))


def to_parquet(frame: pd.DataFrame) -> bytes:
    """A table as a parquet file."""
    out = BytesIO()
    frame.to_parquet(out, index=False)
    return out.getvalue()


def read_table(pipeline: Pipeline, key: ArtefactKey, name: str) -> pd.DataFrame:
    """A stored parquet table."""
    return pd.read_parquet(BytesIO(pipeline.store.read(key, name)))


def to_json(value: Any) -> bytes:
    """A value as a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def required(value: str | None) -> str:
    """A partition that must be given.

    Raises:
        StageError: It is not.
    """
    if value is None:
        raise StageError("this asset is partitioned; give a class or budget")
    return value
