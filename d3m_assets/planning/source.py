"""What assets read from outside of the graph: nobody makes it here, but its version can be looked at."""

from __future__ import annotations

import re
from typing import Any, ClassVar


def snake_case(name: str) -> str:
    """``RawDataset`` -> ``raw_dataset``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def one_line(docstring: str | None) -> str:
    """A docstring without its line breaks."""
    return re.sub(r"\s+", " ", (docstring or "").strip())


class Source:
    """Something outside of the graph that assets are made from: subclass it, and name the class in ``Asset.sources``.

    The plan does not need it, since what is read is part of :meth:`Asset.settings`; an orchestrator shows it upstream and
    observes its version, so that its own idea of what is stale follows a change before anything is run. Name and
    description come from the class, as those of an asset do.

    Attributes:
        group: Where Dagster's UI shows it.
        partitions: Dimensions among "class" and "budget".
    """

    group: ClassVar[str]
    partitions: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]
    description: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Name and describe the source."""
        super().__init_subclass__(**options)
        cls.name, cls.description = snake_case(cls.__name__), one_line(cls.__doc__)

    def version(self, context: Any, item: Any) -> str:
        """Changes exactly when the content of a partition does.

        Raises:
            D3MError: It cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} has no version")
