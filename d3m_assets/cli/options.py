"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from d3m_assets.cli.help import SETTINGS
from d3m_assets.errors import SettingsError
from d3m_assets.settings import Settings, load_settings, setting_names


def _complete_setting(incomplete: str) -> list[str]:
    # What stands behind the equals sign is not ours to guess.
    return [f"{name}=" for name in setting_names() if name.startswith(incomplete)]


Dataset = Annotated[
    str | None,
    typer.Option(
        help="'digits', or path or URL of an image folder, zip, Hugging Face dataset, WebDataset or table.",
        rich_help_panel=SETTINGS,
    ),
]
FoundationOption = Annotated[
    str | None,
    typer.Option(
        help="'embedded', or path of a diffusers text-to-image pipeline or checkpoint.", rich_help_panel=SETTINGS
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(help="Bytes per class: ipc-10, 640B, 4KiB. Repeatable.", rich_help_panel=SETTINGS),
]
Storage = Annotated[
    str | None, typer.Option(help="Path or fsspec URL of the artefact store.", rich_help_panel=SETTINGS)
]
Seed = Annotated[int | None, typer.Option(help="Root of every random number.", rich_help_panel=SETTINGS)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting, for example inversion.steps=300. Repeatable.",
        autocompletion=_complete_setting,
        rich_help_panel=SETTINGS,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

OPTIONS: dict[str, Any] = {
    "dataset": Dataset,
    "foundation": FoundationOption,
    "budget": Budget,
    "storage": Storage,
    "seed": Seed,
    "settings_": Set,
}
"""The options that stand for settings, by the name of their parameter, in the order of the help."""


def read_settings(
    dataset: str | None = None,
    foundation: str | None = None,
    budget: list[str] | None = None,
    storage: str | None = None,
    seed: int | None = None,
    settings_: list[str] | None = None,
) -> Settings:
    """The settings of a command: its options, and for what they leave open environment, settings file and defaults.

    Raises:
        SettingsError: One is unknown or impossible, or ``--set`` is not given as name=value.
    """
    given: dict[str, Any] = {
        "dataset": dataset,
        "foundation": foundation,
        "budgets": tuple(budget) if budget else None,
        "storage": storage,
        "seed": seed,
    }
    overrides = {k: v for k, v in given.items() if v is not None}
    for item in settings_ or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item}: write name=value, for example --set inversion.steps=300")
        overrides[name.strip()] = value.strip()
    return load_settings(**overrides)


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that stand for settings in the place of its parameter ``settings``.

    The settings are read, and what is wrong with them is told, before anything of the command is done.

    Args:
        *names: Keys of :data:`OPTIONS`; none: all.
    """
    chosen = [name for name in OPTIONS if name in (names or OPTIONS)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(*arguments: Any, **given: Any) -> None:
            settings = read_settings(**{name: given.pop(name, None) for name in chosen})
            command(*arguments, settings=settings, **given)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "settings"]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OPTIONS[name])
            for name in chosen
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        wrapped.__signature__ = signature.replace(parameters=[*parameters, *options])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in [*parameters, *options]}
        return wrapped

    return decorate


def offline() -> None:
    """Nothing may ask the hub unless the user named a hub id, and then only for that."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
