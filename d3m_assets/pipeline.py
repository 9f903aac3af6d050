"""The pipeline without an orchestrator: which artefacts should exist, whether they do, and making them.

``plan`` is the one place that decides what is up to date. It compares, for every artefact, the fingerprint of what it
should be made from (inputs, settings, code version) with the fingerprint it was stored under. The command line, the
schedule, the sensor and the standing check all ask it; Dagster shows and launches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.datasets.catalog import class_catalog
from d3m_assets.datasets.opening import open_dataset
from d3m_assets.datasets.source import Scan
from d3m_assets.distillation import bundle, generation, inversion, latents
from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.errors import BudgetError, D3MError, StageError, StoreError
from d3m_assets.evaluation import audit, labels, scores, selection, stacking, students, teacher
from d3m_assets.foundation.embedded import characters
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import find_foundation
from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder, find_tiny_autoencoder
from d3m_assets.ledger import Budget, ImageShape, holds_real_image, largest_budget
from d3m_assets.progress import Progress, silent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey, Manifest, Spec, State, Store
from d3m_assets.workers import Workers, cores

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.exports.token_import import ImportedEmbeddings


@dataclass(frozen=True)
class AssetInfo:
    """What a stage of the graph is.

    Attributes:
        partitioned_by: "", "class", "budget" or "class_budget".
        deps: Assets it is made from.
        description: For people.
        kinds: What it is made with, for the UI.
        code_version: Raised whenever the code that makes it changes what is made.
    """

    partitioned_by: str
    deps: tuple[str, ...]
    description: str
    kinds: tuple[str, ...]
    code_version: str = "1"


ASSETS: dict[str, AssetInfo] = {
    "class_catalog": AssetInfo(
        "", (), "Every class of the dataset with its permanent id, partition key, name and image counts.", ("pandas",)
    ),
    "raw_dataset": AssetInfo(
        "class", ("class_catalog",), "The real images of a class: where they are, their hashes, and their split into "
        "train, validation and test. The images stay where they are.", ("pandas",)
    ),
    "foundation_model": AssetInfo(
        "", (), "The frozen text-to-image diffusion model: where it is and the fingerprint of its weights.",
        ("pytorch", "huggingface"),
    ),
    "class_prompts": AssetInfo(
        "class", ("raw_dataset",), "How a class is put into words: templates, initializer and placeholder token.",
        ("python",)
    ),
    "inverted_embeddings": AssetInfo(
        "class_budget", ("raw_dataset", "class_prompts", "foundation_model"),
        "The learned prompt vectors of a class within a budget (textual inversion): the distilled data itself.",
        ("pytorch",),
    ),
    "synthetic_pool": AssetInfo(
        "class_budget", ("inverted_embeddings", "class_prompts", "foundation_model"),
        "Labelled images regenerated from a class's vectors. A cache: the vectors can always draw it again.",
        ("pytorch", "parquet"),
    ),
    "repeated_pools": AssetInfo(
        "class_budget", ("raw_dataset", "class_prompts", "foundation_model"),
        "The same distillation under other seeds, vectors and images, so that intervals see how much it varies. Made only "
        "when evaluation.distillations asks for more than one.", ("pytorch", "parquet"),
    ),
    "distilled_bundle": AssetInfo(
        "budget", ("inverted_embeddings", "class_prompts", "foundation_model"),
        "The distilled dataset of a budget: one file with the vectors of all classes and the recipe that regenerates "
        "images from them.", ("safetensors",),
    ),
    "teacher_model": AssetInfo(
        "", ("raw_dataset",), "A classifier of the real data, trained or given: it makes soft labels and features. Made only "
        "when a row of the table needs it.", ("pytorch", "safetensors"),
    ),
    "pool_labels": AssetInfo(
        "class_budget", ("synthetic_pool", "repeated_pools", "teacher_model"),
        "What the teacher says of every distilled image: how likely its own class is, whether it agrees, and the soft label. "
        "Made only when there is a teacher.", ("pytorch", "parquet"),
    ),
    "reference_metrics": AssetInfo(
        "budget", ("raw_dataset", "foundation_model", "teacher_model"),
        "Students trained on random, chosen or recomposed real images of equal bytes: what distillation must beat.",
        ("pytorch",),
    ),
    "whole_dataset_metrics": AssetInfo(
        "", ("raw_dataset", "teacher_model"), "Students trained on the whole train split: the most that can be reached.",
        ("pytorch",),
    ),
    "foundation_metrics": AssetInfo(
        "", ("raw_dataset", "class_prompts", "foundation_model", "teacher_model"),
        "Students trained on what the foundation model draws from class names alone, without inversion.", ("pytorch",),
    ),
    "student_metrics": AssetInfo(
        "budget", ("synthetic_pool", "repeated_pools", "pool_labels", "raw_dataset", "teacher_model"),
        "Students trained on the synthetic pool of a budget and tested on real images.", ("pytorch",)
    ),
    "pool_audit": AssetInfo(
        "budget", ("synthetic_pool", "raw_dataset"), "Faults of the synthetic pool of a budget: copies of training images, "
        "repeats, images of another class, collapsed classes.", ("pytorch", "scikitlearn"),
    ),
    "distillation_report": AssetInfo(
        "", ("student_metrics", "reference_metrics", "whole_dataset_metrics", "foundation_metrics", "distilled_bundle",
             "synthetic_pool", "raw_dataset", "teacher_model", "pool_labels", "pool_audit"),
        "The verdict: accuracy against bytes for all methods, samples, ledger and provenance, in one HTML file.",
        ("html",), code_version="3",
    ),
}  # fmt: skip
_MEASURED = f"{students.CODE_VERSION}.{stacking.CODE_VERSION}.{scores.CODE_VERSION}"
_VERSIONS = {
    "inverted_embeddings": f"{inversion.CODE_VERSION}.{latents.CODE_VERSION}", "synthetic_pool": generation.CODE_VERSION,
    "repeated_pools": f"{inversion.CODE_VERSION}.{latents.CODE_VERSION}.{generation.CODE_VERSION}",
    "distilled_bundle": bundle.CODE_VERSION, "reference_metrics": _MEASURED, "whole_dataset_metrics": f"{_MEASURED}.1",
    "foundation_metrics": f"{_MEASURED}.{characters.CODE_VERSION}",
    "student_metrics": _MEASURED, "pool_audit": f"{audit.CODE_VERSION}.{_MEASURED}",
    "teacher_model": f"{teacher.CODE_VERSION}.{students.CODE_VERSION}", "pool_labels": labels.CODE_VERSION,
}  # fmt: skip
ASSETS = {name: replace(info, code_version=_VERSIONS.get(name, info.code_version)) for name, info in ASSETS.items()}
"""The graph, in an order in which every asset follows what it is made from."""
METRIC_ASSETS = ("student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics")
"""Assets whose artefacts are rows of the table."""


@dataclass(frozen=True)
class PlanEntry:
    """One artefact that should exist, and whether it does."""

    key: ArtefactKey
    state: State
    reasons: list[str]


@dataclass(frozen=True)
class Plan:
    """What should exist now.

    Attributes:
        entries: Every artefact, in dependency order.
        extra: Stored artefacts of classes or budgets that are gone.
    """

    entries: list[PlanEntry]
    extra: list[ArtefactKey]

    def pending(self) -> list[PlanEntry]:
        """What is missing or out of date, in dependency order."""
        return [e for e in self.entries if e.state != "up to date"]

    def to_json(self) -> str:
        """The plan as JSON text."""
        entries = [
            {"asset": e.key.asset, "class": e.key.class_key, "budget": e.key.budget, "state": e.state,
             "reasons": e.reasons} for e in self.entries
        ]  # fmt: skip
        return json.dumps({"entries": entries, "extra": [str(k) for k in self.extra]}, indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class Outcome:
    """What became of one artefact: made, skipped because it was up to date, or failed."""

    key: ArtefactKey
    manifest: Manifest | None
    skipped: bool = False
    error: D3MError | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong with a stored artefact.

    Attributes:
        key: Which.
        message: What, for people.
        severity: "error" or "warning".
        check: The one of several checks of an asset that it is for; empty: for all of them.
    """

    key: ArtefactKey
    message: str
    severity: str = "error"
    check: str = ""


class Pipeline:
    """All artefacts of one dataset, foundation model and settings.

    Args:
        settings: What to do.
        store: Where artefacts are kept; by default ``settings.storage_url``.
        progress: Told how long work is going.
    """

    def __init__(self, settings: Settings, *, store: Store | None = None, progress: Progress = silent) -> None:
        self.settings = settings
        self.store = store or Store.open(settings.storage_url)
        self.progress = progress
        self.refresh()

    def refresh(self) -> None:
        """Forget what was read of the dataset, so that the next question looks again."""
        self._scanned: Scan | None = None
        self._catalog: pd.DataFrame | None = None
        self._rows: dict[str, dict[Any, Any]] | None = None
        self._places: dict[str, str] | None = None
        self._keys: dict[str, dict[ArtefactKey, None]] = {}
        self._specs: dict[ArtefactKey, Spec] = {}
        self._plans: dict[tuple[str, int], EmbeddingPlan] = {}
        self._imports: dict[str, ImportedEmbeddings] | None = None

    def scan(self) -> Scan:
        """The dataset as it is; read once for this object.

        Raises:
            DatasetError: It cannot be used; the message says why.
        """
        if self._scanned is None:
            settings = self.settings
            self._scanned = open_dataset(
                settings.dataset, home=settings.home, validation_fraction=settings.validation_fraction
            ).scan(self.progress)
        return self._scanned

    def place(self, relative_path: str) -> str | None:
        """Where an image of the dataset is now, by its path below the dataset."""
        if self._places is None:
            self._places = {i.relative_path: i.uri for c in self.scan().classes.values() for i in c.images}
        return self._places.get(relative_path)

    def full_catalog(self) -> pd.DataFrame:
        """Catalog of all classes ever seen; ids are never given twice, so the stored catalog is looked at first."""
        if self._catalog is None:
            import pandas as pd

            key = ArtefactKey("class_catalog")
            stored = self.store.manifest(key)
            if stored is None:
                self._refuse_the_old_layout()
            try:
                previous = pd.read_parquet(BytesIO(self.store.read(key, "catalog.parquet"))) if stored else None
            except (StoreError, OSError, ValueError) as error:
                raise StoreError(
                    f"the class catalog in {self.store.uri(key)} is damaged: {error}. It gives classes their permanent "
                    "ids: restore it from a backup, or delete that folder and run `d3m distill` (ids are then given anew)"
                ) from error
            self._refuse_another_dataset(previous)
            self._catalog = class_catalog(self.scan(), previous)
        return self._catalog

    def _refuse_the_old_layout(self) -> None:
        root = self.store.url.rpartition("/")[0]
        if self.store.url == self.settings.storage_url and Store.open(root).manifest(ArtefactKey("class_catalog")):
            raise StoreError(
                f"{root} was written by an earlier version, which kept one dataset there; move what is in it into "
                f"{self.store.url}, or name another place with --storage"
            )

    def _refuse_another_dataset(self, previous: pd.DataFrame | None) -> None:
        # A dataset of the same name elsewhere would retire every class of this one.
        if previous is None or not previous["active"].any():
            return
        active = previous[previous["active"]]
        known, found = sorted(active["class_name"]), self.scan().classes
        prints = dict(zip(active["class_name"], active["fingerprint"], strict=True))
        same = any(name in found and found[name].fingerprint == prints[name] for name in known)
        if same or set(known) == set(found):
            return
        shown = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
        raise StoreError(
            f"{self.store.url} holds another dataset (classes {shown}), of which {self.settings.dataset} has none "
            "unchanged, and not all. "
            "Give one of them another name with the setting `name` (D3M_NAME), or another place with --storage"
        )

    def catalog(self) -> pd.DataFrame:
        """Catalog of the classes that exist now, by class id."""
        table = self.full_catalog()
        return table[table["active"]].reset_index(drop=True)

    @property
    def _digests(self) -> Path:
        """Cache of file digests: no tick of a sensor reads weights again that have not changed."""
        return self.settings.home / "cache" / "digests.json"

    @cached_property
    def foundation_files(self) -> FoundationFiles:
        """The foundation model on disk.

        Raises:
            FoundationError: It is not usable.
        """
        settings = self.settings
        return find_foundation(
            settings.foundation,
            config=settings.foundation_config,
            revision=settings.foundation_revision,
            digests=self._digests,
        )

    @cached_property
    def tiny_autoencoder(self) -> TinyAutoencoder | None:
        """The autoencoder that decodes pools in place of the model's own, on disk; None: the model's own does.

        Raises:
            FoundationError: It is not usable.
        """
        path = self.settings.generation.tiny_autoencoder
        return None if path is None else find_tiny_autoencoder(path, self.foundation_files, self._digests)

    @property
    def on_cpu(self) -> bool:
        """Whether models run on the processor."""
        return self.device == "cpu"

    @cached_property
    def device(self) -> str:
        """The torch device that models run on."""
        from d3m_assets.foundation.loading import choose_device

        return str(choose_device(self.settings.device))

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """All torch devices that models run on: the processor, or every GPU."""
        from d3m_assets.foundation.loading import choose_devices

        return choose_devices(self.settings.device)

    @cached_property
    def workers(self) -> Workers:
        """Processes that share the work: on the cores of a processor, or one for each of several GPUs."""
        if self.on_cpu:
            return Workers(self.settings.workers or cores())
        return Workers(len(self.devices), self.devices if len(self.devices) > 1 else ())

    def budget_bytes(self, budget: str) -> int:
        """Bytes a budget allows a class of this dataset."""
        return Budget.parse(budget).bytes(self.image_shape)

    @property
    def image_shape(self) -> ImageShape:
        """Stored shape of this dataset's images."""
        scan = self.scan()
        return ImageShape(scan.image_height, scan.image_width, scan.channels)

    def holds_a_real_image(self, budget: str) -> bool:
        """Whether a budget allows a class at least one image of this dataset."""
        return holds_real_image(Budget.parse(budget), self.image_shape)

    @property
    def largest_budget(self) -> str:
        """The budget of most bytes; fresh samples are drawn for it alone, since a student sees thousands of them."""
        return largest_budget(map(Budget.parse, self.settings.budgets), self.image_shape).name

    def embedding_plan(self, class_key: str, budget: str) -> EmbeddingPlan:
        """Prompts and vectors of a class: the budget's, but never more prompts than the class has images.

        Raises:
            BudgetError: The budget cannot hold one vector.
        """
        if imported := self.imported_embeddings(class_key):
            return self._imported_plan(class_key, imported, budget)
        images = int(self._row(class_key)["n_train"])
        if (budget, images) not in self._plans:
            settings, files = self.settings.inversion, self.foundation_files
            self._plans[(budget, images)] = plan_embeddings(
                budget, self.budget_bytes(budget), width=files.text_width,
                vectors_per_prompt=settings.vectors_per_prompt, storage_type=settings.storage_type,
                max_prompts=min(settings.max_prompts, images), max_vectors=max(1, files.text_length // 2),
                norms=self._norms,
            )  # fmt: skip
        return self._plans[(budget, images)]

    @property
    def _norms(self) -> int:
        """Norms that are stored with each vector."""
        return 0 if self.settings.inversion.directional else len(self.foundation_files.text_widths)

    def imported_embeddings(self, class_key: str) -> ImportedEmbeddings | None:
        """Embeddings of a class that the user already has; None: they are learned.

        Raises:
            BundleError: The files are not usable.
        """
        if self.settings.imported_embeddings is None:
            return None
        if self._imports is None:
            from d3m_assets.exports.token_import import find_embeddings

            names = [str(name) for name in self.catalog()["class_name"]]
            folder = self.settings.imported_embeddings.expanduser()
            self._imports = find_embeddings(folder, names, self.foundation_files.text_widths)
        return self._imports.get(str(self._row(class_key)["class_name"]))

    def _imported_plan(self, class_key: str, imported: ImportedEmbeddings, budget: str) -> EmbeddingPlan:
        kind, width = self.settings.inversion.storage_type, self.foundation_files.text_width
        stored = "int8" if kind == "auto" else kind
        plan = EmbeddingPlan(len(imported.files), imported.vectors, stored, width, self._norms)
        if plan.payload > self.budget_bytes(budget):
            raise BudgetError(
                f"the imported embeddings of class {self._row(class_key)['class_name']} take {plan.payload} bytes as "
                f"{plan.storage_type}, but the budget {budget} allows {self.budget_bytes(budget)}; raise the budget to "
                f"{plan.payload}B or take the files out of {imported.files[0].parent}"
            )
        return plan

    def _row(self, class_key: str) -> dict[Any, Any]:
        if self._rows is None:
            self._rows = {row["class_key"]: row for row in self.catalog().to_dict("records")}
        return self._rows[class_key]

    def prompts(self, class_key: str) -> ClassPrompts:
        """How a class is put into words."""
        row, settings = self._row(class_key), self.settings.prompts
        return ClassPrompts.of(
            int(row["class_id"]), class_key, str(row["class_name"]), templates=settings.templates,
            initializer=settings.initializer, keep_class_name=settings.keep_class_name,
        )  # fmt: skip

    def keys(self, asset: str) -> list[ArtefactKey]:
        """Every artefact of an asset that should exist now."""
        return list(self._known(asset))

    def _known(self, asset: str) -> dict[ArtefactKey, None]:
        if asset not in self._keys:
            kind = ASSETS[asset].partitioned_by
            classes = list(self.catalog()["class_key"]) if "class" in kind else [None]
            budgets = list(self.settings.budgets) if "budget" in kind else [None]
            keys = [ArtefactKey(asset, c, b) for b in budgets for c in classes]
            self._keys[asset] = {key: None for key in keys if not self.not_needed(key)}
        return self._keys[asset]

    def not_needed(self, key: ArtefactKey) -> str:
        """Why the settings do without an artefact that the graph has; empty where they need it."""
        if key.asset in ("teacher_model", "pool_labels") and not self._uses_teacher("distillation_report"):
            return "no row of the table needs a teacher; evaluation.labels and evaluation.baselines have rows that do"
        if key.asset == "repeated_pools" and self.settings.distillations == 1:
            return "one distillation is enough by the settings; evaluation.distillations asks for more"
        if key.asset == "reference_metrics" and key.budget and not self.holds_a_real_image(key.budget):
            return f"the budget {key.budget} holds no real image, so there is nothing real of equal bytes"
        return ""

    def _uses_teacher(self, asset: str) -> bool:
        if asset == "distillation_report":
            return any(self._uses_teacher(row) for row in METRIC_ASSETS)
        chosen = self.settings.evaluation
        asked = asset == "reference_metrics" and any(b not in ("random", "latent-means") for b in chosen.baselines)
        asked = asked or asset == "pool_labels" or (asset == "student_metrics" and "rejection" in chosen.variants)
        return asked or (asset in METRIC_ASSETS and chosen.labels != ("hard",))

    def _uses_pool_labels(self, asset: str) -> bool:
        chosen = self.settings.evaluation
        return asset == "distillation_report" or "soft stored" in chosen.labels or "rejection" in chosen.variants

    def _uses_foundation(self, asset: str) -> bool:
        return asset != "reference_metrics" or "latent-means" in self.settings.evaluation.baselines

    def spec(self, key: ArtefactKey) -> Spec:
        """Everything that determines an artefact, known before anything is made.

        Raises:
            StageError: The key is none of this dataset's and settings'.
        """
        if key not in self._specs:
            if key not in self._known(key.asset):
                raise StageError(f"{key} is not part of the dataset and settings; `d3m status` lists what is")
            inputs = {str(k): self.spec(k).fingerprint for k in self._inputs(key)}
            self._specs[key] = Spec(inputs, self._settings_of(key), ASSETS[key.asset].code_version)
        return self._specs[key]

    def _inputs(self, key: ArtefactKey) -> list[ArtefactKey]:
        """What an artefact is made from.

        Lineage that does not change its content (the catalog behind the images of a class, the images behind its name) is
        drawn in the graph but is no input here: one new image must not redo what it cannot change.
        """
        if key.asset in ("raw_dataset", "class_prompts"):
            return []
        found = []
        for dep in ASSETS[key.asset].deps:
            if dep == "teacher_model" and not self._uses_teacher(key.asset):
                continue
            if dep == "pool_labels" and not self._uses_pool_labels(key.asset):
                continue
            if dep == "foundation_model" and not self._uses_foundation(key.asset):
                continue
            by = ASSETS[dep].partitioned_by
            classes = [None] if "class" not in by else [key.class_key] if key.class_key else self.catalog()["class_key"]
            budgets = [None] if "budget" not in by else [key.budget] if key.budget else self.settings.budgets
            wanted = (ArtefactKey(dep, c, b) for b in budgets for c in classes)
            found += [k for k in wanted if k in self._known(dep)]
        return found

    def _settings_of(self, key: ArtefactKey) -> dict[str, Any]:
        s, asset = self.settings, key.asset
        students = {"students": s.students.model_dump(mode="json", exclude={"recipe"}), "device": self._device_kind}
        drawing = {"generation": self._drawing, "seed": s.seed, "device": self._device_kind}
        if asset == "class_catalog":
            return {"dataset": self.scan().fingerprint}
        if asset == "foundation_model":
            return {"fingerprint": self.foundation_files.fingerprint}
        if asset == "distillation_report":
            # The report tells what the audits found, by these thresholds.
            return {"dataset": self.dataset_name, "audit": s.audit.model_dump(mode="json")}
        if asset in ("whole_dataset_metrics", "reference_metrics", "student_metrics", "foundation_metrics"):
            shape = {"image": [self.scan().image_height, self.scan().image_width, self.scan().channels]}
            budget = {"bytes_per_class": self.budget_bytes(key.budget)} if key.budget else {}
            rows = self._soft_labels(asset) | self._variants(key)
            rows |= self._baselines() if asset == "reference_metrics" else {}
            return students | shape | budget | rows | (drawing if asset == "foundation_metrics" else {})
        if asset == "teacher_model":
            return {"teacher": self._teacher_settings(), "device": self._device_kind}
        if asset == "pool_audit":
            network = {"image_size": s.students.image_size, "flip": s.students.flip, "seed": s.seed}
            looking = s.audit.model_dump(mode="json", include={"steps", "quantile", "neighbours"})
            stored = [self.scan().image_height, self.scan().image_width, self.scan().channels]
            return {"audit": looking, "network": network, "device": self._device_kind, "image": stored}
        if asset == "distilled_bundle":
            assert key.budget is not None
            scan = self.scan()
            shape = {"image": [scan.image_height, scan.image_width, scan.channels]}
            return drawing | shape | {"dataset": self.dataset_name, "bytes_per_class": self.budget_bytes(key.budget),
                                      "foundation": self.foundation_name}  # fmt: skip
        assert key.class_key is not None
        prompts = self.prompts(key.class_key)
        if asset == "raw_dataset":
            images = self.scan().classes[prompts.class_name]
            return {"class_id": prompts.class_id, "class_name": prompts.class_name, "images": images.fingerprint,
                    "validation_fraction": s.validation_fraction}  # fmt: skip
        if asset == "class_prompts":
            return prompts.to_json()
        if asset == "pool_labels":
            seen = [self.scan().image_height, self.scan().image_width, self.scan().channels, s.students.image_size]
            return {"seen as": seen, "temperature": s.evaluation.temperature, "stored_classes": self.stored_classes,
                    "distillations": s.distillations, "device": self._device_kind}  # fmt: skip
        if asset == "synthetic_pool":
            return drawing | {"channels": self.scan().channels}
        assert asset in ("inverted_embeddings", "repeated_pools")
        assert key.budget is not None
        plan = self.embedding_plan(key.class_key, key.budget)
        planned = {name: value for name, value in plan.facts().items() if name != "width"}
        learned = {"inversion": s.inversion.learning(), "seed": s.seed, "device": self._device_kind, "plan": planned}
        if len(set(starts := prompts.starts(plan.vectors))) > 1:
            learned["starts"] = starts
        if imported := self.imported_embeddings(key.class_key):
            learned = {"imported": list(imported.sha256), "plan": planned}
        if asset == "repeated_pools":
            return learned | drawing | {"channels": self.scan().channels, "distillations": s.distillations}
        return learned

    @property
    def _drawing(self) -> dict[str, Any]:
        """What decides about images beside model, prompts and seed."""
        tiny = self.tiny_autoencoder
        return self.settings.generation.drawing() | ({} if tiny is None else {"autoencoder": tiny.fingerprint})

    def _soft_labels(self, asset: str) -> dict[str, Any]:
        """What decides about the rows with soft labels; nothing while there are none."""
        chosen = self.settings.evaluation
        if chosen.labels == ("hard",):
            return {}
        found: dict[str, Any] = {
            "labels": list(chosen.labels), "temperature": chosen.temperature, "label_code_version": labels.CODE_VERSION
        }  # fmt: skip
        if "soft stored" in chosen.labels:
            found["stored_classes"] = self.stored_classes
            if asset == "reference_metrics":  # real images may weigh what the pool's labels weigh
                found["pool_labels"] = self.settings.generation.images_per_class
        return found

    def _variants(self, key: ArtefactKey) -> dict[str, Any]:
        """What decides about further networks, distillations and variants of rows; nothing while there are none."""
        chosen, students, asset = self.settings.evaluation, self.settings.students, key.asset
        found: dict[str, Any] = {}
        if others := [a for a in chosen.architectures if a != students.architecture]:
            excluded = {"recipe", "seeds"}
            found["architectures"] = [students.of(a).model_dump(mode="json", exclude=excluded) for a in others]
        if self.settings.distillations > 1 and asset in ("student_metrics", "foundation_metrics"):
            found["distillations"] = self.settings.distillations
        by_asset: dict[str, list[str]] = {
            "student_metrics": [v for v in chosen.variants if v != "fresh" or key.budget == self.largest_budget],
            "foundation_metrics": [v for v in chosen.variants if v == "equal-ipc"],
            "reference_metrics": [v for v in chosen.variants if v == "unaugmented"],
        }
        rows = by_asset.get(asset, [])
        if rows:
            found["variants"] = rows
        if "equal-ipc" in rows:
            budgets = [key.budget] if key.budget else self.settings.budgets
            found["images allowed"] = {b: self.budget_bytes(b) for b in budgets}
            found["images drawn"] = self.settings.generation.images_per_class
        if "fresh" in rows:
            found["fresh"] = {"generation": self._drawing, "seed": self.settings.seed}
        return found

    def _baselines(self) -> dict[str, Any]:
        """What decides about chosen and recomposed real images; nothing while there are only random ones."""
        chosen = self.settings.evaluation.baselines
        if chosen == ("random",):
            return {}
        version = f"{selection.CODE_VERSION}.{latents.CODE_VERSION}"
        return {"baselines": list(chosen), "selection_code_version": version}

    @property
    def stored_classes(self) -> int | None:
        """Probabilities of a stored soft label; None for those of all classes."""
        wanted = self.settings.evaluation.stored_classes
        return None if wanted is None or wanted >= len(self.catalog()) else wanted

    def _teacher_settings(self) -> dict[str, Any]:
        s = self.settings
        if s.teacher.checkpoint is not None:
            return {"checkpoint": self.teacher_checkpoint.fingerprint}
        shape = [self.scan().image_height, self.scan().image_width, self.scan().channels]
        return s.teacher.model_dump(mode="json", exclude={"checkpoint"}) | {"seed": s.seed, "image": shape}

    @cached_property
    def teacher_checkpoint(self) -> teacher.Checkpoint:
        """The image classifier that ``teacher.checkpoint`` names.

        Raises:
            TeacherError: It is none.
        """
        assert self.settings.teacher.checkpoint is not None
        return teacher.Checkpoint(self.settings.teacher.checkpoint.expanduser().absolute())

    @cached_property
    def _device_kind(self) -> str:
        # "auto" stays "auto": an artefact is not out of date because another machine looks at it.
        return self.settings.device.split(":")[0]

    @property
    def dataset_name(self) -> str:
        """What the dataset is called."""
        return self.settings.dataset_name

    @property
    def foundation_name(self) -> str:
        """``embedded``, or last part of the foundation's path."""
        return self.settings.foundation.rstrip("/").rsplit("/", 1)[-1]

    def plan(self) -> Plan:
        """Compare everything that should exist with the store.

        Raises:
            DatasetError: The dataset cannot be used.
            BudgetError: A budget cannot hold one vector.
        """
        specs = {key: self.spec(key) for asset in ASSETS for key in self.keys(asset)}
        states = self.store.compare_all(specs)
        extra = [k for asset in ASSETS for k in self.store.keys(asset) if k not in specs]
        return Plan([PlanEntry(k, states[k].state, states[k].reasons) for k in specs], extra)

    def materialise(self, asset: str, keys: Sequence[ArtefactKey], *, force: bool = False) -> Iterator[Outcome]:
        """Make artefacts of one asset, each committed to the store as it finishes.

        Args:
            asset: Which stage.
            keys: Which of its artefacts.
            force: Also make what is up to date.

        Yields:
            One outcome for each key. An artefact that fails is yielded with its error; the others go on.
        """
        from d3m_assets.stages import make

        todo = []
        for key in keys:
            status = self.store.compare(key, self.spec(key))
            if status.state == "up to date" and not force:
                yield Outcome(key, self.store.manifest(key), skipped=True)
                continue
            behind = [n for k in self._inputs(key) if (n := self._behind(k))]
            if behind:
                reason = f"{key} needs {'; '.join(behind[:3])}{' …' if len(behind) > 3 else ''}"
                yield Outcome(key, None, error=StageError(f"{reason}. `d3m distill` makes everything in order"))
            else:
                todo.append(key)
        for made in make(self, asset, todo):
            if made.error is not None:
                yield Outcome(made.key, None, error=made.error)
                continue
            try:
                manifest = self.store.write(made.key, self.spec(made.key), made.files, made.metrics)
            except D3MError as error:
                yield Outcome(made.key, None, error=error)
            else:
                yield Outcome(made.key, manifest)

    def _behind(self, key: ArtefactKey) -> str:
        status = self.store.compare(key, self.spec(key))
        return "" if status.state == "up to date" else f"{key}, which is {status.state}"

    def describe(self, key: ArtefactKey) -> dict[str, Any]:
        """What is worth showing of a stored artefact: numbers, text, PNG bytes under ``*_png``, tables."""
        from d3m_assets.stages.inspection import describe

        return describe(self, key)

    def verify(self, asset: str) -> list[Problem]:
        """Read the stored artefacts of an asset and say what is wrong with them.

        Args:
            asset: "inverted_embeddings", "synthetic_pool", "pool_audit" or "teacher_model".
        """
        from d3m_assets.stages.inspection import verify

        return verify(self, asset)
