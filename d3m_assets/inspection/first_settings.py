"""A first settings file for a dataset: what was seen in it, and settings that suit it, each with its reason."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from d3m_assets.addresses import has_secret, masked
from d3m_assets.assets.foundation_model import problems_of_model
from d3m_assets.datasets.source import Scan
from d3m_assets.distillation.budgets import plan_embeddings
from d3m_assets.errors import BudgetError
from d3m_assets.foundation.files import EMBEDDED, FoundationFiles
from d3m_assets.ledger import Budget, ImageShape, byte_size
from d3m_assets.settings import EMBEDDED_STEPS, ENVIRONMENT_PREFIX, Settings
from d3m_assets.terminal import printable

WIDTH_OF_STABLE_DIFFUSION = 768
"""Length of a token embedding of Stable Diffusion 1.x, for the budgets of a model that is not named yet."""
PLACEHOLDER = "NAME HERE the folder of a diffusers text-to-image model"
"""Setting ``foundation`` where a person has to choose."""
MORE_IMAGES = (10, 5, 2)
"""Images a class that a second budget may be worth."""
_ALWAYS_WRITTEN = frozenset({"dataset", "foundation", "budgets", "home"})
_COMMENT_WIDTH = 100
_LEFT_AT_DEFAULT = (
    "seed",
    "device",
    "storage",
    "exclude",
    "prompts.templates",
    "inversion.steps",
    "generation.images_per_class",
    "students.seeds",
)
"""Settings that a first file names in comments, with their defaults."""


@dataclass(frozen=True)
class Facts:
    """What was seen in a dataset.

    Attributes:
        url: Where it is.
        shape: Of its images: median height and width, and whether any has colour.
        sizes: How many different sizes its images have.
        smallest: Smallest height and width.
        largest: Largest height and width.
        images: Number of images by class name and split.
    """

    url: str
    shape: ImageShape
    sizes: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    images: dict[str, dict[str, int]]

    @classmethod
    def of(cls, scan: Scan) -> Facts:
        """The facts of a scan."""
        sizes = {(image.height, image.width) for c in scan.classes.values() for image in c.images}
        shape = ImageShape(scan.image_height, scan.image_width, scan.channels)
        counts = {
            name: {split: len(c.of(split)) for split in ("train", "validation", "test")}
            for name, c in scan.classes.items()
        }
        return cls(
            scan.url,
            shape,
            len(sizes),
            (min(h for h, _ in sizes), min(w for _, w in sizes)),
            (max(h for h, _ in sizes), max(w for _, w in sizes)),
            counts,
        )

    @property
    def fewest(self) -> int:
        """Training images of the class that has the fewest, those set aside for choices not counted."""
        return min(count["train"] for count in self.images.values())

    def sentences(self) -> list[str]:
        """The facts for people, a sentence each."""
        names = list(self.images)
        listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        total = {split: sum(c[split] for c in self.images.values()) for split in ("train", "validation", "test")}
        most = max(c["train"] for c in self.images.values())
        of_each = f"{self.fewest}" if most == self.fewest else f"{self.fewest} to {most}"
        (height, width), (top, side) = self.smallest, self.largest
        size = f"{height}x{width} pixels" if self.sizes == 1 else f"{height}x{width} to {top}x{side} pixels"
        median = "" if self.sizes == 1 else f", the median {self.shape.height}x{self.shape.width}"
        return [
            f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {listed}",
            f"{total['train']} images to learn from ({of_each} of each class), {total['validation']} set aside for choices, "
            f"{total['test']} to test with",
            f"{'grey' if self.shape.channels == 1 else 'colour'} images of {size}{median} (height x width)",
        ]


@dataclass(frozen=True)
class Suggestion:
    """Settings for a first run.

    Attributes:
        foundation: The model, or :data:`PLACEHOLDER`.
        foundation_reason: Why.
        budgets: Names of budgets.
        budgets_reason: Why.
        flip: Whether mirrored images may be learned from.
    """

    foundation: str
    foundation_reason: str
    budgets: tuple[str, ...]
    budgets_reason: str
    flip: bool

    @property
    def complete(self) -> bool:
        """Whether `d3m distill` can begin at once."""
        return self.foundation != PLACEHOLDER


def suggest(facts: Facts, model: FoundationFiles | None = None) -> Suggestion:
    """Settings for a dataset.

    Args:
        facts: What was seen in it.
        model: The model that the user named; None: the embedded one where it can draw such images, else none.
    """
    unsuited = problems_of_model(EMBEDDED, facts.shape)
    if model is not None:
        foundation, width = model.name, model.text_width
        reason = f"as you named it: a token of it is {width} numbers wide"
        if model.name == EMBEDDED and unsuited:
            reason = f"as you named it, but it {unsuited[0].what}"
    elif unsuited:
        foundation, width = PLACEHOLDER, WIDTH_OF_STABLE_DIFFUSION
        reason = (
            f"the embedded model {unsuited[0].what}. Give the folder of a text-to-image model that diffusers' save_pretrained "
            "wrote (Stable Diffusion 1.x, 2.x or XL and their fine-tunings), its id on the Hugging Face hub, which is then "
            'fetched, or a single-file checkpoint with foundation_config; "embedded" where the images do show characters'
        )
    else:
        foundation = EMBEDDED
        width = _embedded_width()
        reason = "the small model that comes with the package: it draws letters and digits, which grey images of this size may show"
    budgets, of_bytes = suggest_budgets(facts, width)
    each = ", ".join(f"{name} = {byte_size(size)}" for name, size in zip(budgets, of_bytes, strict=True))
    return Suggestion(
        foundation,
        reason,
        budgets,
        f"bytes that a distilled class may occupy; ipc-N are N images at one byte a channel. Here a class: {each}",
        bool(unsuited) and facts.shape.channels == 3,
    )


def suggest_budgets(facts: Facts, width: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """One image a class and a few, where the planner can use them; else bytes that hold one prompt, or a part of an image.

    Args:
        facts: What was seen in the dataset.
        width: Length of a token embedding of the model.

    Returns:
        Names and bytes of one or two budgets, the smaller first.
    """
    defaults = Settings.model_fields["inversion"].default
    # All the vectors that a class can have: more bytes than that buy nothing.
    most = min(defaults.max_prompts, max(1, facts.fewest)) * 16 * width
    names = ["ipc-1"]
    names += [f"ipc-{n}" for n in MORE_IMAGES if 2 * n <= facts.fewest and n * facts.shape.bytes <= most][:1]
    if len(names) == 1 and facts.shape.bytes > 64 * width:
        names.insert(0, _in_units(facts.shape.bytes // 4))
    if facts.shape.bytes > most:
        names = [_in_units(most // 16), _in_units(most // 4)]
    usable = [name for name in names if _holds_a_prompt(name, facts.shape, width)]
    if not usable:
        # One prompt of one vector as int4, and twice as much.
        usable = [f"{(width + 1) // 2 * factor}B" for factor in (1, 2)]
    return tuple(usable), tuple(Budget.parse(name).bytes(facts.shape) for name in usable)


def _holds_a_prompt(name: str, shape: ImageShape, width: int) -> bool:
    try:
        plan_embeddings(name, Budget.parse(name).bytes(shape), width=width, storage_type="int4")
    except BudgetError:
        return False
    return True


def _in_units(size: int) -> str:
    return f"{size // 1024}KiB" if size >= 1024 else f"{max(1, size)}B"


def _embedded_width() -> int:
    from d3m_assets.foundation.files import embedded_path

    return FoundationFiles(EMBEDDED, embedded_path()).text_width


def settings_text(
    settings: Settings,
    home: Path,
    facts: Facts,
    suggestion: Suggestion,
    problems: Iterable[str],
    given: Iterable[str] = (),
) -> str:
    """A commented settings file.

    Args:
        settings: With the dataset as it is to stand in the file, and what the user gave.
        home: Folder of caches, instance, store and report.
        facts: What was seen in the dataset.
        suggestion: What to set.
        problems: What is wrong with the data, a sentence each.
        given: Names of the settings that the user gave, such as ``seed`` or ``inversion.steps``: they stand in the file.
    """
    given = frozenset(given)
    budgets = settings.budgets if "budgets" in given else suggestion.budgets
    names = list(dict.fromkeys([*_LEFT_AT_DEFAULT, *sorted(given - _ALWAYS_WRITTEN)]))
    of_section: dict[str, list[str]] = {}
    for name in names:
        of_section.setdefault(name.rpartition(".")[0], []).append(name)
    lines = [
        "# Settings of d3m-assets, written by `d3m init`; yours to edit. Command line and D3M_ variables win over it.",
        "# `d3m` and `d3m ui` read it in the folder they are started in, or where the variable D3M_SETTINGS says.",
        "",
        *_comment("The dataset as it was seen:"),
        *(line for sentence in facts.sentences() for line in _comment(f"- {sentence}")),
        *(line for sentence in problems for line in _comment(f"- {sentence}")),
        *_dataset_line(settings.dataset),
        "",
        *_comment(f"The text-to-image model: {suggestion.foundation_reason}."),
        f"foundation = {_toml(suggestion.foundation)}",
        "",
        *_comment(f"Budgets: {suggestion.budgets_reason}."),
        f"budgets = {_toml([str(budget) for budget in budgets])}",
        "",
        *_comment("Folder of report, store, caches and Dagster's instance; several gigabytes for large datasets."),
        f"home = {_toml(str(home))}",
        "",
        "# What follows is as it is without this file; take away the # to change it.",
    ]
    for section, of in of_section.items():
        if section:
            lines += ["", f"[{section}]"]
        if section == "inversion" and suggestion.flip and "inversion.flip" not in given:
            lines += [*_comment("Photographs mean the same when mirrored; digits and letters do not."), "flip = true"]
        for name in of:
            lines += _setting_lines(name, suggestion.foundation, settings if name in given else None)
    return "\n".join(lines) + "\n"


def _setting_lines(name: str, foundation: str, settings: Settings | None) -> list[str]:
    """A setting with its description: as it was given, or without settings the model's default as a comment."""
    section, _, key = name.rpartition(".")
    description, default = _described(name)
    if name == "inversion.steps" and foundation == EMBEDDED:
        default = EMBEDDED_STEPS
    if settings is None:
        return [*_comment(description), f"# {key} = {_toml(default)}"]
    dumped = settings.model_dump(mode="json")
    value = dumped[section][key] if section else dumped[key]
    if isinstance(value, str) and (has_secret(value) or value == str(SecretStr("x"))):
        hint = f"It holds a password, which is written to no file: give it in the environment ({_variable(name)})."
        return [*_comment(description), *_comment(hint)]
    if value is None or isinstance(value, dict):
        return [*_comment(description), *_comment(f"Given as {json.dumps(value)}, which {_variable(name)} can say.")]
    return [*_comment(description), f"{key} = {_toml(value)}"]


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper().replace(".", "__")


def _dataset_line(dataset: str) -> list[str]:
    if not has_secret(dataset):
        return [f"dataset = {_toml(dataset)}"]
    hint = "The address holds a password, which is written to no file: give it in the environment, as D3M_DATASET."
    return [*_comment(hint), f"# dataset = {_toml(masked(dataset))}"]


def _described(name: str) -> tuple[str, Any]:
    """Description and default of a setting, from its type."""
    prefix, _, key = name.rpartition(".")
    model: type[BaseModel] = Settings
    if prefix:
        model = type(Settings.model_fields[prefix].default)
    field = model.model_fields[key]
    return field.description or "", field.default


def _comment(text: str) -> list[str]:
    # File names come from elsewhere: a line break in one must not end the comment, and TOML takes no control characters.
    return textwrap.wrap(
        printable(" ".join(text.split()), 10_000),
        _COMMENT_WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
    )


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    # A basic string of TOML: JSON's escapes are a part of its own, but DEL has to be escaped too.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
