"""Runs leave no process and no lock file behind: in this process, and launched one after the other as the daemon does.

``python -m d3m_assets_tests.orchestration.many_runs --runs 50`` is the long form.
"""

import multiprocessing
from pathlib import Path

import pytest

from d3m_assets.compute.workers import Workers
from d3m_assets.definitions import build_definitions
from d3m_assets.orchestration.launch import open_instance
from d3m_assets.orchestration.partitions import CLASSES
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets_tests.orchestration.many_runs import many_runs, prepare
from d3m_assets_tests.orchestration.runs import counts, run_assets
from d3m_assets_tests.processes import needs_proc

RUNS = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset, and the environment that names it."""
    for name, value in prepare(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_run_in_this_process_leaves_no_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = Workers._start

    def counting(workers: Workers) -> None:
        start(workers)
        started.append(len(multiprocessing.active_children()))

    monkeypatch.setattr(Workers, "_start", counting)
    settings = load_settings()
    with open_instance(settings) as instance:
        instance.add_dynamic_partitions(CLASSES, ["a", "b"])
        pipeline = Pipeline(settings)
        for asset in ("class_catalog", "raw_dataset", "class_prompts", "foundation_model"):
            assert all(made.error is None for made in pipeline.materialize(asset, pipeline.keys(asset)))
        run = run_assets(build_definitions(settings), instance, ["inverted_embeddings"], "ipc-1|a", "ipc-1|b")
        assert run.success
        assert counts(instance, "inverted_embeddings") == {"ipc-1|a": 1, "ipc-1|b": 1}
    assert started == [2]
    assert multiprocessing.active_children() == []


@pytest.mark.long
@needs_proc
def test_runs_in_a_row_leave_nothing_behind(folder: Path) -> None:
    report = many_runs(folder, RUNS)
    assert report.failed == 0
    assert report.materializations == 4 + 2 * (RUNS - 1)  # everything, then one class in each run
    assert report.workers_seen >= 3, "a run has a process of its own, and two workers"
    assert report.left == {}
    assert report.lock_files == []
    assert report.memory[-1] < 1.2 * report.memory[0]
