"""The untrained parts of the embedded foundation model: tokenizer, text encoder, autoencoder and U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.foundation.embedded.characters import IMAGE_SIZE, caption_words

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 64
"""Width of a token embedding: stored as int8 it is 64 bytes, one 8x8 grey image."""

TEXT_LENGTH = 24
LATENT_SIZE = 8


def _apply_merges(word: str, merges: dict[tuple[str, str], None]) -> list[str]:
    pieces = [*word[:-1], word[-1] + "</w>"]
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [p for p in zip(pieces, pieces[1:], strict=False) if p in rank]
        if not pairs:
            return pieces
        best = min(pairs, key=rank.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that holds every byte and makes each caption word one token."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    merges: dict[tuple[str, str], None] = {}
    # A word's letters may already be claimed by another word's merges ("ho" of "hooked" in "photo"), so what is left of
    # each word is joined by new merges of lower rank until every word is one token.
    unfinished = True
    while unfinished:
        unfinished = False
        for word in caption_words():
            pieces = _apply_merges(word, merges)
            if len(pieces) > 1:
                unfinished = True
                merges[(pieces[0], pieces[1])] = None
    tokens = dict.fromkeys(letters + [c + "</w>" for c in letters] + [a + b for a, b in merges])
    # CLIP's own order: the end token is the last, which its text encoder relies on.
    vocabulary = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=TEXT_LENGTH)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text encoder of width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_autoencoder() -> AutoencoderKL:
    """A narrow KL autoencoder: 32x32x3 pixels to 8x8x4 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def build_unet() -> UNet2DConditionModel:
    """A one-million-parameter U-Net on 8x8 latents.

    The prompt comes in twice: by cross-attention at 4x4, and pooled into the time embedding, so that it also reaches the
    blocks that have no attention.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


NOISE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
"""Cosine schedule (Nichol and Dhariwal 2021): it ends in pure noise, so the prompt decides polarity, not the noise."""


def pixels_to_model(images: np.ndarray) -> torch.Tensor:
    """uint8 ``[N, H, W]`` to float32 ``[N, 3, H, W]`` in -1..1."""
    import torch

    return (torch.from_numpy(images).float() / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
