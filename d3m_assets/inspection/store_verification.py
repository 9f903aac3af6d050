"""What ``d3m verify`` finds in a store: every file is read and compared with the hash that it was written under."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from d3m_assets.assets.class_catalog import ClassCatalog, damaged_catalog
from d3m_assets.errors import StoreError, StoreNotWritableError, StoreUnavailableError
from d3m_assets.ledger import byte_size
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.store import RECORDS, SUPERSEDED, ArtefactKey, Store

READ_AT_ONCE = 8
"""Artefacts of a remote store that are read, and held in memory, at the same time."""
MOST_LISTED = 50
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class StoreVerification:
    """What was read, and what of it is damaged.

    Attributes:
        store: Address of the store, without a password.
        artefacts: How many were read.
        bytes: Size of their files.
        damaged: What is wrong, by the name of the artefact.
        dropped: How many kept results, such as those of trained students, were damaged; they are removed, since what is
            not kept is computed again when it is needed.
        refusal: Why the store does not take what was found, so that plans do not know of it; empty: it does.
    """

    store: str
    artefacts: int
    bytes: int
    damaged: dict[str, list[str]]
    dropped: int
    refusal: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def report(self) -> str:
        """For people."""
        lines = [f"{self.artefacts} artefacts, {byte_size(self.bytes)}, read in {self.store}"]
        if self.dropped:
            lines.append(f"{self.dropped} damaged results removed; they are computed again when they are needed")
        if not self.damaged:
            return "\n".join([*lines, "Every file is the one that was written."])
        lines.append(f"Damaged artefacts: {len(self.damaged)}")
        listed = [text for texts in self.damaged.values() for text in texts]
        lines += [f"- {text}" for text in listed[:MOST_LISTED]]
        if len(listed) > MOST_LISTED:
            lines.append(f"… and {len(listed) - MOST_LISTED} more files")
        if self.refusal:
            return "\n".join(
                [*lines, f"`d3m distill` does not know of it yet, since the store takes nothing: {self.refusal}"]
            )
        catalog = ", the class catalog excepted" if ClassCatalog.name in self.damaged else ""
        return "\n".join([*lines, f"`d3m distill` makes these again, and nothing else{catalog}."])


def verify_store(store: Store, progress: Progress = silent) -> StoreVerification:
    """Read everything that a store holds; what is damaged is noted in it, so that the next plan has it as out of date.

    Raises:
        StoreError: There is no artefact.
        StoreUnavailableError: The store cannot be read just now.
    """
    listing = store.listing()
    keys = listing.artefacts()
    if not keys:
        raise StoreError(f"{store.url} holds no artefact; name the store with --storage and --dataset")
    damaged: dict[str, list[str]] = {}
    refusals: list[str] = []

    def check(key: ArtefactKey) -> list[str]:
        try:
            found = store.check(key)
        except StoreNotWritableError as error:
            refusals.append(str(error))
            found = store.check(key, note=False)
        except StoreUnavailableError as error:
            if not store.is_local:
                raise
            found = [str(error)]  # a bad sector does not keep the other files from being read
        return [str(damaged_catalog(store, "; ".join(found)))] if found and key.asset == ClassCatalog.name else found

    for done, (key, found) in enumerate(_each(store, check, keys), 1):
        if found:
            damaged[str(key)] = found
        progress(ProgressEvent("verifying", done, len(keys), str(key)))

    def drop(record: tuple[str, str]) -> bool:
        # A commit record of a replaced version cannot be computed again, and harms nobody.
        if record[0] == SUPERSEDED or store.record(*record) is not None:
            return False
        try:
            store.drop_record(*record)
        except StoreNotWritableError as error:
            refusals.append(str(error))
            return False
        return True

    kinds = {folder.split("/")[1] for folder in listing.folders if folder.startswith(f"{RECORDS}/")}
    records = [(kind, digest) for kind in sorted(kinds) for digest in store.records(kind)]
    dropped = sum(found for _, found in _each(store, drop, records))
    size = sum(file.size for key in keys for file in listing.files(key).values())
    return StoreVerification(store.url, len(keys), size, damaged, dropped, refusals[0] if refusals else "")


def _each(store: Store, work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with what comes of it; of a remote store several at once."""
    chosen = list(items)
    if store.is_local:
        yield from ((item, work(item)) for item in chosen)
        return
    with ThreadPoolExecutor(max_workers=READ_AT_ONCE) as pool:
        yield from zip(chosen, pool.map(work, chosen), strict=True)
