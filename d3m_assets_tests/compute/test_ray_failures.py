"""What becomes of a run when its cluster fails it, with a cluster that is pretended."""

import threading
from importlib.util import find_spec

import pytest

from d3m_assets.compute import ray_workers
from d3m_assets.compute.ray_workers import TRIES, RayWorkers
from d3m_assets.compute.settings import ComputeSettings
from d3m_assets.errors import StageError
from d3m_assets_tests.requirements import need

needs_ray = need("ray", find_spec("ray"), "Ray is not installed; it is the extra `ray`")
pytestmark = [needs_ray, pytest.mark.timeout(60)]


class Cluster(ray_workers._Cluster):
    """Nothing is connected; workers are objects."""

    def _join(self):
        return False

    def _total(self, name):
        return 0.0

    def start_worker(self):
        return ray_workers._Worker(threading.Event(), object())


@pytest.fixture
def workers(monkeypatch):
    """Workers of a pretended cluster."""
    monkeypatch.setattr(ray_workers, "_Cluster", Cluster)
    with RayWorkers(ComputeSettings(engine="ray", workers=2), "cpu") as workers:
        yield workers


def unheard(index, event):
    """Progress is of no interest."""


def test_a_run_ends_when_the_last_worker_dies_after_all_tries_to_start_another(workers, monkeypatch):
    """Failure prevented: starts that fail beside a living worker are counted up, and when it dies nothing is done for ever."""
    died = RuntimeError("died")

    def listen(run):
        up = [worker for worker in run._workers if worker.node]
        starting = [worker for worker in run._workers if not worker.node]
        if not up:
            starting[0].node = "node"
        else:
            run._replace((starting or up)[0], died)

    def give(run, worker):
        worker.index = run._waiting.popleft()

    monkeypatch.setattr(ray_workers._Run, "_listen", listen)
    monkeypatch.setattr(ray_workers._Run, "_give", give)
    with pytest.raises(StageError, match=f"{TRIES} Ray workers in a row did not start: died"):
        list(workers.run(print, [1, 2], unheard))


def test_a_lost_client_is_a_lost_cluster_and_the_next_run_connects_anew(workers, monkeypatch):
    def start(self):
        raise ConnectionError("Client is shutting down.")

    monkeypatch.setattr(Cluster, "start_worker", start)
    for _ in range(2):
        with pytest.raises(StageError, match=r"was lost: Client is shutting down\."):
            list(workers.run(print, [1], unheard))
        lost = workers._cluster
        assert workers._connected() is not lost
