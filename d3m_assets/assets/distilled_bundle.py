"""``distilled_bundle``: the distilled dataset of a budget in one file: vectors and selections, image codes, recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from d3m_assets.assets.class_prompts import ClassPrompts, read_prompts
from d3m_assets.assets.codec_choice import CodecChoice, read_codec
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.image_codes import ImageCodes, codes_key, read_stored_code
from d3m_assets.assets.inverted_embeddings import (
    InvertedEmbeddings,
    embedding_plan,
    read_vectors,
    selection_plan,
    vectors_key,
)
from d3m_assets.assets.payload_bytes import code_bytes, prompt_bytes
from d3m_assets.assets.payload_choice import PayloadChoice, choice_sentence, chosen_parts, chosen_payload
from d3m_assets.assets.sample_selection import SampleSelection, read_code
from d3m_assets.assets.synthetic_pool import generation_fingerprint
from d3m_assets.distillation import bundle
from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
from d3m_assets.distillation.bundle_file import FORMAT_OF_BOTH
from d3m_assets.distillation.settings import BOTH, CODES, PROMPTS
from d3m_assets.ledger import Budget
from d3m_assets.planning.asset import Asset, Made
from d3m_assets.planning.versions import Version
from d3m_assets.store import SUPERSEDED, ArtefactKey, Store

if TYPE_CHECKING:
    import pandas as pd

FILE = "bundle.safetensors"


class DistilledBundle(Asset):
    """The distilled dataset of a budget: one file with the payloads of all classes and the recipe for images."""

    group = "distillation"
    partitions = ("budget",)
    deps = (InvertedEmbeddings, SampleSelection, ClassPrompts, FoundationModel, ImageCodes, CodecChoice, PayloadChoice)
    kinds = frozenset({"safetensors"})
    code_version = bundle.CODE_VERSION

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The recipe that the bundle carries beside its payload."""
        described = {
            "image": context.image_shape,
            "dataset": context.dataset.name,
            "bytes_per_class": item.budget.bytes(context.dataset.shape),
        }
        prompts = context.settings.prompts
        if context.settings.payload != PROMPTS:
            described["payload"] = context.settings.payload
        if context.settings.payload == BOTH:
            described["format"] = FORMAT_OF_BOTH
        if context.settings.payload == CODES:
            return described | {"templates": list(prompts.templates), "seed": context.settings.seed}
        described |= generation_fingerprint(context, context.settings.seed) | {"foundation": context.model.name}
        return described | _selection_fields(context, item)

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """No model where no image is generated."""
        if context.settings.payload == CODES:
            return (ClassPrompts, ImageCodes, CodecChoice)
        return self.deps

    def make_one(self, context: Context, item: Item) -> Made:
        """Put the payloads of all classes into one file."""
        classes = tuple(_distilled_class(context, item, c.key) for c in context.dataset.classes)
        made = Bundle(_recipe(context, item), classes)
        data = made.to_bytes()
        Bundle.from_bytes(data, str(item.key))  # what no one could read is not stored
        return Made(item.key, {FILE: data}, {"payload_bytes": made.payload, "bundle_bytes": len(data)})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The ledger, where the file is, and where it and its vectors were made; how its payload was chosen."""
        stored, found = context.inputs.manifest(item.key), read_bundle(context, item.key)
        shown = {
            "ledger": found.ledger(),
            "file": context.inputs.uri(item.key, FILE),
            "sha256": stored.files[FILE].sha256 if stored else "",
            "provenance": stored.provenance if stored else {},
        }
        if found.recipe.payload_choice:
            shown["payload"] = found.recipe.payload_choice
        if found.has_codes:
            shown["image codes"] = _codes_table(found)
        return shown | ({"vectors": _vectors_table(context, item)} if found.generates else {})


def _distilled_class(context: Context, item: Item, class_key: str) -> DistilledClass:
    """A class with what its payload consists of."""
    budget, prompts = item.budget.name, read_prompts(context, class_key)
    parts, codes = chosen_parts(context, budget), b""
    if CODES in parts:
        codes = read_stored_code(context, codes_key(context, class_key, budget))
    if PROMPTS not in parts:
        return DistilledClass.coded(prompts, codes)
    source = vectors_key(context, class_key, budget)
    plan, selection = embedding_plan(context, context.item(source)), read_code(context, class_key, budget)
    return DistilledClass(prompts, plan, read_vectors(context, source), selection, codes)


def payload_sentence(context: Context, budget: Budget) -> str:
    """How the payload of a budget and, of image codes, the codec were chosen; empty of prompts that the settings name."""
    sentences = [choice_sentence(context, budget.name)]
    if chosen_payload(context, budget.name) == BOTH:
        prompts, codes = prompt_bytes(context, budget), code_bytes(context, budget)
        sentences.append(
            f"both: up to {prompts} bytes a class of prompts with their selection, and {codes} of image codes"
        )
    if CODES in chosen_parts(context, budget.name):
        chosen = read_codec(context, budget.name)
        assert chosen.codec is not None  # its codes are stored
        sentences.append(f"coded as {chosen.codec.words}, {chosen.sentence}")
    return "; ".join(sentence for sentence in sentences if sentence)


def _codes_table(found: Bundle) -> pd.DataFrame:
    """Coded images of each class, and their bytes."""
    import pandas as pd

    rows = [
        {"class": c.prompts.class_name, "coded images": len(found.code_numbers(c)), "bytes": len(c.codes)}
        for c in found.classes
    ]
    return pd.DataFrame(rows)


def _vectors_table(context: Context, item: Item) -> pd.DataFrame:
    """Where the vectors of each class were learned, and when."""
    import pandas as pd

    rows = []
    for dataset_class in context.dataset.classes:
        source = vectors_key(context, dataset_class.key, item.budget.name)
        stored = context.inputs.manifest(source)
        if stored is None:
            continue
        where = stored.provenance
        rows.append(
            {
                "class": dataset_class.name,
                "learned": stored.created,
                "stop reason": str(stored.metrics.get("stop_reason", "imported")),
                "loss": stored.metrics.get("loss_best"),
                "run": str(where.get("run") or ("none" if where else "not recorded")),
                "hardware": str(where.get("hardware", "not recorded")),
            }
        )
    return pd.DataFrame(rows)


def _selection_fields(context: Context, item: Item) -> dict[str, Any]:
    """What the recipe says of the selection; nothing where none is asked for."""
    criterion, plan = context.settings.selection.criterion, selection_plan(context, item.budget)
    if criterion == "none":
        return {}
    return {"criterion": criterion, "candidates": plan.candidates if plan.bytes else 0, "kept": plan.kept}


def _recipe(context: Context, item: Item) -> Recipe:
    """The recipe of a budget, with the model where images are generated."""
    settings, shape, payload = context.settings, context.dataset.shape, chosen_payload(context, item.budget.name)
    return Recipe(
        **(_model_fields(context, item) if PROMPTS in chosen_parts(context, item.budget.name) else _NO_MODEL),
        budget=item.budget.name,
        bytes_per_class=item.budget.bytes(shape),
        dataset=context.dataset.name,
        image_height=shape.height,
        image_width=shape.width,
        channels=shape.channels,
        seed=settings.seed,
        templates=settings.prompts.templates,
        keep_class_name=settings.prompts.keep_class_name,
        payload="" if payload == PROMPTS else payload,
        payload_choice=payload_sentence(context, item.budget),
    )


_NO_MODEL: Mapping[str, Any] = {
    "foundation": "",
    "foundation_fingerprint": "",
    "foundation_bytes": 0,
    "generation": {},
    "scheduler": "",
    "licence": "as the dataset's",
}
"""Of a recipe by which no image is generated."""


def _model_fields(context: Context, item: Item) -> dict[str, Any]:
    """What a recipe says of the model and of how images are generated and selected."""
    settings, files, tiny = context.settings, context.model.files, context.model.tiny_autoencoder
    noise = files.config("scheduler")
    decoder: dict[str, Any] = {}
    if tiny is not None:
        decoder = {
            "autoencoder": tiny.name,
            "autoencoder_fingerprint": tiny.fingerprint,
            "autoencoder_bytes": tiny.weight_bytes,
        }
    return {
        "foundation": context.model.name,
        "foundation_fingerprint": files.fingerprint,
        "foundation_bytes": files.weight_bytes,
        "generation": settings.generation.fingerprint(),
        "scheduler": f"{noise.get('beta_schedule')} {noise.get('prediction_type')}",
        **decoder,
        **_selection_fields(context, item),
    }


def read_bundle(context: Context, key: ArtefactKey) -> Bundle:
    """A stored bundle."""
    return Bundle.from_bytes(context.inputs.read(key, FILE), str(key))


def find_bundle(store: Store, sha256: str) -> Version | None:
    """The version of a bundle by the hash of its file; None: the store never had it, or has been pruned since.

    Raises:
        StoreError: The disk or service refuses.
    """
    for key in store.keys(DistilledBundle.name):
        stored = store.look(key).manifest
        if stored is not None and _bundle_digest(stored.files) == sha256:
            return Version(key, stored, True, store)
    for fingerprint in store.records(SUPERSEDED):
        kept = store.superseded(fingerprint)
        if kept is not None and kept[0].asset == DistilledBundle.name and _bundle_digest(kept[1].files) == sha256:
            return Version(*kept, False, store)
    return None


def _bundle_digest(files: Mapping[str, Any]) -> str:
    return files[FILE].sha256 if FILE in files else ""
