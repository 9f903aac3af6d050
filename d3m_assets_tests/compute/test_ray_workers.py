"""Work on a real Ray cluster of two nodes: where it is done, and what survives which failure."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from d3m_assets.compute import ray_workers
from d3m_assets.compute.ray_workers import RayWorkers
from d3m_assets.compute.settings import ComputeSettings
from d3m_assets.compute.shared import Shared
from d3m_assets.compute.workers import Workers
from d3m_assets.errors import BudgetError, FoundationError, StageError
from d3m_assets_tests.compute.work import (
    compute_and_report,
    device_of_work,
    die_as_often_as,
    divide,
    environment,
    random_sum,
    square,
    total,
    where,
)
from d3m_assets_tests.processes import alive, needs_proc, wait_until
from d3m_assets_tests.ray_clusters import NODE, gone, kill_node, nodes_at_work, two_nodes
from d3m_assets_tests.requirements import need
from d3m_assets_tests.small_runs import open_pipeline, run

needs_ray = need("ray", find_spec("ray"), "Ray is not installed; it is the extra `ray`")
pytestmark = [pytest.mark.long, needs_ray, needs_proc]


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def open_workers(cluster):
    """Opens workers on the cluster, one a pretended GPU; they compute on the processor."""
    opened = []

    def open_workers(device="cpu", **settings):
        settings = {"engine": "ray", "address": cluster.address, "gpus_per_worker": 1, **settings}
        opened.append(RayWorkers(ComputeSettings(**settings), device))
        return opened[-1]

    yield open_workers
    for workers in opened:
        workers.close()


@pytest.fixture(scope="module")
def two(cluster):
    settings = ComputeSettings(engine="ray", address=cluster.address, gpus_per_worker=1)
    with RayWorkers(settings, "cpu") as workers:
        yield workers


def unheard(index, event):
    pass


def pids(folder):
    return [int(file.stem) for file in folder.glob("*.pid")]


def test_items_are_worked_on_at_both_nodes_at_the_same_time(two):
    handler = signal.getsignal(signal.SIGTERM)
    heard, at_once = [], 0

    def listen(index, event):
        nonlocal at_once
        heard.append((index, event.stage))
        at_once = max(at_once, len(nodes_at_work(two)))

    assert (two.count, two.on_cpu, two.in_process) == (2, True, False)
    # As many items as it takes until both are up: the second may start seconds after the first.
    done = dict(two.run(where, range(10), listen))
    assert sorted(done) == list(range(10))
    assert len({node for node, _ in done.values()}) == 2
    assert len({pid for _, pid in done.values()}) == 2  # one process each, kept from item to item
    assert at_once == 2
    assert {stage for _, stage in heard} == {"where"}
    assert signal.getsignal(signal.SIGTERM) is handler  # Dagster ends runs by it


def test_results_and_failures_are_those_of_local_processes(two):
    results = dict(two.run(square, [1, 2, 3, 4], unheard))
    assert [results[i][0] for i in (0, 1, 3)] == [1, 4, 16]
    assert isinstance(results[2], BudgetError)  # one failure does not stop the others
    assert str(results[2]) == "three is too small"
    seeds = list(range(4))
    assert dict(two.run(random_sum, seeds, unheard)) == dict(Workers(1).run(random_sum, seeds, unheard))
    assert dict(two.run(device_of_work, [0], unheard)) == {0: ("cpu", 1)}


def test_a_defect_is_raised_with_the_traceback_of_the_worker(two):
    with pytest.raises(ZeroDivisionError) as caught:
        list(two.run(divide, [1, 0], unheard))
    assert "return 1 / item" in "".join(caught.value.__notes__)
    with pytest.raises(Exception, match="pickle"):
        list(two.run(divide, [1, lambda: None], unheard))


def test_a_shared_value_is_sent_once_and_dropped_when_nobody_refers_to_it(two):
    images = Shared(np.ones(1_000_000, np.uint8))
    results = dict(two.run(total, [(i, images) for i in range(20)], unheard))
    assert {i: r[0] for i, r in results.items()} == {i: i + 1_000_000 for i in range(20)}
    copies = {(place, pid) for _, place, pid in results.values()}
    assert len(copies) == len({pid for _, pid in copies}) <= 2  # one copy in a process
    assert set(two._cluster._shared) == {images.key}
    del images, results
    other = Shared(np.ones(10, np.uint8))
    list(two.run(total, [(0, other)], unheard))
    assert set(two._cluster._shared) == {other.key}


def test_an_item_whose_worker_died_is_sent_again_and_given_up_after_three_deaths(two, tmp_path):
    for name in ("once", "always"):
        (tmp_path / name).mkdir()
    items = [(tmp_path / "once", 1), (tmp_path / "always", 99), (tmp_path / "never", 0)]
    results = dict(two.run(die_as_often_as, items, unheard))
    assert (results[0], results[2]) == (1, 0)
    assert isinstance(results[1], StageError)
    assert "3 workers died of the same piece of work" in str(results[1])
    assert len(list((tmp_path / "always").iterdir())) == 3


def test_ctrl_c_kills_the_actors_that_compute_and_closing_those_that_wait(two, tmp_path):
    def interrupt(index, event):
        if len(pids(tmp_path)) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(two.run(compute_and_report, [str(tmp_path)] * 2, interrupt))
    assert gone(pids(tmp_path))
    waiting = {pid for _, pid in dict(two.run(square, [1, 2], unheard)).values()}
    assert all(alive(pid) for pid in waiting)
    two.close()
    assert gone(waiting)
    assert dict(two.run(square, [2], unheard))[0][0] == 4  # and it starts anew


def test_actors_without_work_give_their_gpus_back(open_workers, two):
    two.close()
    workers = open_workers(idle_seconds=1)
    (_, pid) = dict(workers.run(square, [2], unheard))[0]
    (_, same) = dict(workers.run(square, [3 + 1], unheard))[0]
    assert pid == same  # kept from run to run
    assert gone([pid], 15)
    assert dict(workers.run(square, [5], unheard))[0][0] == 25


def test_actors_end_with_a_driver_that_is_killed(cluster, two, tmp_path):
    two.close()
    code = f"from d3m_assets_tests.compute.work import driver_that_computes as d; d({cluster.address!r}, {str(tmp_path)!r})"
    driver = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        assert wait_until(lambda: len(pids(tmp_path)) == 2, 90)
    finally:
        driver.kill()
        driver.wait()
    assert gone(pids(tmp_path))


def test_named_variables_reach_the_actors_and_no_others(open_workers, two, monkeypatch):
    two.close()
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.setenv("MY_TOKEN", "secret")
    workers = open_workers(forward_environment="AWS_*, HF_HOME")
    found = dict(workers.run(environment, ["AWS_REGION", "MY_TOKEN"], unheard))
    assert found == {0: "here", 1: None}


def test_what_the_cluster_cannot_give_is_told_in_words(cluster, open_workers, two, monkeypatch):
    two.close()
    message = (
        r"no node .* has 3 GPUs and 1 cores for a worker: in 2 nodes there are 2 GPUs.*lower compute.gpus_per_worker"
    )
    with pytest.raises(StageError, match=message):
        list(open_workers(gpus_per_worker=3).run(square, [1], unheard))
    with pytest.raises(FoundationError, match="this PyTorch sees no CUDA device"):  # pretended ones have none
        list(open_workers(device="cuda").run(square, [1], unheard))
    # Without a number it is found out: a GPU each where there are some, none for the processor.
    assert (open_workers(device="auto", gpus_per_worker=None).on_cpu, open_workers(gpus_per_worker=None).count) == (
        False,
        4,
    )
    ours = ray_workers._software()
    monkeypatch.setattr(ray_workers, "_software", lambda: ours | {"torch": "1.0"})
    with pytest.raises(StageError, match=r"does not run the software of this process: torch \S+ instead of 1.0"):
        list(open_workers().run(square, [1], unheard))


def test_a_cluster_that_is_not_there_is_named(two, monkeypatch):
    two.close()
    absent = ComputeSettings(engine="ray", address="127.0.0.1:1")
    with pytest.raises(StageError, match=r"no Ray cluster was found at 127.0.0.1:1 .*correct compute.address"):
        list(RayWorkers(absent, "cpu").run(square, [1], unheard))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StageError, match="install the extra `ray` of d3m-assets"):
        list(RayWorkers(absent, "cpu").run(square, [1], unheard))


DISTILLED = {
    "inverted_embeddings": "embeddings.safetensors",
    "synthetic_pool": "pool.parquet",
    "distilled_bundle": "bundle.safetensors",
}


def distilled(pipeline):
    """Contents of vectors, pools and bundles."""
    return {key: pipeline.store.read(key, file) for asset, file in DISTILLED.items() for key in pipeline.keys(asset)}


def test_a_node_is_killed_in_mid_distillation_and_the_other_finishes_it(cluster, two, image_folder, tmp_path):
    """Work at both nodes at the same time, one of them killed, and the bundles of a single machine to the last bit."""
    two.close()
    images, changes = image_folder(), {"device": "cpu", "inversion.steps": 30, "generation.images_per_class": 3}
    alone = open_pipeline(tmp_path / "alone", images, **changes)
    run(alone)

    engine = {"engine": "ray", "address": cluster.address, "gpus_per_worker": 1, "state_dir": str(tmp_path / "states")}
    spread = open_pipeline(tmp_path / "spread", images, **changes, compute=engine)
    states, busy, killed = set(), [], []

    def listen(event):
        workers = spread.context.workers
        states.update((tmp_path / "states").glob("*"))
        at_work = nodes_at_work(workers)
        busy.append((event.stage, len(at_work)))
        if event.stage == "inverted_embeddings" and len(at_work) == 2 and not killed:
            killed.append(at_work)
            kill_node(cluster.list_all_nodes()[1])

    spread.context.progress = listen
    run(spread)  # to the report: nothing fails
    spread.context.close()
    assert len(killed) == 1
    at_both = {stage for stage, count in busy if count == 2}
    assert at_both == {"inverted_embeddings"}  # afterwards there is but one node
    assert "student_metrics" in {stage for stage, count in busy if count == 1}
    assert states
    assert not list((tmp_path / "states").glob("*"))  # all are finished
    assert distilled(spread) == distilled(alone)
    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
    cluster.add_node(**NODE)
