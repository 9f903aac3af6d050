"""Named random streams: the numbers of one stream never depend on which others are used, or in what order."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def random_stream(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is the hash of ``parts``: equal parts give equal streams on every machine."""
    import torch

    digest = hashlib.sha256("/".join(str(p) for p in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
