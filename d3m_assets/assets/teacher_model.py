"""``teacher_model``: the classifier of the real data that makes soft labels and features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.compute.devices import own_device
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import D3MError, TeacherError
from d3m_assets.evaluation import students, teacher
from d3m_assets.evaluation.settings import TeacherSettings
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.progress import Progress
from d3m_assets.settings import Settings

if TYPE_CHECKING:
    from d3m_assets.evaluation.teacher import Teacher

WEIGHTS, RECORD = "teacher.safetensors", "teacher.json"


class TeacherModel(Asset):
    """A classifier of the real data, trained or given: it makes soft labels and features.

    Made only when a row of the table needs it.
    """

    group = "evaluation"
    deps = (RawDataset,)
    kinds = frozenset({"pytorch", "safetensors"})
    code_version = f"{teacher.CODE_VERSION}.{students.CODE_VERSION}"
    device = True
    checks = (
        Check(
            "knows_the_classes",
            "The teacher, where one is needed, is of the dataset's classes in their order, and better than a guess.",
        ),
    )

    def unused(self, settings: Settings) -> str:
        """It is made only where a row of the table needs a teacher."""
        return no_teacher(settings)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How it is trained, or the content of the checkpoint."""
        settings = context.settings.teacher
        if settings.checkpoint is not None:
            described: dict[str, Any] = {"checkpoint": _checkpoint(context).fingerprint}
        else:
            described = settings.model_dump(mode="json", exclude={"checkpoint"})
            described |= {"seed": context.settings.seed, "image": context.image_shape}
        return {"teacher": described, "device": context.device_kind}

    def make_one(self, context: Context, item: Item) -> Made:
        """Train or take over the teacher; its weights, and a record with class order, temperature and held-out accuracy."""
        from d3m_assets.evaluation.teacher import use_checkpoint

        names, settings = context.dataset.class_names, context.settings
        validation = _validation(context)
        files: dict[str, bytes] = {}
        if settings.teacher.checkpoint is not None:
            record = use_checkpoint(_checkpoint(context), validation, names, device=context.device)
        else:
            train = labelled_images(context, image_rows(context, "train"), "train")
            job = TeacherJob(train, validation, names, settings.teacher, settings.seed, context.device)
            ((_, result),) = context.map_in_workers(self.name, _train, [job], ["teacher"])
            if isinstance(result, D3MError):
                raise result
            files[WEIGHTS], record = result
        files[RECORD] = to_json(record)
        shown = ("accuracy", "temperature", "n_validation", "bytes", "kind", "image_size")
        return Made(item.key, files, {name: record[name] for name in shown})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """How well it knows each class."""
        import pandas as pd

        record = json.loads(context.inputs.read(item.key, RECORD))
        accuracy = {"class": record["class_names"], "held-out accuracy": record["class_accuracy"]}
        return {"accuracy by class": pd.DataFrame(accuracy)}

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Whether it is of the dataset's classes, and better than a guess."""
        from scipy.stats import binom  # type: ignore[import-untyped]

        loaded_teacher(read_teacher(context), "cpu")  # raises when it is of other classes or in another order
        record = json.loads(context.inputs.read(item.key, RECORD))
        most_common = image_rows(context, "validation")["class_id"].value_counts(normalize=True).max()
        n, accuracy = record["n_validation"], record["accuracy"]
        # Who always names the largest class is right as often, or by luck a little more often.
        if round(accuracy * n) <= binom.ppf(0.95, n, most_common):
            yield Finding(
                f"right on {accuracy:.0%} of {n} held-out images, no better than a guess; raise teacher.steps"
            )


def no_teacher(settings: Settings) -> str:
    """Why no teacher is required under the settings; empty if one is."""
    if settings.evaluation.needs_teacher:
        return ""
    return "no row of the table needs a teacher; evaluation.labels and evaluation.baselines have rows that do"


@dataclass(frozen=True)
class TeacherJob:
    """A teacher that a worker trains."""

    train: LabelledImages
    validation: LabelledImages
    class_names: tuple[str, ...]
    settings: TeacherSettings
    seed: int
    device: str


def _train(job: TeacherJob, progress: Progress) -> tuple[bytes, dict[str, Any]]:
    from d3m_assets.evaluation.teacher import train_teacher

    return train_teacher(
        job.train,
        job.validation,
        job.class_names,
        job.settings,
        seed=job.seed,
        device=own_device() or job.device,
        progress=progress,
    )


def _validation(context: Context) -> LabelledImages:
    rows = image_rows(context, "validation")
    if rows.empty:
        raise TeacherError(
            "a teacher is checked and calibrated on the validation part of the train split, which has no image; raise "
            "validation_fraction, or add images."
        )
    return labelled_images(context, rows, "validation")


def _checkpoint(context: Context) -> Checkpoint:
    path = context.settings.teacher.checkpoint
    assert path is not None
    return context.once("teacher checkpoint", lambda: Checkpoint(path.expanduser().absolute()))


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

    @cached_property
    def content(self) -> str:
        """SHA-256, in hex, of record and weights, wherever they lie: equal training may end in other bits elsewhere."""
        facts = self.facts
        record = to_json({n: v for n, v in facts.items() if n != "path"}) if "path" in facts else self.record
        return hashlib.sha256(record + b"\0" + (self.weights or b"")).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """The record, read."""
        return json.loads(self.record)


def read_teacher(context: Context) -> TeacherFiles:
    """The stored teacher.

    Raises:
        StoreError: It is not there or damaged.
    """
    (key,) = context.inputs.keys(TeacherModel)
    record, weights = json.loads(context.inputs.read(key, RECORD)), None
    if record["kind"] == "trained":
        weights = context.inputs.read(key, WEIGHTS)
    else:  # the folder may have been moved since; its content is what counts
        record["path"] = str(_checkpoint(context).path)
    manifest = context.inputs.manifest(key)
    assert manifest is not None  # its files were just read
    return TeacherFiles(to_json(record), weights, context.dataset.class_names, manifest.fingerprint)


@cache
def loaded_teacher(files: TeacherFiles, device: str) -> Teacher:
    """The teacher, loaded once in each process."""
    from d3m_assets.evaluation.teacher import load_teacher

    return load_teacher(files.facts, files.weights, files.class_names, device=device)
