"""A dataset, a foundation folder and makers that cost nothing; graph, scan, plan and store are the real ones."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.graph import GRAPH
from d3m_assets.errors import StageError
from d3m_assets.planning.asset import Asset, Finding, Graph, Made
from d3m_assets.settings import Settings, load_settings
from d3m_assets.store import ArtefactKey

FEW_ARTEFACTS: dict[str, dict[str, Any]] = {
    "evaluation": {"baselines": ("random",), "distillations": 1},
    "selection": {"criterion": "none"},
}
"""One distillation, no teacher, and nothing selected."""


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
    given: dict[str, Any] = {"budgets": ("ipc-1", "ipc-5"), "device": "cpu"} | changes
    given |= {section: values | given.get(section, {}) for section, values in FEW_ARTEFACTS.items()}
    return load_settings(dataset=str(folder / "dataset"), foundation=str(foundation), home=folder / "home", **given)


class FakeMakers:
    """Stands in for what the assets of the graph make, show and verify; keeps what was made, and fails where told to.

    Everything else of an asset stays as it is: its inputs, settings and reasons to be skipped decide about the plan.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.failing: set[str] = set()
        self.damaged: set[str] = set()
        self.before: Callable[[ArtefactKey], None] = lambda key: None

    def install(self, replace: Callable[[object, str, object], None] = setattr, graph: Graph = GRAPH) -> None:
        """Put the fakes on the assets of a graph; ``replace`` may be that of a monkeypatch, which takes them off again."""
        for asset in graph:
            replace(asset, "make", functools.partial(self.make, asset))
            replace(asset, "preview", self.preview)
            replace(asset, "verify", self.verify)

    def make(self, asset: Asset, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """As :meth:`Asset.make`."""
        for item in items:
            self.before(item.key)
            if str(item.key) in self.failing:
                error = StageError(f"{item.key}: the loss is not finite; lower inversion.learning_rate")
                yield Made(item.key, error=error)
                continue
            self.made.append(str(item.key))
            # The catalog is read back to give ids, so it has to be a real one.
            real = asset.make_one(context, item).files if asset.name == "class_catalog" else None
            files = real or {"data.parquet": pd.DataFrame({"key": [str(item.key)]}).to_parquet()}
            yield Made(item.key, files, {"loss": 0.5})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """As :meth:`Asset.preview`."""
        return {"loss": 0.5, "rows": 3, "picture_png": b"\x89PNG", "losses": pd.DataFrame({"step": [0], "loss": [1.0]})}

    def verify(self, context: Context, item: Item) -> list[Finding]:
        """As :meth:`Asset.verify`."""
        return [Finding("not finite")] if str(item.key) in self.damaged else []
