"""Checkpoints in one file, as AUTOMATIC1111, ComfyUI and Civitai have them: looked at before anything is loaded.

Such a file has the weights under the names of the original latent-diffusion code, and neither configurations nor a
tokenizer. diffusers would fetch those from the hub, by a guess at the architecture; here they come from a folder that the
user names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from d3m_assets.errors import FoundationError

if TYPE_CHECKING:
    from d3m_assets.foundation.files import FoundationFiles

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""What the names of checkpoint files end in; a name that does is never a hub id."""

_UNET = "model.diffusion_model."
_VAES = ("first_stage_model.", "vae.")
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_NO_WEIGHTS = ("position_ids", "logit_scale")
"""Numbers beside the weights of a text encoder."""
_TEXT = {
    "SD 1.x": ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",),
    "SD 2.x": ("cond_stage_model.model.token_embedding.weight",),
    "SDXL": (
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.token_embedding.weight",
    ),
}
"""Token tables of the text encoders of each architecture."""


def refuse_other_formats(path: Path) -> None:
    """Refuse a file that is not safetensors.

    Raises:
        FoundationError: It is pickled, or something else.
    """
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise FoundationError(
            f"{path} is pickled, and pickled files run code when they are loaded. Take the .safetensors file that most "
            "models are offered as, too; or convert it where you trust it: load it with torch and write its state_dict "
            "with safetensors.torch.save_file"
        )
    if path.suffix != ".safetensors":
        raise FoundationError(f"{path} is no model; give a diffusers pipeline directory or a .safetensors checkpoint")


def check(files: FoundationFiles) -> None:
    """Compare the names and shapes in a checkpoint with the configurations it is to be loaded with.

    Only the head of the file is read.

    Args:
        files: With a checkpoint.

    Raises:
        FoundationError: It cannot be read, a part of the model is not in it, or it has another architecture.
    """
    checkpoint, shapes = files.checkpoint, _shapes(files)
    names = list(shapes)
    if not any(n.startswith(_UNET) for n in names):
        raise FoundationError(
            f"{checkpoint} holds no U-Net ({_UNET}*): it is no whole checkpoint of Stable Diffusion. LoRAs, embeddings and "
            "single parts are not enough"
        )
    if not any(n.startswith(_VAES) for n in names):
        raise FoundationError(
            f"{checkpoint} holds no autoencoder (first_stage_model.*); take the file that includes it"
        )
    found = next((kind for kind, tables in _TEXT.items() if all(t in shapes for t in tables)), None)
    if found is None:
        raise FoundationError(
            f"{checkpoint} holds no text encoder of {', '.join(_TEXT)} (cond_stage_model.* or conditioner.*); take the "
            "file that includes it"
        )
    # By key and shape: with the configurations of another architecture, it would fail later and less clearly.
    wanted = [
        (found == "SDXL", files.kind == "StableDiffusionXLPipeline", "architecture", found, files.kind),
        *(
            (shapes[table][1], width, "text encoder", f"{found}, {shapes[table][1]} wide", f"{width} wide")
            for table, width in zip(_TEXT[found], files.text_widths, strict=False)
        ),
    ]
    first = f"{_UNET}input_blocks.0.0.weight"
    if first in shapes:
        channels = int(files.config("unet")["in_channels"])
        wanted.append((shapes[first][1], channels, "U-Net", f"of {shapes[first][1]} channels", f"of {channels}"))
    for real, configured, what, this, that in wanted:
        if real != configured:
            raise FoundationError(
                f"{checkpoint} does not fit foundation_config={files.path}: its {what} is {this}, but that of the "
                f"configurations is {that}. Name a diffusers folder of the model that the checkpoint was made from"
            )


def check_complete(files: FoundationFiles) -> None:
    """Notice weights that the file lacks, before diffusers does: it leaves them as they were drawn at random, or not drawn at all.

    Loading renames, cuts and turns tensors, but each number of a part comes from one number of the file, so they are
    counted.

    Args:
        files: With a checkpoint.

    Raises:
        FoundationError: A part has more numbers than the file has for it.
    """
    parts = {"unet": (_UNET,), "vae": tuple(v + p for v in _VAES for p in _VAE_PARTS)}
    if files.kind == "StableDiffusionXLPipeline":
        parts |= {"text_encoder": ("conditioner.embedders.0.",), "text_encoder_2": ("conditioner.embedders.1.",)}
    else:
        parts |= {"text_encoder": ("cond_stage_model.",)}
    shapes = {name: shape for name, shape in _shapes(files).items() if not name.endswith(_NO_WEIGHTS)}
    for part, prefixes in parts.items():
        given = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefixes))
        needed = _described_numbers(files, part)
        if given < needed:
            raise FoundationError(
                f"{files.checkpoint} lacks weights: {given} numbers for {part}, but foundation_config={files.path} "
                f"describes one of {needed}. Get the file again, or name the configurations of the model it was made from"
            )


def _described_numbers(files: FoundationFiles, part: str) -> int:
    """Numbers of a part as its configuration describes it; nothing is allocated.

    Raises:
        FoundationError: The configuration describes none.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = files.config(part)
    try:
        with torch.device("meta"):
            if part in ("unet", "vae"):
                model: torch.nn.Module = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
            else:
                kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
                model = kind(CLIPTextConfig(**config))
    except Exception as error:  # of many kinds, by what a configuration says
        raise FoundationError(
            f"the configuration of {part} in foundation_config={files.path} describes no such part: {error}. Name the "
            "diffusers folder of the model that the checkpoint was made from"
        ) from error
    return sum(weight.numel() for weight in model.parameters())


def _shapes(files: FoundationFiles) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(files.checkpoint, "pt") as stored:
            return {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FoundationError(
            f"{files.checkpoint} cannot be read as safetensors: {error}. Get it again, it may be incomplete"
        ) from error
