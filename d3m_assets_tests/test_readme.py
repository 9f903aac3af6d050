"""The script that writes the README's figures, on a small finished table."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from d3m_assets_tests.small_runs import open_pipeline

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "readme.py"


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_row_and_says_how_verdicts_were_reached(readme, finished):
    text = readme.table(open_pipeline(finished, finished / "images"))
    lines = text.splitlines()
    assert lines[0] == "| trained on | ipc-1, 64 B | ipc-3, 192 B |"
    rows = [line.split("|")[1].strip() for line in lines[2:7]]
    assert rows == ["D3M", "random real images", "class-name prompts", "rendered characters", "whole train split"]
    # One family: D3M against four other rows at two budgets.
    assert "(Welch's t-test, Cochran-Cox, 95 %, Holm-corrected for 8 comparisons)" in text
    assert "on 18 real test images" in text
    assert "mean of 2 students" in text


def test_the_verdict_begins_and_names_its_picture(readme, finished):
    text = readme.verdict_text(open_pipeline(finished, finished / "images"))
    assert text.startswith("**D3M, which this package distills, on ")
    assert "random real images" in text.partition("**")[2].partition("**")[0]
    assert "class-name prompts" in text and "rendered characters" in text
    assert "](docs/frontier.svg)" in text


def test_the_frontier_is_a_picture_with_every_row(readme, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    readme.frontier(open_pipeline(finished, finished / "images"))
    svg = (tmp_path / "docs" / "frontier.svg").read_text()
    for row in ("D3M", "random real images", "class-name prompts", "rendered characters", "whole train split"):
        assert f">{row}<" in svg
    assert "var(--" not in svg


def test_only_what_stands_between_the_markers_is_replaced(readme):
    text = f"a\n{readme.VERDICT_BEGIN}\nold\n{readme.END}\nb\n{readme.BEGIN}\nold table\n{readme.END}\nc"
    text = readme.replaced(readme.replaced(text, readme.VERDICT_BEGIN, "verdict"), readme.BEGIN, "table")
    lines = text.splitlines()
    assert [lines[i] for i in (0, 2, 4, 6, 8)] == ["a", "verdict", "b", "table", "c"]
    assert "old" not in text
    readme_text = (SCRIPT.parents[1] / "README.md").read_text()
    assert readme_text.count(readme.VERDICT_BEGIN) == readme_text.count(readme.BEGIN) == 1
    assert readme_text.index(readme.VERDICT_BEGIN) < readme_text.index(readme.BEGIN)


def test_the_picture_has_a_line_of_tiles_for_every_source(readme, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    readme.picture(open_pipeline(finished, finished / "images"))
    sheet = Image.open(tmp_path / "docs" / "samples.png")
    assert sheet.size == (150 + 3 * 2 * 34, 4 * 34)
    assert sheet.crop((150, 0, *sheet.size)).getextrema() != (255, 255)
