"""The documentation says what there is: its commands and programs run, its settings, options, links and anchors exist."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3m_assets.settings import ENVIRONMENT_PREFIX, FILE_VARIABLE, Settings, load_settings, setting_names
from d3m_assets_tests.requirements import need

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="an installed package has no docs")
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")) if DOCS.is_dir() else []

NOT_RUN = {"docker", "helm", "kubectl", "ray", "pip", "scripts/fonts", "benchmarks.orchestration", "bash scripts/setup"}
"""What a block that is marked ``not run`` must contain: programs of clusters and containers, downloads, minutes of work."""

QUICK = {
    "D3M_INVERSION__STEPS": "2", "D3M_INVERSION__SAMPLES_PER_STEP": "2", "D3M_INVERSION__STORAGE_TYPE": "int8",
    "D3M_GENERATION__IMAGES_PER_CLASS": "5", "D3M_GENERATION__STEPS": "2", "D3M_GENERATION__BATCH_SIZE": "5",
    "D3M_SELECTION__CRITERION": "none", "D3M_STUDENTS__STEPS": "3", "D3M_STUDENTS__WIDTH": "4",
    "D3M_STUDENTS__SEEDS": "0,1", "D3M_AUDIT__STEPS": "2", "D3M_TEACHER__STEPS": "4", "D3M_TEACHER__WIDTH": "4",
    "D3M_WORKERS": "1", "D3M_EVALUATION__BASELINES": "random", "D3M_EVALUATION__DISTILLATIONS": "1",
    "D3M_BUDGETS": "ipc-1,ipc-5", "D3M_EVALUATION__REFERENCE_BUDGETS": "32B",
    "D3M_EVALUATION__ARCHITECTURES": "convnet-3", "D3M_EVALUATION__LABELS": "hard", "D3M_EVALUATION__VARIANTS": "[]",
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "AWS_DEFAULT_REGION": "eu-west-1",
}  # fmt: skip
"""The commands of the docs in seconds; what a command sets itself wins."""

RUNNER = """
import json, subprocess, sys

shared = {"__name__": "docs"}
if __name__ == "__main__":
    for language, text in json.loads(sys.stdin.read()):
        if language == "sh":
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdin=subprocess.DEVNULL)
        else:
            exec(compile(text, "a block of the docs", "exec"), shared)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, with the comment that stands directly above it."""

    language: str
    text: str
    comment: str

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "python") and not self.comment.startswith(("run by ", "not run: "))


def blocks(page: str) -> list[Block]:
    found = re.finditer(
        r"^(?:<!-- (?P<comment>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
        (DOCS / page).read_text(),
        re.M | re.S,
    )
    return [Block(m["language"], m["text"], m["comment"] or "") for m in found]


def commands(text: str) -> list[list[str]]:
    """Words of every command, without comments and variables set in front."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z0-9_]+=", words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_block_is_run_or_says_where_it_is(page):
    for block in blocks(page):
        assert block.language in ("sh", "python", "toml", "text"), f"{page}: no language that is known:\n{block.text}"
        if block.comment.startswith("run by "):
            name, _, test = block.comment.removeprefix("run by ").partition("::")
            source = (ROOT / name).read_text()
            if test:
                body = re.search(rf"^def {re.escape(test)}\(.*?(?=^\S|\Z)", source, re.M | re.S)
                assert body, f"{page}: {name} has no {test}"
                source = body[0]
            for words in commands(block.text):
                # Programs of the shell itself need no test; of the others, every option and subcommand.
                for word in () if words[0] in ("export", "cd", "cp") else words:
                    assert word in source, f"{page}: {block.comment} has no {word}"
        if block.comment.startswith("not run: "):
            assert any(program in block.text for program in NOT_RUN), f"{page}: this can be run:\n{block.text}"


@pytest.fixture(scope="session")
def distilled(tmp_path_factory):
    """A working folder in which an image folder is distilled, with its bundle and the images of that."""
    from d3m_assets_tests.foundation.small_pipelines import write_pipeline

    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    from d3m_assets.foundation.embedded.characters import render

    for k, name in enumerate("017"):
        for i, image in enumerate(render(18, 700_000_000 + k, characters=name).images):
            save(image, folder / "photos" / ("train" if i < 12 else "test") / name / f"{i:03d}.png", (8, 8))
    for name in ("rose", "lily"):
        for i in range(18):
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            save(image, folder / "flowers" / ("train" if i < 12 else "test") / name / f"{i:03d}.png", (64, 48))
    write_pipeline("sd1", folder / "models" / "stable-diffusion-v1-5")
    write_pipeline("sdxl", folder / "models" / "stable-diffusion-xl-base-1.0")
    program = folder / "bin" / "d3m"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m d3m_assets.cli "$@"\n')
    program.chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    run_blocks(
        folder,
        [
            ("sh", "d3m distill --dataset photos"),
            ("sh", "cp data/home/store/photos/distilled_bundle/budget=ipc-5/*.safetensors bundle.safetensors"),
            ("sh", "cp bundle.safetensors ipc-5.safetensors; d3m regenerate bundle.safetensors --output out"),
        ],
    )
    return folder


def save(image, path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).resize(size, Image.Resampling.BOX).save(path)


def run_blocks(folder, texts, **more):
    import json

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("D3M_", "DAGSTER_HOME"))}
    environment = clean | QUICK | {"HOME": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | more
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(texts), cwd=folder, env=environment,
        capture_output=True, text=True, timeout=850,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


RUN = [page for page in PAGES if any(block.is_run for block in blocks(page))]
SHORT = {"tutorial.md", "how-to/first-hour.md", "how-to/planning-a-job.md", "how-to/exports.md"}
"""Pages that every run of the tests goes through; the commands of others are long tests, since each page distills anew."""


@pytest.mark.parametrize("page", [pytest.param(p, marks=[] if p in SHORT else [pytest.mark.long]) for p in RUN])
def test_the_blocks_of_a_page_run(page, distilled, tmp_path, request):
    import shutil

    folder = tmp_path / "work"
    shutil.copytree(distilled, folder, symlinks=True)
    more = {"D3M_DATASET": "photos"}
    if page == "tutorial.md":
        shutil.rmtree(folder / "photos")
        shutil.rmtree(folder / "data")
        (folder / "ipc-5.safetensors").unlink()
        more = {}
    texts = [(block.language, block.text) for block in blocks(page) if block.is_run]
    if any("s3://" in text for _, text in texts):
        request.getfixturevalue("s3_options")
        server = request.getfixturevalue("s3_server")
        texts = [(language, text.replace("http://localhost:9000", server)) for language, text in texts]
    run_blocks(folder, texts, **more)


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_of_a_page_exist(page, tmp_path, monkeypatch):
    text = (DOCS / page).read_text()
    text = re.sub(r"\]\([^)]*\)", "]", text)
    names = set(setting_names())
    sections = {name.partition(".")[0] for name in names if "." in name}
    for quote, name, value in re.findall(r"(\"?)(?<![\w/.])([a-z_]+\.[a-z_]+)(?:=([^\s`\"]+))?", text):
        if name.partition(".")[0] in sections and not name.endswith((".md", ".py", ".parquet", ".json")):
            assert name in names, f"{page} names {name}"
            # An upper-case word stands for a value; in quotation marks a value may have spaces, and its end is not known here.
            if not quote and re.fullmatch(r"[a-z0-9.,-]+", value):
                load_settings(**{name: value})
    for variable in re.findall(r"\bD3M_[A-Z0-9_]+", text):
        if variable not in (FILE_VARIABLE, f"{ENVIRONMENT_PREFIX}SECTION__KEY"):
            assert variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".") in names, f"{page}: {variable}"
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)
            (tmp_path / "d3m.toml").write_text(block.text)
            monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "d3m.toml"))
            load_settings()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_the_commands_of_a_page_exist(page):
    import typer

    from d3m_assets.cli import app

    text = (ROOT / page).read_text()
    lines = re.findall(r"`(d3m [a-z][^`\n]*)`", text)
    lines += [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    for line in lines:
        words = line.replace("\\|", "|").partition("#")[0].split()
        if words[:1] != ["d3m"]:
            continue
        del words[0]
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page}: d3m has no command {words[0]}: {line}"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words:
            option = word.strip("[]").partition("=")[0]
            if option.startswith("--"):
                assert option in options, f"{page}: {line}: no {option}"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", *(f"docs/{page}" for page in PAGES)])
def test_links_lead_to_files_of_the_repository(page):
    """As on GitHub, where the pages are read without the site."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "scripts" / "docs_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_setting_with_its_default_and_every_option(reference):
    rows = {row.split("`")[1]: row for row in reference.settings_reference().splitlines() if row.startswith("| <a id=")}
    assert list(rows) == sorted(rows, key=list(setting_names()).index)
    assert set(rows) == set(setting_names())
    inversion = Settings.model_fields["inversion"].default
    assert f"default `{inversion.steps}` · whole number ≥\u00a01 · `D3M_INVERSION__STEPS`" in rows["inversion.steps"]
    assert "`in-process`, `processes`, `k8s`, `ray`" in rows["execution.executor"]
    assert "default `none`" in rows["automation.failure_webhook"]
    assert all(row.count("|") - row.count("\\|") == 3 for row in rows.values())

    import typer

    from d3m_assets.cli import app

    def leaves(command, path):
        if not hasattr(command, "commands"):
            yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from leaves(child, f"{path} {name}")

    parts = dict(part.split("\n", 1) for part in reference.commands_reference().split("## ")[1:])
    for path, command in leaves(typer.main.get_command(app), "d3m"):
        for parameter in command.params:
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
            assert all(name in parts[path] for name in names), f"{path}: {names}"


def test_a_link_out_of_the_docs_becomes_a_path_and_a_wrong_one_is_told(reference):
    folder = DOCS / "how-to"
    text = "[figures](../../benchmarks/README.md), [data](data.md), [there](https://example.org)"
    expected = "figures (`benchmarks/README.md`), [data](data.md), [there](https://example.org)"
    assert reference.repository_links(text, folder) == expected
    with pytest.raises(FileNotFoundError, match="nothing.md"):
        reference.repository_links("[nothing](../../nothing.md)", folder)


needs_site = need(
    "docs", importlib.util.find_spec("material") and importlib.util.find_spec("mkdocstrings"), "needs the extra `docs`"
)


@needs_site
def test_the_site_is_built_without_a_warning_and_asks_no_network(tmp_path):
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 120
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and that for addresses that do not exist
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text()
        )
        assert loaded == [], page
    styles = "".join(path.read_text() for path in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"url\(['\"]?https?:|@import", styles)
    settings = (tmp_path / "site" / "reference" / "settings.html").read_text()
    assert 'id="inversion.steps"' in settings
    commands_page = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert "d3m foundation train" in commands_page and "--per-class" in commands_page
    python = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert 'id="d3m_assets.loading.datasets.DistilledDataset"' in python and "images_per_class" in python
