"""Learned tokens as files that other programs load.

One file a prompt: programs that take the first tensor of a file would silently read another class's. Token names are
lower-case and do not end in a digit, which transformers 5, diffusers' multi-vector names and case-folding programs need.
Only safetensors is written: pickled files run code when they are loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.errors import BundleError
from d3m_assets.exports.compatibility import model_slug
from d3m_assets.exports.dataset_card import code, markdown
from d3m_assets.foundation.vector_layout import VectorLayout

TokenFormat = Literal["diffusers", "a1111", "concept"]
SDXL_PARTS = ("clip_l", "clip_g")
"""Names that programs give the parts of an SDXL embedding: of its first and of its second text encoder."""


@dataclass(frozen=True)
class ExportedToken:
    """One learned prompt as a file.

    Attributes:
        class_name: The class that it generates.
        token: What stands for its vectors in a prompt of diffusers.
        prompt: The prompt it was learned for, as the program takes it.
        path: The file.
    """

    class_name: str
    token: str
    prompt: str
    path: Path


def export_tokens(bundle: Bundle, layout: VectorLayout, output: Path, kind: TokenFormat) -> list[ExportedToken]:
    """Write every learned prompt of a bundle for other programs, float32, one file each.

    Args:
        bundle: The distilled dataset.
        layout: Of a learned vector of its foundation model (``Foundation.layout``): the bundle holds directions, the
            layout says at which norms and for which text encoders.
        output: Folder to write; must be new or empty.
        kind: "diffusers" for ``load_textual_inversion``: ``<base model>-<token>.safetensors`` with one tensor
            ``[vectors, D]`` named by the token. "a1111" for AUTOMATIC1111's web UI and ComfyUI: the tensor is named
            ``emb_params``, and the name of the file is what stands for it in prompts of these programs. "concept" for the
            layout of the Hugging Face sd-concepts-library: a folder for each token with ``learned_embeds.safetensors``,
            ``token_identifier.txt``, ``type_of_concept.txt`` and a model card.

            For SDXL every format holds two tensors, ``clip_l`` and ``clip_g``; diffusers loads each with a call of its own
            (the guide shows it).

    Returns:
        What was written. ``tokens.json`` in the folder says the same.

    Raises:
        BundleError: The folder is not empty, or a vector of the bundle is not usable.
    """
    from safetensors.numpy import save

    check_has_prompts(bundle)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output} is not an empty folder; name a new one with --output")
    output.mkdir(parents=True, exist_ok=True)
    exported = []
    for index, learned in enumerate(bundle.classes):
        rows = from_stored(learned.vectors, layout)
        for prompt, vectors in enumerate(rows):
            token = bundle.token_of(index, prompt)
            path = _path(output, f"{model_slug(bundle)}-{token.strip('<>')}", kind)
            path.parent.mkdir(exist_ok=True)
            parts = np.split(vectors, np.cumsum(layout.widths)[:-1], axis=-1)
            names = SDXL_PARTS if len(parts) > 1 else ("emb_params" if kind == "a1111" else token,)
            content = save({n: np.ascontiguousarray(p) for n, p in zip(names, parts, strict=True)})
            path.write_bytes(content)  # a full disk is then an OSError, as everywhere
            text = learned.prompts.learned(prompt)
            if kind == "a1111":
                text = text.replace(token, path.stem)
            made = ExportedToken(learned.prompts.class_name, token, text, path)
            if kind == "concept":
                _write_concept(bundle, made, len(vectors), names)
            exported.append(made)
    listed = [
        {"class": e.class_name, "token": e.token, "prompt": e.prompt, "file": e.path.relative_to(output).as_posix()}
        for e in exported
    ]
    (output / "tokens.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return exported


def check_has_prompts(bundle: Bundle) -> None:
    """Refuse a bundle that holds no prompts.

    Raises:
        BundleError: Its classes are coded images.
    """
    if not bundle.generates:
        raise BundleError(
            "this bundle holds coded real images and no prompts, so there is nothing to export but its images (`d3m regenerate`) "
            "and the bundle itself (--format bundle-repository)"
        )


def _path(output: Path, name: str, kind: TokenFormat) -> Path:
    return output / name / "learned_embeds.safetensors" if kind == "concept" else output / f"{name}.safetensors"


def _write_concept(bundle: Bundle, token: ExportedToken, vectors: int, tensors: tuple[str, ...]) -> None:
    folder, recipe, generation = token.path.parent, bundle.recipe, bundle.generation_settings()
    load = f'    pipeline.load_textual_inversion("{folder.name}")'
    if tensors == SDXL_PARTS:
        lines = [f'embedding = safetensors.torch.load_file("{folder.name}/{token.path.name}")']
        lines += [
            f'pipeline.load_textual_inversion(embedding["{part}"], token="{token.token}", '
            f"text_encoder=pipeline.text_encoder{n}, tokenizer=pipeline.tokenizer{n})"
            for part, n in zip(SDXL_PARTS, ("", "_2"), strict=True)
        ]
        load = "\n".join(f"    {line}" for line in lines)
    (folder / "token_identifier.txt").write_text(token.token)
    (folder / "type_of_concept.txt").write_text("object")
    card = f"""---
library_name: diffusers
tags: [textual_inversion, dataset_distillation]
---
# {code(token.token)}: class {markdown(token.class_name)} of {markdown(recipe.dataset)}

{vectors} vector(s) learned by textual inversion with d3m-assets within the budget {recipe.budget}. They belong to the
foundation model {code(recipe.foundation)} (fingerprint `{recipe.foundation_fingerprint}`) and mean nothing to another.

{load}
    pipeline({json.dumps(token.prompt)}, guidance_scale={generation.guidance_scale},
             num_inference_steps={generation.steps})

Licence: {markdown(recipe.licence)}.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")
