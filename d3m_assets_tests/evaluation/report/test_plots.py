import re
from xml.etree import ElementTree

import pandas as pd

from d3m_assets.evaluation.report.plots import accuracy_plot
from d3m_assets.evaluation.statistics import summarize
from d3m_assets_tests.evaluation.conftest import student_rows


def test_plot_tells_many_methods_apart(metrics):
    others = [student_rows(f"method {i}", "ipc-1", [0.5, 0.5, 0.5]) for i in range(6)]
    svg = accuracy_plot(summarize(pd.concat([metrics, *others])))
    assert all(f"method {i}" in svg for i in range(6))


def test_plot_is_an_svg_with_text_in_the_colours_of_the_page(metrics):
    svg = accuracy_plot(summarize(metrics))
    root = ElementTree.fromstring(svg)
    text = " ".join("".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text"))
    for words in ("D3M", "random real images", "class-name prompts", "whole train split", "60 B", "ipc-5"):
        assert words in text
    assert "var(--ours)" in svg and "var(--theirs)" in svg
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", svg)
