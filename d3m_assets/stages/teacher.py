"""The stage of the teacher: trained on the real data or taken from a checkpoint, and loaded for those who ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from d3m_assets.errors import D3MError
from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import Progress
from d3m_assets.stages.artefacts import Made, share_out, to_json
from d3m_assets.stages.dataset import image_table, labelled_images
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.teacher import Teacher

KEY = ArtefactKey("teacher_model")


def _teacher_work(item: tuple[Any, ...], progress: Progress) -> tuple[bytes, dict[str, Any]]:
    from d3m_assets.evaluation.teacher import train_teacher

    train, validation, names, settings, seed, device = item
    return train_teacher(train, validation, names, settings, seed=seed, device=device, progress=progress)


def teacher_model(pipeline: Pipeline, key: ArtefactKey) -> Made:
    """Train or take over the teacher; its weights, and a record with class order, temperature and held-out accuracy."""
    from d3m_assets.evaluation.teacher import use_checkpoint

    names, settings = tuple(pipeline.catalog()["class_name"]), pipeline.settings
    validation = _validation(pipeline)
    files: dict[str, bytes] = {}
    if settings.teacher.checkpoint is not None:
        record = use_checkpoint(pipeline.teacher_checkpoint, validation, names, device=pipeline.device)
    else:
        train = labelled_images(pipeline, image_table(pipeline, "train"), "train")
        item = (train, validation, names, settings.teacher, settings.seed, pipeline.device)
        ((_, result),) = share_out(pipeline, key.asset, _teacher_work, [item], ["teacher"])
        if isinstance(result, D3MError):
            return Made(key, error=result)
        files["teacher.safetensors"], record = result
    files["teacher.json"] = to_json(record)
    shown = ("accuracy", "temperature", "n_validation", "bytes", "kind", "image_size")
    return Made(key, files, {name: record[name] for name in shown})


def _validation(pipeline: Pipeline) -> LabelledImages:
    from d3m_assets.errors import TeacherError

    rows = image_table(pipeline, "validation")
    if rows.empty:
        raise TeacherError(
            "a teacher is checked and calibrated on the validation part of the train split, which has no image; raise "
            "validation_fraction, or add images."
        )
    return labelled_images(pipeline, rows, "validation")


@dataclass(frozen=True)
class TeacherFiles:
    """The stored teacher, not loaded; it can travel to another process.

    Attributes:
        record: Its JSON record.
        weights: Its safetensors file; None for a checkpoint, whose files stay where they are.
        class_names: Names of the dataset's classes by position.
        fingerprint: Of the artefact.
    """

    record: bytes
    weights: bytes | None
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def facts(self) -> dict[str, Any]:
        """The record, read."""
        return json.loads(self.record)


def stored_teacher(pipeline: Pipeline) -> TeacherFiles:
    """The teacher in the store.

    Raises:
        StoreError: It is not there or damaged.
    """
    record, weights = json.loads(pipeline.store.read(KEY, "teacher.json")), None
    if record["kind"] == "trained":
        weights = pipeline.store.read(KEY, "teacher.safetensors")
    else:  # the folder may have been moved since; its content is what counts
        record["path"] = str(pipeline.teacher_checkpoint.path)
    names = tuple(pipeline.catalog()["class_name"])
    return TeacherFiles(to_json(record), weights, names, pipeline.spec(KEY).fingerprint)


@cache
def loaded_teacher(files: TeacherFiles, device: str) -> Teacher:
    """The teacher, loaded once in each process."""
    from d3m_assets.evaluation.teacher import load_teacher

    return load_teacher(files.facts, files.weights, files.class_names, device=device)
