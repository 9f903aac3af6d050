"""``d3m init``: what it writes suits the dataset, is read by shell and daemon alike, and is never overwritten unasked."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from d3m_assets.distillation.budgets import plan_embeddings
from d3m_assets.foundation.files import EMBEDDED, FoundationFiles, embedded_path
from d3m_assets.inspection.first_settings import PLACEHOLDER, Facts, settings_text, suggest, suggest_budgets
from d3m_assets.ledger import Budget, ImageShape
from d3m_assets.settings import Settings, load_settings
from d3m_assets_tests import small_runs
from d3m_assets_tests.orchestration.servers import Servers, needs_servers

CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("D3M_", "DAGSTER_HOME"))} | {"HF_HUB_OFFLINE": "1"}


def d3m(folder, *arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "d3m_assets.cli", *map(str, arguments)],
        cwd=folder,
        env=CLEAN | more,
        capture_output=True,
        text=True,
        timeout=600,
    )


def facts(height=8, width=8, channels=1, train=(12, 30)):
    images = {f"class {i}": {"train": n, "validation": 2, "test": 5} for i, n in enumerate(train)}
    return Facts("/data", ImageShape(height, width, channels), 1, (height, width), (height, width), images)


@pytest.mark.parametrize("width", [64, 768, 1024, 2048])
@pytest.mark.parametrize("side", [4, 8, 28, 32, 64, 224, 1024, 4000])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("train", [1, 12, 5000])
def test_the_planner_takes_the_budgets_that_are_suggested(width, side, channels, train):
    seen = facts(side, side, channels, (train,))
    names, sizes = suggest_budgets(seen, width)
    assert list(sizes) == sorted(set(sizes))
    for name, size in zip(names, sizes, strict=True):
        assert Budget.parse(name).bytes(seen.shape) == size
        plan = plan_embeddings(name, size, width=width, storage_type="int4", max_prompts=min(32, train))
        assert plan.payload <= size
    Settings(budgets=names)


def test_characters_get_the_embedded_model_and_photographs_none():
    assert suggest(facts()).foundation == EMBEDDED
    for seen in (facts(64, 48, 3), facts(500, 375, 1)):
        suggestion = suggest(seen)
        assert suggestion.foundation == PLACEHOLDER
        assert not suggestion.complete
        assert suggestion.flip == (seen.shape.channels == 3)
    named = suggest(facts(64, 48, 3), FoundationFiles("my/model", embedded_path()))
    assert named.foundation == "my/model"


def test_any_path_and_class_name_is_written_as_toml(tmp_path):
    hard = '/da"ta/caf\u00e9\\ [x] \x7f \u2028 = # \n[inversion]\nsteps = 1'
    seen = Facts(hard, ImageShape(8, 8, 1), 1, (8, 8), (8, 8), {hard: {"train": 12, "validation": 2, "test": 5}})
    text = settings_text(Settings(dataset=hard), tmp_path / 'ho"me', seen, suggest(seen), [hard])
    read = tomllib.loads(text)
    assert read["dataset"] == hard
    assert read["home"] == str(tmp_path / 'ho"me')
    assert "steps" not in read["inversion"]
    assert f"# steps = {Settings(foundation=EMBEDDED).inversion.steps}\n" in text
    photographs = facts(64, 48, 3)
    text = settings_text(Settings(dataset=hard), tmp_path, photographs, suggest(photographs), [])
    assert "# steps = 150\n" in text, "of a model that is not named yet"


def test_every_line_that_is_commented_out_is_a_setting_with_its_default(tmp_path, monkeypatch):
    text = settings_text(Settings(), tmp_path, facts(), suggest(facts()), [])
    lines = [line.removeprefix("# ") if " = " in line and "ipc" not in line else line for line in text.splitlines()]
    read = tomllib.loads("\n".join(lines))
    assert read["students"]["seeds"] and read["inversion"]["steps"]
    monkeypatch.setenv("D3M_SETTINGS", str(tmp_path / "all.toml"))
    (tmp_path / "all.toml").write_text("\n".join(lines))
    defaults = Settings.model_validate({"home": tmp_path, "budgets": read["budgets"]})
    assert load_settings().model_dump() == defaults.model_dump()


def test_what_was_given_stands_in_the_file_and_passwords_do_not(tmp_path, monkeypatch):
    given = {
        "seed": 5, "exclude": ("*/dog/a.png",), "inversion.steps": 7, "validation_fraction": 0.2,
        "storage": "s3://key:hush@bucket/x", "inversion.flip": False, "budgets": ("32B",),
    }  # fmt: skip
    seen = facts(64, 48, 3)
    text = settings_text(load_settings(**given), tmp_path, seen, suggest(seen), [], given)
    assert "hush" not in text and "D3M_STORAGE" in text
    (tmp_path / "given.toml").write_text(text.replace(PLACEHOLDER, "embedded"))
    monkeypatch.setenv("D3M_SETTINGS", str(tmp_path / "given.toml"))
    read = load_settings()
    assert (read.seed, read.exclude, read.inversion.steps, read.validation_fraction) == (5, ("*/dog/a.png",), 7, 0.2)
    assert not read.inversion.flip and [str(b) for b in read.budgets] == ["32B"] and not read.storage


def test_a_file_with_the_placeholder_is_replaced(tmp_path, monkeypatch):
    for i in range(6):
        (tmp_path / "photos" / "rose").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "rose" / f"{i}.png")
    for _ in range(2):
        made = d3m(tmp_path, "init", "photos", "--force", "--set", "seed=5")
        assert made.returncode == 0, made.stderr
        read = tomllib.loads((tmp_path / "d3m.toml").read_text())
        assert (read["foundation"], read["seed"]) == (PLACEHOLDER, 5)
    nowhere = d3m(tmp_path, "init", "photos", "--output", "no folder/d3m.toml")
    assert nowhere.returncode == 1 and "no folder does not exist; create it" in nowhere.stderr


def test_a_file_that_is_there_is_kept_unless_it_is_forced(tmp_path, image_folder):
    folder = image_folder(("0", "1"))
    (tmp_path / "d3m.toml").write_text("seed = 3\n")
    refused = d3m(tmp_path, "init", folder)
    assert refused.returncode == 1
    assert refused.stderr == "d3m: d3m.toml exists; read it, name another with --output, or replace it with --force\n"
    assert (tmp_path / "d3m.toml").read_text() == "seed = 3\n"
    forced = d3m(tmp_path, "init", "images", "--force")
    assert forced.returncode == 0, forced.stderr
    assert tomllib.loads((tmp_path / "d3m.toml").read_text())["dataset"] == str(folder)


def test_photographs_are_looked_at_and_what_is_missing_is_said(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(20):
            path = tmp_path / "photos" / name / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = random.integers(90, 160, 2)
            Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    told = d3m(tmp_path, "init", "photos", "--output", "mine.toml")
    assert told.returncode == 0, told.stderr
    assert "2 classes: cat, dog" in told.stdout
    assert "colour images of " in told.stdout
    assert "put a text-to-image model into mine.toml" in told.stdout
    assert f"export D3M_SETTINGS={tmp_path / 'mine.toml'}" in told.stdout
    assert "has no test split" in told.stderr
    stopped = d3m(tmp_path, "distill", D3M_SETTINGS=str(tmp_path / "mine.toml"))
    assert stopped.returncode == 1
    assert PLACEHOLDER in stopped.stderr and "Traceback" not in stopped.stderr
    nothing = d3m(tmp_path, "init", "nowhere")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("d3m: the dataset ") and not (tmp_path / "d3m.toml").exists()


@pytest.mark.long
@needs_servers
@pytest.mark.timeout(1800)
def test_the_daemon_and_the_shell_work_by_the_same_file(tmp_path, image_folder):
    folder, work = image_folder(("0", "1")), tmp_path / "work"
    work.mkdir()
    assert d3m(work, "init", folder).returncode == 0
    file = work / "d3m.toml"
    quick = "".join(
        f"{name} = {list(value) if isinstance(value, tuple) else repr(value).lower() if isinstance(value, bool) else repr(value)}\n"
        for name, value in small_runs.QUICK.items()
        if name != "budgets"
    )
    text = file.read_text()
    for section in ("prompts", "inversion", "generation", "students"):
        text = text.replace(f"\n[{section}]", f"\n# [{section}]")
    file.write_text(text + quick)
    with Servers(tmp_path, {"D3M_SETTINGS": str(file)}) as servers:
        run = servers.launch_job("distill")
        assert servers.wait_for_end(run, 900) == "SUCCESS", servers.logs()
    home = work / "d3m-home"
    assert list(home.rglob("distilled_bundle/**/*.safetensors"))
    done = d3m(work, "distill")
    assert done.returncode == 0, done.stderr
    assert "nothing was done" in done.stdout
    assert (home / "report.html").is_file()


def test_a_wrong_setting_is_told_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "d3m.toml").write_text("[inversion]\nstepz = 3\n")
    code = (
        "import sys; sys.argv = ['d3m', *sys.argv[1:]]\n"
        "from d3m_assets.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'dagster', 'pandas', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    wrong = (
        (["distill", "--set", "nonsense=1"], "unknown setting nonsense", tmp_path.parent),
        (["distill"], "unknown setting inversion.stepz (in d3m.toml); did you mean inversion.steps", tmp_path),
        (["doctor", "--set", "inversion.steps=no"], "setting inversion.steps", tmp_path.parent),
        (["regenerate", "x.safetensors", "--output", "o", "--set", "device=x"], "setting device", tmp_path.parent),
    )
    for arguments, message, folder in wrong:
        with subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=CLEAN,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            stdout, stderr = process.stdout.read(), process.stderr.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert (process.returncode, stdout) == (1, "[]\n"), stderr
        assert message in stderr
        # Of the processor, since other tests run beside.
        assert used.ru_utime + used.ru_stime < 2
