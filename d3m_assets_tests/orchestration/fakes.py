"""A dataset, a foundation folder and compute stages that cost nothing; scan, plan and store are the real ones."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from d3m_assets.errors import D3MError, StageError
from d3m_assets.pipeline import Pipeline, Problem
from d3m_assets.settings import Settings, load_settings
from d3m_assets.store import ArtefactKey


def write_image(path: Path, seed: int) -> None:
    """A small grey picture, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def add_class(dataset: Path, name: str, seed: int) -> None:
    """A class with three train images and one test image."""
    for n in range(3):
        write_image(dataset / "train" / name / f"{n}.png", 10 * seed + n)
    write_image(dataset / "test" / name / "0.png", 10 * seed + 9)


def make_settings(folder: Path, classes: Sequence[str] = ("a", "b", "c"), **changes: Any) -> Settings:
    """Settings over a new dataset and a foundation folder in ``folder``."""
    for seed, name in enumerate(classes):
        add_class(folder / "dataset", name, seed + 1)
    foundation = folder / "foundation"
    for part in ("vae", "text_encoder", "unet", "tokenizer", "scheduler"):
        (foundation / part).mkdir(parents=True, exist_ok=True)
        (foundation / part / "model.safetensors").write_bytes(b"weights")
    (foundation / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for part, config in {
        "text_encoder": {"hidden_size": 16},
        "vae": {"block_out_channels": [8, 8]},
        "unet": {"sample_size": 16},
    }.items():
        (foundation / part / "config.json").write_text(json.dumps(config))
    given = {"budgets": ("ipc-1", "ipc-5"), "device": "cpu"} | changes
    return load_settings(dataset=str(folder / "dataset"), foundation=str(foundation), home=folder / "home", **given)


REPLACED = ("d3m_assets.stages", "d3m_assets.stages.inspection")
"""Modules that :class:`FakeStages` stands in for."""


class FakeStages(ModuleType):
    """Stands in for ``d3m_assets.stages``; keeps what was made, and fails where told to."""

    def __init__(self) -> None:
        super().__init__("d3m_assets.stages")
        self.made: list[str] = []
        self.failing: set[str] = set()
        self.damaged: set[str] = set()
        self.before = lambda key: None

    def make(self, pipeline: Pipeline, asset: str, keys: Sequence[ArtefactKey]) -> Iterator[Any]:
        """As in ``d3m_assets.stages``."""
        for key in keys:
            self.before(key)
            error: D3MError | None = None
            if str(key) in self.failing:
                error = StageError(f"{key}: the loss is not finite; lower inversion.learning_rate")
            else:
                self.made.append(str(key))
            # The catalog is read back to give ids, so it has to be a real one.
            table = pipeline.full_catalog() if asset == "class_catalog" else pd.DataFrame({"key": [str(key)]})
            files = {"catalog.parquet" if asset == "class_catalog" else "data.parquet": table.to_parquet()}
            yield SimpleNamespace(key=key, files=files, metrics={"loss": 0.5}, error=error)

    def describe(self, pipeline: Pipeline, key: ArtefactKey) -> dict[str, Any]:
        """As in ``d3m_assets.stages``."""
        return {"loss": 0.5, "rows": 3, "picture_png": b"\x89PNG", "losses": pd.DataFrame({"step": [0], "loss": [1.0]})}

    def verify(self, pipeline: Pipeline, asset: str) -> list[Problem]:
        """As in ``d3m_assets.stages``."""
        missing = [Problem(k, f"{k} is missing", "warning") for k in pipeline.keys(asset) if pipeline.store.intact(k)]
        return missing + [Problem(k, f"{k} is not finite") for k in pipeline.keys(asset) if str(k) in self.damaged]


def install() -> FakeStages:
    """Put the fake where the pipeline imports its stages from; for processes that tests start."""
    stages = FakeStages()
    for name in REPLACED:
        sys.modules[name] = stages
    return stages
