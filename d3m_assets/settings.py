"""Typed settings: the only place where the environment and the settings file are read.

Precedence: arguments (the command line) > environment (``D3M_SEED``, ``D3M_INVERSION__STEPS``) > settings
file (``d3m.toml`` in the working directory, or the file named by ``$D3M_SETTINGS``) > defaults. Front doors
call :func:`load_settings`; everything else is handed the parts of :class:`Settings` that it needs.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic_settings
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from d3m_assets.errors import BudgetError, SettingsError
from d3m_assets.ledger import Budget

ENVIRONMENT_PREFIX = "D3M_"
FILE_VARIABLE = "D3M_SETTINGS"
FILE_NAME = "d3m.toml"


def _listed(value: Any) -> Any:
    """Accept ``"a, b"``, ``'["a", "b"]'`` and a single number where a list is wanted."""
    if isinstance(value, str):
        if not value.strip():
            return []
        return json.loads(value) if value.lstrip().startswith("[") else [v.strip() for v in value.split(",")]
    return [value] if isinstance(value, int) else value


def _one_or_json(value: Any) -> Any:
    """Like :func:`_listed`, but a comma is part of the text."""
    if isinstance(value, str):
        return json.loads(value) if value.lstrip().startswith("[") else [value]
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    folded = [v.casefold() if isinstance(v, str) else v for v in values]
    if twice := sorted({str(v) for v in folded if folded.count(v) > 1}):
        raise ValueError(f"{', '.join(twice)} given twice")
    return values


def _budget_name(value: str) -> str:
    # The name stays text: it is a partition key, a folder name and part of the settings' dump.
    try:
        return Budget.parse(value).name
    except BudgetError as error:
        raise ValueError(str(error)) from None


def _template(value: str) -> str:
    if value.count("{}") != 1 or set("{}") & set(value.replace("{}", "")):
        raise ValueError(f'"{value}" needs the place of the class, {{}}, exactly once and no other brace')
    return value


def _in_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("an interval begins below its end; write for example 0.2, 0.8")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError(f'"{value}" is not a device; give auto, cpu, mps, cuda or cuda:1')
    return value


def _cron(value: str) -> str:
    if not re.fullmatch(r"@(hourly|daily|weekly|monthly)|\S+( +\S+){4}", value.strip()):
        raise ValueError(f'"{value}" is not a cron schedule; give five fields, for example "0 2 * * *"')
    return value.strip()


Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[tuple[Share, Share], NoDecode, BeforeValidator(_listed), AfterValidator(_in_order)]
Budgets = Annotated[
    tuple[Annotated[str, AfterValidator(_budget_name)], ...],
    NoDecode,
    BeforeValidator(_listed),
    Field(min_length=1),
    AfterValidator(_distinct),
]
Templates = Annotated[
    tuple[Annotated[str, AfterValidator(_template)], ...],
    NoDecode,
    BeforeValidator(_one_or_json),
    Field(min_length=1),
    AfterValidator(_distinct),
]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    NoDecode,
    BeforeValidator(_listed),
    Field(min_length=1),
    AfterValidator(_distinct),
]


LabelKind = Literal["hard", "soft stored", "soft teacher"]
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
"""What students are trained on: the class, probabilities kept with each sample, or a teacher asked at every step."""

Baseline = Literal["random", "herding", "k-center", "k-means", "el2n", "collages", "latent-means"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""Training sets of equal bytes made from real images; :mod:`d3m_assets.evaluation.selection` says how."""


def _with_random(names: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
    if "random" not in names:
        raise ValueError("random real images are what every result is compared with; add random")
    return tuple(name for name in BASELINES if name in names)


Baselines = Annotated[
    tuple[Baseline, ...],
    NoDecode,
    BeforeValidator(_listed),
    AfterValidator(_distinct),
    AfterValidator(_with_random),
]

Variant = Literal["equal-ipc", "rejection", "unaugmented", "fresh"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""Rows beside the distilled one that change one thing about it; :mod:`d3m_assets.stages.variants` says what."""

Architecture = Literal["convnet-3", "resnet-18", "vit-small"]

Variants = Annotated[
    tuple[Variant, ...],
    NoDecode,
    BeforeValidator(_listed),
    AfterValidator(_distinct),
    AfterValidator(lambda names: tuple(name for name in VARIANTS if name in names)),
]

Architectures = Annotated[tuple[Architecture, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_distinct)]

Labels = Annotated[
    tuple[LabelKind, ...],
    NoDecode,
    BeforeValidator(_listed),
    Field(min_length=1),
    AfterValidator(_distinct),
    # In one order, so that what is asked for is the same artefact however it is written.
    AfterValidator(lambda kinds: tuple(kind for kind in LABEL_KINDS if kind in kinds)),
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PromptSettings(_Section):
    """How a class is put into words."""

    templates: Templates = Field(
        default=("a photo of a {}",),
        description="Prompts with {} for the class. In the environment: one template, or a JSON list.",
    )
    initializer: str | None = Field(
        default=None,
        min_length=1,
        description="Words whose embeddings the inversion starts from, dealt out in turn to the vectors of a prompt; none: "
        "the class name, for all of them.",
    )
    keep_class_name: bool = Field(
        default=True,
        description="Whether the class name stays in the prompt, behind the learned vectors.",
    )


class InversionSettings(_Section):
    """How the embeddings of a class are fitted to its images."""

    steps: Positive = Field(default=150, description="Optimiser steps.")
    samples_per_step: Positive = Field(
        default=16, description="Noised training images of each class in one step, at least 4 for each prompt."
    )
    directional: bool = Field(
        default=True,
        description="Whether only directions are learned and stored, at the norm of the token table; no: AdamW on whole "
        "vectors, whose norms are stored with them.",
    )
    learning_rate: float = Field(
        default=0.15,
        gt=0,
        description="Highest rate of the cosine schedule: the angle, in radians, that one step turns a vector by. Without "
        "directional: the change of each number in one step, unless given 2e-3.",
    )
    vectors_per_prompt: Positive | None = Field(
        default=None, description="Embedding vectors of one prompt; none: chosen by the budget planner."
    )
    storage_type: Literal["auto", "int8", "fp16"] = Field(
        default="auto", description="Number format of stored vectors; auto: chosen by the budget planner."
    )
    classes_per_batch: Positive | None = Field(
        default=None,
        description="Most classes inverted together; none: 1 on a CPU, on a GPU as many as fit into its memory.",
    )
    check_every: Positive = Field(default=10, description="Steps between two looks at the loss on fixed inputs.")
    patience: Positive | None = Field(
        default=None, description="Looks without progress after which a class is finished early; none: all its steps."
    )
    flip: bool = Field(default=False, description="Also learn from mirrored images; wrong for digits and letters.")
    timestep_power: float = Field(
        default=1.0, gt=0, description="Timesteps are drawn as T u^power, u uniform: below 1 the noisy ones more often."
    )
    snr_gamma: float | None = Field(default=None, gt=0, description="Cap of min-SNR loss weights; none: no weights.")
    max_prompts: Annotated[int, Field(ge=1, le=676)] = Field(
        default=32, description="Most prompts of a class; beyond it a budget buys more vectors in each."
    )

    @model_validator(mode="after")
    def _rate_of_its_kind(self) -> InversionSettings:
        """An angle is no step of a number: without a rate that was given, each way of learning has its own."""
        if not self.directional and "learning_rate" not in self.model_fields_set:
            self.__dict__["learning_rate"] = 2e-3
        return self

    def learning(self) -> dict[str, Any]:
        """What decides about vectors, as JSON values; how many classes share a batch does not."""
        left_out = {"classes_per_batch"} | ({"directional"} if self.directional else set())
        return self.model_dump(mode="json", exclude=left_out)


class GenerationSettings(_Section):
    """How the synthetic pool is drawn from the embeddings."""

    images_per_class: Positive = Field(default=100, description="Images regenerated for each class and budget.")
    steps: Positive = Field(default=10, description="Denoising steps of one image.")
    guidance_scale: float = Field(default=2.0, ge=0, description="Classifier-free guidance; 1 switches it off.")
    batch_size: Positive = Field(
        default=50, description="Images denoised together; part of an image's address, since it decides how sums round."
    )
    scheduler: Literal["dpmsolver++", "unipc", "ddim", "lcm"] = Field(
        default="dpmsolver++", description="Sampler of the diffusion model; lcm only for models distilled for it."
    )
    guidance_interval: Interval = Field(
        default=(0.0, 1.0),
        description="Part of the noise schedule in which guidance is on, 0 clean and 1 pure noise; outside it, each step "
        "costs half.",
    )
    decode_batch_size: Positive | None = Field(
        default=None, description="Images the autoencoder decodes together; none: all of a batch on a CPU, 8 on a GPU."
    )
    tiny_autoencoder: Path | None = Field(
        default=None,
        description="Folder of a diffusers AutoencoderTiny (TAESD) that decodes in place of the model's own autoencoder.",
    )

    def drawing(self) -> dict[str, Any]:
        """What decides about images, as JSON values; the tiny autoencoder is known by its content, not by its place."""
        return self.model_dump(mode="json", exclude={"tiny_autoencoder"})


RECIPES: dict[str, dict[str, Any]] = {
    "quick": {
        "steps": 300, "batch_size": 32, "learning_rate": 5e-3, "weight_decay": 5e-4, "optimiser": "adamw",
        "schedule": "cosine", "augmentation": "affine", "cutmix": 0.0,
    },
    "hard-label": {
        "steps": 4000, "batch_size": 64, "learning_rate": 0.01, "weight_decay": 5e-4, "optimiser": "sgd",
        "schedule": "steps", "augmentation": "crop", "cutmix": 1.0,
    },
    "soft-label": {
        "steps": 600, "batch_size": 50, "learning_rate": 1e-3, "weight_decay": 0.01, "optimiser": "adamw",
        "schedule": "cosine", "augmentation": "crop", "cutmix": 1.0,
    },
}  # fmt: skip
"""Recipes of students by name; a setting that is given wins over its recipe.

``hard-label`` is that of Minimax (CVPR 2024, after IDC, ICML 2022) and ``soft-label`` that of RDED (CVPR 2024), both for
ten images a class of ten classes: 2000 epochs of 2 batches, and 300 epochs of 2. They count epochs, but a table here
shares its steps, so that no training set is trained on for longer than another: for other sizes set ``students.steps``.
Left out on purpose: mirroring, which is a setting of its own since it is wrong for characters; changes of colour; the
best test epoch; RDED's cosine that stops at half the learning rate (ours goes to zero) and its shuffling of patches,
which fits only images made of patches.
"""

_WIDTHS = {"convnet-3": 32, "resnet-18": 64, "vit-small": 192}


class StudentSettings(_Section):
    """How the classifiers are trained that measure what a training set is worth; one recipe for every row."""

    architecture: Architecture = Field(default="convnet-3", description="Network of the student.")
    recipe: Literal["quick", "hard-label", "soft-label"] = Field(
        default="quick",
        description="What the settings below are unless given: quick, or the field's for hard or for soft labels.",
    )
    width: Positive = Field(
        default=32,
        description="Channels; unless given 32 for convnet-3, 64 for resnet-18 (16 in the quick recipe), 192 for vit-small.",
    )
    steps: Positive = Field(default=300, description="Optimiser steps, the same for every training set.")
    batch_size: Positive = Field(default=32, description="Images in one step.")
    learning_rate: float = Field(
        default=5e-3, gt=0, description="Highest learning rate of the schedule; quick has 1e-3 for vit-small."
    )
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay: decoupled for adamw, L2 for sgd.")
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="AdamW, or SGD with momentum 0.9.")
    schedule: Literal["cosine", "steps"] = Field(
        default="cosine", description="Learning rate: a cosine to zero, or a fifth after 2/3 and again after 5/6."
    )
    augmentation: Literal["affine", "crop", "none"] = Field(
        default="affine",
        description="Random turn, stretch, shear and shift; a random crop of half to all of the area; or neither.",
    )
    cutmix: float = Field(
        default=0.0, ge=0, le=1, description="Share of batches in which a box of each image is another image's."
    )
    image_size: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Side of the square input in pixels; none: derived from the dataset."
    )
    flip: bool = Field(default=False, description="Mirror images at random; wrong for digits and letters.")
    seeds: Seeds = Field(
        default=(0, 1, 2, 3), description="One student is trained for each seed; intervals need three."
    )

    @model_validator(mode="after")
    def _filled(self) -> StudentSettings:
        """Give what was not set the values of recipe and architecture; what counts as set stays as it is."""
        found = RECIPES[self.recipe] | {"width": _WIDTHS[self.architecture]}
        if (self.recipe, self.architecture) == ("quick", "vit-small"):
            found["learning_rate"] = 1e-3  # at 5e-3 it stays at chance
        if (self.recipe, self.architecture) == ("quick", "resnet-18"):
            found["width"] = 16  # 64 takes a processor core over a minute for 300 steps on images of 16 px
        self.__dict__.update({k: v for k, v in found.items() if k not in self.model_fields_set})
        return self

    def of(self, architecture: Architecture) -> StudentSettings:
        """The same settings for another network, whose width is the usual one."""
        if architecture == self.architecture:
            return self
        given = self.model_dump(include=self.model_fields_set - {"width"})
        return StudentSettings(**given | {"architecture": architecture})


class AuditSettings(_Section):
    """How a synthetic pool is searched for faults, and from where on they are told."""

    steps: Positive = Field(
        default=200,
        description="Optimiser steps of the ConvNet-3, trained on the train split, whose features are compared.",
    )
    quantile: float = Field(
        default=0.01, gt=0, lt=1, description="Share of real images that the distance thresholds call too close."
    )
    neighbours: Annotated[int, Field(ge=2)] = Field(
        default=5, description="Nearest real images that vote on a class, and that a copy is compared with."
    )
    memorised_warning: Share = Field(default=0.02, description="Share of a class's images that may be copies.")
    memorised_error: Share = Field(default=0.1, description="The same, beyond which it is an error.")
    near_duplicate_warning: Share = Field(
        default=0.2, description="Share of a class's images that may be near duplicates of others."
    )
    near_duplicate_error: Share = Field(default=0.6, description="The same, beyond which it is an error.")
    off_class_warning: Share = Field(
        default=0.25, description="Share of a class's images that may look like another class."
    )
    off_class_error: Share = Field(default=0.6, description="The same, beyond which it is an error.")
    spread_warning: Share = Field(
        default=0.4, description="Least spread of a class, as a share of the real class's spread."
    )
    spread_error: Share = Field(default=0.1, description="The same, below which it is an error.")


TABLES: dict[str, dict[str, Any]] = {
    "quick": {"baselines": ("random",), "labels": ("hard",), "architectures": (), "variants": ()},
    "full": {
        "baselines": BASELINES, "labels": ("hard", "soft teacher"), "architectures": ("convnet-3", "resnet-18"),
        "variants": VARIANTS,
    },
}  # fmt: skip
"""Tables by name; a setting that is given wins over its table."""


class EvaluationSettings(_Section):
    """Which rows the table has."""

    table: Literal["quick", "full"] = Field(
        default="quick",
        description="What the settings below are unless given: quick, or full with all baselines and variants, two networks, "
        "hard and soft labels, and a distillation for every student.",
    )
    baselines: Baselines = Field(
        default=("random",),
        description="Training sets of equal bytes beside the distilled one: random, herding, k-center, k-means, el2n, "
        "collages, latent-means. All but random and latent-means need a teacher.",
    )
    architectures: Architectures = Field(
        default=(),
        description="Networks to train beside students.architecture, each on every row: convnet-3, resnet-18, vit-small.",
    )
    variants: Variants = Field(
        default=(),
        description="Rows that change one thing about the distilled one: equal-ipc (as many images as are compared with), "
        "rejection (of images that a teacher gives another class), unaugmented, fresh (no image twice, at the largest budget).",
    )
    distillations: Positive | None = Field(
        default=None,
        description="Distillations, each from a seed of its own: one for all students, with which intervals do not see how "
        "much a distillation varies, or one for each student; none: one, and in the full table one for each.",
    )
    labels: Labels = Field(
        default=("hard",),
        description="Labels to train students on, each kind beside the same baselines: hard, soft stored, soft teacher.",
    )
    temperature: float | None = Field(
        default=None, gt=0, description="What the teacher's logits are divided by for soft labels; none: as calibrated."
    )
    stored_classes: Positive | None = Field(
        default=None, description="Highest probabilities that a stored soft label keeps; none: those of all classes."
    )

    @model_validator(mode="after")
    def _filled(self) -> EvaluationSettings:
        """Give what was not set the values of the table; what counts as set stays as it is."""
        found = TABLES[self.table]
        self.__dict__.update({k: v for k, v in found.items() if k not in self.model_fields_set})
        return self


class TeacherSettings(_Section):
    """Where the classifier of the real data comes from that gives soft labels and features."""

    checkpoint: Path | None = Field(
        default=None,
        description="Folder of a transformers image classifier (config.json, *.safetensors) to use; none: one is trained.",
    )
    width: Positive = Field(default=64, description="Channels of each convolution of a trained teacher.")
    steps: Positive = Field(default=600, description="Optimiser steps.")
    batch_size: Positive = Field(default=64, description="Images in one step.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Highest learning rate of the cosine schedule.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Decoupled weight decay.")
    image_size: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Side of the square input in pixels; none: derived from the dataset."
    )
    flip: bool = Field(default=False, description="Mirror images at random; wrong for digits and letters.")


class AutomationSettings(_Section):
    """What Dagster starts by itself."""

    enabled: bool = Field(default=False, description="Whether schedules and sensors are running when first loaded.")
    cron: Annotated[str, AfterValidator(_cron)] = Field(
        default="0 2 * * *", description="When the schedule looks for work."
    )
    max_partitions_per_tick: Positive = Field(
        default=50, description="Most partitions of each asset that one tick requests."
    )


class Settings(BaseSettings):
    """Everything that can be set. Build it with :func:`load_settings`, which explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="none",
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    dataset: str = Field(
        default="digits", min_length=1, description='"digits", or path or fsspec URL of an image folder.'
    )
    name: str = Field(
        default="",
        description="Name of the dataset in bundles and report, and of its folder in the store; empty: last part of its path.",
    )
    foundation: str = Field(
        default="embedded",
        min_length=1,
        description='"embedded", path or hub id of a diffusers text-to-image pipeline, or path of a single-file checkpoint.',
    )
    foundation_config: str | None = Field(
        default=None,
        min_length=1,
        description="Diffusers folder, or hub id, that gives a single-file checkpoint its configurations and tokenizer.",
    )
    foundation_revision: str | None = Field(default=None, min_length=1, description="Commit or tag of a hub model.")
    imported_embeddings: Path | None = Field(
        default=None,
        description="Folder of textual-inversion files that you already have, each named after its class: these classes "
        "are not inverted.",
    )
    budgets: Budgets = Field(
        default=("ipc-1", "ipc-5", "ipc-10"),
        description="Bytes per class: ipc-N, NB, NKiB or NMiB. In the environment: comma separated or JSON.",
    )
    home: Path = Field(
        default=Path("data/home"),
        description="Folder of the Dagster instance, caches, digits and reports.",
    )
    storage: str = Field(default="", description="Path or fsspec URL of the artefact stores; empty: <home>/store.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Root of every random number but the students' seeds.")
    device: Annotated[str, AfterValidator(_device)] = Field(
        default="auto", description="auto, cpu, mps, cuda or cuda:N."
    )
    compile_unet: bool = Field(
        default=False,
        description="Compile the U-Net with torch.compile: a minute or more of waiting, then faster on a GPU.",
    )
    workers: Positive | None = Field(
        default=None, description="Processes that share the work on a CPU; none: one for each core."
    )
    latent_cache_gib: float = Field(
        default=4.0, ge=0, description="Most disk that cached latents of training images take, in GiB; 0: none."
    )
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Part of the train split set aside for choices, by hash of the image.",
    )
    prompts: PromptSettings = Field(default=PromptSettings(), description="How a class is put into words.")
    inversion: InversionSettings = Field(default=InversionSettings(), description="How embeddings are fitted.")
    generation: GenerationSettings = Field(default=GenerationSettings(), description="How the synthetic pool is drawn.")
    students: StudentSettings = Field(default=StudentSettings(), description="How training sets are measured.")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="Which rows the table has.")
    teacher: TeacherSettings = Field(default=TeacherSettings(), description="Who gives soft labels and features.")
    audit: AuditSettings = Field(default=AuditSettings(), description="How pools are searched for faults.")
    automation: AutomationSettings = Field(default=AutomationSettings(), description="What Dagster starts by itself.")

    @model_validator(mode="after")
    def _enough_students(self) -> Settings:
        """Students that share one of several distillations are not independent, as intervals take them to be."""
        if self.distillations not in (1, len(self.students.seeds)):
            raise ValueError(
                f"evaluation.distillations is {self.distillations}, but students.seeds has {len(self.students.seeds)}; "
                "give 1, which all students share, or one for each student"
            )
        return self

    @property
    def distillations(self) -> int:
        """``evaluation.distillations``, or what it is unless given."""
        each = len(self.students.seeds) if self.evaluation.table == "full" else 1
        return self.evaluation.distillations or each

    @property
    def dataset_name(self) -> str:
        """``name``, or last part of the dataset's path; a folder called digits is not the built-in ``digits``."""
        if self.name or self.dataset == "digits":
            return self.name or self.dataset
        path = self.dataset if "://" in self.dataset else os.path.normpath(Path(self.dataset).expanduser().absolute())
        last = path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or "dataset"
        return "digits folder" if last == "digits" else last

    @property
    def storage_url(self) -> str:
        """Where the artefacts of this dataset are kept: a folder of its own in ``storage``, or in ``home/store``."""
        from d3m_assets.datasets.catalog import class_key

        root = self.storage or str(self.home.absolute() / "store")
        return f"{root}{'' if root.endswith('/') else '/'}{class_key(self.dataset_name)}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, first wins: arguments, environment, settings file."""
        file = pydantic_settings.TomlConfigSettingsSource(settings_cls, toml_file=settings_file())
        return init_settings, env_settings, file


def settings_file() -> Path | None:
    """The settings file in force, or None.

    Raises:
        SettingsError: ``$D3M_SETTINGS`` names a file that does not exist.
    """
    if named := os.environ.get(FILE_VARIABLE):
        if not Path(named).is_file():
            raise SettingsError(f"${FILE_VARIABLE} names {named}, which is no file. Correct or unset the variable.")
        return Path(named)
    return Path(FILE_NAME) if Path(FILE_NAME).is_file() else None


def load_settings(**overrides: Any) -> Settings:
    """Read all sources and check them.

    Args:
        **overrides: Values that win over environment and file. A section is given as a mapping (only the keys
            named are replaced), or one value by its dotted name: ``**{"inversion.steps": 150}``.

    Raises:
        SettingsError: A key is unknown or a value impossible; one line for each, naming the key, where it was
            set and what is accepted.
    """
    given = _nested(overrides)
    file = settings_file()
    try:
        _refuse_unknown_variables()
        return Settings(**given)
    except ValidationError as error:
        lines = [_explain(e["type"], e["loc"], e["msg"], e["input"], given, file) for e in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}. Correct that line.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{file} cannot be read: {error}. Save it as UTF-8 text.") from None
    except pydantic_settings.SettingsError as error:
        raise SettingsError(f"{error}. Sections are set as D3M_SECTION__KEY=value or as JSON.") from None


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        if key:
            nested[section] = {**nested.get(section, {}), key: value}
        elif isinstance(value, BaseModel):
            # Only what the caller set: the rest of the section still comes from environment and file.
            nested[name] = {**nested.get(name, {}), **value.model_dump(exclude_unset=True)}
        elif isinstance(value, Mapping):
            nested[name] = {**nested.get(name, {}), **value}
        else:
            nested[name] = value
    return nested


def setting_names() -> Iterator[str]:
    """Dotted names of all settings, such as ``seed`` and ``inversion.steps``."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{key}" for key in section.model_fields)
        else:
            yield name


def _refuse_unknown_variables() -> None:
    # pydantic-settings passes over variables that match no field: a misspelt one would silently do nothing.
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(ENVIRONMENT_PREFIX) and name != FILE_VARIABLE:
            section = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")[0]
            if section not in Settings.model_fields:
                wanted = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
                raise SettingsError(f"unknown environment variable {variable}{_close(wanted, as_variable=True)}")


def _close(name: str, *, as_variable: bool = False) -> str:
    names = list(setting_names())
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    close += [n for n in names if n.rpartition(".")[2] == last and n not in close]
    if as_variable:
        close = [_variable(n) for n in close]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    sections = ", ".join(sorted(Settings.model_fields))
    return f"; remove it. Known at the top level: {sections}."


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper().replace(".", "__")


def _explain(
    kind: str,
    loc: tuple[int | str, ...],
    message: str,
    value: Any,
    given: Mapping[str, Any],
    file: Path | None,
) -> str:
    if not loc:  # of several settings together
        return message.removeprefix("Value error, ")
    # Positions inside a list and the arms of a union are not part of a setting's name.
    parts = [str(p) for p in loc]
    known = set(setting_names())
    name = ".".join(parts[:2]) if kind == "extra_forbidden" or ".".join(parts[:2]) in known else parts[0]
    origin = _origin(name, given, file)
    if kind == "extra_forbidden":
        return f"unknown setting {name}{origin}{_close(name)}"
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"setting {name}{origin}: {message.removeprefix('Value error, ')} (got {shown})"


def _origin(name: str, given: Mapping[str, Any], file: Path | None) -> str:
    section, _, key = name.partition(".")
    inner = given.get(section)
    if section in given and (not key or not isinstance(inner, Mapping) or key in inner):
        return ""
    present = {variable.upper() for variable in os.environ}
    for variable in (_variable(name), _variable(section)):
        if variable in present:
            return f" (from ${variable})"
    return f" (in {file})" if file else ""
