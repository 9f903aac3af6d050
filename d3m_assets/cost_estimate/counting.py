"""FLOPs and memory of code that runs on PyTorch's meta device, where tensors have shapes and no numbers.

FLOPs are those of ``torch.utils.flop_counter``: convolutions and matrix products, 2 for a multiplication with addition.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Count:
    """What some work takes.

    Attributes:
        flops: Floating-point operations.
        peak_bytes: Most memory that its tensors take at a time, those of its inputs and weights left out.
        operations: PyTorch operations, each of which is launched after the one before.
    """

    flops: int
    peak_bytes: int
    operations: int


def count(work: Callable[[], object], inputs: object = ()) -> Count:
    """Count work on meta tensors.

    Args:
        work: Runs it.
        inputs: Modules and tensors, nested in any way, whose memory is there before and not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    memory = _memory_mode(inputs)
    with _fused_attention(), FlopCounterMode(display=False) as flops, memory:
        work()
    return Count(flops.get_total_flops(), memory.peak, memory.operations)


def _memory_mode(inputs: object) -> Any:
    """A dispatch mode that counts operations and follows the storages of tensors: ``peak`` is the most bytes that were alive."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Followed(TorchDispatchMode):
        def __init__(self, known: Iterator[torch.Tensor]) -> None:
            super().__init__()
            self.alive, self.peak, self.operations = 0, 0, 0
            # Views of weights share their storage, which is held so that its identity stays its own.
            self._before = [tensor.untyped_storage() for tensor in known]
            self._bytes = {id(storage): 0 for storage in self._before}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self._note(tensor.untyped_storage())
            return result

        def _note(self, storage: Any) -> None:
            key = id(storage)
            if key not in self._bytes:
                self._bytes[key] = storage.nbytes()
                self.alive += self._bytes[key]
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._forget, key)

        def _forget(self, key: int) -> None:
            self.alive -= self._bytes.pop(key)

    return Followed(_tensors(inputs))


def _tensors(inputs: object) -> Iterator[torch.Tensor]:
    import torch
    from torch.utils._pytree import tree_leaves

    for leaf in tree_leaves(inputs):
        if isinstance(leaf, torch.nn.Module):
            yield from leaf.parameters()
            yield from leaf.buffers()
        elif isinstance(leaf, torch.Tensor):
            yield leaf


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as devices compute it, without a matrix of all pairs in memory.

    On the meta device PyTorch would take the plain formula, whose memory grows with the square of the tokens.
    """
    import torch
    import torch.nn.functional as F

    plain = F.scaled_dot_product_attention

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if query.device.type != "meta":
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        # Masked pairs are computed by most kernels and counted by PyTorch.
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
