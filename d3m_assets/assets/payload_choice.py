"""``payload_choice``: whether a budget is better spent on prompts or on image codes; and what a training set then has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.assets.image_codes import ImageCodes
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.assets.sample_selection import SampleSelection, read_selected
from d3m_assets.assets.synthetic_pool import SyntheticPool, coded_table, pool_images, read_pool
from d3m_assets.compute.devices import own_device
from d3m_assets.compute.shared import Shared
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.distillation.settings import AUTO, CODES, PARTS, PROMPTS
from d3m_assets.errors import D3MError, StageError
from d3m_assets.evaluation import students
from d3m_assets.evaluation.baselines.encoded import labelled
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.exports.image_record import GENERATED
from d3m_assets.planning.asset import Asset, Made
from d3m_assets.progress import Progress
from d3m_assets.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

FILE = "payload.json"
Chosen = Literal["prompts", "codes", "both"]


class PayloadChoice(Asset):
    """Whether students learn more from the generated or from the coded images of a budget, by the validation part.

    Made only with ``payload=auto``.
    """

    group = "distillation"
    partitions = ("budget",)
    deps = (SyntheticPool, SampleSelection, ImageCodes, RawDataset)
    kinds = frozenset({"pytorch"})
    code_version = students.CODE_VERSION
    device = True

    def unused(self, settings: Settings) -> str:
        """It is made only where the payload is to be decided."""
        return "" if settings.payload == AUTO else f"payload is {settings.payload}"

    def replicates(self, context: Context, dep: type[Asset]) -> Sequence[int]:
        """All of them: students take them in turn, as in the table."""
        return context.values("replicate")

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How the students are trained that decide."""
        return {
            "students": context.settings.students.model_dump(mode="json", exclude={"recipe"}),
            "device": context.device_kind,
            "image": context.image_shape,
        }

    def make_one(self, context: Context, item: Item) -> Made:
        """Train the students of the table on either training set; the more accurate one in the mean wins, or prompts."""
        held_out = image_rows(context, "validation")
        if held_out.empty:
            raise StageError(
                "the payload is decided on the validation part, and no image fell into it; raise validation_fraction, or say "
                "which it is to be: payload=prompts or payload=codes"
            )
        validation = labelled_images(context, held_out, "validation")
        coded = [_coded_set(context, item.budget.name, r) for r in context.values("replicate")]
        if any(one is None for one in coded):
            sentence = f"no coded image of every class fits into {item.budget}, so its payload is prompts"
            stored: dict[str, Any] = {"payload": PROMPTS, "accuracies": {}, "validation_images": len(validation)}
            return Made(item.key, {FILE: to_json(stored | {"sentence": sentence})}, {"payload": PROMPTS})
        generated = [_generated_set(context, item.budget.name, r) for r in context.values("replicate")]
        found = _accuracies(context, {PROMPTS: generated, CODES: coded}, validation, item.label)
        means = {payload: float(np.mean(values)) for payload, values in found.items()}
        chosen = CODES if means[CODES] > means[PROMPTS] else PROMPTS
        told = " and ".join(f"{100 * mean:.1f} % with {payload}" for payload, mean in means.items())
        counts = f"mean of {len(found[chosen])} students each on {len(validation)} images"
        sentence = f"{chosen} by the validation part: {told}, {counts}"
        stored = {
            "payload": chosen,
            "accuracies": found,
            "validation_images": len(validation),
            "sentence": sentence,
        }
        facts = {f"validation accuracy {payload}": mean for payload, mean in means.items()}
        return Made(item.key, {FILE: to_json(stored)}, {"payload": chosen, **facts})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The decision and the accuracies behind it."""
        import pandas as pd

        stored = json.loads(context.inputs.read(item.key, FILE))
        return {"decision": stored["sentence"], "students": pd.DataFrame(stored["accuracies"])}


@dataclass(frozen=True)
class ValidationJob:
    """A student that a worker trains and tests on validation images.

    Attributes:
        train: Its training set.
        validation: Images that choices may see.
        settings: Recipe.
        seed: Of the student.
        n_classes: Number of classes.
        device: Torch device, where the worker was not given one of its own.
    """

    train: Shared[LabelledImages]
    validation: Shared[LabelledImages]
    settings: StudentSettings
    seed: int
    n_classes: int
    device: str


def _accuracies(
    context: Context, sets: dict[Chosen, list[Any]], validation: LabelledImages, label: str
) -> dict[str, list[float]]:
    """Validation accuracy of every student, a fraction, by payload in the order of the students' seeds."""
    recipe, held_out = context.settings.students, Shared(validation)
    jobs, names = [], []
    for payload, of_replicates in sets.items():
        shared = [Shared(train) for train in of_replicates]
        for position, seed in enumerate(recipe.seeds):
            train = shared[position % len(shared)]
            jobs.append(ValidationJob(train, held_out, recipe, seed, len(context.dataset.classes), context.device))
            names.append(payload)
    found: list[float] = [0.0] * len(jobs)
    for index, result in context.map_in_workers(
        PayloadChoice.name, _validated, jobs, [f"{label} {name}" for name in names]
    ):
        if isinstance(result, D3MError):
            raise result
        found[index] = result
    return {payload: [f for f, name in zip(found, names, strict=True) if name == payload] for payload in sets}


def _validated(job: ValidationJob, progress: Progress) -> float:
    from d3m_assets.evaluation.metrics import student_metrics

    table = student_metrics(
        "payload",
        lambda seed: job.train.value,
        job.validation.value,
        job.settings.model_copy(update={"seeds": (job.seed,)}),
        n_classes=job.n_classes,
        device=own_device() or job.device,
        progress=progress,
    )
    return float(table["accuracy"].iloc[0])


def _generated_set(context: Context, budget: str, replicate: int) -> LabelledImages:
    classes = context.dataset.classes
    images = [pool_images(read_selected(context, c.key, budget, replicate)) for c in classes]
    return labelled(images, np.arange(len(classes)))


def _coded_set(context: Context, budget: str, replicate: int) -> LabelledImages | None:
    """The coded images of all classes; None where a class has none."""
    tables = [coded_table(context, c, budget, replicate) for c in context.dataset.classes]
    if not all(len(table) for table in tables):
        return None
    return labelled([pool_images(table) for table in tables], np.arange(len(tables)))


def chosen_payload(context: Context, budget: str) -> Chosen:
    """Which payload a budget has: as the settings say, or as was decided."""
    if context.settings.payload != AUTO:
        return context.settings.payload
    chosen: Chosen = _stored(context, budget)["payload"]
    return chosen


def chosen_parts(context: Context, budget: str) -> frozenset[str]:
    """The parts of that payload: prompts, codes or both."""
    return PARTS[chosen_payload(context, budget)]


def choice_sentence(context: Context, budget: str) -> str:
    """How the payload of a budget was decided, for people; empty where the settings say it."""
    return str(_stored(context, budget)["sentence"]) if context.settings.payload == AUTO else ""


def _stored(context: Context, budget: str) -> dict[str, Any]:
    (key,) = context.inputs.keys(PayloadChoice, budget=budget)
    stored: dict[str, Any] = json.loads(context.inputs.read(key, FILE))
    return stored


def read_distilled(
    context: Context, class_key: str, budget: str, replicate: int = 0, *, kept: bool = True
) -> pd.DataFrame:
    """The images of a class that are its training set, as rows of its pool: selected samples, and behind them coded images.

    Where it has both, only the columns that both have, and their origin.

    Args:
        context: Of an asset that declares pool, selection, codes and choice of the payload.
        class_key: The class.
        budget: Name of the budget.
        replicate: Of the distillation.
        kept: No: the samples that were rejected, instead.
    """
    import pandas as pd

    parts = chosen_parts(context, budget)
    if PROMPTS not in parts:
        coded = read_coded(context, class_key, budget, replicate)
        return coded if kept else coded.iloc[:0]
    generated = read_selected(context, class_key, budget, replicate, kept=kept)
    if CODES not in parts or not kept:
        return generated
    tables = [generated.assign(origin=GENERATED), read_coded(context, class_key, budget, replicate)]
    return pd.concat(tables, join="inner", ignore_index=True)


def read_coded(context: Context, class_key: str, budget: str, replicate: int = 0) -> pd.DataFrame:
    """The coded images of a class as rows of a pool; arguments are as of :func:`read_distilled`."""
    if context.settings.payload == CODES:
        return read_pool(context, class_key, budget, replicate)
    # The pool has what is generated.
    return coded_table(context, context.dataset.class_by_key[class_key], budget, replicate)
