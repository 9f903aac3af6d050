"""``codec_choice``: which codec and quality image codes of a budget have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.assets.payload_bytes import code_bytes
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.assets.selection_model import SelectionModel, see
from d3m_assets.compute.devices import own_device
from d3m_assets.compute.shared import Shared
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.distillation.settings import AUTO, BOTH, CODES, PARTS
from d3m_assets.errors import D3MError, StageError
from d3m_assets.evaluation import baselines, codec_choice, codecs
from d3m_assets.evaluation.baselines.encoded import EncodableClass, encoded_sets
from d3m_assets.evaluation.codecs import Codec, codec_number, codec_of
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.planning.asset import Asset, Made
from d3m_assets.progress import Progress
from d3m_assets.settings import Settings

FILE = "codecs.json"


class CodecChoice(Asset):
    """The codec and quality that teach most at a budget, by the validation part of the train split.

    Made only where image codes are a payload.
    """

    group = "distillation"
    partitions = ("budget",)
    deps = (RawDataset, SelectionModel)
    kinds = frozenset({"pytorch", "scikitlearn"})
    code_version = f"{codec_choice.CODE_VERSION}.{codecs.CODE_VERSION}.{baselines.CODE_VERSION}"
    device = True

    def unused(self, settings: Settings) -> str:
        """It is made only where image codes are a payload."""
        return no_codes(settings)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Bytes of a class, the students that choose, and the file formats that there are."""
        return {
            "bytes_per_class": code_bytes(context, item.budget),
            "students": context.settings.students.model_dump(mode="json", exclude={"recipe", "seeds"}),
            "student seed": context.settings.students.seeds[0],
            "seed": item.seed,
            "formats": codecs.pictures.available_formats(),
            "image": context.image_shape,
            "device": context.device_kind,
        }

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Choose codecs; what the network sees in the training images is computed once for all budgets."""
        try:
            yield from super().make(context, items)
        finally:
            context.forget(CodecJob)

    def make_one(self, context: Context, item: Item) -> Made:
        """Compare all codecs; of the best, the first by which an image of every class fits is taken."""
        held_out = image_rows(context, "validation")
        if held_out.empty:
            raise StageError(
                "codecs are chosen on the validation part, and no image fell into it; raise validation_fraction, or give "
                "payload=prompts"
            )
        job = CodecJob(
            context.once(CodecJob, lambda: Shared(encodable_classes(context))),
            Shared(labelled_images(context, held_out, "validation")),
            code_bytes(context, item.budget),
            item.seed,
            context.settings.students,
            context.device,
        )
        ((_, result),) = context.map_in_workers(self.name, _choose, [job], [item.label])
        if isinstance(result, D3MError):
            raise result
        if result["codec"] is None and context.settings.payload != AUTO:
            raise no_room(context, item, "every class", "any codec")
        facts = {"codec": result["words"], "candidates": len(result["candidates"]), "validation images": len(held_out)}
        return Made(item.key, {FILE: to_json(result)}, facts)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """What was found of every codec."""
        import pandas as pd

        stored = json.loads(context.inputs.read(item.key, FILE))
        return {"codec": stored["words"], "codecs": pd.DataFrame(stored["candidates"])}


def no_codes(settings: Settings) -> str:
    """Why no image codes are stored; empty if they may be."""
    return "" if CODES in PARTS[settings.payload] else f"payload is {settings.payload}"


def no_room(context: Context, item: Item, whose: str, codec: str) -> StageError:
    """The error of a budget into which no code fits, with the way out."""
    share = ", a larger codes_share" if context.settings.payload == BOTH else ""
    return StageError(
        f"no coded image of {whose} fits into {item.budget} as {codec}: image codes have {code_bytes(context, item.budget)} bytes "
        f"a class; give more bytes{share}, or payload=prompts"
    )


def encodable_class(context: Context, class_key: str) -> EncodableClass:
    """The training images of a class by their hash, and what the network sees in them."""
    rows = image_rows(context, "train", class_key).sort_values("sha256", ignore_index=True)
    images = labelled_images(context, rows, "train").images
    return EncodableClass(images, see(context, images).features)


def encodable_classes(context: Context) -> tuple[EncodableClass, ...]:
    """The same of all classes, by position."""
    return tuple(encodable_class(context, c.key) for c in context.dataset.classes)


@dataclass(frozen=True)
class CodecJob:
    """A budget of which a worker chooses the codec.

    Attributes:
        classes: Training images of every class, by position.
        validation: What codecs are chosen by.
        allowed: Bytes of a class.
        seed: Of k-means.
        students: Recipe of the students that choose.
        device: Torch device, where the worker was not given one of its own.
    """

    classes: Shared[tuple[EncodableClass, ...]]
    validation: Shared[LabelledImages]
    allowed: int
    seed: int
    students: StudentSettings
    device: str


def _choose(job: CodecJob, progress: Progress) -> dict[str, Any]:
    """The stored choice: codec (its number; None: none fits), words, sentence, and candidates, best first."""
    classes, device = job.classes.value, own_device() or job.device
    candidates = codec_choice.choose_codec(
        classes, job.validation.value, job.allowed, job.students, device=device, progress=progress
    )
    codec = next((c.codec for c in candidates if encoded_sets(classes, c.codec, job.allowed, [job.seed])), None)
    listed = [
        {"codec": c.codec.words, "images_per_class": c.images_per_class, "proxy": c.proxy, "student": c.student}
        for c in candidates
    ]
    return {
        "codec": None if codec is None else codec_number(codec),
        "words": "none" if codec is None else codec.words,
        "sentence": codec_choice.choice_words(candidates),
        "candidates": listed,
    }


@dataclass(frozen=True)
class ChosenCodec:
    """A stored choice.

    Attributes:
        codec: The codec; None: by none an image of every class fits.
        sentence: What it was chosen among, for people.
    """

    codec: Codec | None
    sentence: str


def read_codec(context: Context, budget: str) -> ChosenCodec:
    """The codec that was chosen for a budget.

    Raises:
        StageError: No image fits, as a choice that ``payload=auto`` has made may say.
    """
    (key,) = context.inputs.keys(CodecChoice, budget=budget)
    stored = json.loads(context.inputs.read(key, FILE))
    number = stored["codec"]
    if number is None and context.settings.payload != AUTO:
        raise StageError(f"no coded image of every class fits into {budget}; give more bytes, or payload=prompts")
    return ChosenCodec(None if number is None else codec_of(number), stored["sentence"])
