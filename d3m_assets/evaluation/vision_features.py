"""Features of a frozen ``transformers`` vision model from local disk: DINO, CLIP, ViT, ConvNeXt, ResNet and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.errors import TeacherError

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.teacher_checkpoint import Checkpoint


def load_features(checkpoint: Checkpoint, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's image features, in float32 and without gradients.

    Of a model of images and text (CLIP, SigLIP) those that it compares with texts. Otherwise what the model calls its pooled
    output, and where the checkpoint has no weights for that layer, or the model none, the mean over tokens or positions.

    Args:
        checkpoint: The folder that ``save_pretrained`` wrote; a classifier's last layer is left out.
        device: Torch device.

    Returns:
        A function from float ``[N, channels, S, S]``, scaled and normalised as the checkpoint says, to float ``[N, F]``.

    Raises:
        TeacherError: It is no vision model of the installed transformers, needs code of its own, or is damaged.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, found = AutoModel.from_pretrained(
            checkpoint.path,
            local_files_only=True,
            use_safetensors=True,
            # Unset, transformers asks on the terminal whether to run the code of a checkpoint.
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds
        own = "auto_map" in checkpoint.config
        reason = "it brings code of its own (auto_map in config.json), which is never run" if own else str(error)
        raise TeacherError(
            f"{checkpoint.setting}={checkpoint.path} cannot be loaded as a vision model of transformers: {reason}. Give "
            "the folder of a stock one."
        ) from error
    missing = [name for name in found["missing_keys"] if "pooler" not in name]
    if missing:
        raise TeacherError(
            f"{checkpoint.setting}={checkpoint.path} lacks weights, {missing[0]} for one; get the checkpoint again"
        )
    pooled = not any("pooler" in name for name in found["missing_keys"])
    model = model.to(device).eval().requires_grad_(False)
    compared = getattr(model, "get_image_features", None)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        output: Any = model(pixel_values=pixels) if compared is None else compared(pixel_values=pixels)
        if isinstance(output, torch.Tensor):
            return output
        if (pooled or compared is not None) and output.get("pooler_output") is not None:
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    return features


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of frozen features, each first brought to zero mean and unit deviation.

    Attributes:
        mean: float32 ``[F]``.
        deviation: float32 ``[F]``.
        weight: float32 ``[K, F]``.
        bias: float32 ``[K]``.
    """

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, n_classes: int) -> LinearProbe:
        """Multinomial logistic regression.

        Args:
            features: float ``[N, F]``.
            labels: Class positions ``[N]``; every class has one.
            n_classes: Number of classes K.
        """
        from sklearn.linear_model import LogisticRegression

        mean, deviation = features.mean(0, np.float64), features.std(0, np.float64)
        deviation[deviation == 0] = 1
        fitted = LogisticRegression(max_iter=1000).fit((features - mean) / deviation, labels)
        weight, bias = fitted.coef_, fitted.intercept_
        if n_classes == 2:  # scikit-learn gives one row, of the second class
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        # safetensors would store the numbers of an array in Fortran's order as they lie.
        return cls(*(np.ascontiguousarray(part, np.float32) for part in (mean, deviation, weight, bias)))
