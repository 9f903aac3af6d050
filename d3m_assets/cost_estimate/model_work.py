"""Work of a text-to-image model, counted from its configurations alone: no weights are needed, and nothing is computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from d3m_assets.cost_estimate.counting import Count, count
from d3m_assets.errors import D3MError, FoundationError
from d3m_assets.foundation.files import TEXT_ENCODERS, FoundationFiles
from d3m_assets.foundation.loading import Foundation, TextEncoder, TextStates

if TYPE_CHECKING:
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class ModelWork:
    """Work of a model in one number format.

    Attributes:
        parameters: Parameters of each part.
        weight_bytes: Of all parts, as they are loaded.
        predict: One sample through the U-Net.
        predict_gradient: The same, with the gradient of its text states.
        encode_prompt: One prompt through the text encoders.
        prompt_gradient: The same, with the gradient of its learned vectors.
        encode_image: One image through the encoder of the autoencoder.
        decode_image: One image out of the autoencoder that the settings choose.
        latent_bytes: A latent as it is kept, in float16.
        image_size: Side of images, in pixels.
    """

    parameters: dict[str, int]
    weight_bytes: int
    predict: Count
    predict_gradient: Count
    encode_prompt: Count
    prompt_gradient: Count
    encode_image: Count
    decode_image: Count
    latent_bytes: int
    image_size: int


def count_model(files: FoundationFiles, dtype: str = "bfloat16", tiny_autoencoder: Path | None = None) -> ModelWork:
    """Count the work of a model.

    Args:
        files: Of the model; its configurations are enough.
        dtype: Number format of its weights, "bfloat16" or "float32".
        tiny_autoencoder: Folder of the autoencoder that decodes in place of the model's own.

    Raises:
        FoundationError: A configuration is missing or impossible.
    """
    import torch

    from d3m_assets.distillation.text import encode, extended_tables

    foundation = _on_meta(files, getattr(torch, dtype))
    device, length = foundation.device, files.text_length
    unet, vae = foundation.unet, foundation.vae
    side = int(unet.config.sample_size)
    try:
        with extended_tables(foundation) as learned:
            # Every token a learned one: the work is that of any prompt.
            ids = torch.full((len(foundation.text_encoders), 1, length), -1, device=device)
            weights = (*(e.model for e in foundation.text_encoders), unet, vae)

            def prompt() -> None:
                with torch.inference_mode():
                    encode(foundation, ids)

            def prompt_gradient() -> None:
                rows = torch.zeros(1, foundation.layout.width, device=device, requires_grad=True)
                learned.set(rows * 1.0)
                states = encode(foundation, ids)
                used = [t for t in (states.states, states.pooled) if t is not None]
                torch.autograd.grad(sum(t.float().sum() for t in used), rows)

            encode_prompt = count(prompt, weights)
            with_gradient = count(prompt_gradient, weights)
            with torch.no_grad():
                states = encode(foundation, ids)
        noisy = torch.zeros(1, int(unet.config.in_channels), side, side, device=device)
        times = torch.zeros(1, dtype=torch.int64, device=device)

        def predict() -> None:
            with torch.inference_mode():
                foundation.predict(noisy, times, states)

        def predict_gradient() -> None:
            leaf = torch.zeros_like(states.states, requires_grad=True)
            predicted = foundation.predict(noisy, times, TextStates(leaf * 1.0, states.pooled))
            torch.autograd.grad((predicted - noisy).square().flatten(1).mean(1).sum(), leaf)

        def encode_image() -> None:
            foundation.encode_images(torch.zeros(1, 3, files.image_size, files.image_size, device=device))

        decoder = vae if tiny_autoencoder is None else _tiny_on_meta(tiny_autoencoder, vae.dtype)

        def decode_image() -> None:
            with torch.inference_mode():
                foundation.decode_latents(noisy, autoencoder=decoder)

        return ModelWork(
            parameters={name: sum(p.numel() for p in part.parameters()) for name, part in _parts(foundation)},
            weight_bytes=sum(t.numel() * t.element_size() for m in weights for t in (*m.parameters(), *m.buffers())),
            predict=count(predict, weights),
            predict_gradient=count(predict_gradient, weights),
            encode_prompt=encode_prompt,
            prompt_gradient=with_gradient,
            encode_image=count(encode_image, weights),
            decode_image=count(decode_image, (*weights, decoder)),
            latent_bytes=2 * noisy.numel(),
            image_size=files.image_size,
        )
    except D3MError:
        raise
    except Exception as error:  # shapes that do not fit each other are found by running
        raise FoundationError(
            f"the configurations of {files.name} do not fit each other, so its work cannot be counted: {error}"
        ) from error


def _parts(foundation: Foundation) -> list[tuple[str, torch.nn.Module]]:
    names = TEXT_ENCODERS[foundation.files.kind]
    texts = [(name, encoder.model) for name, encoder in zip(names, foundation.text_encoders, strict=True)]
    return [("unet", foundation.unet), *texts, ("vae", foundation.vae)]


def _on_meta(files: FoundationFiles, dtype: torch.dtype) -> Foundation:
    """The model of the configurations, frozen, without numbers.

    Raises:
        FoundationError: A configuration is missing or impossible.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.utils import logging
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    logging.set_verbosity_error()
    names = TEXT_ENCODERS[files.kind]
    configurations = {name: files.config(name) for name in ("unet", "vae", "scheduler", *names)}
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(configurations["unet"])
            vae = AutoencoderKL.from_config(configurations["vae"])
            kinds = {"CLIPTextModelWithProjection": CLIPTextModelWithProjection}
            texts = [
                kinds.get((configurations[name].get("architectures") or [""])[0], CLIPTextModel)(
                    CLIPTextConfig.from_dict(configurations[name])
                )
                for name in names
            ]
    except Exception as error:  # diffusers and transformers raise many kinds
        raise FoundationError(f"the configurations of {files.name} in {files.path} are not usable: {error}") from error
    for part in (unet, vae, *texts):
        part.to(dtype).eval().requires_grad_(False)
    encoders = []
    for text in texts:
        # Of a tokenizer only the end token is asked, and ids are given; a norm needs numbers.
        encoder = TextEncoder(_tokenizer(text), text)
        encoder.norm = 1.0
        encoders.append(encoder)
    return Foundation(files, tuple(encoders), unet, vae, configurations["scheduler"], torch.device("meta"))


def _tokenizer(text: Any) -> Any:
    return SimpleNamespace(eos_token_id=int(text.config.eos_token_id or 0))


def _tiny_on_meta(path: Path, dtype: torch.dtype) -> Any:
    import torch
    from diffusers import AutoencoderTiny

    file = path.expanduser() / "config.json"
    try:
        with torch.device("meta"):
            tiny = AutoencoderTiny.from_config(json.loads(file.read_text(encoding="utf-8")))
    except Exception as error:  # diffusers raises many kinds
        raise FoundationError(f"{file} is no configuration of an AutoencoderTiny: {error}") from error
    return tiny.to(dtype).eval().requires_grad_(False)
