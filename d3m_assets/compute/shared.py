"""Values that many work items use, sent to each worker process once instead of inside every item.

Test images, say, belong to every student that is trained: an item holds ``Shared(images)`` and reads ``.value``. In this
process that is the value itself. On the way to a worker the pickle of an item holds the key in its place, and the value is
pickled once a run and sent to each worker that has not got it yet; a worker keeps it as long as the handle lives here.
"""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Shared(Generic[T]):
    """A handle of a value; make one for all items, not one for each.

    Attributes:
        value: Anything that pickles and that nobody changes.
        key: Names the value in every process.
    """

    value: T
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


def pack(thing: Any) -> tuple[bytes, dict[str, Shared[Any]]]:
    """Pickle a thing without the values that it shares.

    Returns:
        The pickle, and the handles that :func:`unpack` needs, by key.
    """
    # Not ForkingPickler: PyTorch teaches that one to send tensors as open files, which do not survive their process.
    out = io.BytesIO()
    handles: dict[str, Shared[Any]] = {}
    _Pickler(out, handles).dump(thing)
    return out.getvalue(), handles


def unpack(pickled: bytes, handles: Mapping[str, Shared[Any]]) -> Any:
    """Undo :func:`pack`.

    Raises:
        KeyError: A shared value is not among ``handles``.
    """
    return _Unpickler(io.BytesIO(pickled), handles).load()


class _Pickler(pickle.Pickler):
    def __init__(self, out: io.BytesIO, handles: dict[str, Shared[Any]]) -> None:
        super().__init__(out, pickle.HIGHEST_PROTOCOL)
        self._handles = handles

    def persistent_id(self, thing: Any) -> str | None:
        if not isinstance(thing, Shared):
            return None
        self._handles[thing.key] = thing
        return thing.key


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: io.BytesIO, handles: Mapping[str, Shared[Any]]) -> None:
        super().__init__(pickled)
        self._handles = handles

    def persistent_load(self, key: str) -> Shared[Any]:
        return self._handles[key]
