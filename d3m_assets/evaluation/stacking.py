"""Several networks of one architecture as one: their channels side by side, so that they train in the same passes.

A small network leaves a GPU waiting between its many small operations. Networks stacked along their channels share these:
convolutions become grouped, normalisations and linear layers one for each network, and the sum of the networks' losses has as
gradients those of each by itself. What differs from networks one after another is the rounding of sums. A processor core is
busy with one student already and gains nothing from a stack, so there they are trained alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.settings import StudentSettings

CODE_VERSION = "1"
"""Raised whenever a change here changes how the sums of stacked networks round."""


def can_stack(settings: StudentSettings) -> bool:
    """Whether students of an architecture can be stacked: convolutional ones can; attention mixes all channels."""
    return settings.architecture != "vit-small"


def stack_networks(networks: Sequence[torch.nn.Module]) -> torch.nn.Module:
    """Join networks that differ in nothing but their weights.

    Args:
        networks: S networks of 2-d convolutions, batch or group normalisations, and linear layers on flat features.

    Returns:
        A network from float ``[N, S · channels, H, W]``, one image for each network, to logits ``[N, S, K]``. Its weights
        are copies; :func:`unstack_networks` writes them back.

    Raises:
        StageError: A layer with weights is of another kind.
    """
    import torch
    from torch import nn

    count, joined = len(networks), copy.deepcopy(networks[0])
    for name, layer in list(joined.named_modules()):
        if isinstance(layer, nn.Conv2d):
            layer.groups *= count
            layer.in_channels *= count
            layer.out_channels *= count
        elif isinstance(layer, nn.GroupNorm):
            layer.num_groups *= count
            layer.num_channels *= count
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features *= count
        elif isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(joined.get_submodule(parent), own, _linear_layers(layer, count))
        elif any(True for _ in layer.parameters(recurse=False)):
            raise StageError(f"networks with a {type(layer).__name__} cannot be stacked; train them one after another")
        if isinstance(getattr(layer, "num_channels", None), int) and not isinstance(layer, nn.GroupNorm):
            layer.num_channels = layer.num_channels * count  # transformers compares it with its input
    for name, value in [*joined.named_parameters(), *joined.named_buffers()]:
        parts = [_tensor(network, name) for network in networks]
        if value.dim():  # batch normalisation counts its batches in a scalar
            value.data = torch.cat(parts).detach()
    joined.register_forward_hook(lambda module, inputs, logits: logits.view(len(logits), count, -1))
    return joined


def unstack_networks(joined: torch.nn.Module, networks: Sequence[torch.nn.Module]) -> None:
    """Write the weights of a stack back into the networks that it was made of."""
    import torch

    with torch.no_grad():
        for name, value in [*joined.named_parameters(), *joined.named_buffers()]:
            parts = value.chunk(len(networks)) if value.dim() else [value] * len(networks)
            for network, part in zip(networks, parts, strict=True):
                _tensor(network, name).copy_(part)


def _tensor(network: torch.nn.Module, name: str) -> torch.Tensor:
    module, _, own = name.rpartition(".")
    found: torch.Tensor = getattr(network.get_submodule(module), own)
    return found


def _linear_layers(layer: torch.nn.Linear, count: int) -> torch.nn.Module:
    """A linear layer for each of ``count`` networks, from ``[N, count · F]`` to ``[N, count · K]``."""
    import torch
    from torch import nn

    class LinearLayers(nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            own = features.unflatten(1, (count, -1)).transpose(0, 1)
            weight = self.weight.unflatten(0, (count, -1)).transpose(1, 2)
            bias = 0 if self.bias is None else self.bias.view(count, 1, -1)
            return (torch.bmm(own, weight) + bias).transpose(0, 1).flatten(1)

    return LinearLayers(layer.in_features, layer.out_features * count, layer.bias is not None)
