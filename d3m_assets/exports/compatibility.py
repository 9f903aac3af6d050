"""Into which base models and programs a bundle fits, in words, and how its files name the base model."""

from __future__ import annotations

import re

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.foundation.files import EMBEDDED

_FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
"""Models that are widely used, by the numbers in a learned vector: the widths of their text encoders together."""


_READERS = (
    "Images from it are read by PyTorch's ImageFolder, Hugging Face datasets, webdataset and Croissant "
    "(d3m regenerate --format folder, huggingface, webdataset; --croissant)."
)


def model_slug(bundle: Bundle) -> str:
    """The base model as a part of file names: lower-case letters, digits, ``-`` and ``_``, at most 40."""
    name = bundle.recipe.foundation.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"\.(safetensors|ckpt)$", "", name)
    return re.sub(r"[^a-z0-9_]+", "-", name).strip("-_")[:40].strip("-_") or "model"


def fits(bundle: Bundle) -> list[str]:
    """What a bundle can be used with, a sentence each."""
    if not bundle.generates:
        return [
            "Decodes its images without any model, on any machine with this package: d3m regenerate, verify.",
            "It holds no prompts, so there are no tokens and no encoded prompts to export.",
            _READERS,
        ]
    recipe, plan = bundle.recipe, bundle.classes[0].plan
    model = f"{recipe.foundation!r} (fingerprint {recipe.foundation_fingerprint[:12]})"
    family = _FAMILIES.get(plan.width)
    lines = [f"Regenerates its images with the base model {model} and no other: d3m regenerate, verify."]
    if bundle.has_codes:
        lines.append(
            "Its coded real images are decoded without the model, and written at the size of the generated ones."
        )
    if recipe.foundation == EMBEDDED:
        lines.append(
            "Its tokens (d3m export --format diffusers) load into a stock diffusers StableDiffusionPipeline of that model, which "
            "is part of d3m-assets. AUTOMATIC1111 and ComfyUI load the token files (--format a1111), but do not run this model."
        )
    elif family:
        lines.append(
            f"Its tokens have {plan.width} numbers, as those of {family}: diffusers (d3m export --format diffusers or concept), "
            f"AUTOMATIC1111 and ComfyUI (--format a1111) load them with that model. They also load with models fine-tuned from "
            f"{family}, where what they show is not promised."
        )
    else:
        lines.append(
            f"Its tokens have {plan.width} numbers, which is none of the widely used models: diffusers loads them with that model "
            "(d3m export --format diffusers or concept)."
        )
    pooled = " and pooled_prompt_embeds=" if plan.width == 2048 else ""
    lines.append(
        f"Its encoded prompts (d3m export --format prompt-embeds) are prompt_embeds={pooled} of any diffusers pipeline of that "
        "model."
    )
    return [*lines, _READERS]
