"""Optimizers of learned rows: the update rules, and how rows become token embeddings.

Another optimizer is written here and nowhere else: a step function that can be held beside its paper, a class with the
methods of :class:`Optimizer`, and its line in :func:`make_optimizer`. Its state is a dictionary of tensors of its own
choice, which the inversion saves and restores without knowing them. What changes the vectors that existing settings give
also raises ``inversion.CODE_VERSION``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from d3m_assets.distillation.settings import InversionSettings
    from d3m_assets.foundation.vector_layout import VectorLayout

_WEIGHT_DECAY = 1e-2
"""Of AdamW; that of diffusers' textual inversion script and of PyTorch."""


def cosine_rate(peak: float, step: int, steps: int) -> float:
    """Learning rate of a cosine schedule: ``peak`` at step 0, zero after ``steps`` (Loshchilov and Hutter 2017)."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))


def adamw_step(
    rows: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    rate: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of AdamW, algorithm 2 of Loshchilov and Hutter (ICLR 2019), with betas of 0.9 and 0.999.

    Args:
        rows: Parameters, float ``[R, D]``.
        gradient: Of the loss with respect to ``rows``.
        exp_avg: Exponential moving average of the gradients.
        exp_avg_sq: That of their squares.
        step: Number of this step, from 1.
        rate: Learning rate.

    Returns:
        The new ``rows``, ``exp_avg`` and ``exp_avg_sq``.
    """
    exp_avg = exp_avg.lerp(gradient, 0.1)
    exp_avg_sq = exp_avg_sq.lerp(gradient.square(), 0.001)
    update = (exp_avg / (1 - 0.9**step)) / ((exp_avg_sq / (1 - 0.999**step)).sqrt() + 1e-8)
    return rows * (1 - rate * _WEIGHT_DECAY) - rate * update, exp_avg, exp_avg_sq


def spherical_adam_step(
    rows: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    rate: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of Adam (Kingma and Ba 2015) on the unit sphere, betas of 0.9 and 0.99.

    Directional Textual Inversion (arXiv 2512.13672) learns directions by Riemannian SGD: the gradient along the sphere,
    then back to it by normalizing. Adam's averages are our addition; that paper's prior on directions is left out.

    Args:
        rows: Unit vectors, float ``[R, D]``.
        gradient: Of the loss with respect to ``rows``.
        exp_avg: Exponential moving average of the gradients along the sphere.
        exp_avg_sq: That of the mean square of each row's; all numbers of a row are equal.
        step: Number of this step, from 1.
        rate: Angle in radians that a step of constant gradient turns a row by.

    Returns:
        The new ``rows``, ``exp_avg`` and ``exp_avg_sq``.
    """
    import torch.nn.functional as F

    gradient = gradient - (gradient * rows).sum(-1, keepdim=True) * rows  # along the sphere only
    exp_avg = exp_avg.lerp(gradient, 0.1)
    # One second moment for a row: Adam's per-number scaling would turn the direction towards the axes.
    exp_avg_sq = exp_avg_sq.lerp(gradient.square().mean(-1, keepdim=True).expand_as(gradient), 0.01)
    update = (exp_avg / (1 - 0.9**step)) / ((exp_avg_sq / (1 - 0.99**step)).sqrt() + 1e-12)
    return F.normalize(rows - rate * update / math.sqrt(rows.shape[1]), dim=-1), exp_avg, exp_avg_sq


class Optimizer(Protocol):
    """What the inversion asks of an optimizer.

    Rows are float ``[R, D]`` on the model's device; D is the width of the model's token embeddings, those of several text
    encoders one behind the other.

    Attributes:
        learns_norms: Whether the norms of the rows are learned, and so stored with the vectors.
    """

    learns_norms: bool

    def initial_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """Rows that start at these directions, each part of which has norm 1."""

    def initial_state(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """State before the first step; tensors of any shape by names other than ``rows`` and ``best_rows``."""

    def embeddings(self, rows: torch.Tensor) -> torch.Tensor:
        """Token embeddings ``[R, D]`` of rows, as the text encoders see them; gradients pass through."""

    def step(
        self, rows: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], step: int, rate: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """New rows and state after step number ``step``, counted from 1 for each class."""


def _zero_moments(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    return {"exp_avg": torch.zeros_like(rows), "exp_avg_sq": torch.zeros_like(rows)}


class AdamW:
    """AdamW on whole rows, as in Gal et al. 2022; their norms are learned.

    Each class counts its own steps and only rows that are learned decay: an optimizer over the whole batch would do neither.

    Args:
        layout: Of the model's token embeddings.
    """

    learns_norms = True

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout

    def initial_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """The directions at the norms of the token tables."""
        return self._layout.scaled(directions)

    def initial_state(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Zero moments, ``[R, D]`` each."""
        return _zero_moments(rows)

    def embeddings(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows themselves."""
        return rows

    def step(
        self, rows: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], step: int, rate: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One :func:`adamw_step`."""
        import torch

        with torch.no_grad():
            rows, exp_avg, exp_avg_sq = adamw_step(rows, gradient, state["exp_avg"], state["exp_avg_sq"], step, rate)
        return rows, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


class SphericalAdam:
    """Adam on directions; rows stay unit vectors and their embeddings have the norms of the token tables.

    Args:
        layout: Of the model's token embeddings; the part of every text encoder is a direction by itself.
    """

    learns_norms = False

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout

    def initial_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """The directions themselves."""
        return directions

    def initial_state(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Zero moments, ``[R, D]`` each."""
        return _zero_moments(rows)

    def embeddings(self, rows: torch.Tensor) -> torch.Tensor:
        """The directions at the norms of the token tables."""
        return self._layout.scaled(rows)

    def step(
        self, rows: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], step: int, rate: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One :func:`spherical_adam_step` for the part of every text encoder."""
        import torch

        parts = [self._layout.split(tensor) for tensor in (rows, gradient, state["exp_avg"], state["exp_avg_sq"])]
        with torch.no_grad():
            stepped = [
                spherical_adam_step(part, slope, exp_avg, exp_avg_sq, step, rate)
                for part, slope, exp_avg, exp_avg_sq in zip(*parts, strict=True)
            ]
            rows, exp_avg, exp_avg_sq = (torch.cat(tensors, -1) for tensors in zip(*stepped, strict=True))
        return rows, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def make_optimizer(settings: InversionSettings, layout: VectorLayout) -> Optimizer:
    """The optimizer that the settings ask for."""
    return SphericalAdam(layout) if settings.directional else AdamW(layout)
