"""Settings sections ``students``, ``audit``, ``evaluation`` and ``teacher``, with the recipes and tables they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from d3m_assets.errors import BudgetError
from d3m_assets.evaluation.baselines import BASELINES, ENCODED, NAMES
from d3m_assets.evaluation.baselines.random_real import RANDOM_REAL
from d3m_assets.ledger import Budget
from d3m_assets.setting_types import Positive, Section, Seeds, Share, as_list, distinct

LabelKind = Literal["hard", "soft stored", "soft teacher"]

LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
"""What students are trained on: the class, probabilities kept with each sample, or a teacher asked at every step."""


def _with_random(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f'"{unknown[0]}" is not a baseline; known are {", ".join(NAMES)}')
    if RANDOM_REAL.name not in names:
        raise ValueError("random real images are what every result is compared with; add random")
    return tuple(name for name in NAMES if name in names)


Baselines = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(as_list),
    AfterValidator(distinct),
    AfterValidator(_with_random),
]


def _budget_name(value: str) -> str:
    try:
        return Budget.parse(value).name
    except BudgetError as error:
        raise ValueError(str(error)) from None


ReferenceBudgets = Annotated[
    tuple[Annotated[str, AfterValidator(_budget_name)], ...],
    NoDecode,
    BeforeValidator(as_list),
    AfterValidator(distinct),
]

Variant = Literal["equal-ipc", "rejection", "unaugmented", "fresh"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""Rows beside the distilled one that change one thing about it; :mod:`d3m_assets.assets.student_metrics` says what."""

Architecture = Literal["convnet-3", "resnet-18", "vit-small"]

Variants = Annotated[
    tuple[Variant, ...],
    NoDecode,
    BeforeValidator(as_list),
    AfterValidator(distinct),
    AfterValidator(lambda names: tuple(name for name in VARIANTS if name in names)),
]

Architectures = Annotated[tuple[Architecture, ...], NoDecode, BeforeValidator(as_list), AfterValidator(distinct)]

Labels = Annotated[
    tuple[LabelKind, ...],
    NoDecode,
    BeforeValidator(as_list),
    Field(min_length=1),
    AfterValidator(distinct),
    # In one order, so that what is asked for is the same artefact however it is written.
    AfterValidator(lambda kinds: tuple(kind for kind in LABEL_KINDS if kind in kinds)),
]

RECIPES: dict[str, dict[str, Any]] = {
    "quick": {
        "steps": 300, "batch_size": 32, "learning_rate": 5e-3, "weight_decay": 5e-4, "optimizer": "adamw",
        "schedule": "cosine", "augmentation": "affine", "cutmix": 0.0,
    },
    "hard-label": {
        "steps": 4000, "batch_size": 64, "learning_rate": 0.01, "weight_decay": 5e-4, "optimizer": "sgd",
        "schedule": "steps", "augmentation": "crop", "cutmix": 1.0,
    },
    "soft-label": {
        "steps": 600, "batch_size": 50, "learning_rate": 1e-3, "weight_decay": 0.01, "optimizer": "adamw",
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


class StudentSettings(Section):
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
    steps: Positive = Field(default=300, description="Optimizer steps, the same for every training set.")
    batch_size: Positive = Field(default=32, description="Images in one step.")
    learning_rate: float = Field(
        default=5e-3, gt=0, description="Highest learning rate of the schedule; quick has 1e-3 for vit-small."
    )
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay: decoupled for adamw, L2 for sgd.")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="AdamW, or SGD with momentum 0.9.")
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
    seeds: Seeds = Field(default=(0, 1, 2), description="One student is trained for each seed; intervals need three.")

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


class AuditSettings(Section):
    """How a synthetic pool is searched for faults, and from where on they are told."""

    steps: Positive = Field(
        default=200,
        description="Optimizer steps of the ConvNet-3, trained on the train split, whose features are compared.",
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


DISTILLATIONS = 3
"""Distillations unless given: with two, an interval over their means is 12.7 standard errors to each side, with three 4.3."""

BASELINE_STUDENTS = 8
"""Students of random real images unless given: with three distillations that vary by 0.9 points they tell 15 points about nine
times in ten."""

TABLES: dict[str, dict[str, Any]] = {
    "quick": {"baselines": ("random", "k-means", "packed", "coded"), "labels": ("hard",), "architectures": (), "variants": (),
              "reference_budgets": ("16B", "32B")},
    "frontier": {"baselines": ("random", "k-means", "packed", "coded"), "labels": ("hard",), "architectures": (),
                 "variants": (), "reference_budgets": ("16B", "32B", "64B", "128B", "256B", "512B", "1KiB", "2KiB", "4KiB",
                                                       "8KiB")},
    "full": {
        "baselines": NAMES, "labels": ("hard", "soft teacher"), "architectures": ("convnet-3", "resnet-18"),
        "variants": VARIANTS, "reference_budgets": ("16B", "32B"),
    },
}  # fmt: skip
"""Tables by name; a setting that is given wins over its table."""


class EvaluationSettings(Section):
    """Which rows the table has."""

    table: Literal["quick", "frontier", "full"] = Field(
        default="quick",
        description="What the settings below are unless given: quick; frontier with real images from 16 bytes to 8 KiB a "
        "class, and five budgets unless given; or full with all baselines and variants, two networks, "
        "hard and soft labels, and a distillation for every student.",
    )
    baselines: Baselines = Field(
        default=("random", "k-means", "packed", "coded"),
        description="Training sets of equal bytes beside the distilled one: random, herding, k-center, k-means, el2n, "
        "collages, latent-means, packed (lossless), coded (lossy). All but random and latent-means need a teacher.",
    )
    reference_budgets: ReferenceBudgets = Field(
        default=("16B", "32B"),
        description="Budgets at which real images are measured beside those of budgets, and nothing is distilled; they may be "
        "too small for a vector.",
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
        description="Distillations, each from a seed of its own, which students take in turn; a number that divides that of "
        "the students. With one, intervals do not see how much a distillation varies. None: three, or as many as divide the "
        "students; in the full table one for each.",
    )
    baseline_students: Positive | None = Field(
        default=None,
        description="Students of random real images and of rendered characters at the budgets of distilled rows, each on images "
        "of its own; chosen real images (k-means, packed, coded and others), which vary less, have half as many. Never fewer "
        "than students.seeds, to which the next numbers are added. None: eight, or with one distillation only those.",
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

    @property
    def has_soft_labels(self) -> bool:
        """Whether there are rows with soft labels."""
        return self.labels != ("hard",)

    @property
    def needs_teacher(self) -> bool:
        """Whether a row of the table needs a teacher."""
        known = BASELINES | ENCODED
        asked = any(known[name].needs_teacher for name in self.baselines)
        return asked or "rejection" in self.variants or self.has_soft_labels


class TeacherSettings(Section):
    """Where the classifier of the real data comes from that gives soft labels and features."""

    checkpoint: Path | None = Field(
        default=None,
        description="Folder of a transformers image classifier (config.json, *.safetensors) to use; none: one is trained.",
    )
    width: Positive = Field(default=64, description="Channels of each convolution of a trained teacher.")
    steps: Positive = Field(default=600, description="Optimizer steps.")
    batch_size: Positive = Field(default=64, description="Images in one step.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Highest learning rate of the cosine schedule.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Decoupled weight decay.")
    image_size: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Side of the square input in pixels; none: derived from the dataset."
    )
    flip: bool = Field(default=False, description="Mirror images at random; wrong for digits and letters.")
