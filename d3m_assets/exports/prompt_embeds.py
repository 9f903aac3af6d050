"""Encoded prompts as files: ``prompt_embeds=`` of a stock diffusers pipeline, without tokens and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.generation import prompt_states
from d3m_assets.errors import BundleError
from d3m_assets.exports.compatibility import model_slug
from d3m_assets.exports.tokens import check_has_prompts
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    from d3m_assets.foundation.loading import Foundation

LIST = "prompt_embeds.json"
EMBEDS, POOLED = "prompt_embeds", "pooled_prompt_embeds"
"""Names of the tensors: those of the arguments of a diffusers pipeline."""


def export_prompt_embeds(
    bundle: Bundle, foundation: Foundation, output: Path, progress: Progress = silent
) -> list[Path]:
    """Write the text states of all prompts of a bundle, a safetensors file for each class.

    A file holds ``prompt_embeds``, float32 ``[prompts, L, D]``, and for SDXL ``pooled_prompt_embeds`` ``[prompts, P]``; its
    name tells the base model and the class's id. ``prompt_embeds.json`` lists the files with their classes and with the
    settings that the bundle generates with.

    Args:
        bundle: The distilled dataset.
        foundation: The model it was made for.
        output: Folder to write; must be new or empty.
        progress: Told of every class.

    Returns:
        The files, in the order of the classes.

    Raises:
        BundleError: Another foundation model, or the folder is not empty.
    """
    from safetensors.torch import save

    check_has_prompts(bundle)
    bundle.check_foundation(foundation.files.fingerprint, foundation.files.name)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output} is not an empty folder; name a new one with --output")
    output.mkdir(parents=True, exist_ok=True)
    paths, listed = [], []
    for done, c in enumerate(bundle.classes, start=1):
        states = prompt_states(foundation, c.prompts, c.vectors, c.plan)
        tensors = {EMBEDS: states.states.float().cpu().contiguous()}
        if states.pooled is not None:
            tensors[POOLED] = states.pooled.float().cpu().contiguous()
        path = output / f"{model_slug(bundle)}-d3m-{c.prompts.class_id:04d}.safetensors"
        about = {"class": c.prompts.class_name, "base_model": bundle.recipe.foundation, "bundle": bundle.sha256}
        path.write_bytes(save(tensors, metadata=about))
        paths.append(path)
        prompts = [c.prompts.learned(prompt) for prompt in range(c.plan.prompts)]
        listed.append({"class": c.prompts.class_name, "file": path.name, "prompts": prompts})
        progress(ProgressEvent("export", done, len(bundle.classes), f"class {printable(c.prompts.class_name)}"))
    contents = {
        "base_model": bundle.recipe.foundation,
        "fingerprint": bundle.recipe.foundation_fingerprint,
        "bundle": bundle.sha256,
        "generation": bundle.recipe.generation,
        "classes": listed,
    }
    (output / LIST).write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths
