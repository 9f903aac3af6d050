"""Where an image comes from: from a file, a row of a pool or a bundle back to the real images it was learned from.

A file says what it says; everything else is looked up in the store by fingerprint, also of versions that have been replaced
since, of which the store keeps the commit record until ``d3m prune``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.assets import distilled_bundle, sample_selection, synthetic_pool
from d3m_assets.assets.class_prompts import ClassPrompts
from d3m_assets.assets.distilled_bundle import DistilledBundle, find_bundle
from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.image_codes import ImageCodes, coded_from
from d3m_assets.assets.inverted_embeddings import RECORD, InvertedEmbeddings, learned_from, training_facts
from d3m_assets.assets.payload_choice import PayloadChoice
from d3m_assets.assets.raw_dataset import RawDataset
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.synthetic_pool import SyntheticPool
from d3m_assets.datasets.names import class_key
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.settings import AUTO, CODES, PARTS, PROMPTS
from d3m_assets.errors import D3MError, StageError, StoreError
from d3m_assets.exports.image_record import CODED, ImageRecord
from d3m_assets.planning.versions import NOT_RECORDED, Version, find_version, made, stored_version
from d3m_assets.store import ArtefactKey, Store
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.tree import Tree

    from d3m_assets.foundation.files import FoundationFiles

Section = dict[str, Any]
SHOWN = 20
"""Real images and classes that a tree lists; JSON has all."""


@dataclass(frozen=True)
class AtHand:
    """What can be looked at to resolve names.

    Attributes:
        store: The store; None: none is there.
        store_name: How it is called, for people.
        find_model: Finds the foundation model of the settings.
        bundle: A bundle that the user has as a file.
        bundle_name: Of that file.
    """

    store: Store | None
    store_name: str = ""
    find_model: Callable[[], FoundationFiles] | None = None
    bundle: Bundle | None = None
    bundle_name: str = ""

    @classmethod
    def of(
        cls,
        store: Store,
        find_model: Callable[[], FoundationFiles] | None = None,
        bundle: Bundle | None = None,
        bundle_name: str = "",
    ) -> AtHand:
        """With a store that may turn out to be empty, not to be there, or out of reach."""
        name = store.url
        try:
            there = bool(store.assets())
        except StoreError as error:
            there, name = False, f"{store.url} ({error})"
        return cls(store if there else None, name, find_model, bundle, bundle_name)


@dataclass
class Lineage:
    """Where something comes from.

    Attributes:
        subject: What it is about.
        sections: Facts by title, from the thing itself back to its origin; values are JSON.
        notes: What could not be found out, and why.
    """

    subject: str
    sections: dict[str, Section] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """As JSON text in ASCII, so that nothing in it can steer a terminal."""
        return json.dumps(asdict(self), indent=1)

    def tree(self) -> Tree:
        """For a terminal; text that came out of files is stripped of what could steer it."""
        from rich.text import Text
        from rich.tree import Tree

        root = Tree(Text(printable(self.subject), style="bold"))
        for title, facts in self.sections.items():
            _add(root.add(Text(title, style="bold")), facts)
        for note in self.notes:
            root.add(Text(printable(note, 1000), style="yellow"))
        return root


def _add(branch: Tree, facts: Mapping[str, Any]) -> None:
    from rich.text import Text

    for name, value in facts.items():
        label = printable(name)
        if name == "versions" and isinstance(value, Mapping):
            branch.add(Text(printable(f"{label}: {', '.join(f'{k} {v}' for k, v in value.items())}", 2000)))
        elif isinstance(value, Mapping) and value:
            _add(branch.add(Text(label)), value)
        elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            node = branch.add(Text(label))
            for entry in value[:SHOWN]:
                node.add(Text("  ".join(printable(part) for part in entry.values())))
            if len(value) > SHOWN:
                node.add(Text(f"… and {len(value) - SHOWN} more; --json lists them"))
        else:
            words = ", ".join(map(str, value)) if isinstance(value, list) else value
            branch.add(Text(f"{label}: {printable('–' if words in (None, '', {}) else words)}"))


def lineage_of_image(record: ImageRecord, path: Path, at_hand: AtHand) -> Lineage:
    """Where an image that ``d3m regenerate`` wrote comes from.

    Args:
        record: What the file says (:func:`~d3m_assets.exports.image_record.read_record`).
        path: The file.
        at_hand: Where to look for the rest.
    """
    found = Lineage(f"{path}: image {record.index} of class {record.class_name}")
    found.sections["image"] = {
        "class": record.class_name,
        "class id": record.class_id,
        "index": record.index,
        "selected": "yes" if record.selected else "no, a fresh sample",
        "prompt": record.prompt,
        "prompt index": record.prompt_index,
        "seed": record.seed,
        "generated with": record.precision,
        "versions": record.versions,
    }
    coded = record.origin == CODED
    if coded:
        found.sections["image"] = _coded_image(found.sections["image"])
    store = _store(found, at_hand)
    version = find_bundle(store, record.bundle) if store else None
    found.sections["bundle"] = {"sha256": record.bundle} | (_version_facts(version) if version else {})
    bundle = _bundle_at_hand(found, record.bundle, version, at_hand)
    if version is not None:
        if coded:
            _describe_codes(found, _payload_of_class(version, record.class_name, ImageCodes.name), record.index)
        else:
            vectors = _payload_of_class(version, record.class_name, InvertedEmbeddings.name)
            _describe_vectors(found, vectors, record.prompt_index)
        found.sections["settings"] = version.manifest.settings
    elif store is not None:
        found.notes.append(f"{at_hand.store_name} knows no bundle with this SHA-256: another store's, or pruned since")
    of_image = _bundle_of_image(record.bundle, version, at_hand) if coded else None
    if not coded:
        _describe_model(found, record.foundation, version, at_hand)
    elif of_image is not None and of_image.generates:
        recipe = of_image.recipe
        _describe_model_of_others(found, recipe.foundation_fingerprint, version, at_hand, recipe.foundation)
    recorded = version is not None and bool(version.manifest.settings.get("candidates"))
    by_hand = at_hand.bundle is not None and bool(at_hand.bundle.recipe.candidates)
    _describe_regeneration(found, bundle, record, selected=recorded or by_hand)
    return found


def _coded_image(facts: Section) -> Section:
    """Facts of a coded image: without those of a generated one."""
    without = ("selected", "prompt", "prompt index", "seed", "generated with")
    return {"origin": CODED} | {name: value for name, value in facts.items() if name not in without}


def lineage_of_pool_row(at_hand: AtHand, budget: str, class_name: str, index: int, replicate: int = 0) -> Lineage:
    """Where an image of a stored pool comes from.

    Args:
        at_hand: Holds the store.
        budget: Name of the budget.
        class_name: The class, or its partition key.
        index: Number of the image within its class.
        replicate: Of the distillation.

    Raises:
        StageError: There is no store, pool or such image.
    """
    store = at_hand.store
    if store is None:
        raise StageError(
            f"there is no store at {at_hand.store_name}; name it with --storage, and the dataset with --dataset"
        )
    version = _pool(store, budget, class_name, replicate)
    parts = _parts(store, version)
    if PROMPTS not in parts:
        return _lineage_of_code(store, version, index, at_hand)
    table = from_parquet(version.read(synthetic_pool.FILE))
    rows = table[table["index"] == index]
    if rows.empty and CODES in parts:  # coded images are behind all that are generated
        return _lineage_of_code(store, version, index, at_hand, table)
    if rows.empty:
        raise StageError(
            f"{version.key} has no image {index}, but {len(table)}: {table['index'].min()} to {table['index'].max()}"
        )
    row = rows.iloc[0]
    found = Lineage(f"image {index} of {version.key}")
    found.sections["image"] = {
        "class": str(row["class_name"]),
        "class id": int(row["class_id"]),
        "index": int(row["index"]),
        "prompt": str(row["prompt"]),
        "prompt index": int(row["prompt_index"]),
        "seed": str(row["seed"]),
        "selected": _selected(store, version.key, int(row["index"])),
    }
    found.sections["pool"] = _version_facts(version)
    name = next(iter(version.input_names(InvertedEmbeddings.name)), "")
    vectors = find_version(store, name, str(row["embeddings_fingerprint"])) if name else None
    _describe_vectors(found, vectors, int(row["prompt_index"]))
    found.sections["settings"] = version.manifest.settings
    _describe_model(found, str(row["foundation_fingerprint"]), version, at_hand)
    found.sections["regenerate"] = {
        "possible": _model_is_at_hand(found),
        "with": f"d3m verify of the bundle of {budget}, or `d3m distill`: the pool is made again when it is missing",
    }
    return found


def lineage_of_bundle(bundle: Bundle, name: str, at_hand: AtHand) -> Lineage:
    """Where the vectors and the image codes of a bundle come from.

    Args:
        bundle: The bundle.
        name: Of its file.
        at_hand: Where to look for the rest.
    """
    recipe = bundle.recipe
    found = Lineage(f"{name}: bundle of {recipe.dataset} at {recipe.budget}")
    store = _store(found, at_hand)
    version = find_bundle(store, bundle.sha256) if store else None
    found.sections["bundle"] = {
        "sha256": bundle.sha256,
        "dataset": recipe.dataset,
        "budget": recipe.budget,
        "seed": recipe.seed,
        "templates": list(recipe.templates),
        "payload bytes": bundle.payload,
        "classes": len(bundle.classes),
        **(_version_facts(version) if version else {}),
    }
    if recipe.payload_choice:
        found.sections["bundle"]["payload"] = recipe.payload_choice
    if bundle.generates:
        found.sections["settings"] = {"generation": recipe.generation}
    if version is None and store is not None:
        found.notes.append(f"{at_hand.store_name} knows no bundle with this SHA-256: another store's, or pruned since")
    if bundle.generates:
        found.sections["vectors"] = {"by class": [_vectors_of_class(c, version) for c in bundle.classes]}
    if bundle.has_codes:
        found.sections["image codes"] = {"by class": [_codes_of_class(bundle, c, version) for c in bundle.classes]}
    if bundle.generates:
        _describe_model(found, recipe.foundation_fingerprint, version, at_hand, recipe.foundation)
    regenerate = f"d3m regenerate {name} --output FOLDER"
    found.sections["regenerate"] = {"possible": _model_is_at_hand(found), "with": regenerate}
    return found


def _vectors_of_class(c: DistilledClass, version: Version | None) -> Section:
    row: Section = {"class": c.prompts.class_name, "prompts": f"{c.plan.prompts} x {c.plan.vectors} vectors"}
    if version is None:
        return row
    return row | _summary(_payload(version, c.prompts.class_key, InvertedEmbeddings.name))


def _codes_of_class(bundle: Bundle, c: DistilledClass, version: Version | None) -> Section:
    images = f"{len(bundle.code_numbers(c))} in {len(c.codes)} bytes"
    row: Section = {"class": c.prompts.class_name, "coded images": images}
    codes = _payload(version, c.prompts.class_key, ImageCodes.name) if version is not None else None
    return row | ({} if codes is None else {"artefact": str(codes.key), "created": codes.manifest.created})


def _selected(store: Store, pool: ArtefactKey, index: int) -> str:
    """Whether the training set keeps a sample of a pool, and what the selecting network says of it."""
    version = stored_version(store, replace(pool, asset=SampleSelection.name))
    if version is None or not version.has(sample_selection.TABLE):
        return "not known to the store"
    samples = from_parquet(version.read(sample_selection.TABLE))
    row = samples[samples["index"] == index].to_dict("records")
    if not row:
        return "not known to the store"
    seen = f"; the selecting network sees {row[0]['predicted_class']}" if "predicted_class" in row[0] else ""
    return ("yes" if row[0]["kept"] else "no, rejected") + seen


def _store(found: Lineage, at_hand: AtHand) -> Store | None:
    if at_hand.store is None:
        where = at_hand.store_name or "the settings"
        found.notes.append(
            f"no store at {where}: only what the file itself says is shown; name the store with --storage and --dataset"
        )
    return at_hand.store


def _version_facts(version: Version) -> Section:
    state = "in the store" if version.current else "replaced since: its commit record is kept, its data is gone"
    return {"artefact": str(version.key), "fingerprint": version.manifest.fingerprint, "state": state, **made(version)}


def _pool(store: Store, budget: str, class_name: str, replicate: int) -> Version:
    """The stored pool of a class, by its name or key."""
    keys = [k for k in store.keys(SyntheticPool.name) if (k.budget, k.replicate) == (budget, replicate)]
    for key in keys:
        if key.class_key in (class_name, class_key(class_name)) and (version := stored_version(store, key)):
            return version
    there = ", ".join(str(k.class_key) for k in keys[:20])
    budgets = sorted({str(k.budget) for k in store.keys(SyntheticPool.name)})
    raise StageError(
        f"{store.url} has no pool of class {printable(class_name)} at {printable(budget)}; "
        + (f"at this budget it has the classes {there}" if keys else f"its budgets are {', '.join(budgets) or 'none'}")
    )


def _parts(store: Store, pool: Version) -> frozenset[str]:
    """What the training set of a class at a budget consists of: prompts, codes or both."""
    if list(pool.input_names(ImageCodes.name)):
        return PARTS[CODES]
    # What the bundle was made from: the store may still have the choice of an earlier setting.
    bundle = stored_version(store, ArtefactKey(DistilledBundle.name, None, pool.key.budget))
    if bundle is None:
        return PARTS[PROMPTS]
    choice = bundle.made_from(str(ArtefactKey(PayloadChoice.name, None, pool.key.budget)))
    payload = bundle.manifest.settings.get("payload", PROMPTS) if choice is None else choice.manifest.metrics["payload"]
    return PARTS[PROMPTS if payload == AUTO else payload]


def _lineage_of_code(
    store: Store, pool: Version, index: int, at_hand: AtHand, generated: pd.DataFrame | None = None
) -> Lineage:
    """Where a coded image comes from, by the pool of its class, and by the images that are generated beside it."""
    key = replace(pool.key, asset=ImageCodes.name)
    codes = stored_version(store, key)
    if codes is None:
        raise StageError(f"{store.url} does not have {key}; `d3m distill` makes it again")
    first, count = codes.manifest.settings.get("first", 0), codes.manifest.metrics["images"]
    if not first <= index < first + count:
        coded = f"{count}: {first} to {first + count - 1}"
        if generated is None:
            raise StageError(f"{key} has no image {index}, but {coded}")
        numbers = generated["index"]
        raise StageError(
            f"{pool.key} has no image {index}, but {len(numbers)}: {numbers.min()} to {numbers.max()}; and {key} has {coded}"
        )
    found = Lineage(f"image {index} of {key}")
    found.sections["image"] = {"origin": CODED, "class": str(key.class_key), "index": index}
    _describe_codes(found, codes, index)
    found.sections["settings"] = codes.manifest.settings
    with_ = f"d3m regenerate of the bundle of {key.budget}{'; no model is needed' if generated is None else ''}"
    if generated is not None:
        _describe_model_of_others(found, str(generated["foundation_fingerprint"].iloc[0]), pool, at_hand)
    found.sections["regenerate"] = {"possible": _model_is_at_hand(found), "with": with_}
    return found


def _payload(bundle: Version, key: str, asset: str) -> Version | None:
    """The vectors or the image codes of a class that a bundle was made from."""
    budget = bundle.key.budget
    return bundle.made_from(str(ArtefactKey(asset, key, budget)))


def _payload_of_class(bundle: Version, class_name: str, asset: str) -> Version | None:
    """The same by the class's name, whose key its prompts tell."""
    try:
        if found := _payload(bundle, class_key(class_name), asset):
            return found
    except D3MError:
        pass
    for name in bundle.input_names(ClassPrompts.name):
        prompts = bundle.made_from(name)
        if prompts is not None and prompts.manifest.settings.get("class_name") == class_name:
            return _payload(bundle, str(prompts.key.class_key), asset)
    return None


def _describe_codes(found: Lineage, codes: Version | None, index: int) -> None:
    """The code of a class, and the one real image that a coded image is."""
    if codes is None:
        found.notes.append("the version of the image codes is not known to the store: pruned since")
        return
    facts = {name: codes.manifest.metrics[name] for name in ("codec", "images", "payload_bytes")}
    found.sections["image codes"] = {**_version_facts(codes), **facts}
    members = coded_from(codes, index)
    if members is None:
        found.sections["real images"] = {"coded from": "gone with the data of the codes"}
    else:
        images = [
            {"relative_path": str(r["relative_path"]), "sha256": str(r["sha256"])} for r in members.to_dict("records")
        ]
        found.sections["real images"] = {"coded from": len(images), "images": images}


def _describe_vectors(found: Lineage, vectors: Version | None, prompt: int) -> None:
    if vectors is None:
        found.notes.append("the version of the vectors is not known to the store: pruned since")
        return
    found.sections["vectors"] = {**_version_facts(vectors), "training": training_facts(vectors, prompt)}
    inversion = vectors.manifest.settings
    found.sections["vectors"]["settings"] = inversion
    real: Section = {}
    for name in vectors.input_names(RawDataset.name):
        raw = vectors.made_from(name)
        real = {"class's images": name, "fingerprint": vectors.manifest.inputs[name]}
        real |= _version_facts(raw) if raw else {"state": "pruned since"}
    images = learned_from(vectors, prompt)
    if images is not None:
        real |= {"learned from": len(images), "images": images}
    elif "imported_from" in vectors.manifest.metrics:
        real["learned from"] = "not known: the vectors were imported"
    elif vectors.current:
        real["learned from"] = NOT_RECORDED
    else:
        real["learned from"] = "gone with the data of the vectors"
    found.sections["real images"] = real


def _summary(vectors: Version | None) -> Section:
    if vectors is None:
        return {"training": "not known to the store: pruned since"}
    facts = training_facts(vectors)
    if vectors.has(RECORD) and "steps" in facts:
        how = f"{facts['steps']} steps ({facts['stop reason']}), loss {facts['loss']}, {facts['learned from']}"
    else:
        how = ", ".join(f"{name} {value}" for name, value in facts.items())
    where = vectors.manifest.provenance
    return {
        "training": how,
        "created": vectors.manifest.created,
        "Dagster run": where.get("run") or ("none" if where else "not recorded"),
        "fingerprint": vectors.manifest.fingerprint,
    }


def _describe_model(found: Lineage, fingerprint: str, version: Version | None, at_hand: AtHand, name: str = "") -> None:
    """The foundation model, and whether the settings name one with this fingerprint."""
    facts: Section = {"name": name} if name else {}
    model = version.made_from(FoundationModel.name) if version else None
    if model is not None:
        metrics = model.manifest.metrics
        facts |= {label: metrics[label] for label in ("name", "bytes", "text_width", "image_size") if label in metrics}
    facts["fingerprint"] = fingerprint
    if at_hand.find_model is not None:
        try:
            files = at_hand.find_model()
        except D3MError as error:
            facts["at hand"] = f"no: {error}"
        else:
            same = files.fingerprint == fingerprint
            other = f"no: the settings name {files.name!r} with fingerprint {files.fingerprint[:12]}; use --foundation"
            facts["at hand"] = "yes" if same else other
    found.sections["foundation model"] = facts


def _describe_model_of_others(
    found: Lineage, fingerprint: str, version: Version | None, at_hand: AtHand, name: str = ""
) -> None:
    """The model beside a coded image: its bundle has generated images too, and is not regenerated without it."""
    _describe_model(found, fingerprint, version, at_hand, name)
    found.sections["foundation model"]["generates"] = "other images of the bundle, which is not regenerated without it"


def _model_is_at_hand(found: Lineage) -> str:
    if "foundation model" not in found.sections:  # a bundle of coded images alone needs none
        return "yes"
    state = str(found.sections["foundation model"].get("at hand", "not looked for"))
    return "yes" if state == "yes" else f"not here: foundation model at hand: {state}"


def _bundle_at_hand(found: Lineage, sha256: str, version: Version | None, at_hand: AtHand) -> str:
    """Where the bundle of an image is; empty: nowhere."""
    if at_hand.bundle is not None:
        if at_hand.bundle.sha256 == sha256:
            return at_hand.bundle_name
        found.notes.append(
            f"{at_hand.bundle_name} is not the bundle of this image: its SHA-256 is {at_hand.bundle.sha256[:12]}…, "
            f"the image names {sha256[:12]}…"
        )
    return version.store.uri(version.key, distilled_bundle.FILE) if version is not None and version.current else ""


def _bundle_of_image(sha256: str, version: Version | None, at_hand: AtHand) -> Bundle | None:
    """The bundle that an image names, if it is at hand."""
    if at_hand.bundle is not None and at_hand.bundle.sha256 == sha256:
        return at_hand.bundle
    if version is None or not version.current:
        return None
    return Bundle.from_bytes(version.read(distilled_bundle.FILE), str(version.key))


def _describe_regeneration(found: Lineage, bundle: str, record: ImageRecord, *, selected: bool) -> None:
    reasons = []
    if (model := _model_is_at_hand(found)) != "yes":
        reasons.append(model.removeprefix("not here: "))
    if not bundle:
        reasons.append("the bundle is not at hand; name its file with --bundle")
    # Without a number, a selected sample is among those that are written; behind them, samples come in the order of numbers.
    fresh = "" if record.selected and selected else f" --per-class {record.index + 1}"
    command = f"d3m regenerate {bundle} --output FOLDER{fresh}" if bundle else ""
    found.sections["regenerate"] = {
        "possible": "yes" if not reasons else f"not here: {'; '.join(reasons)}",
        "with": command,
    }
