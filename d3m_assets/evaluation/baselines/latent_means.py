"""Latent means: decoded centres of clusters of a class's latents."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages
from d3m_assets.evaluation.baselines.k_means import clusters


def latent_means(latents: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres of clusters of a class's latents, to be decoded to images.

    In the manner of D4M's prototypes (Su et al., arXiv 2407.15138), which then go through the denoiser once
    more; here they are decoded as they are.

    Args:
        latents: float ``[N, ...]``.
        count: Centres wanted; N or more gives the latents themselves.
        seed: Draws the first centres.

    Returns:
        float32 ``[min(count, N), ...]``.
    """
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    if count >= len(flat):
        return latents.astype(np.float32)
    return clusters(flat, count, seed)[1].astype(np.float32).reshape(count, *latents.shape[1:])


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    return real.decoded(latent_means(real.latents(class_id), count, seed))


LATENT_MEANS = Baseline("latent-means", "decoded latent means", _images, split="synthetic", needs_foundation=True)
