"""How a learned vector is laid out over a model's text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class VectorLayout:
    """Parts of a learned vector: a token embedding for each of the model's text encoders, one behind the other.

    Attributes:
        widths: Length of each part.
        norms: Euclidean norm that each part has.
    """

    widths: tuple[int, ...]
    norms: tuple[float, ...]

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return sum(self.widths)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of rows ``[..., D]``."""
        return rows.split(self.widths, -1)

    def unit(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[..., D]`` with every part at norm 1."""
        import torch
        import torch.nn.functional as F

        return torch.cat([F.normalize(part, dim=-1) for part in self.split(rows)], -1)

    def scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[..., D]`` of unit parts at the model's norms."""
        import torch

        return torch.cat([part * norm for part, norm in zip(self.split(rows), self.norms, strict=True)], -1)
