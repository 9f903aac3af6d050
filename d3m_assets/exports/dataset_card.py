"""The card of an export: front matter that programs read, and a page that says what the images are and how to get them again."""

from __future__ import annotations

import re
from typing import Any

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.exports.formats.writer import ExportPlan, FormatWriter
from d3m_assets.terminal import printable

PAPER = "https://arxiv.org/abs/2403.07142"
LICENCES = (
    "apache-2.0",
    "mit",
    "openrail",
    "creativeml-openrail-m",
    "openrail++",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nd-4.0",
    "gpl-3.0",
    "odbl",
    "pddl",
    "unlicense",
)
"""Names of licences that the hub knows, of those that data and models come under."""
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
MOST_CARD_TEXT = 2000
"""Characters of one text of a bundle that a card shows."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def markdown(text: str) -> str:
    """Text of a bundle for a card: on one line, and what would be markup, a link or HTML shown as it is written."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", printable(text, MOST_CARD_TEXT))


def code(text: str) -> str:
    """Text of a bundle as a code span of a card, whatever is in it."""
    return f"`{printable(text, MOST_CARD_TEXT).replace('`', chr(39))}`"


def hub_id(name: str) -> bool:
    """Whether a name reads like the id of a repository of the hub."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".safetensors", ".ckpt"))


def licence_front_matter(bundle: Bundle) -> dict[str, str]:
    """The licence as the hub's front matter has it: one of its names, or ``other`` with the bundle's words."""
    licence = bundle.recipe.licence
    if licence.lower() in LICENCES:
        return {"license": licence.lower()}
    name = re.sub(r"[^a-z0-9.+-]+", "-", licence.lower()).strip("-")
    return {"license": "other", "license_name": name or "other"}


def base_model_id(bundle: Bundle) -> str | None:
    """Hub id of the foundation model; None where it was not named by one."""
    name = bundle.recipe.foundation
    return name if hub_id(name) else None


def size_category(images: int) -> str:
    """The hub's category of a number of images."""
    return next((name for limit, name in _SIZES if images < limit), "n>1T" if images > 10**12 else "1B<n<10B")


def dataset_card(plan: ExportPlan, writer: FormatWriter, option: str) -> str:
    """The card of a folder of exported images.

    Args:
        plan: What was written.
        writer: The writer of its format.
        option: The name that a user chooses the format by.

    Returns:
        Markdown behind front matter in YAML.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    recipe, total = plan.bundle.recipe, plan.total
    source = recipe.dataset
    front: dict[str, Any] = {
        **licence_front_matter(plan.bundle),
        "pretty_name": f"{source}, distilled to {recipe.budget}",
        "task_categories": ["image-classification"],
        "size_categories": [size_category(total)],
        "annotations_creators": ["machine-generated"],
        "source_datasets": [source if hub_id(source) else "extended|other"],
        "tags": ["dataset-distillation", *(["synthetic"] if plan.bundle.generates else []), "d3m-assets"],
        **writer.front_matter(),
    }
    if (model := base_model_id(plan.bundle)) is not None:
        front["base_model"] = model
    card = DatasetCard(f"---\n{DatasetCardData(**front).to_yaml()}\n---\n{_page(plan, writer, option)}")
    return str(card)


def facts(bundle: Bundle) -> list[str]:
    """What a card says of a bundle, a line of a list each."""
    recipe = bundle.recipe
    return [
        f"- Source dataset: {markdown(recipe.dataset)}, {recipe.image_height} x {recipe.image_width} x {recipe.channels}, "
        f"{len(bundle.classes)} classes",
        *_method(bundle),
        f"- Budget: {recipe.budget}, {recipe.bytes_per_class:,} bytes a class",
        f"- Bundle: SHA-256 `{bundle.sha256}`",
        f"- Licence: {markdown(recipe.licence)}",
        "- Accuracy of a classifier trained on these images: not known to the bundle, so not claimed here. Where it was "
        f"distilled, `d3m metrics --budget {recipe.budget}` prints the mean and its 95 % interval; elsewhere, train a "
        "classifier on these images and test it on the test split of the source dataset.",
    ]


def _method(bundle: Bundle) -> list[str]:
    """Lines that say how a bundle's images are made."""
    recipe = bundle.recipe
    lines = []
    if bundle.generates:
        lines.append(f"- Method: D3M, textual inversion of a diffusion model ([paper]({PAPER})), by d3m-assets")
    if bundle.has_codes:
        lines.append(f"- Method: coded real images, by d3m-assets: {markdown(recipe.payload_choice)}")
    if bundle.generates:
        return [*lines, f"- Base model: {code(recipe.foundation)}, fingerprint `{recipe.foundation_fingerprint}`"]
    return [*lines, "- Base model: none; the images are decoded"]


def _page(plan: ExportPlan, writer: FormatWriter, option: str) -> str:
    count = "" if plan.per_class is None else f" --per-class {plan.per_class}"
    recipe, coded = plan.bundle.recipe, not plan.bundle.generates
    real = "No image is a real one: all were generated from the learned prompts of a distilled dataset."
    if coded:
        real = "Every image is a real one of the source dataset, coded with loss and decoded: it shows what the real one shows."
    elif plan.bundle.has_codes:
        real = (
            "Images whose origin is a coded real image are real ones of the source dataset, coded with loss and decoded: they show "
            "what the real ones show. The others were generated from the learned prompts of a distilled dataset."
        )
    needed = (
        "with the bundle"
        if coded
        else f"with the bundle and the base model named above; these were generated with {plan.precision}"
    )
    example = "\n".join(f"    {line}" if line else "" for line in writer.loading_example().splitlines())
    return "\n".join(
        [
            f"# {markdown(recipe.dataset)}, distilled to {recipe.budget}",
            "",
            f"{plan.total:,} {plan.made} images of {len(plan.counts)} classes, {plan.image_size[0]} x {plan.image_size[1]} "
            f"pixels, as {writer.title}. {real}",
            "",
            *facts(plan.bundle),
            "",
            "## To read them",
            "",
            example,
            "",
            f"## To {'decode' if coded else 'generate'} them again",
            "",
            f"    d3m regenerate BUNDLE --format {option} --output FOLDER{count}",
            "",
            f"{needed}. Every PNG file carries {'its bundle' if coded else 'bundle, prompt and seed'} in a text chunk, which "
            "`d3m lineage FILE` reads.",
            "",
        ]
    )
