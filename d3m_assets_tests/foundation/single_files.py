"""Pipelines as single files under the names of the original latent-diffusion code, which A1111 and Civitai use."""

from pathlib import Path

_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q",
    "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm": "ln_final",
    "embeddings.position_embedding.weight": "positional_embedding", "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def _replaced(name, table):
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def _unet_name(name, unet):
    """A parameter's name; blocks of two resolutions are numbered through, resamplers among them."""
    side, _, rest = name.partition("_blocks.")
    if side not in ("down", "up"):
        return _replaced(_replaced(name, _UNET), _RESNET if "resnets" in name else {})
    block, part, layer, rest = rest.split(".", 3)
    of_block = unet.config.layers_per_block + 1
    if side == "down":
        if part == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * of_block}.0.op.{rest.removeprefix('conv.')}"
        place = f"input_blocks.{1 + int(block) * of_block + int(layer)}"
    else:
        if part == "upsamplers":
            behind = 2 if "CrossAttn" in unet.config.up_block_types[int(block)] else 1
            return f"output_blocks.{int(block) * of_block + of_block - 1}.{behind}.{rest}"
        place = f"output_blocks.{int(block) * of_block + int(layer)}"
    return f"{place}.0.{_replaced(rest, _RESNET)}" if part == "resnets" else f"{place}.1.{rest}"


def _unet_weights(unet):
    for name, weight in unet.state_dict().items():
        found = _unet_name(name, unet)
        if found.startswith("middle_block") and ".1." not in found[: len("middle_block.1.")]:
            found = _replaced(found, _RESNET)
        yield found, weight


def _vae_weights(vae):
    levels = len(vae.config.block_out_channels)
    for name, weight in vae.state_dict().items():
        side, _, rest = name.partition(".")
        parts = rest.split(".")
        if parts[0] in ("down_blocks", "up_blocks"):
            up = parts[0] == "up_blocks"
            level = levels - 1 - int(parts[1]) if up else int(parts[1])
            kind = "block" if parts[2] == "resnets" else ("upsample" if up else "downsample")
            inner = parts[3:] if kind == "block" else parts[4:]
            rest = ".".join(["up" if up else "down", str(level), kind, *inner])
        found = f"{side}.{_replaced(rest, _VAE)}" if rest else side
        convolution = "attn_1" in found and weight.ndim == 2  # written as 1x1 convolutions then
        yield found, weight[:, :, None, None] if convolution else weight


def _open_clip_weights(encoder):
    import torch

    weights = {n.removeprefix("text_model."): w for n, w in encoder.state_dict().items()}
    if "text_projection.weight" in weights:
        yield "text_projection", weights.pop("text_projection.weight").T
    layers = {n.split(".self_attn.")[0] for n in weights if ".self_attn." in n}
    for layer in layers:
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{layer}.self_attn.{p}_proj.{kind}") for p in "qkv"]
            yield f"{_replaced(layer, _OPEN_CLIP)}.attn.in_proj_{kind}", torch.cat(parts)
    yield "logit_scale", torch.tensor(4.6)
    for name, weight in weights.items():
        yield _replaced(name, _OPEN_CLIP), weight


def _clip_weights(encoder):
    import torch

    length = encoder.config.max_position_embeddings
    yield "transformer.text_model.embeddings.position_ids", torch.arange(length)[None]
    for name, weight in encoder.state_dict().items():
        yield f"transformer.text_model.{name.removeprefix('text_model.')}", weight


def write_single_file(kind: str, folder: Path, path: Path) -> Path:
    """Write the weights of a pipeline directory as one file, with what such files have beside them, and return it.

    Args:
        kind: As for ``write_pipeline``: sd1 has OpenAI's layout of CLIP, sd2 OpenCLIP's, sdxl one of each.
        folder: The pipeline directory.
        path: The file.
    """
    import diffusers
    import torch
    from safetensors.torch import save_file

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    parts = [("model.diffusion_model", _unet_weights(pipeline.unet)), ("first_stage_model", _vae_weights(pipeline.vae))]
    if kind == "sdxl":
        parts.append(("conditioner.embedders.0", _clip_weights(pipeline.text_encoder)))
        parts.append(("conditioner.embedders.1.model", _open_clip_weights(pipeline.text_encoder_2)))
    elif kind == "sd2":
        parts.append(("cond_stage_model.model", _open_clip_weights(pipeline.text_encoder)))
    else:
        parts.append(("cond_stage_model", _clip_weights(pipeline.text_encoder)))
    parts.append(("model_ema", iter([("decay", torch.tensor(0.9999)), ("num_updates", torch.tensor(1))])))
    tensors = {"alphas_cumprod": torch.linspace(1, 0, 1000)}
    tensors |= {f"{prefix}.{name}": weight.contiguous() for prefix, weights in parts for name, weight in weights}
    save_file(tensors, path)
    return path
