"""Pipelines of published sizes with random weights: speed does not depend on the values, and nothing is downloaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.errors import FoundationError
from d3m_assets.foundation.files import FoundationFiles, embedded_path
from d3m_assets.foundation.loading import Foundation, TextEncoder, load_foundation

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer

SIZES = ("sd15", "sd21", "sdxl")
VOCABULARY = 49_408
_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
          "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}  # fmt: skip
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
             "block_out_channels": (320, 640, 1280, 1280)},
    "sd21": {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
             "block_out_channels": (320, 640, 1280, 1280), "use_linear_projection": True},
    "sdxl": {"sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
             "block_out_channels": (320, 640, 1280), "use_linear_projection": True,
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
             "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time",
             "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
}  # fmt: skip
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
           "projection_dim": 768}  # fmt: skip
_TEXT: dict[str, list[dict[str, Any]]] = {
    "sd15": [_CLIP_L],
    "sd21": [{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
              "projection_dim": 512, "hidden_act": "gelu"}],
    "sdxl": [_CLIP_L, {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                       "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}],
}  # fmt: skip
"""From the config.json files of runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and
stabilityai/stable-diffusion-xl-base-1.0."""


def build_unet(size: str) -> torch.nn.Module:
    """The U-Net of a size; random weights on the device of the ``torch.device`` context."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(in_channels=4, out_channels=4, layers_per_block=2, **_UNETS[size])


def build_autoencoder(size: str) -> torch.nn.Module:
    """The KL autoencoder of a size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        norm_num_groups=32, sample_size=1024 if size == "sdxl" else 768 if size == "sd21" else 512,
        scaling_factor=0.13025 if size == "sdxl" else 0.18215, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def build_text_encoders(size: str) -> list[torch.nn.Module]:
    """The text encoders of a size."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    return [
        kind(CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=77, bos_token_id=VOCABULARY - 2,
                            eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1, **config))
        for kind, config in zip(kinds, _TEXT[size], strict=False)
    ]  # fmt: skip


def build_tokenizer(pad_token: str | None = None) -> CLIPTokenizer:
    """The embedded model's tokenizer with CLIP's length and number of tokens; the added ones never occur in a text."""
    from transformers import CLIPTokenizer

    from d3m_assets.foundation.embedded.models import build_tokenizer as small_tokenizer

    model = json.loads(small_tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    filler = [f"<filler{i}>" for i in range(VOCABULARY - len(words))]
    vocabulary = {token: i for i, token in enumerate([*words[:-2], *filler, *words[-2:]])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], model_max_length=77)
    if pad_token:
        tokenizer.pad_token = pad_token
    return tokenizer


def load_model(name: str, device: str, folder: Path) -> Foundation:
    """A model in float32, as the script's own recipe uses it.

    Args:
        name: "embedded", or one of :data:`SIZES`.
        device: A torch device.
        folder: The configurations of a model that is built are written here; its weights are not.

    Raises:
        FoundationError: There is no such size, or no such device.
    """
    if name == "embedded":
        return converted(load_foundation(FoundationFiles(name, embedded_path()), device), "float32")
    if name not in SIZES:
        raise FoundationError(f"no model of size {name!r}; --model takes embedded, {', '.join(SIZES)}")
    import torch

    from d3m_assets.compute.devices import choose_device

    where = choose_device(device)
    torch.manual_seed(0)
    with torch.device(where):  # drawing a billion weights on a processor takes longer than the measurement
        unet, vae, texts = build_unet(name), build_autoencoder(name), build_text_encoders(name)
    for module in (unet, vae, *texts):
        module.eval().requires_grad_(False)
    tokenizers = [build_tokenizer("!" if name == "sd21" else None), build_tokenizer("!")][: len(texts)]
    encoders = tuple(TextEncoder(t, m) for t, m in zip(tokenizers, texts, strict=True))
    kind = "StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "size": name}))
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    for i, text in enumerate(texts):
        text.config.save_pretrained(folder / ("text_encoder_2" if i else "text_encoder"))
    noise = {**_NOISE, "prediction_type": "v_prediction" if name == "sd21" else "epsilon"}
    return Foundation(FoundationFiles(name, folder), encoders, unet, vae, noise, where, kind.endswith("XLPipeline"))


def converted(foundation: Foundation, dtype: str, *, compile_unet: bool = False) -> Foundation:
    """A copy of a model in another number format; channels last on CUDA, as :func:`load_foundation` lays it out.

    Args:
        foundation: The model.
        dtype: "float32" or "bfloat16".
        compile_unet: Compile the copy's U-Net at its first use.
    """
    import torch

    def part(module: Any, channels_last: bool = False) -> Any:
        made = copy.deepcopy(module).to(getattr(torch, dtype)).eval().requires_grad_(False)
        return made.to(memory_format=torch.channels_last) if channels_last else made

    last = foundation.device.type == "cuda" and dtype != "float32"  # the script knows nothing of channels last
    unet = part(foundation.unet, last)
    if compile_unet:
        unet.compile()
    encoders = tuple(TextEncoder(e.tokenizer, part(e.model)) for e in foundation.text_encoders)
    return Foundation(foundation.files, encoders, unet, part(foundation.vae, last), foundation.scheduler_config,
                      foundation.device, foundation.zero_empty_prompt)  # fmt: skip


def parameters(modules: Sequence[torch.nn.Module]) -> int:
    """Number of parameters of modules."""
    return sum(p.numel() for module in modules for p in module.parameters())
