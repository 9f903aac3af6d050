"""Whether a stored artefact is the one that is wanted, and if not, what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from d3m_assets.store import ArtefactKey, Listing, Manifest, Spec, Store, Stored, canonical_json

State = Literal["up to date", "missing", "out of date"]


@dataclass(frozen=True)
class Status:
    """Whether a stored artefact is the wanted one; ``reasons`` is empty exactly when it is."""

    state: State
    reasons: list[str]


def compare(store: Store, key: ArtefactKey, spec: Spec) -> Status:
    """Say whether ``key`` is stored as ``spec`` wants it, and if not, what changed."""
    return status(store.look(key), spec)


def compare_all(
    store: Store, specs: Mapping[ArtefactKey, Spec], listing: Listing | None = None
) -> dict[ArtefactKey, Status]:
    """:func:`compare` for many keys at once, with one listing of the store unless one was just made."""
    looked = store.look_all(specs, listing or store.listing())
    return {key: status(stored, specs[key]) for key, stored in looked}


def status(stored: Stored, spec: Spec) -> Status:
    """Compare what was found in the store with what is wanted."""
    if stored.manifest is None:
        return Status("out of date", [stored.unreadable]) if stored.unreadable else Status("missing", ["not stored"])
    reasons = changes(stored.manifest, spec) + ([stored.damage] if stored.damage else [])
    return Status("out of date" if reasons else "up to date", reasons)


def changes(stored: Manifest, expected: Spec) -> list[str]:
    """What differs between the spec an artefact was made from and the expected one, in words."""
    if stored.fingerprint == expected.fingerprint:
        return []
    reasons = _differences("input", stored.inputs, expected.inputs, values=False)
    settings = json.loads(canonical_json(expected.settings, "a spec"))
    reasons += _differences("setting", _flat(stored.settings), _flat(settings), values=True)
    if stored.code_version != expected.code_version:
        reasons.append(f"code version {stored.code_version} -> {expected.code_version}")
    return reasons or ["fingerprint changed"]


def _differences(kind: str, old: Mapping[str, Any], new: Mapping[str, Any], *, values: bool) -> list[str]:
    reasons = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            reasons.append(f"{kind} {name} {'added' if name in new else 'removed'}")
        elif old[name] != new[name]:
            reasons.append(f"{kind} {name} " + (f"{_short(old[name])} -> {_short(new[name])}" if values else "changed"))
    return reasons


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
