"""Artefacts on local disk or any fsspec URL: atomic, fingerprinted, verifiable.

One folder a key, named like ``student_metrics/budget=ipc-1`` or ``inverted_embeddings/budget=ipc-1/class=7``.
Data files are written first, under names made from their content and a tag of the writer; ``manifest.json``
is written last and is the commit. Readers follow manifests only. No file is ever shared by two versions, so
deleting those of a replaced version cannot hurt another writer, and no lock is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from d3m_assets.addresses import masked
from d3m_assets.errors import DamagedError, StoreError, StoreNotWritableError, StoreUnavailableError
from d3m_assets.store_access import RETRY_SECONDS, StoreFiles
from d3m_assets.store_errors import explained, is_of_one_file, is_transient, remedy
from d3m_assets.store_listing import ListedFile, ManifestCache

MANIFEST = "manifest.json"
SUPERSEDED = "manifests"
"""Kind of record that keeps the commit record of a version that another one has replaced."""
RECORDS = ".records"
"""Folder of small results that are kept under the hash of what they were made from, such as trained students."""
SECONDS_OF_A_PROBE = 60.0
"""Age at which the file of a probe, which lives for milliseconds, was left by a killed process."""
DAMAGED = ".damaged"
"""Ending of the empty file that stands beside a data file whose hash was found to be wrong: every listing then shows it."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ABANDONED_AFTER = timedelta(days=1)
"""Age at which a file that no manifest names was left by a killed writer, not by a running one."""
LOCATION = "set `storage` to a folder, or to a URL such as s3://bucket/folder whose package (s3fs) is installed"
REQUESTS_AT_ONCE = 32
"""Commit records that are read from a remote store at the same time."""


@dataclass(frozen=True)
class ArtefactKey:
    """Name of one artefact: an asset, and the class and budget it is for where the asset has them.

    Attributes:
        asset: Name of the asset.
        class_key: Partition key of the class.
        budget: Name of the budget.
        replicate: Which of several artefacts that differ by their seed; 0 is the one with the seed of the settings.

    Raises:
        StoreError: A part is not 1 to 64 ASCII letters, digits, ``_``, ``-`` and ``.``, starting with a
            letter or digit, or the replicate is negative.
    """

    asset: str
    class_key: str | None = None
    budget: str | None = None
    replicate: int = 0

    def __post_init__(self) -> None:
        if self.replicate < 0:
            raise StoreError(f"{self.asset} has no replicate {self.replicate}; they are counted from 0")
        for part in (self.asset, self.class_key, self.budget):
            if part is not None and not SAFE.fullmatch(part):
                raise StoreError(
                    f"{part!r} cannot name an artefact: use 1 to 64 ASCII letters, digits, _ - . and start "
                    "with a letter or digit (d3m_assets.datasets.names.class_key makes one of any class name)"
                )

    @property
    def path(self) -> str:
        """Folder relative to the store, ``asset[/budget=…][/replicate=…][/class=…]``: no two keys share one."""
        budget = f"/budget={self.budget}" if self.budget is not None else ""
        replicate = f"/replicate={self.replicate}" if self.replicate else ""
        return f"{self.asset}{budget}{replicate}" + (f"/class={self.class_key}" if self.class_key is not None else "")

    @classmethod
    def from_path(cls, path: str) -> ArtefactKey | None:
        """Undo :attr:`path`; None when ``path`` is no key's."""
        match = re.fullmatch(r"([^/=]+)(?:/budget=([^/]+))?(?:/replicate=([1-9]\d*))?(?:/class=([^/]+))?", path)
        if match is None or not all(part is None or SAFE.fullmatch(part) for part in match.groups()):
            return None
        return cls(match[1], class_key=match[4], budget=match[2], replicate=int(match[3] or 0))

    def __str__(self) -> str:
        parts = [part for part in (self.class_key, self.budget) if part is not None]
        parts += [f"replicate {self.replicate}"] if self.replicate else []
        return f"{self.asset} [{', '.join(parts)}]" if parts else self.asset

    @classmethod
    def readings(cls, name: str) -> Iterator[ArtefactKey]:
        """The keys whose ``str`` is ``name``: two when its single part may be a class or a budget."""
        asset, bracket, rest = name.partition(" [")
        parts = rest.removesuffix("]").split(", ") if bracket else []
        replicate = 0
        if parts and (last := re.fullmatch(r"replicate ([1-9]\d*)", parts[-1])):
            replicate, parts = int(last[1]), parts[:-1]
        both = [(parts[0], parts[1])] if len(parts) == 2 else []
        single = [(parts[0], None), (None, parts[0])] if len(parts) == 1 else []
        for class_key, budget in both + single + ([] if parts else [(None, None)]):
            try:
                key = cls(asset, class_key, budget, replicate)
            except StoreError:
                continue
            if str(key) == name:
                yield key


def asset_of(name: str) -> str:
    """The asset of an artefact by the name that ``str`` gives its key."""
    return name.partition(" [")[0]


@dataclass(frozen=True)
class Spec:
    """Everything that determines an artefact.

    Attributes:
        inputs: Fingerprint of each input, by a name for people such as ``"raw_dataset [3]"``.
        settings: The settings that matter to it; JSON values, mappings may nest.
        code_version: Version of the code that makes it.
    """

    inputs: dict[str, str]
    settings: dict[str, Any]
    code_version: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the canonical JSON (sorted keys, no spaces) of the three attributes."""
        content = {"inputs": self.inputs, "settings": self.settings, "code_version": self.code_version}
        return hashlib.sha256(canonical_json(content, "a spec")).hexdigest()


class FileRecord(BaseModel):
    """One data file of an artefact: its name in the folder, content hash and size."""

    model_config = ConfigDict(frozen=True)

    # A manifest is data, so a path that leaves the folder is refused here.
    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """The commit record of an artefact.

    Attributes:
        fingerprint: :attr:`Spec.fingerprint` of what it was made from.
        inputs: As in :class:`Spec`.
        settings: As in :class:`Spec`.
        code_version: As in :class:`Spec`.
        files: Data files by the name they were written under.
        created: Time of the commit, ISO 8601, UTC.
        metrics: JSON values about the artefact, for people and tables.
        provenance: Where it was made: run, package versions, commit, hardware; no part of the fingerprint, and empty in
            what earlier versions of this package wrote.

    Its file has a hash over all of that, too (:func:`manifest_to_json`), without which a flipped bit in a number would be unseen.
    """

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    code_version: str
    files: dict[str, FileRecord]
    created: str
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    @property
    def bytes(self) -> int:
        """Size of its data files."""
        return sum(record.bytes for record in self.files.values())


def manifest_to_json(manifest: Manifest) -> bytes:
    """The file of a manifest: its attributes, and ``sha256``, the hash of their canonical JSON."""
    content = manifest.model_dump(mode="json")
    return json.dumps({**content, "sha256": _digest(content)}, indent=1, ensure_ascii=False).encode()


def manifest_from_json(content: bytes) -> Manifest:
    """Undo :func:`manifest_to_json`; what earlier versions of this package wrote has no hash.

    Raises:
        ValueError: It is damaged; the message says how.
    """
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    expected = fields.pop("sha256", None)
    if expected is None and (unknown := fields.keys() - Manifest.model_fields.keys()):
        # One flipped bit in the name of the hash must not pass for having none.
        raise ValueError(f"it has a field {min(unknown)!r}, and no hash")
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if expected is not None and expected != _digest(fields):
        raise ValueError("its content does not have the hash that it names")
    return manifest


@dataclass(frozen=True)
class Stored:
    """What the store holds of a key, without its data files having been read.

    Attributes:
        manifest: Its commit record; None: it is not stored, or the record is damaged.
        unreadable: What is wrong with a commit record that is damaged; empty: nothing, or there is none.
        damage: What the listing shows to be wrong with the data files; empty: nothing.
        strays: Whether its folder has files that the commit record does not name.
    """

    manifest: Manifest | None
    unreadable: str = ""
    damage: str = ""
    strays: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Listing:
    """The files of a store, or of one of its assets, as one listing showed them.

    Attributes:
        folders: Files by folder relative to the store, then by name.
    """

    folders: Mapping[str, Mapping[str, ListedFile]]

    def files(self, key: ArtefactKey) -> Mapping[str, ListedFile]:
        """Files in the folder of ``key``."""
        return self.folders.get(key.path, {})

    def artefacts(self) -> list[ArtefactKey]:
        """Stored keys, sorted by asset, budget, replicate and class."""
        found = [ArtefactKey.from_path(folder) for folder, files in self.folders.items() if MANIFEST in files]
        return sorted((k for k in found if k), key=lambda k: (k.asset, k.budget or "", k.replicate, k.class_key or ""))


class Store:
    """Artefacts under one URL. Open it with :meth:`open`; it can be pickled for other processes.

    On object stores the commit is one PUT, which they make atomic. On other remote file systems (SFTP, SMB)
    it is as atomic as their write of a small file.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._address = url
        self._options = dict(storage_options or {})
        self._cache_folder, self._retry_seconds = cache, retry_seconds

    @property
    def url(self) -> str:
        """Its address for people, without a password."""
        return masked(self._address)

    def parent(self) -> Store | None:
        """The store in the folder above; None: there is no such folder."""
        above = self._address.rpartition("/")[0]
        return Store.open(above, self._options, retry_seconds=self._retry_seconds) if above else None

    @classmethod
    def open(
        cls,
        url: str | Path,
        storage_options: Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> Store:
        """Open the store at a local path or fsspec URL; nothing is created before the first write.

        Args:
            url: For example ``data/home/store``, ``s3://bucket/d3m`` or ``memory://d3m``.
            storage_options: Arguments of the fsspec file system; leave credentials to its environment.
            cache: Folder for commit records of a remote store that were read before; None: they are kept in memory.
            retry_seconds: For how long a request to a busy service is repeated.

        Raises:
            StoreError: The protocol is unknown or its package is not installed, or the path is a file.
        """
        if not str(url):
            raise StoreError("the store has no address: set `storage` to a path or URL, or leave it out")
        store = cls(str(url), storage_options, cache, retry_seconds)
        try:
            if store._local and Path(store._root).exists() and not Path(store._root).is_dir():
                raise StoreError(f"{url} is a file; set `storage` to a folder")
        except OSError as error:
            shown = f"{str(url)[:80]}…" if len(str(url)) > 200 else url
            raise StoreError(f"cannot open the store {shown}: {error.strerror}; {remedy(error) or LOCATION}") from error
        except (ImportError, ValueError) as error:
            raise StoreError(f"cannot open the store {url}: {error}; {LOCATION}") from error
        return store

    def write(
        self,
        key: ArtefactKey,
        spec: Spec,
        files: Mapping[str, bytes],
        metrics: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        *,
        replaces: Stored | None = None,
    ) -> Manifest:
        """Store a new version of ``key``; until the commit, readers see the previous one.

        Args:
            key: What to store.
            spec: What it was made from.
            files: Contents by name, such as ``embeddings.safetensors``.
            metrics: JSON values; NumPy numbers and arrays are converted, NaN and infinity become null.
            provenance: JSON values that tell where it was made.
            replaces: What was last seen to be stored of ``key``, which saves the requests of looking again. When another
                writer was quicker, its files stay until a later write finds them to be a day old.

        Returns:
            The manifest as committed. That of a version with another fingerprint is kept for :meth:`superseded`.

        Raises:
            StoreError: A name is not a plain file name, a value is not JSON, or the disk takes no file of this size.
            StoreNotWritableError: The disk or service takes nothing.
            StoreUnavailableError: The service does not answer just now.
        """
        for name in files:
            if not SAFE.fullmatch(name) or name == MANIFEST:
                raise StoreError(f"{key}: {name!r} cannot name a file of an artefact")
        folder = self._folder(key)
        writer = secrets.token_hex(4)
        records = {name: _record(name, data, writer) for name, data in files.items()}
        manifest = Manifest(
            fingerprint=spec.fingerprint,
            inputs=spec.inputs,
            settings=json.loads(canonical_json(spec.settings, f"settings of {key}")),
            code_version=spec.code_version,
            files=records,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            metrics=json.loads(canonical_json(metrics, f"metrics of {key}")),
            provenance=json.loads(canonical_json(provenance or {}, f"provenance of {key}")),
        )
        content = manifest_to_json(manifest)
        try:
            for name, data in files.items():
                self._files.put(f"{folder}/{records[name].path}", data)
            replaced = self._manifest_or_none(key) if replaces is None else replaces.manifest
            if replaced is not None and replaced.fingerprint != manifest.fingerprint:
                # Before the commit: what names the replaced version can then be resolved at any moment.
                self._keep_superseded(key, replaced)
            self._files.commit(f"{folder}/{MANIFEST}", content)
        except Exception as error:  # each service raises its own
            self._take_back(key, manifest, error)
            reason = str(error) if isinstance(error, StoreError) else explained(error)
            raise _kind_of_refusal(error)(
                f"cannot write {key} to {self.uri(key)}: {reason}. The previous version is kept."
            ) from error
        self._seen.keep({f"{folder}/{MANIFEST}": ("", content)})
        if replaces is None or replaces.strays or replaces.unreadable:
            self._sweep(folder, keep=manifest, replaced=replaced)
        elif replaced is not None:
            # Failing to tidy up is no reason to fail a write that is already committed.
            with contextlib.suppress(Exception):
                for record in replaced.files.values():
                    self._files.remove(f"{folder}/{record.path}")
        return manifest

    def manifest(self, key: ArtefactKey) -> Manifest | None:
        """The commit record of ``key``, or None when it is not stored.

        Raises:
            DamagedError: It is damaged; the message names the file.
            StoreUnavailableError: It cannot be read just now.
        """
        path = f"{self._folder(key)}/{MANIFEST}"
        try:
            content = self._files.get(path, _is_manifest)
        except FileNotFoundError:
            return None
        except Exception as error:  # each service raises its own
            raise self._unavailable("read", path, error) from error
        return self._parse(path, content)

    def read(
        self, key: ArtefactKey, name: str, manifest: Manifest | None = None, *, fingerprint: str | None = None
    ) -> bytes:
        """Contents of one file of ``key``, checked against the hash in the manifest.

        Args:
            key: Which artefact.
            name: Name that the file was written under.
            manifest: Its commit record where that was read before; when its file is gone, the newer one is followed.
            fingerprint: That the version read must have; None: any version will do.

        Raises:
            StoreError: The artefact is not stored or has no such file, or the version is another.
            DamagedError: The file is missing or damaged; the message names it. That it is damaged is noted in the store, so
                that the next plan knows.
            StoreUnavailableError: It cannot be read just now.
        """
        manifest = manifest or self.manifest(key)
        while True:
            if manifest is None:
                raise StoreError(f"{key} is not stored in {self.url}; `d3m distill` builds it")
            if fingerprint is not None and manifest.fingerprint != fingerprint:
                raise StoreError(
                    f"{key} has been replaced by another version, by a run with other settings or data; run again what "
                    "needs it when that one has ended"
                )
            record = self._file(key, manifest, name)
            path = f"{self._folder(key)}/{record.path}"
            try:
                data = self._files.get(path, partial(_is_intact, record))
            except FileNotFoundError as error:
                # A writer may have replaced the version between our two reads; then follow the newer one.
                newer = self.manifest(key)
                if newer != manifest:
                    manifest = newer
                    continue
                raise DamagedError(f"{self._shown(path)} of {key} is missing; `d3m distill` will rebuild it") from error
            except Exception as error:  # each service raises its own
                raise self._unavailable("read", path, error) from error
            if not _is_intact(record, data):
                with contextlib.suppress(Exception):  # such as a store that may only be read
                    self._files.put(path + DAMAGED, b"")
                raise DamagedError(
                    f"{self._shown(path)} of {key} is damaged (its hash is not the one in the manifest); "
                    "`d3m distill` will rebuild it"
                )
            return data

    def check(self, key: ArtefactKey, *, note: bool = True) -> list[str]:
        """Read everything of ``key`` and say what of it is damaged; what is, is noted in the store for the next plan.

        Args:
            key: What to read.
            note: Whether it is an error when that a file is damaged, or is so no longer, cannot be noted.

        Raises:
            StoreUnavailableError: It cannot be read just now.
            StoreNotWritableError: It cannot be noted.
        """
        try:
            manifest = self.manifest(key)
        except DamagedError as error:
            return [str(error)]
        if manifest is None:
            return []
        found, folder = [], self._folder(key)
        listed = self._listing(folder)
        for name, record in manifest.files.items():
            path = f"{folder}/{record.path}"
            mark = path + DAMAGED
            try:
                self.read(key, name, manifest)
            except DamagedError as error:
                if self._manifest_or_none(key) != manifest:
                    return self.check(key, note=note)  # replaced in the meantime
                found.append(str(error))
                if note and path in listed:
                    self._change("write", mark, partial(self._files.put, mark, b""))
            else:
                if note and mark in listed:  # the file was put back
                    self._change("delete", mark, partial(self._files.remove, mark))
        return found

    def look(self, key: ArtefactKey) -> Stored:
        """What is stored of ``key``: a cheap look that reads the commit record and lists the data files.

        Raises:
            StoreUnavailableError: The disk or service does not let it be read just now.
        """
        while True:
            try:
                manifest = self.manifest(key)
            except DamagedError as error:
                return Stored(None, unreadable=str(error))
            if manifest is None:
                return Stored(None)
            sizes = {_name(path): size for path, size in self._listing(self._folder(key)).items()}
            damage = _damage(manifest, sizes)
            if not damage or self._manifest_or_none(key) == manifest:
                return Stored(manifest, damage=damage, strays=_strays(manifest, sizes))
            # A writer replaced the version between our two reads: look again.

    def listing(self, asset: str | None = None) -> Listing:
        """All files of the store, or of one asset, in one recursive listing.

        Raises:
            StoreUnavailableError: The disk or service refuses.
        """
        root = self._root if asset is None else self._folder(ArtefactKey(asset))
        try:
            folders = self._files.tree(root)
        except Exception as error:  # each service raises its own
            raise self._unavailable("list", root, error) from error
        if asset is not None:
            folders = {f"{asset}/{folder}" if folder else asset: files for folder, files in folders.items()}
        return Listing(folders)

    def look_all(self, keys: Iterable[ArtefactKey], listing: Listing) -> Iterator[tuple[ArtefactKey, Stored]]:
        """:meth:`look` for many keys: reads the commit records that have changed since they were last read.

        Args:
            keys: What to look for.
            listing: From :meth:`listing`; it must cover the keys.

        Yields:
            Each key, in order, with what is stored of it; of ten thousand, only one is held at a time.

        Raises:
            StoreUnavailableError: A commit record cannot be read just now.
        """
        chosen = list(keys)
        contents = self._manifest_contents([key for key in chosen if MANIFEST in listing.files(key)], listing)
        for key in chosen:
            content = contents.get(key)
            if content is None:
                yield key, Stored(None, strays=bool(listing.files(key)))
                continue
            try:
                manifest = self._parse(f"{self._folder(key)}/{MANIFEST}", content)
            except DamagedError as error:
                yield key, Stored(None, unreadable=str(error))
                continue
            sizes = {name: file.size for name, file in listing.files(key).items()}
            # A writer may have replaced the version since the listing; a closer look tells that from damage.
            damaged = bool(_damage(manifest, sizes))
            yield key, self.look(key) if damaged else Stored(manifest, strays=_strays(manifest, sizes))

    def _manifest_contents(self, keys: list[ArtefactKey], listing: Listing) -> dict[ArtefactKey, bytes | None]:
        """Contents of listed commit records, from the cache where they have not changed."""
        paths = {key: f"{self._folder(key)}/{MANIFEST}" for key in keys}
        versions = {paths[key]: listing.files(key)[MANIFEST].version for key in keys}
        kept = self._seen.contents(versions)
        missing = [key for key in keys if paths[key] not in kept]

        def get(key: ArtefactKey) -> bytes | None:
            try:
                return self._files.get(paths[key], _is_manifest)
            except FileNotFoundError:
                return None
            except Exception as error:  # each service raises its own
                raise self._unavailable("read", paths[key], error) from error

        if self._local or len(missing) < 2:  # faster without threads
            read = [get(key) for key in missing]
        else:
            with ThreadPoolExecutor(max_workers=REQUESTS_AT_ONCE) as pool:
                read = list(pool.map(get, missing))
        fresh = {paths[k]: (versions[paths[k]], c) for k, c in zip(missing, read, strict=True) if isinstance(c, bytes)}
        self._seen.keep(fresh)
        return {key: kept.get(paths[key]) for key in keys} | dict(zip(missing, read, strict=True))

    def remembered(self, key: ArtefactKey) -> Manifest | None:
        """The commit record that this store last wrote, or read for many keys at once; it may have been replaced."""
        path = f"{self._folder(key)}/{MANIFEST}"
        content = self._seen.latest(path)
        try:
            return None if content is None else self._parse(path, content)
        except StoreError:
            return None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self._local

    def record(self, kind: str, digest: str) -> dict[str, Any] | None:
        """A small result that was kept under the hash of what it was made from; None: there is none, or it is damaged.

        Args:
            kind: What it is, for example ``"students"``.
            digest: SHA-256 in hex.

        Raises:
            StoreError: The disk or service refuses.
        """
        path = self._record_path(kind, digest)
        try:
            data = self._files.get(path, lambda data: _value_of(data) is not None)
        except FileNotFoundError:
            return None
        except Exception as error:  # each service raises its own
            raise self._unavailable("read", path, error) from error
        return _value_of(data)

    def keep_record(self, kind: str, digest: str, value: Mapping[str, Any]) -> None:
        """Keep a small result for :meth:`record`; NaN and infinity become null.

        Raises:
            StoreError: The value is not JSON, or the disk or service refuses.
        """
        path = self._record_path(kind, digest)
        plain = json.loads(canonical_json(value, f"{kind} {digest}"))
        content = {"sha256": hashlib.sha256(canonical_json(plain, path)).hexdigest(), "value": plain}
        data = json.dumps(content, ensure_ascii=False).encode()
        self._change("write", path, lambda: self._files.commit(path, data))

    def records(self, kind: str) -> list[str]:
        """Digests of all kept results of a kind, sorted."""
        found = self._find(f"{self._root}/{RECORDS}/{kind}")
        return sorted(_name(path).removesuffix(".json") for path in found if path.endswith(".json"))

    def drop_record(self, kind: str, digest: str) -> None:
        """Remove a kept result; nothing happens when there is none."""
        path = self._record_path(kind, digest)
        self._change("delete", path, lambda: self._files.remove(path))

    def superseded(self, fingerprint: str) -> tuple[ArtefactKey, Manifest] | None:
        """Key and commit record of a version that another one has replaced; its data files are gone.

        Args:
            fingerprint: Of the version.

        Returns:
            None when nothing is known of it, or what was kept is damaged.

        Raises:
            StoreError: The disk or service refuses.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            return None
        value = self.record(SUPERSEDED, fingerprint)
        try:
            key = ArtefactKey.from_path(value["key"]) if value else None
            return (key, Manifest.model_validate(value["manifest"])) if value and key else None
        except (ValidationError, KeyError, TypeError):
            return None

    def _keep_superseded(self, key: ArtefactKey, manifest: Manifest) -> None:
        if re.fullmatch(r"[0-9a-f]{64}", manifest.fingerprint):
            self.keep_record(SUPERSEDED, manifest.fingerprint, {"key": key.path, "manifest": manifest.model_dump()})

    def keys(self, asset: str) -> list[ArtefactKey]:
        """Stored keys of one asset, sorted by budget, then class."""
        paths = [path.removeprefix(self._root + "/") for path in self._find(self._folder(ArtefactKey(asset)))]
        found = [ArtefactKey.from_path(p.removesuffix(f"/{MANIFEST}")) for p in paths if p.endswith(f"/{MANIFEST}")]
        return sorted((k for k in found if k), key=lambda k: (k.budget or "", k.replicate, k.class_key or ""))

    def assets(self) -> list[str]:
        """Names of all assets of which something is stored, sorted."""
        try:
            names = [_name(path) for path in self._files.folders(self._root)]
        except Exception as error:  # each service raises its own
            raise self._unavailable("list", self._root, error) from error
        return sorted(name for name in names if SAFE.fullmatch(name))

    def delete(self, key: ArtefactKey) -> None:
        """Remove ``key`` and its files; nothing happens when it is not stored.

        Raises:
            StoreError: The disk or service refuses.
        """
        folder = self._folder(key)
        manifest = self._manifest_or_none(key)
        listing = self._listing(folder)
        # A readable manifest tells which files are its own; others may belong to a write in progress.
        own = {_name(path) for path in listing}
        if manifest:
            own = {path for record in manifest.files.values() for path in (record.path, record.path + DAMAGED)}
        try:
            # The manifest goes first: readers then see no artefact rather than a damaged one.
            self._files.remove(f"{folder}/{MANIFEST}")
            self._seen.forget(f"{folder}/{MANIFEST}")
            for path in listing:
                if _name(path) in own or self._abandoned(path):
                    self._files.remove(path)
        except Exception as error:  # each service raises its own
            raise _kind_of_refusal(error)(f"cannot delete {key} from {self.uri(key)}: {explained(error)}") from error

    def uri(self, key: ArtefactKey, name: str | None = None) -> str:
        """Where the folder of ``key``, or one of its files, is: a local path or a URL, for people.

        Raises:
            StoreError: ``name`` is given and ``key`` is not stored or has no such file.
        """
        folder = self._folder(key)
        if name is None:
            return self._shown(folder)
        manifest = self.manifest(key)
        if manifest is None:
            raise StoreError(f"{key} is not stored in {self.url}; `d3m distill` builds it")
        return self._shown(f"{folder}/{self._file(key, manifest, name).path}")

    def probe(self) -> None:
        """Write a small file, read it back and delete it.

        Raises:
            StoreNotWritableError: One of the three does not work; the message says which and what to do.
            StoreUnavailableError: The service does not answer just now.
        """
        content = secrets.token_bytes(16)
        path, step = f"{self._root}/.probe-{content.hex()}", "write"
        folder = Path(self._root)
        new = [part for part in (folder, *folder.parents) if not part.exists()] if self._local else []
        for old in folder.glob(".probe-*") if self._local else ():  # of a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > SECONDS_OF_A_PROBE:
                    old.unlink()
        try:
            self._files.put(path, content)
            step = "read"
            if self._files.get(path) != content:
                raise OSError("what was read is not what was written")
            step = "delete"
            self._files.remove(path)
            with contextlib.suppress(OSError):  # another process has written there in the meantime
                for part in new:
                    part.rmdir()
        except Exception as error:  # each service raises its own
            if step != "delete":  # a full disk takes the name and not the bytes
                with contextlib.suppress(Exception):
                    self._files.remove(path)
            raise _kind_of_refusal(error)(f"cannot {step} {self._shown(path)}: {explained(error)}") from error

    # Everything below deals in paths of the file system, without protocol.

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.url_to_fs(self._address, **self._options)
        return fs, root.rstrip("/")

    @cached_property
    def _seen(self) -> ManifestCache:
        """Commit records that were read or written; a local disk is as quick as a file of them would be."""
        if self._cache_folder is None or self._local:
            return ManifestCache(root=self._root)
        digest = hashlib.sha256(self._address.encode()).hexdigest()[:16]
        return ManifestCache(Path(self._cache_folder) / f"manifests-{digest}.sqlite", self._root)

    @cached_property
    def _files(self) -> StoreFiles:
        return StoreFiles(self._fs, self._retry_seconds)

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    @property
    def _local(self) -> bool:
        return self._files.local

    def __getstate__(self) -> dict[str, Any]:
        # A file system holds connections and threads; another process opens its own.
        return {name: getattr(self, name) for name in ("_address", "_options", "_cache_folder", "_retry_seconds")}

    def _find(self, root: str) -> list[str]:
        """Paths of all files below a folder."""
        try:
            return self._files.find(root)
        except Exception as error:  # each service raises its own
            raise self._unavailable("list", root, error) from error

    def _unavailable(self, doing: str, path: str, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"cannot {doing} {self._shown(path)}: {explained(error)}")

    def _change(self, doing: str, path: str, request: Callable[[], None]) -> None:
        """Make a request that changes the store."""
        try:
            request()
        except Exception as error:  # each service raises its own
            raise _kind_of_refusal(error)(f"cannot {doing} {self._shown(path)}: {explained(error)}") from error

    def _record_path(self, kind: str, digest: str) -> str:
        if not SAFE.fullmatch(kind) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise StoreError(f"{kind} {digest} cannot name a kept result")
        return f"{self._root}/{RECORDS}/{kind}/{digest[:2]}/{digest}.json"

    def _folder(self, key: ArtefactKey) -> str:
        return f"{self._root}/{key.path}"

    def _shown(self, path: str) -> str:
        if self._local:
            return path
        # As the user has written it: only the address as a whole tells what in it is a password.
        below = path.removeprefix(self._root) if path.startswith(self._root) else None
        return masked(self._fs.unstrip_protocol(path)) if below is None else self.url.rstrip("/") + below

    def _file(self, key: ArtefactKey, manifest: Manifest, name: str) -> FileRecord:
        if name not in manifest.files:
            raise DamagedError(f"{key} has no file {name}; it has {', '.join(sorted(manifest.files)) or 'none'}")
        return manifest.files[name]

    def _parse(self, path: str, content: bytes) -> Manifest:
        try:
            return manifest_from_json(content)
        except (ValueError, RecursionError) as error:
            raise DamagedError(
                f"{self._shown(path)} is damaged ({error}); `d3m distill` will rebuild the artefact"
            ) from None

    def _manifest_or_none(self, key: ArtefactKey) -> Manifest | None:
        try:
            return self.manifest(key)
        except DamagedError:
            return None

    def _take_back(self, key: ArtefactKey, manifest: Manifest, error: Exception) -> None:
        """Remove the data files of a version whose commit has failed: on a full disk nothing else would."""
        if is_transient(error):
            return  # the service may have done what it did not answer to
        with contextlib.suppress(Exception):
            if self._manifest_or_none(key) != manifest:
                for record in manifest.files.values():
                    self._files.remove(f"{self._folder(key)}/{record.path}")

    def _listing(self, folder: str) -> dict[str, int]:
        """Sizes of the files in a folder by path."""
        try:
            return self._files.sizes(folder)
        except Exception as error:  # each service raises its own
            raise self._unavailable("list", folder, error) from error

    def _sweep(self, folder: str, *, keep: Manifest, replaced: Manifest | None) -> None:
        """Delete the files of the replaced version and those that killed writers left long ago."""
        kept = {MANIFEST, *(record.path for record in keep.files.values())}
        old = {record.path for record in replaced.files.values()} if replaced else set()
        # Failing to tidy up is no reason to fail a write that is already committed.
        with contextlib.suppress(Exception):
            for path in self._listing(folder):
                name = _name(path)
                if name not in kept and (name in old or name.endswith(DAMAGED) or self._abandoned(path)):
                    self._files.remove(path)

    def _abandoned(self, path: str) -> bool:
        age = self._files.age(path)
        return age is not None and age > ABANDONED_AFTER.total_seconds()


def _kind_of_refusal(error: Exception) -> type[StoreError]:
    """What it means that the store did not take something."""
    if isinstance(error, StoreError):
        return type(error)
    if is_transient(error):
        return StoreUnavailableError
    return StoreError if is_of_one_file(error) else StoreNotWritableError


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content, "a commit record")).hexdigest()


def _is_intact(record: FileRecord, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == record.sha256


def _is_manifest(content: bytes) -> bool:
    try:
        manifest_from_json(content)
    except (ValueError, RecursionError):
        return False
    return True


def _value_of(data: bytes) -> dict[str, Any] | None:
    """The value of a kept result; None: it is damaged."""
    try:
        content = json.loads(data)
        value: dict[str, Any] = content["value"]
        intact = content["sha256"] == hashlib.sha256(canonical_json(value, "a kept result")).hexdigest()
    except (ValueError, KeyError, TypeError, StoreError):
        return None
    return value if intact else None


def _record(name: str, data: bytes, writer: str) -> FileRecord:
    digest = hashlib.sha256(data).hexdigest()
    stem, dot, suffix = name.rpartition(".")
    path = f"{stem}-{digest[:16]}-{writer}.{suffix}" if dot and stem else f"{name}-{digest[:16]}-{writer}"
    return FileRecord(path=path, sha256=digest, bytes=len(data))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _strays(manifest: Manifest, names: Iterable[str]) -> bool:
    return not {MANIFEST, *(record.path for record in manifest.files.values())}.issuperset(names)


def _damage(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    for name, record in manifest.files.items():
        if record.path not in sizes:
            return f"file {name} missing"
        if sizes[record.path] != record.bytes:
            return f"file {name} has {sizes[record.path]} bytes instead of {record.bytes}"
        if record.path + DAMAGED in sizes:
            return f"file {name} is damaged"
    return ""


def canonical_json(value: Any, what: str) -> bytes:
    """A value as JSON with sorted keys and no spaces; NumPy values become numbers and lists, NaN and infinity null.

    Raises:
        StoreError: ``what`` holds something that JSON cannot say.
    """
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what} cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        if bad := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"the key {bad[0]!r} is not a string")
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
