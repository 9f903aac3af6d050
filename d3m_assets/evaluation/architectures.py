"""Networks of students and of the audit's features: from an architecture's name to a module.

All take float ``[N, channels, side, side]`` in 0..1 and give logits ``[N, K]``, with sides from 8 to 64 px in mind.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.compute.devices import one_thread
from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.settings import StudentSettings


def build_student(settings: StudentSettings, n_classes: int, channels: int, image_size: int) -> torch.nn.Module:
    """Build an untrained student; the weights depend on torch's current random state.

    Args:
        settings: Gives architecture and width.

            - ``convnet-3``: three convolutions with instance normalisation, ReLU and average pooling, then one linear
              layer; the standard student of dataset distillation (Gidaris & Komodakis, CVPR 2018; Zhao et al., "Dataset
              Condensation with Gradient Matching", ICLR 2021). Width: channels of each convolution; the papers use 128.
            - ``resnet-18``: the network of He et al. (CVPR 2016) from ``transformers``, with the stem for small images: one
              3 × 3 convolution of stride 1 and no pooling. Width: channels of the first stage, 64 in the paper. Batch
              normalisation, under every recipe: the last stage of a 16 px input is 2 × 2, of which instance
              normalisation would leave next to nothing.
            - ``vit-small``: a vision transformer (Dosovitskiy et al., ICLR 2021) from ``transformers``: 4 × 4 patches
              whatever the side, 6 layers, heads of 64. Width: channels of a token, 192 by default, as in DeiT-tiny,
              which is twice as deep. Small among the other students; not the ViT-S of the papers. The 300 steps of
              the quick recipe are few for it.
        n_classes: Number of classes K.
        channels: Channels of the input, 1 or 3.
        image_size: Side of the square input in px, at least 8.

    Returns:
        Module from float ``[N, channels, image_size, image_size]`` in 0..1 to logits ``[N, K]``.
    """
    builders = {"convnet-3": _convnet, "resnet-18": _resnet, "vit-small": _vit}
    return builders[settings.architecture](settings.width, n_classes, channels, image_size)


def _convnet(width: int, n_classes: int, channels: int, image_size: int) -> torch.nn.Module:
    from torch import nn

    layers: list[nn.Module] = []
    for n_in in (channels, width, width):
        layers += [
            nn.Conv2d(n_in, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (image_size // 8) ** 2, n_classes))


def _resnet(width: int, n_classes: int, channels: int, image_size: int) -> torch.nn.Module:
    from torch import nn
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=[width * 2**stage for stage in range(4)],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=n_classes,
    )
    model = ResNetForImageClassification(config)
    stem = model.resnet.embedder
    stem.embedder.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
    stem.pooler = nn.Identity()
    return _with_logits_output(model)


def _vit(width: int, n_classes: int, channels: int, image_size: int) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    heads = next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
    config = ViTConfig(
        num_channels=channels,
        image_size=image_size,
        patch_size=image_size // 4,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=6,
        num_attention_heads=heads,
        num_labels=n_classes,
    )
    return _with_logits_output(ViTForImageClassification(config))


def _with_logits_output(model: torch.nn.Module) -> torch.nn.Module:
    # A hook rather than a wrapper: the names of the weights stay those of transformers' own checkpoints.
    model.register_forward_hook(lambda module, inputs, output: output.logits)
    return model


def last_features(module: torch.nn.Module, images: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
    """Features of images: the input of the last linear layer of a classifier.

    Args:
        module: Trained network of :func:`build_student`, in evaluation mode.
        images: uint8 ``[N, side, side, channels]``, as large as those trained on.
        batch_size: Images in one pass.

    Returns:
        float32 ``[N, F]``; F is the number of inputs of that layer.

    Raises:
        StageError: The network has no linear layer.
    """
    import torch

    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    if not layers:
        raise StageError(f"{type(module).__name__} has no linear layer, so it has no features; give a classifier")
    features: list[torch.Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0].float().cpu()))
    device = next(module.parameters()).device
    try:
        with one_thread(), torch.inference_mode():
            for chunk in np.array_split(images, max(1, math.ceil(len(images) / batch_size))):
                module(as_tensor(chunk).to(device))
    finally:
        handle.remove()
    return torch.cat(features).numpy()


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """Images uint8 ``[N, H, W, C]`` as float32 ``[N, C, H, W]`` in 0..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)
