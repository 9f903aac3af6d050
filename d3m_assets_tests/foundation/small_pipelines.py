"""Small pipelines of every supported architecture with random weights, as users have them on disk."""

from pathlib import Path

KINDS = ("sd1", "sd2", "sdxl")


def write_pipeline(kind: str, folder: Path, *, legacy_end: bool = False) -> Path:
    """Write a pipeline directory and return it.

    Args:
        kind: "sd1" predicts noise; "sd2" velocity, and pads with another token; "sdxl" has two text encoders.
        folder: Where to.
        legacy_end: Write ``eos_token_id: 2``, as the configurations of published models do.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from d3m_assets.foundation.embedded.models import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()

    def text(width: int, model: type, layers: int = 2) -> torch.nn.Module:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=24,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=2 if legacy_end else tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return model(config)

    def unet(width: int, **options: object) -> UNet2DConditionModel:
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            **options,
        )

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    if kind == "sdxl":
        second = build_tokenizer()
        second.pad_token = "!"
        pipeline = StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=text(32, CLIPTextModel),
            text_encoder_2=text(48, CLIPTextModelWithProjection, 3),
            tokenizer=tokenizer,
            tokenizer_2=second,
            scheduler=EulerDiscreteScheduler(**noise),
            unet=unet(
                80,
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=48 + 6 * 8,
            ),
        )
    else:
        if kind == "sd2":
            tokenizer.pad_token = "!"
        prediction = {"sd1": "epsilon", "sd2": "v_prediction"}[kind]
        width = {"sd1": 32, "sd2": 48}[kind]
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text(width, CLIPTextModel),
            tokenizer=tokenizer,
            unet=unet(width, attention_head_dim=4),
            scheduler=DDIMScheduler(**noise, prediction_type=prediction, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_autoencoder(folder: Path, *, latent_channels: int = 4, levels: int = 2) -> Path:
    """Write an AutoencoderTiny with random weights for the latents of these pipelines, and return its folder."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        latent_channels=latent_channels,
    ).save_pretrained(folder)
    return folder
