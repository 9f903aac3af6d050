"""What a scan learnt of every image, kept so that the next scan reads only what changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from d3m_assets.replacing import replacing

_COLUMNS = ["relative_path", "listed_bytes", "stamp", "sha256", "pixels", "bytes", "width", "height", "mode"]
"""An index that lacks one of them is of an earlier version, and not used."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is in an image file.

    Attributes:
        sha256: Hex digest of the file.
        pixels: Hex digest of the decoded pixels.
        bytes: Size of the file.
        width: Pixels, as shown (after EXIF orientation).
        height: Pixels, as shown.
        mode: Pillow's mode of the stored pixels.
    """

    sha256: str
    pixels: str
    bytes: int
    width: int
    height: int
    mode: str


@dataclass(frozen=True)
class ImageIndex:
    """Facts of a dataset's images by path, size and stamp, in one parquet file.

    Without it, or where it is damaged or cannot be written, a scan takes longer, that is all.

    Attributes:
        path: The file; None keeps nothing.
    """

    path: Path | None

    def load(self) -> dict[str, tuple[tuple[int, str], Facts]]:
        """Listed size, stamp and facts by relative path."""
        if self.path is None or not self.path.exists():
            return {}
        import pandas as pd

        try:
            columns = pd.read_parquet(self.path, columns=_COLUMNS)
            rows = zip(*(columns[name].tolist() for name in _COLUMNS), strict=True)
            return {path: ((size, stamp), Facts(*rest)) for path, size, stamp, *rest in rows}
        except Exception:
            return {}

    def save(self, images: Iterable[tuple[tuple[str, int, str], Facts]]) -> None:
        """Replace the index by facts of (relative path, listed size, stamp)."""
        if self.path is None:
            return
        import pandas as pd

        rows = [(*place, f.sha256, f.pixels, f.bytes, f.width, f.height, f.mode) for place, f in images]
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                pd.DataFrame(rows, columns=_COLUMNS).to_parquet(temporary, index=False)

    def forget(self) -> None:
        """Remove the index, so that the next scan reads everything."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
