"""The help of ``d3m``: commands and options in groups, as plain text that stays whole in a pipe and a narrow window."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup

START, WORK, BUNDLES, MORE = "Start here", "Distill", "With a distilled bundle", "More"
GROUPS = (START, WORK, BUNDLES, MORE)
"""Groups of commands, in the order of the help."""
SETTINGS = "Settings (also in d3m.toml and the environment)"
"""Group of the options that stand for settings."""


class Commands(TyperGroup):
    """A program whose help lists its commands by group, each with its first sentence in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the groups."""
        by_group: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                group = getattr(command, "rich_help_panel", None)
                text = inspect.cleandoc(command.help or "").partition("\n\n")[0]
                by_group.setdefault(group if isinstance(group, str) else "Commands", []).append((name, text))
        for group, rows in by_group.items():
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)


class Command(TyperCommand):
    """A command whose help lists its options by group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options of its own, and those of settings."""
        by_group: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                group = getattr(parameter, "rich_help_panel", None)
                by_group.setdefault(group if isinstance(group, str) else own, []).append(row)
        for group, rows in by_group.items():
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)
