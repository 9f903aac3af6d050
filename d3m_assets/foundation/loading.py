"""Finding and loading the frozen text-to-image model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.compute.devices import choose_device
from d3m_assets.errors import FoundationError
from d3m_assets.foundation import single_file
from d3m_assets.foundation.files import EMBEDDED, IMAGE_ENCODER, TEXT_ENCODERS, FoundationFiles, embedded_path
from d3m_assets.foundation.image_encoder import embed, load_image_encoder
from d3m_assets.foundation.vector_layout import VectorLayout

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MOST_ENCODED_AT_ONCE, PIXELS_ENCODED_AT_ONCE = 50, 16 * 512 * 512
"""Most images, and pixels of all of them, that the autoencoder encodes together."""


def encoded_at_once(side: int) -> int:
    """Images of ``side`` x ``side`` pixels that the autoencoder encodes together, so that large ones fit into memory."""
    return max(1, min(MOST_ENCODED_AT_ONCE, PIXELS_ENCODED_AT_ONCE // side**2))


def find_foundation(
    name: str, *, config: str | None = None, revision: str | None = None, digests: Path | None = None
) -> FoundationFiles:
    """Find a text-to-image pipeline by its name.

    A name that is no local path but reads ``owner/model`` is fetched from the Hugging Face hub, since the user asked
    for it by name; nothing else reaches the network.

    Args:
        name: Setting ``foundation``: "embedded", path or hub id of a diffusers pipeline, or path of a single-file
            checkpoint.
        config: Setting ``foundation_config``: folder or hub id from which a single file takes its configurations and
            tokenizers.
        revision: Setting ``foundation_revision``: commit or tag of a hub model.
        digests: Cache file of content digests, so that weights are not read again for the fingerprint
            (:func:`~d3m_assets.foundation.digests.file_digests`).

    Raises:
        FoundationError: No such path, not a diffusers pipeline, one of a kind that is not supported, or a single file
            that is pickled, has no configurations, or does not fit them.
    """
    path = Path(name).expanduser()
    if name != EMBEDDED and path.is_file():
        single_file.refuse_other_formats(path)
        if config is None:
            raise FoundationError(
                f"{path} is a single-file checkpoint: weights without configurations and tokenizer. Set foundation_config "
                "to a diffusers folder of the model that it was made from (only its .json and .txt files are used), or to "
                "its hub id"
            )
        folder = _pipeline_folder(config, revision, ("*.json", "*.txt"), "foundation_config")
        files = FoundationFiles(name, folder, path, digests)
        single_file.check(files)
        return files
    if config is not None:
        raise FoundationError(
            f"foundation_config={config} is for single-file checkpoints, but {name} is none; leave foundation_config away"
        )
    path = _pipeline_folder(name, revision, ("*.json", "*.safetensors", "*.txt"), "foundation")
    files = FoundationFiles(name, path, digests=digests)
    for part in ("vae", *TEXT_ENCODERS[files.kind], "unet"):
        if not any((path / part).glob("*.safetensors")):
            raise FoundationError(
                f"{path / part} holds no .safetensors file; pickled weights are not loaded. Convert them with "
                "`pipeline.save_pretrained(path, safe_serialization=True)`"
            )
    return files


def find_configurations(
    name: str, *, config: str | None = None, revision: str | None = None, digests: Path | None = None
) -> FoundationFiles:
    """Find a pipeline as :func:`find_foundation` does, but its configurations are enough: its weights may be missing.

    Of a hub id only the configurations are fetched, unless the weights have been before.

    Args:
        name: Setting ``foundation``.
        config: Setting ``foundation_config``, which a single-file checkpoint needs.
        revision: Setting ``foundation_revision``.
        digests: Cache file of content digests.

    Raises:
        FoundationError: No such path, not a diffusers pipeline, or one of a kind that is not supported.
    """
    if Path(name).expanduser().is_file():
        return find_foundation(name, config=config, revision=revision, digests=digests)
    patterns = ("*.json", "*.txt", IMAGE_ENCODER)
    files = FoundationFiles(name, _pipeline_folder(name, revision, patterns, "foundation"), digests=digests)
    for part in ("vae", *TEXT_ENCODERS[files.kind], "unet", "scheduler"):
        files.config(part)
    return files


def _pipeline_folder(name: str, revision: str | None, patterns: Sequence[str], setting: str) -> Path:
    """The diffusers directory that a setting names; of a hub id, files that match ``patterns`` are fetched."""
    path = embedded_path() if name == EMBEDDED else Path(name).expanduser()
    no_hub_id = name.startswith((".", "/", "~")) or name.endswith(single_file.SUFFIXES)
    if not path.exists() and name.count("/") == 1 and not no_hub_id:
        path = _download(name, revision, patterns)
    if not path.exists():
        raise FoundationError(f"the {setting} path {name} does not exist; give a diffusers pipeline directory")
    if not (path / "model_index.json").is_file():
        raise FoundationError(
            f"{path} is not a diffusers pipeline: it holds no model_index.json. Give the directory that "
            "`pipeline.save_pretrained` wrote, or `embedded`"
        )
    return path


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    # The client reads the variable when it is imported; who sets it later means it no less.
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=offline))
    except Exception as error:  # the hub client raises many kinds, offline ones among them
        raise FoundationError(f"{name} is no local path and cannot be had from the hub: {error}") from error


@dataclass
class TextEncoder:
    """A frozen CLIP text encoder with its tokenizer.

    Attributes:
        tokenizer: Its tokenizer.
        model: The encoder; gradients flow through it, not into it.
    """

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection

    @property
    def table(self) -> torch.Tensor:
        """Token embeddings, float ``[V, D]``."""
        return self.model.get_input_embeddings().weight

    @cached_property
    def norm(self) -> float:
        """Mean Euclidean norm of a token embedding: the norm of every learned vector (arXiv 2512.13672)."""
        return float(self.table.float().norm(dim=-1).mean())


@dataclass
class TextStates:
    """What the U-Net is told of prompts.

    Attributes:
        states: float ``[N, L, D]``.
        pooled: float ``[N, P]``, SDXL's pooled prompt; None for models that have none.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.states)

    def __getitem__(self, index: Any) -> TextStates:
        """Some of the prompts, by a list or tensor of positions."""
        return TextStates(self.states[index], None if self.pooled is None else self.pooled[index])

    def repeat(self, counts: torch.Tensor) -> TextStates:
        """Every prompt as often as ``counts``, int64 ``[N]``, says."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(counts, 0)
        return TextStates(self.states.repeat_interleave(counts, 0), pooled)

    def followed_by(self, other: TextStates) -> TextStates:
        """These prompts and then the others."""
        import torch

        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.cat([self.pooled, other.pooled])
        return TextStates(torch.cat([self.states, other.states]), pooled)


@dataclass
class Foundation:
    """A loaded pipeline: frozen parts on one device.

    Attributes:
        files: Where it came from.
        text_encoders: One, or two for SDXL.
        unet: The denoiser; gradients flow through it, not into it.
        vae: The autoencoder.
        scheduler_config: Configuration of its noise schedule.
        device: Where the parts are.
        zero_empty_prompt: Whether no prompt means zeros (SDXL) and not the encoded empty text.
    """

    files: FoundationFiles
    text_encoders: tuple[TextEncoder, ...]
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    device: torch.device
    zero_empty_prompt: bool = False

    @cached_property
    def image_encoder(self) -> torch.nn.Module:
        """Sees latents among the token embeddings; loaded at its first use, since only inversion needs it.

        Raises:
            FoundationError: The model has none, or it is damaged.
        """
        return load_image_encoder(self.files).to(self.device)

    @cached_property
    def layout(self) -> VectorLayout:
        """Parts of a learned vector: widths and norms of the text encoders' token embeddings."""
        return VectorLayout(
            tuple(e.table.shape[1] for e in self.text_encoders), tuple(e.norm for e in self.text_encoders)
        )

    def predict(self, noisy: torch.Tensor, times: torch.Tensor, prompts: TextStates) -> torch.Tensor:
        """What the U-Net predicts, float32 ``[N, C, h, w]``.

        Args:
            noisy: float ``[N, C, h, w]``, as the scheduler scales them.
            times: Timesteps, ``[N]`` or one for all.
            prompts: N prompts.
        """
        import torch

        dtype, added = self.unet.dtype, None
        if prompts.pooled is not None:
            # SDXL is told the size an image had, where it was cropped and how large it shall be: whole and as trained.
            size = self.files.image_size
            sizes = torch.tensor([size, size, 0, 0, size, size], dtype=dtype, device=self.device)
            added = {"text_embeds": prompts.pooled.to(dtype), "time_ids": sizes.expand(len(noisy), -1)}
        return self.unet(noisy.to(dtype), times, prompts.states.to(dtype), added_cond_kwargs=added).sample.float()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Latents, scaled as the U-Net wants them, of float ``[N, 3, H, W]`` images in -1..1."""
        import torch

        with torch.inference_mode():
            parts = [
                self.vae.encode(part.to(self.device, self.vae.dtype)).latent_dist.mean
                for part in images.split(encoded_at_once(images.shape[-1]))
            ]
        return torch.cat(parts).float().clone() * self.vae.config.scaling_factor

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Directions of images among the token embeddings, float32 ``[N, D]`` of norm 1.

        Args:
            latents: float ``[N, C, h, w]``, as :meth:`encode_images` gives them.

        Raises:
            FoundationError: The model has no image encoder, or it is damaged.
        """
        return embed(self.image_encoder, latents.to(self.device))

    def decode_latents(
        self, latents: torch.Tensor, at_once: int | None = None, autoencoder: AutoencoderTiny | None = None
    ) -> torch.Tensor:
        """uint8 images ``[N, 3, H, W]`` of scaled latents.

        Args:
            latents: float ``[N, C, h, w]``.
            at_once: Images the autoencoder decodes together; it needs far more memory than the U-Net. None: all.
            autoencoder: Decodes in place of the model's own.
        """
        import torch

        vae = autoencoder or self.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        images = torch.cat([vae.decode(part).sample for part in scaled.split(at_once or len(scaled))])
        return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(dtype=torch.uint8)


def load_foundation(files: FoundationFiles, device: str = "auto", *, compile_unet: bool = False) -> Foundation:
    """Load a pipeline's parts, frozen; fp32 on a CPU, bf16 elsewhere, channels last on CUDA.

    Args:
        files: The pipeline.
        device: Where to.
        compile_unet: Compile the U-Net with ``torch.compile`` at its first use.

    Raises:
        FoundationError: The files cannot be loaded.
    """
    import torch

    _quieten_libraries()
    where = choose_device(device)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    if files.checkpoint is not None:
        single_file.check_complete(files)
    pipeline = _load_pipeline(files, dtype)
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise FoundationError(
            f"{files.source} is distilled for fixed guidance (time_cond_proj_dim): its U-Net has to be told the guidance "
            "scale, which is not supported; use the model it was distilled from, or one with an LCM-LoRA merged in"
        )
    encoders = tuple(
        TextEncoder(getattr(pipeline, name.replace("text_encoder", "tokenizer")), getattr(pipeline, name))
        for name in TEXT_ENCODERS[files.kind]
    )
    for part in (*(e.model for e in encoders), pipeline.unet, pipeline.vae):
        part.to(where, dtype).eval().requires_grad_(False)
    if where.type == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if compile_unet:
        pipeline.unet.compile()
    if not 0 < files.image_size <= 4096:
        raise FoundationError(f"{files.path / 'unet'} declares an impossible image size of {files.image_size}")
    if len({e.tokenizer.model_max_length for e in encoders}) > 1:
        raise FoundationError(f"the tokenizers of {files.path} take prompts of different lengths")
    zeros = bool(getattr(pipeline.config, "force_zeros_for_empty_prompt", False))
    return Foundation(files, encoders, pipeline.unet, pipeline.vae, dict(pipeline.scheduler.config), where, zeros)


def _quieten_libraries() -> None:
    """Their bars and notices (torchvision is not installed, and not needed) would break through our progress display."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _load_pipeline(files: FoundationFiles, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of the files, on the CPU, without the parts that only vet images."""
    import diffusers

    optional: dict[str, Any] = {}
    if "XL" not in files.kind:
        optional = {"safety_checker": None, "requires_safety_checker": False}
    kind = getattr(diffusers, files.kind)
    try:
        if files.checkpoint is None:
            return kind.from_pretrained(
                files.path,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                **optional,
            )
        # Parts that only vet or steer images: single files have no weights of them.
        optional |= {"feature_extractor": None, "image_encoder": None}
        return kind.from_single_file(
            str(files.checkpoint), config=str(files.path), dtype=dtype, local_files_only=True, **optional
        )
    except Exception as error:  # diffusers and transformers raise many kinds
        configured = f" with foundation_config={files.path}" if files.checkpoint else ""
        raise FoundationError(
            f"{files.source} cannot be loaded as a diffusers pipeline{configured}: {error}"
        ) from error
