"""What stands in for things too large for a test: Stable Diffusion's configurations without weights, folders of tiny files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_configurations(size: str, folder: Path) -> Path:
    """The configurations of a published model ("sd15", "sdxl"), without weights and tokenizers; return the folder."""
    import torch

    from benchmarks import models

    kind = "StableDiffusionXLPipeline" if size == "sdxl" else "StableDiffusionPipeline"
    with torch.device("meta"):
        unet, vae, texts = models.build_unet(size), models.build_autoencoder(size), models.build_text_encoders(size)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    for i, text in enumerate(texts):
        text.config.architectures = [type(text).__name__]
        text.config.save_pretrained(folder / ("text_encoder_2" if i else "text_encoder"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    return folder


def write_images(root: Path, *, classes: int, train: int, test: int, width: int, height: int) -> Path:
    """A folder of distinct images of a few hundred bytes: one colour each, at the size that real ones have.

    Args:
        root: Of the folder.
        classes: Number of classes.
        train: Training images of all of them; the first classes have one more where it does not divide.
        test: Test images of all of them.
        width: In pixels.
        height: In pixels.
    """
    for split, total in (("train", train), ("test", test)):
        for k in range(total):
            target = root / split / f"class{k % classes:04d}" / f"{k:06d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            number = k + (train if split == "test" else 0)
            colour = (number % 256, number // 256 % 256, number // 65536)
            Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(target, compress_level=1)
    return root
