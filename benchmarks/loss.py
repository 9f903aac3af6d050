"""Loss on fixed inputs, over time: what variants are compared at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from d3m_assets.distillation.latents import ImageFiles, encode
from d3m_assets.distillation.objective import FIXED_SAMPLES, sample_diffusion_batch
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream

if TYPE_CHECKING:
    import torch

    from d3m_assets.foundation.loading import Foundation


@dataclass
class Curve:
    """Loss of one class on fixed inputs, over the time its variant worked.

    Attributes:
        seconds: Time of work at which each loss was reached; looking at the loss is part of it where the variant itself
            looks.
        steps: Optimizer steps by then.
        losses: The losses.
    """

    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, seconds: float, step: int, loss: float) -> None:
        """Add a point."""
        self.seconds.append(seconds)
        self.steps.append(step)
        self.losses.append(loss)

    @property
    def best(self) -> float:
        """Lowest loss."""
        return min(self.losses)

    def reached(self, target: float) -> tuple[float, int] | None:
        """Seconds and steps of the first point at or below ``target``; None if there is none."""
        return next(
            ((s, n) for s, n, x in zip(self.seconds, self.steps, self.losses, strict=True) if x <= target), None
        )


class FixedLoss:
    """The loss of a class on the same latents, noise and timesteps at every call: the engine's, for any vector.

    Args:
        foundation: The model.
        prompts: Of the class.
        files: Its images.
        seed: The engine's; it decides which samples.
    """

    def __init__(self, foundation: Foundation, prompts: ClassPrompts, files: ImageFiles, seed: int) -> None:
        import torch
        from diffusers import DDPMScheduler

        from d3m_assets.distillation.text import learned_ids

        self.foundation = foundation
        self.schedule = DDPMScheduler.from_config(foundation.scheduler_config)
        latents = torch.from_numpy(encode(foundation, files.load(foundation.files.image_size)))
        stream = random_stream(seed, prompts.class_key, "fixed")
        timesteps = int(self.schedule.config.num_train_timesteps)
        self.batch = sample_diffusion_batch(latents, [np.arange(len(latents))], stream, FIXED_SAMPLES, timesteps)
        self.ids = learned_ids(foundation, prompts, 1, 1, 0)

    def __call__(self, rows: torch.Tensor) -> float:
        """The loss with float ``[1, D]`` rows, at the norms they have."""
        import torch

        from d3m_assets.distillation.text import encode, extended_tables

        total, device = 0.0, self.foundation.device
        with torch.inference_mode(), extended_tables(self.foundation) as learned:
            learned.set(rows.to(device))
            text = encode(self.foundation, self.ids)
            for clean, noise, times in zip(*(part.to(device).split(16) for part in self.batch), strict=True):
                noisy = self.schedule.add_noise(clean, noise, times)
                predicted = self.foundation.predict(noisy, times, text[[0] * len(times)])
                velocity = self.schedule.config.prediction_type == "v_prediction"
                target = self.schedule.get_velocity(clean, noise, times) if velocity else noise
                total += float((predicted - target).square().flatten(1).mean(1).sum())
        return total / FIXED_SAMPLES


def common_targets(curves: Sequence[Sequence[Curve]], share: float) -> list[float]:
    """For each class the loss at a share of the improvement that every variant reaches.

    Args:
        curves: ``[variants][classes]``; the first variant's first point is where improvement is counted from.
        share: 1 is the best loss of the variant that gets least far.
    """
    targets = []
    for own in zip(*curves, strict=True):
        start, worst = own[0].losses[0], max(curve.best for curve in own)
        targets.append(start - share * (start - worst))
    return targets


def classes_per_hour(groups: Sequence[Sequence[Curve]], targets: Sequence[float]) -> float | None:
    """Classes an hour that reach their targets; None if one never does.

    Args:
        groups: Curves by class, those learned in one batch together: such a batch takes as long as its slowest.
        targets: For each class, in the order of the groups.
    """
    seconds, remaining = 0.0, iter(targets)
    for group in groups:
        found = [curve.reached(next(remaining)) for curve in group]
        if None in found:
            return None
        seconds += max(point[0] for point in found if point)
    return 3600 * len(targets) / max(seconds, 1e-9)
