import re
from xml.etree import ElementTree

import pandas as pd

from d3m_assets.evaluation.report.plots import accuracy_plot, titled_plot
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


def test_the_frontier_has_every_row_from_sixteen_bytes_to_eight_kib(metrics):
    more = [
        student_rows("coded real images", "16B", [0.9, 0.91, 0.9], bytes_per_class=14),
        student_rows("coded real images", "ipc-1", [0.95, 0.96, 0.95], bytes_per_class=62),
        student_rows("packed real images", "ipc-1", [0.94, 0.95, 0.94], bytes_per_class=55),
        student_rows("real images by k-means", "ipc-1", [0.85, 0.86, 0.85], bytes_per_class=64),
        student_rows("rendered characters", "", [0.8, 0.81, 0.8]),
    ]
    summary = summarize(pd.concat([metrics, *more]))
    plot = titled_plot(summary, "")
    root = ElementTree.fromstring(plot["svg"])
    texts = ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {*summary["method"]} <= set(texts)
    assert {"16 B", "1,024 B", "4,096 B"} <= set(texts)
    for method in summary["method"]:
        assert method in plot["alt"]
    assert "coded real images at 16B 90.3 ± " in plot["alt"]
    assert {"var(--worse)", "var(--better)"} <= set(re.findall(r"var\(--\w+\)", plot["svg"]))


def test_a_picture_by_itself_has_colours_of_its_own(metrics):
    svg = accuracy_plot(summarize(metrics), on_white=True)
    assert "var(" not in svg
    assert "#0b5fa5" in svg and not re.search(r"#0[1-6]0[1-6]0[1-6]", svg)


def test_larger_images_have_the_range_that_they_need(metrics):
    large = student_rows("D3M", "ipc-1", [0.9, 0.91, 0.9], bytes_per_class=150_528)
    text = accuracy_plot(summarize(large))
    assert "150.5 kB" in text and ">16 B<" not in text
