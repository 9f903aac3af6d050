"""The errors that d3m-assets raises on purpose.

Every message names what is wrong (the file, class or setting) and the way out, so front doors print it as it
is, without a traceback. Anything that is not a :class:`D3MError` is a defect of ours.
"""

from __future__ import annotations

from d3m_assets.addresses import masked


class D3MError(Exception):
    """Base of all errors that a user can act on. No message holds a password of an address that it names."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(masked(part) if isinstance(part, str) else part for part in parts))


class SettingsError(D3MError):
    """A setting is unknown, has an impossible value, or contradicts another one."""


class DatasetError(D3MError):
    """The real images cannot be used as they are: missing, unreadable, mislabelled or leaking into test."""


class StoreError(D3MError):
    """A stored artefact is missing, damaged, or cannot be written."""


class DamagedError(StoreError):
    """A stored artefact is damaged or incomplete: `d3m distill` makes it again."""


class StoreUnavailableError(StoreError):
    """The store cannot be read just now: what it holds is neither missing nor damaged, and the run has to stop."""


class StoreNotWritableError(StoreError):
    """The store takes nothing: no space, no rights, or a service that refuses. The run has to stop."""


class BudgetError(D3MError):
    """A byte budget cannot be parsed or cannot hold a distilled class."""


class FoundationError(D3MError):
    """The text-to-image model cannot be found, loaded or used."""


class TeacherError(D3MError):
    """The teacher cannot be found, loaded or trusted, for example because its classes are in another order."""


class BundleError(D3MError):
    """A distilled bundle is damaged or does not fit the model or dataset it is used with."""


class StageError(D3MError):
    """A stage of the pipeline failed for one class or budget, or was asked for before its inputs exist."""


class InstanceError(D3MError):
    """Dagster's instance cannot be opened, or its database does not answer any more."""


class UndeclaredReadError(Exception):
    """An asset read an artefact that it does not declare as an input: a defect of the graph, not of what it was given."""
