"""What of the documentation is made from the code when the site is built; a hook of MkDocs.

``<!-- generated: settings -->`` in a page becomes the tables of all settings, from their types; ``<!-- generated: commands -->``
the commands and options, from the Typer application. A link to a file of the repository that is no page, such as a
benchmark's result, works on GitHub and becomes that file's path on the site.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the generated parts of a page and name the files that its links to the repository lead to."""
    markdown = repository_links(markdown, ROOT / "docs" / Path(page.file.src_uri).parent)
    if "<!-- generated: settings -->" in markdown:
        markdown = markdown.replace("<!-- generated: settings -->", settings_reference())
    if "<!-- generated: commands -->" in markdown:
        markdown = markdown.replace("<!-- generated: commands -->", commands_reference())
    return markdown


def repository_links(markdown: str, folder: Path) -> str:
    """The page with the path in place of each link to a file outside of ``docs/``.

    Args:
        markdown: Text of a page.
        folder: Folder of the page.

    Raises:
        FileNotFoundError: A link leads to no file of the repository.
    """

    def replace(link: re.Match[str]) -> str:
        if "://" in link[2] or link[2].startswith("mailto:"):
            return link[0]
        target = (folder / link[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]  # MkDocs itself tells of a page that is missing
        if not target.exists():
            raise FileNotFoundError(f"{folder.name}: the link to {link[2]} leads to no file")
        return f"{link[1]} (`{target.relative_to(ROOT)}`)"

    return _LINK.sub(replace, markdown)


def settings_reference() -> str:
    """Tables of all settings: those at the top level first, then a section each."""
    from d3m_assets.settings import Settings

    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    sections = {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    top = {name: field for name, field in Settings.model_fields.items() if name not in sections}
    parts = ["## Top level", "", *_settings_table("", top, schema["properties"], definitions)]
    for name, section in sections.items():
        properties = definitions[section.__name__]["properties"]
        parts += ["", f"## {name}", "", Settings.model_fields[name].description or "", ""]
        parts += _settings_table(f"{name}.", section.model_fields, properties, definitions)
    return "\n".join(parts)


def _settings_table(
    prefix: str, fields: dict[str, FieldInfo], properties: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[str]:
    from d3m_assets.settings import ENVIRONMENT_PREFIX

    yield "| setting | meaning; default, type, and name in the environment |"
    yield "|---|---|"
    for key, field in fields.items():
        name = prefix + key
        variable = ENVIRONMENT_PREFIX + name.upper().replace(".", "__")
        default = f"`{text}`" if (text := _default(field)) else "empty"
        facts = f"default {default} · {_type(properties[key], definitions)} · `{variable}`"
        yield f'| <a id="{name}"></a>`{name}` | {_cell(field.description or "")}<br><small>{facts}</small> |'


def _default(field: FieldInfo) -> str:
    """A default as it is written in the environment; empty text for what is empty."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    if isinstance(value, SecretStr):
        return "secret"
    return str(value)


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The type of a setting in words, from its JSON schema."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]] | schema
    if "anyOf" in schema:
        return " or ".join(_type(option, definitions) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "text")
    if kind == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} numbers"
        return f"list of {_type(schema.get('items', {}), definitions)}"
    if kind == "object":
        return "mapping"
    if kind == "null":
        return "none"
    name = {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)
    if schema.get("format") in ("path", "file-path", "directory-path"):
        name = "path"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign}\u00a0{_bound(schema[key])}" for key, sign in bounds.items() if key in schema]
    return f"{name} {', '.join(limits)}".strip()


def _bound(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def commands_reference() -> str:
    """Every command with its arguments and options, those of groups after their group."""
    from d3m_assets.cli import app

    root = typer.main.get_command(app)
    return "\n".join(_command(root, root.context_class(root, info_name="d3m")))


def _command(command: Any, context: Any) -> Iterator[str]:
    if hasattr(command, "list_commands"):
        if context.parent is not None and command.help:
            yield from (f"## {context.command_path}", "", _plain(command.help), "")
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _command(child, child.context_class(child, info_name=name, parent=context))
        return
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from (f"## {context.command_path}", "", _plain(command.help or ""), "", f"```text\n{usage}\n```", "")
    # A record is what `--help` prints: names with the kind of value, and the meaning with default and limits.
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [f"| {_code(names)} | {_cell(text)} |" for names, text in filter(None, records) if names != "--help"]
    if rows:
        yield from ("| argument or option | meaning |", "|---|---|", *rows, "")


def _plain(text: str) -> str:
    """Help without the mark that keeps a paragraph's lines and without its page breaks."""
    return text.replace("\b\n", "").split("\f")[0].strip()


def _code(text: str) -> str:
    """Code for a cell; within backticks, Python-Markdown would show the backslash before a bar."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor is taken for HTML or emphasis."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("*", "\\*").replace("_", "\\_")
