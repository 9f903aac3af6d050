"""What is shown in a terminal; and that the command line shows nothing else."""

import json
import re
import shutil
import threading
import time

import pytest
from PIL import Image

from d3m_assets import cli, terminal
from d3m_assets.progress import ProgressEvent
from d3m_assets.terminal import printable, shown_progress

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\nroot#"


def test_nothing_that_steers_a_terminal_is_printed():
    shown = printable(HOSTILE + "\ud800\u2028")
    assert shown.isprintable()
    assert "\\x1b]0;owned\\x07" in shown
    assert "\\u202e" in shown
    assert "\\x9b" in shown
    assert printable("Größe 猫, 3 %") == "Größe 猫, 3 %"
    assert len(printable("x" * 10_000)) < 600


def test_progress_shows_a_name_without_what_steers(capsys):
    with shown_progress() as progress:
        progress(ProgressEvent("scan", 1, 2, HOSTILE))
    shown = capsys.readouterr().err
    assert "50 %" in shown
    assert "gnp.exe" in shown
    assert shown.replace("\n", "").isprintable()


def test_a_line_comes_when_a_stage_begins_and_when_it_moves(capsys):
    with shown_progress() as progress:
        for done in (0, 0, 1, 2, 3):
            progress(ProgressEvent("regenerate", done, 1_000_000, f"image {done}"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == ["0", "1"]


def test_a_stage_that_says_nothing_is_repeated_with_its_seconds(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.1)
    with shown_progress() as progress:
        progress(ProgressEvent("evaluation", 1, 4, "ipc-1"))
        time.sleep(1)
    lines = capsys.readouterr().err.splitlines()
    assert 3 < len(lines) < 12
    assert lines[0].split() == ["evaluation", "25", "%", "ipc-1"]
    assert all(re.fullmatch(r"evaluation +25 % +ipc-1 \(for \d+ s\)", line) for line in lines[1:])
    assert "progress" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("broken", [1, 2])
def test_names_of_classes_and_files_are_shown_without_what_steers(tmp_path, image_folder, monkeypatch, capsys, broken):
    folder = image_folder(("a", "b", "c"))
    (folder / "train" / "a").rename(folder / "train" / "\x1b[2Jclass")
    (folder / "test" / "a").rename(folder / "test" / "\x1b[2Jclass")
    (folder / "train" / "\x1b[2Jclass" / "\x1b[31mbroken.png").write_bytes(b"no image")
    if broken == 2:  # then it is a table
        (folder / "test" / "b" / "\x1b[31mempty.png").touch()
    monkeypatch.setenv("D3M_HOME", str(tmp_path / "home"))
    cli.status(dataset=str(folder), budget=["ipc-1"])
    shown = capsys.readouterr()
    assert "broken.png" in shown.err
    assert "\x1b" not in shown.err + shown.out
    assert json.dumps("\x1b[2Jclass")[1:-1].replace("\\u001b", "\\x1b") in shown.err


@pytest.mark.parametrize("lonely", [1, 2])
def test_what_to_do_about_a_class_is_shown_without_what_steers(tmp_path, image_folder, monkeypatch, capsys, lonely):
    """The remedy repeats the class's name."""
    folder = image_folder(("a", "b", "c"))
    for k in range(lonely):
        shutil.copytree(folder / "train" / "a", folder / "train" / f"\x1b[2Jlonely {k}")
        for image in (folder / "train" / f"\x1b[2Jlonely {k}").iterdir():
            recoloured = Image.eval(Image.open(image), lambda value, k=k: 255 - value // (k + 2))
            recoloured.save(image)
    monkeypatch.setenv("D3M_HOME", str(tmp_path / "home"))
    cli.status(dataset=str(folder), budget=["ipc-1"])
    shown = capsys.readouterr()
    assert "lonely 0" in shown.err
    assert "\x1b" not in shown.err + shown.out
