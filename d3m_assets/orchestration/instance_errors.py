"""What is wrong with the instance's database, in a sentence: which one, and what to do. Never its password."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from d3m_assets.errors import InstanceError
from d3m_assets.orchestration.damaged_databases import is_damage

CONFIG = "dagster.yaml"
_SQLITE = (
    ("disk is full", "free some space, or set `home` (or DAGSTER_HOME) to a larger disk"),
    ("disk I/O error", "its disk is full or failing: free some space, or set `home` (or DAGSTER_HOME) to another disk"),
    ("readonly database", "make it writable, or set `home` (or DAGSTER_HOME) to another folder"),
    (
        "no such table",
        "another process was making it: run the same command again, and stop `d3m ui` first if it says so again",
    ),
    ("unable to open database file", "make it writable, or set `home` (or DAGSTER_HOME) to another folder"),
)
"""Words of SQLite's errors, and what to do about each."""


@contextlib.contextmanager
def explained(home: Path) -> Iterator[None]:
    """Turn errors of the instance's database in the body into :class:`~d3m_assets.errors.InstanceError`.

    Args:
        home: Folder of the instance.

    Raises:
        InstanceError: The database, its driver or an environment variable that ``dagster.yaml`` names is missing.
    """
    with _without_retry_lines():
        try:
            yield
        except Exception as error:
            if sentence := _sentence(home, error):
                raise InstanceError(sentence) from error
            raise


@contextlib.contextmanager
def _without_retry_lines() -> Iterator[None]:
    """Without dagster-postgres's five reports of the same failed connection, five lines each."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Retrying failed database")

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def _sentence(home: Path, error: BaseException) -> str:
    """What is the matter, empty when it is not the database."""
    file = home / CONFIG
    for link in _chain(error):
        text = str(link)
        if found := re.search(r'fetch the environment variable "(\w+)" which is not set', text):
            return (
                f"{file} names the environment variable {found[1]}, which is not set; set it, or write the value there"
            )
        if isinstance(link, ModuleNotFoundError) and (link.name or "").split(".")[0] == "psycopg":
            return (
                f"the driver psycopg of {_database(file)} is not installed: since SQLAlchemy 2.1, that is what the scheme "
                f'"postgresql" asks for. Write `scheme: postgresql+psycopg2` beside the host in {file}'
            )
        if "Couldn't import module dagster_postgres" in text or _is_missing(link, ("dagster_postgres", "psycopg2")):
            return f"{_database(file)} needs a package that is not installed; install d3m-assets[postgres]"
    for link in _chain(error):
        text = str(link)
        if type(link).__name__ == "DagsterInvalidConfigError" or isinstance(link, yaml.YAMLError):
            first = next(
                (line.strip() for line in text.splitlines() if "Error 1:" in line), " ".join(text.split())[:300]
            )
            return (
                f"{file} cannot be used: {first.removeprefix('Error 1: ')}; correct it, or delete it to get a new one"
            )
        if is_damage(link):
            return (
                f"Dagster's database in {home} is damaged: {text}; `d3m distill` puts it aside and makes a new one, "
                "which costs the history of runs and no artefact"
            )
        if isinstance(link, sqlite3.Error) and (advice := next((a for w, a in _SQLITE if w in text), "")):
            return f"Dagster's database in {home} cannot be used: {text}; {advice}"
    if any(type(link).__module__.partition(".")[0] in ("psycopg", "psycopg2") for link in _chain(error)):
        reason = _reason(next(link for link in _chain(error) if type(link).__module__.startswith("psycopg")), file)
        return f"{_database(file)} cannot be used: {reason}. Start it, or correct {file}"
    return ""


def _is_missing(error: BaseException, packages: tuple[str, ...]) -> bool:
    return isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in packages


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _reason(error: BaseException, file: Path) -> str:
    """First line of the driver's message; a password that it quotes, as for an address that cannot be parsed, is left out."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    config = _postgres(file)
    secret = str(_value(config.get("postgres_db", {}).get("password")) or _url(config).password or "")
    return line.replace(secret, "…") if secret else line


def _database(file: Path) -> str:
    """The database by name, host and port, as ``dagster.yaml`` has them."""
    config = _postgres(file)
    parts = config.get("postgres_db", {})
    url = _url(config)
    name = _value(parts.get("db_name")) or url.database or "?"
    host = _value(parts.get("hostname")) or url.host or "localhost"
    return f"the PostgreSQL database {name} at {host}:{_value(parts.get('port')) or url.port or 5432}"


def _postgres(file: Path) -> dict[str, Any]:
    """The configuration of PostgreSQL in ``dagster.yaml``: common to all storages, or that of the runs."""
    with contextlib.suppress(OSError, yaml.YAMLError):
        config = yaml.safe_load(file.read_text()) or {}
        return config.get("storage", {}).get("postgres") or config.get("run_storage", {}).get("config") or {}
    return {}


def _value(given: Any) -> Any:
    """A configuration value that may be read from the environment."""
    return os.environ.get(str(given.get("env")), "") if isinstance(given, dict) else given


def _url(config: dict[str, Any]) -> Any:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with contextlib.suppress(ArgumentError, ValueError):
        return make_url(_value(config.get("postgres_url")) or "postgresql://")
    return make_url("postgresql://")
