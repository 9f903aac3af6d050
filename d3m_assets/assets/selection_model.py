"""``selection_model``: the network that samples are selected by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.assets.inverted_embeddings import selection_plan
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.assets.teacher_model import TeacherFiles, loaded_teacher
from d3m_assets.compute.devices import own_device
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.distillation.settings import PROMPTS
from d3m_assets.errors import D3MError
from d3m_assets.evaluation import students, teacher
from d3m_assets.evaluation.settings import TeacherSettings
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint
from d3m_assets.planning.asset import Asset, Made
from d3m_assets.progress import Progress
from d3m_assets.settings import Settings

WEIGHTS, RECORD = "network.safetensors", "network.json"
RECIPE = TeacherSettings(width=32, steps=400)
"""No setting: what it selects is stored, so who regenerates needs neither the network nor its recipe."""


class SelectionModel(Asset):
    """A classifier of the training images, by whose features and answers samples are selected; never charged.

    A small network, or a linear layer on the frozen features of a vision model that the settings name. Trained on the part
    of the train split that is used for training, and on nothing else. Made only where samples are selected or real images are
    coded.
    """

    group = "distillation"
    deps = (RawDataset,)
    kinds = frozenset({"pytorch", "safetensors"})
    code_version = f"{teacher.CODE_VERSION}.{students.CODE_VERSION}"
    device = True

    def unused(self, settings: Settings) -> str:
        """It is made only where samples are selected, or images to be coded are chosen by its features."""
        nothing = settings.selection.criterion == "none" and settings.payload == PROMPTS
        return "selection.criterion is none" if nothing else ""

    def skip_reason(self, context: Context, item: Item) -> str:
        """It is not required where no budget has room for a selection, and no image is coded."""
        if reason := self.unused(context.settings):
            return reason
        if context.settings.payload != PROMPTS:
            return ""
        selects = any(selection_plan(context, budget).bytes for budget in context.budgets)
        return "" if selects else "no budget has room for a selection beside its vectors"

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Its recipe, which is fixed, and what it sees; or the content of the vision model."""
        if context.settings.selection.features is not None:
            return {"features": _checkpoint(context).fingerprint, "device": context.device_kind}
        return {
            "recipe": RECIPE.model_dump(mode="json", exclude={"checkpoint"}),
            "seed": context.settings.seed,
            "image": context.image_shape,
            "device": context.device_kind,
        }

    def make_one(self, context: Context, item: Item) -> Made:
        """Train it; its weights, and a record as a teacher's, without accuracies: it is not tested on anything."""
        train = labelled_images(context, image_rows(context, "train"), "train")
        if context.settings.selection.features is not None:
            from d3m_assets.evaluation.teacher import probe_features

            weights, record = probe_features(
                _checkpoint(context), train, context.dataset.class_names, device=context.device
            )
            return _as_made(item, weights, record, len(train))
        job = SelectionModelJob(train, context.dataset.class_names, context.settings.seed, context.device)
        ((_, result),) = context.map_in_workers(self.name, _train, [job], ["network"])
        if isinstance(result, D3MError):
            raise result
        weights, record = result
        return _as_made(item, weights, record, len(train))

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """How it was trained."""
        return {"recipe": json.loads(context.inputs.read(item.key, RECORD))["recipe"]}


def _as_made(item: Item, weights: bytes, record: dict[str, Any], images: int) -> Made:
    facts = {name: record[name] for name in ("kind", "bytes", "image_size", "channels")}
    return Made(item.key, {WEIGHTS: weights, RECORD: to_json(record)}, facts | {"images": images})


def _checkpoint(context: Context) -> Checkpoint:
    path = context.settings.selection.features
    assert path is not None
    return context.once("selection features", lambda: Checkpoint(path.expanduser().absolute(), "selection.features"))


@dataclass(frozen=True)
class SelectionModelJob:
    """The network that a worker trains."""

    train: LabelledImages
    class_names: Sequence[str]
    seed: int
    device: str


def _train(job: SelectionModelJob, progress: Progress) -> tuple[bytes, dict[str, Any]]:
    from d3m_assets.evaluation.teacher import train_network

    device = own_device() or job.device
    return train_network(job.train, job.class_names, RECIPE, seed=job.seed, device=device, progress=progress)


def read_selection_model(context: Context) -> TeacherFiles:
    """The stored network, as :func:`~d3m_assets.assets.teacher_model.loaded_teacher` loads it.

    Raises:
        StoreError: It is not there or damaged.
    """
    (key,) = context.inputs.keys(SelectionModel)
    manifest = context.inputs.manifest(key)
    record, weights = context.inputs.read(key, RECORD), context.inputs.read(key, WEIGHTS)
    if context.settings.selection.features is not None:  # the folder may have been moved; its content is what counts
        record = to_json(json.loads(record) | {"path": str(_checkpoint(context).path)})
    fingerprint = manifest.fingerprint if manifest else ""
    return TeacherFiles(record, weights, context.dataset.class_names, fingerprint)


@dataclass(frozen=True)
class Seen:
    """What the network says of N images.

    Attributes:
        features: float ``[N, F]``.
        probabilities: Of the classes, float ``[N, K]``.
        predicted: Position of the likeliest, int ``[N]``.
    """

    features: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray


def see(context: Context, images: np.ndarray) -> Seen:
    """What the stored network says of images, uint8 ``[N, H, W, C]``."""
    from d3m_assets.evaluation.teacher import features, probabilities

    network = loaded_teacher(read_selection_model(context), context.device)
    answers = probabilities(network, images)
    return Seen(features(network, images), answers, answers.argmax(1))
