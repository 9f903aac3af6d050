"""Finding, fingerprinting and loading the frozen text-to-image model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.errors import FoundationError

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from d3m_assets.settings import Settings

SUPPORTED = ("StableDiffusionPipeline",)
EMBEDDED = "embedded"
_WEIGHTS = (".safetensors", ".json", ".txt")
_COMPONENTS = ("model_index.json", "vae", "text_encoder", "tokenizer", "unet", "scheduler")


def embedded_path() -> Path:
    """The directory of the model that ships with the package.

    Raises:
        FoundationError: It is not there: neither in an installed package nor in a clone.
    """
    package = Path(__file__).resolve().parents[1]
    for path in (package / "_embedded_foundation", package.parent / "data" / "foundation"):
        if (path / "model_index.json").is_file():
            return path
    raise FoundationError(
        "the embedded foundation model is missing from this installation; reinstall d3m-assets, train it with "
        "`d3m foundation train`, or name another model with --foundation PATH"
    )


@dataclass(frozen=True)
class FoundationFiles:
    """A text-to-image pipeline on local disk, not loaded.

    Attributes:
        name: How the user named it.
        path: Its diffusers directory.
    """

    name: str
    path: Path

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the names and contents of the files that determine what it draws."""
        files = [f for part in _COMPONENTS for f in sorted([self.path / part, *(self.path / part).glob("*")])]
        digest = hashlib.sha256()
        for file in files:
            if file.is_file() and file.suffix in _WEIGHTS:
                with file.open("rb") as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
                digest.update(f"{file.relative_to(self.path).as_posix()} {found}\n".encode())
        return digest.hexdigest()

    def config(self, component: str) -> dict[str, Any]:
        """The JSON configuration of one component.

        Raises:
            FoundationError: It is missing or damaged.
        """
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        file = self.path / component / name
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise FoundationError(f"{file} cannot be read: {error}. Is {self.name} complete?") from error

    @property
    def text_width(self) -> int:
        """Length of a token embedding."""
        return int(self.config("text_encoder")["hidden_size"])

    @property
    def text_length(self) -> int:
        """Tokens of a prompt, begin and end included."""
        return int(self.config("text_encoder").get("max_position_embeddings", 77))

    @property
    def image_size(self) -> int:
        """Side of the images it was trained to draw, in pixels."""
        factor = 2 ** (len(self.config("vae")["block_out_channels"]) - 1)
        return int(self.config("unet")["sample_size"]) * factor


def find_foundation(settings: Settings) -> FoundationFiles:
    """Find the pipeline that ``settings.foundation`` names.

    A name that is no local path but reads ``owner/model`` is fetched from the Hugging Face hub, since the user asked
    for it by name; nothing else reaches the network.

    Raises:
        FoundationError: No such path, not a diffusers pipeline, or one of a kind that is not supported.
    """
    name = settings.foundation
    path = embedded_path() if name == EMBEDDED else Path(name).expanduser()
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = _download(name, settings.foundation_revision)
    if not path.exists():
        raise FoundationError(f"the foundation path {name} does not exist; give a diffusers pipeline directory")
    index = path / "model_index.json"
    if not index.is_file():
        raise FoundationError(
            f"{path} is not a diffusers pipeline: it holds no model_index.json. Give the directory that "
            "`pipeline.save_pretrained` wrote, or `embedded`"
        )
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise FoundationError(f"{index} is damaged: {error}. Restore the pipeline directory") from error
    if kind not in SUPPORTED:
        raise FoundationError(f"{path} is a {kind}; supported are: {', '.join(SUPPORTED)}")
    for part in ("vae", "text_encoder", "unet"):
        if not any((path / part).glob("*.safetensors")):
            raise FoundationError(
                f"{path / part} holds no .safetensors file; pickled weights are not loaded. Convert them with "
                "`pipeline.save_pretrained(path, safe_serialization=True)`"
            )
    return FoundationFiles(name, path)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # the hub client raises many kinds, offline ones among them
        raise FoundationError(f"{name} is no local path and cannot be had from the hub: {error}") from error


@dataclass
class Foundation:
    """A loaded pipeline: frozen parts on one device.

    Attributes:
        files: Where it came from.
        tokenizer: Its tokenizer.
        text_encoder: CLIP text encoder; gradients flow through it, not into it.
        unet: The denoiser, likewise.
        vae: The autoencoder.
        scheduler_config: Configuration of its noise schedule.
        device: Where the parts are.
    """

    files: FoundationFiles
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    device: torch.device

    @property
    def table(self) -> torch.Tensor:
        """Token embeddings, float ``[V, D]``."""
        return self.text_encoder.get_input_embeddings().weight

    @cached_property
    def norm(self) -> float:
        """Mean Euclidean norm of a token embedding: the norm of every learned vector (arXiv 2512.13672)."""
        return float(self.table.float().norm(dim=-1).mean())

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Latents, scaled as the U-Net wants them, of float ``[N, 3, H, W]`` images in -1..1."""
        import torch

        with torch.inference_mode():
            parts = [
                self.vae.encode(part.to(self.device, self.vae.dtype)).latent_dist.mean for part in images.split(50)
            ]
        return torch.cat(parts).float().clone() * self.vae.config.scaling_factor

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """uint8 images ``[N, 3, H, W]`` of scaled latents."""
        image = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(dtype=_uint8())


def _uint8() -> torch.dtype:
    import torch

    return torch.uint8


def choose_device(name: str) -> torch.device:
    """The torch device of a ``device`` setting.

    Raises:
        FoundationError: The device does not exist here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise FoundationError(f"device {name} was asked for, but this PyTorch sees no CUDA device; set device=auto")
    return torch.device(name)


def load_foundation(files: FoundationFiles, device: str = "auto") -> Foundation:
    """Load a pipeline's parts, frozen; fp32 on a CPU, bf16 elsewhere.

    Raises:
        FoundationError: The files cannot be loaded.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Their bars and notices (torchvision is not installed, and not needed) would break through our progress display.
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    where = choose_device(device)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            files.path, dtype=dtype, local_files_only=True, use_safetensors=True, safety_checker=None,
            requires_safety_checker=False,
        )  # fmt: skip
    except Exception as error:  # diffusers and transformers raise many kinds
        raise FoundationError(f"{files.path} cannot be loaded as a diffusers pipeline: {error}") from error
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        part.to(where, dtype).eval().requires_grad_(False)
    if not 0 < files.image_size <= 4096:
        raise FoundationError(f"{files.path / 'unet'} declares an impossible image size of {files.image_size}")
    return Foundation(
        files, pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, pipeline.vae,
        dict(pipeline.scheduler.config), where,
    )  # fmt: skip
