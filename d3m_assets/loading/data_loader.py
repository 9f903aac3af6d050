"""A DataLoader that knows its place in the stream of an iterable dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from d3m_assets.loading.datasets import IterableDistilledDataset


class DistilledDataLoader(DataLoader[Any]):
    """PyTorch's DataLoader over an :class:`IterableDistilledDataset`, whose state is one integer with workers, too.

    Each iteration goes on where the last one stopped, to the end of that epoch; the state counts the batches that were given
    out, not those that workers have prepared. It fits any number of workers, and of ranks at the same ``batch_size``. Lightning
    saves and restores it by itself.

    Args:
        dataset: The dataset, which says the batch size.
        options: Of the DataLoader, such as ``num_workers``.
    """

    dataset: IterableDistilledDataset

    def __init__(self, dataset: IterableDistilledDataset, **options: Any) -> None:
        if options.setdefault("batch_size", dataset.batch_size) != dataset.batch_size:
            raise ValueError(
                f"batch_size={options['batch_size']}, but the dataset has batches of {dataset.batch_size}; give it there"
            )
        super().__init__(dataset, **options)
        self._position = self._written = dataset.position

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Workers leave the dataset where it was; without them it goes along. Anything else was set on purpose.
        if self.dataset.position not in (self._written, self._position):
            self._position = self.dataset.position
        begin = self._written = self.dataset.position = self._position
        for batch in super().__iter__():
            self._position = self.dataset.following(self._position, begin)
            yield batch
        self._position = self.dataset.epoch_end(begin)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with an epoch; without it epochs follow each other."""
        self._position = self._written = self.dataset.position = epoch * self.dataset.epoch_length

    def state_dict(self) -> dict[str, int]:
        """The position in the stream."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration where a state was taken.

        Raises:
            ValueError: It is no such state.
        """
        self.dataset.load_state_dict(state)
        self._position = self._written = self.dataset.position
