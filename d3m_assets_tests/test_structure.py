"""Who may import whom: computed from the imports, those inside functions and under TYPE_CHECKING included."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import d3m_assets

PACKAGE = Path(d3m_assets.__file__).parent
ROOMS = (
    ("cli", "definitions"),
    ("foundation_card",),
    ("cost_estimate",),
    ("pipeline",),
    ("inspection",),
    ("assets",),
    ("orchestration",),
    ("loading",),
    ("exports",),
    ("settings",),
    ("distillation",),
    ("evaluation",),
    ("foundation",),
    ("datasets",),
    ("planning",),
    ("compute",),
    (
        "store",
        "store_listing",
        "store_access",
        "store_errors",
        "ledger",
        "provenance",
        "errors",
        "progress",
        "terminal",
        "setting_types",
        "addresses",
        "replacing",
    ),
)
"""Rooms from the top to the ground; a file may import its own room and those below."""


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name below it; packages by their own name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, module: str, package: str, known: set[str]) -> set[str]:
    """Modules of the package that a file imports anywhere in it, by their dotted names below the package."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [package, *module.split(".")] if module else [package]
                up = node.level - (path.name == "__init__.py")
                base = ".".join([*here[: len(here) - up], *([base] if base else [])])
            # `from package.room import file` imports the file; of `from package.room.file import name` it is the name.
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            below = name.split(".")
            if below[0] != package:
                continue
            while below and ".".join(below[1:]) not in known:
                below.pop()
            if below[1:]:
                out.add(".".join(below[1:]))
    return out - {module}


def graph(package: Path) -> dict[str, set[str]]:
    found = modules(package)
    return {name: imported(path, name, package.name, set(found)) for name, path in found.items() if name}


def room_of(module: str) -> str:
    return module.split(".")[0]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that reach each other by imports."""
    reach: dict[str, set[str]] = {}
    for start in imports:
        seen, todo = set(), [start]
        while todo:
            for other in imports.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        reach[start] = seen
    groups = {tuple(sorted({a, *(b for b in reach[a] if a in reach.get(b, ()))})) for a in imports if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def upward(imports: dict[str, set[str]], rooms: tuple[tuple[str, ...], ...]) -> list[str]:
    """Imports that run up the list of rooms."""
    level = {room: i for i, names in enumerate(rooms) for room in names}
    return [
        f"{name} imports {other}"
        for name, others in sorted(imports.items())
        for other in sorted(others)
        if level.get(room_of(other), -1) < level[room_of(name)]  # what is in no room is above all
    ]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return graph(PACKAGE)


def test_every_file_belongs_to_a_room_and_every_room_has_files(imports):
    assert {room_of(name) for name in imports} == {room for names in ROOMS for room in names}


def test_no_two_files_import_each_other(imports):
    assert circles(imports) == []


def test_no_import_runs_up(imports):
    assert upward(imports, ROOMS) == []


def test_types_of_settings_need_pydantic_only():
    tree = ast.parse((PACKAGE / "setting_types.py").read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"pydantic", "pydantic_settings"}


def test_circles_and_upward_imports_are_seen(tmp_path):
    package = tmp_path / "toy"
    files = {
        "__init__.py": "",
        "top/__init__.py": "",
        "top/a.py": "def f():\n    from toy.ground import b\n",
        "ground/__init__.py": "",
        "ground/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.ground.c import thing\n",
        "ground/c.py": "import toy.ground.b\nfrom ..top import a\n",
        "ground/d.py": "from .b import thing\nimport os\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    found = graph(package)
    assert found["ground.d"] == {"ground.b"}
    assert found["ground.c"] == {"ground.b", "top.a"}
    assert upward(found, (("top",), ("ground",))) == ["ground.c imports top.a"]
    assert circles(found) == [["ground.b", "ground.c", "top.a"]]
