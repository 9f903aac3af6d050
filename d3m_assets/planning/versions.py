"""A version of an artefact, by its fingerprint, and the versions it was made from: as far back as the store remembers.

Of the current version of a key the store has everything; of one that was replaced it keeps the commit record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d3m_assets.errors import StoreError
from d3m_assets.store import ArtefactKey, Manifest, Store, asset_of

NOT_RECORDED = "not recorded: made by an earlier version of d3m-assets"


@dataclass(frozen=True)
class Version:
    """One version of an artefact.

    Attributes:
        key: Which artefact.
        manifest: The commit record of the version.
        current: Whether it is what the store holds now; the data files of others are gone.
        store: Where it is.
    """

    key: ArtefactKey
    manifest: Manifest
    current: bool
    store: Store

    def has(self, name: str) -> bool:
        """Whether a file of it can be read."""
        return self.current and name in self.manifest.files

    def read(self, name: str) -> bytes:
        """Contents of one of its files.

        Raises:
            StoreError: It is not the current version, or has been replaced in the meantime, or the file is damaged.
        """
        data = self.store.read(self.key, name) if self.current else b""
        now = self.store.manifest(self.key)
        if not self.current or now is None or now.fingerprint != self.manifest.fingerprint:
            raise StoreError(
                f"{self.key} has been replaced; of the version {self.manifest.fingerprint[:12]} no data is kept"
            )
        return data

    def input_names(self, asset: str) -> list[str]:
        """Names of the artefacts of an asset that it was made from."""
        return [name for name in self.manifest.inputs if asset_of(name) == asset]

    def made_from(self, name: str) -> Version | None:
        """The version of an input that it was made from; None: the store knows nothing of it."""
        fingerprint = self.manifest.inputs.get(name)
        return None if fingerprint is None else find_version(self.store, name, fingerprint)


def stored_version(store: Store, key: ArtefactKey) -> Version | None:
    """What the store holds of a key; None: nothing.

    Raises:
        StoreError: The commit record is damaged, or the disk or service refuses.
    """
    manifest = store.manifest(key)
    return None if manifest is None else Version(key, manifest, True, store)


def find_version(store: Store, name: str, fingerprint: str) -> Version | None:
    """The version of an artefact with a fingerprint.

    Args:
        store: Where to look.
        name: The artefact as manifests name it, such as ``"inverted_embeddings [7, ipc-1]"``.
        fingerprint: Of the version.

    Returns:
        The current version, a superseded one, or None when the store knows nothing of it.

    Raises:
        StoreError: The disk or service refuses.
    """
    for key in ArtefactKey.readings(name):
        stored = store.look(key)
        if stored.manifest is not None and stored.manifest.fingerprint == fingerprint:
            return Version(key, stored.manifest, True, store)
    kept = store.superseded(fingerprint)
    return None if kept is None or str(kept[0]) != name else Version(*kept, False, store)


def made(version: Version) -> dict[str, Any]:
    """When and where a version was made: time, Dagster run, code, hardware, packages."""
    where = version.manifest.provenance
    facts: dict[str, Any] = {"created": version.manifest.created}
    if not where:
        return facts | {"provenance": NOT_RECORDED}
    return facts | {
        "Dagster run": where.get("run") or "none (made without Dagster)",
        "commit": where.get("commit"),
        "hardware": where.get("hardware"),
        "versions": where.get("versions"),
    }
