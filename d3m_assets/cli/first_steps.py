"""``d3m init`` and ``d3m doctor``: the first settings file, and whether everything is in place."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from pathlib import Path
from typing import Annotated

import typer

from d3m_assets.cli.app import app
from d3m_assets.cli.help import START, Command
from d3m_assets.cli.options import AsJson, FoundationOption, Set, offline, read_settings, with_settings
from d3m_assets.cli.showing import show_problem_table
from d3m_assets.errors import SettingsError
from d3m_assets.settings import FILE_NAME, FILE_VARIABLE, Settings, settings_file_left_aside
from d3m_assets.terminal import printable, shown_progress


@app.command(cls=Command, rich_help_panel=START)
def init(
    dataset: Annotated[
        str,
        typer.Argument(
            help="'digits', or path or URL of an image folder, zip, Hugging Face dataset, WebDataset or table."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path(FILE_NAME),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    foundation: FoundationOption = None,
    settings_: Set = None,
) -> None:
    """Look at a dataset and write a commented d3m.toml with settings that suit it.

    Example: d3m init photos/ && d3m doctor && d3m distill
    """
    if output.exists() and not force:
        raise SettingsError(f"{output} exists; read it, name another with --output, or replace it with --force")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"{folder} does not exist; create it, or name another file with --output")
    if foundation is not None and Path(foundation).expanduser().exists():
        foundation = _absolute(foundation)
    with settings_file_left_aside():  # another file's settings, or the placeholder of the one to replace
        settings = read_settings(dataset=_absolute(dataset), foundation=foundation, settings_=settings_)
    offline()
    from d3m_assets.datasets.opening import open_dataset
    from d3m_assets.inspection.first_settings import Facts, settings_text, suggest
    from d3m_assets.pipeline import open_model

    home = (settings.home if "home" in settings.model_fields_set else folder / "d3m-home").expanduser().absolute()
    model = open_model(settings).files if "foundation" in settings.model_fields_set else None
    source = open_dataset(
        settings.dataset,
        home=home,
        validation_fraction=settings.validation_fraction,
        images=settings.images,
        exclude=settings.exclude,
    )
    with shown_progress() as progress:
        scan = source.scan(progress)
    facts = Facts.of(scan)
    suggestion = suggest(facts, model)
    given = {item.partition("=")[0].strip() for item in settings_ or ()}
    content = settings_text(settings, home, facts, suggestion, [str(p) for p in scan.problems], given)
    part = output.with_name(f"{output.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    show_problem_table(scan.problems)
    for sentence in facts.sentences():
        print(printable(sentence, 2000))
    print(f"\n{output} is written: model {suggestion.foundation!r}, budgets {', '.join(suggestion.budgets)}.\nNext:")
    if not suggestion.complete:
        print(
            f"  put a text-to-image model into {output}, at `foundation`: the embedded one draws single grey characters only"
        )
    if folder != Path.cwd():
        print(f"  cd {shlex.quote(str(folder))}")
    if output.name != FILE_NAME:
        print(f"  export {FILE_VARIABLE}={shlex.quote(str(output.absolute()))}")
    elif os.environ.get(FILE_VARIABLE):
        print(f"  unset {FILE_VARIABLE}   (it names {printable(os.environ[FILE_VARIABLE])})")
    print(
        "  d3m doctor    looks whether everything is in place\n  d3m distill   makes everything, then shows the table"
    )


def _absolute(dataset: str) -> str:
    """A local path so that it is right in any folder; "digits" and URLs as they are."""
    if dataset == "digits" or "://" in dataset or "::" in dataset:
        return dataset
    return str(Path(dataset).expanduser().resolve())


@app.command(cls=Command, rich_help_panel=START)
@with_settings()
def doctor(
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """Look whether everything is in place for these settings, and say what to do where it is not (exit status 1).

    Example: d3m doctor --storage s3://bucket/d3m
    """
    offline()
    from d3m_assets.cli.diagnosis import examine

    rows = []
    for finding in examine(settings):
        row = {name: printable(value, 2000) for name, value in finding.facts().items()}
        rows.append(row)
        if not as_json:  # as they come: some take seconds
            advice = f"\n{'':28}→ {row['remedy']}" if row["remedy"] else ""
            print(f"{row['state']:8} {row['what']:18} {row['detail']}{advice}", flush=True)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    errors, warnings = (sum(row["state"] == state for row in rows) for state in ("error", "warning"))
    if not as_json:
        counts = ((errors, "error"), (warnings, "warning"))
        found = ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts if n)
        verdict = f"{found}." if found else "Everything is in place."
        print(f"\n{verdict}")
    if errors:
        raise typer.Exit(1)
