"""Which workers the settings ask for, and that where work is done changes neither fingerprints nor what a run may use."""

import dagster as dg
import filelock
import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.compute.engine import open_workers
from d3m_assets.compute.ray_workers import RayWorkers
from d3m_assets.compute.settings import ComputeSettings
from d3m_assets.compute.workers import Workers
from d3m_assets.definitions import build_definitions
from d3m_assets.errors import SettingsError
from d3m_assets.orchestration.resources import PipelineResource, locks
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings

RAY = {"engine": "ray", "address": "ray://nowhere:10001"}


def definitions(home, **changes):
    return build_definitions(load_settings(home=home, **changes))


def asset(defined, name):
    return defined.resolve_assets_def(name)


def test_the_engine_is_chosen_by_the_settings():
    local = open_workers(ComputeSettings(), "cpu", 3)
    assert isinstance(local, Workers)
    assert (local.count, local.on_cpu, local.in_process) == (3, True, False)
    assert open_workers(ComputeSettings(), "cpu", 1).in_process
    assert isinstance(open_workers(ComputeSettings(**RAY), "cuda"), RayWorkers)  # and nothing is connected to
    gpu = Workers(1, on_cpu=False)
    assert (gpu.on_cpu, gpu.in_process) == (False, True)


def test_where_work_is_done_is_in_no_fingerprint(tmp_path):
    compute = {**RAY, "workers": 7, "state_dir": str(tmp_path / "states"), "partitions_per_run": 2}
    here, there = (Pipeline(load_settings(home=tmp_path, **changes)) for changes in ({}, {"compute": compute}))
    for name in GRAPH.names:
        assert [here.spec(key).fingerprint for key in here.keys(name)] == [
            there.spec(key).fingerprint for key in there.keys(name)
        ]
    assert there.context.states == tmp_path / "states"
    assert here.context.states == tmp_path / "cache" / "inversion"


def test_a_driver_of_ray_needs_no_gpu_and_takes_no_lease(tmp_path):
    settings = load_settings(home=tmp_path, device="cuda", compute=RAY)
    planner = Pipeline(settings)
    assert planner.context.device == "cpu"
    assert planner.context.device_kind == "cuda"  # as the fingerprints have it
    with PipelineResource(settings, Pipeline).device_lease(pytest.fail):
        assert not list(locks(settings).glob("device-*"))

    local = load_settings(home=tmp_path, device="cpu")
    with PipelineResource(local, Pipeline).device_lease(pytest.fail):
        (lock,) = locks(local).glob("device-*-cpu.lock")
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(lock).acquire(timeout=0)


def test_a_gpu_is_held_by_whatever_name_the_settings_give_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    every, second, first = (
        PipelineResource(load_settings(home=tmp_path, device=name), Pipeline) for name in ("auto", "cuda:1", "cuda:0")
    )
    with every.device_lease(pytest.fail), pytest.raises(TimeoutError), second.device_lease(print, timeout=0):
        pytest.fail("auto uses every GPU")
    with second.device_lease(pytest.fail):
        with first.device_lease(pytest.fail):
            pass
        with pytest.raises(TimeoutError), every.device_lease(print, timeout=0):
            pytest.fail("one of its GPUs is in use")
        with first.device_lease(pytest.fail):
            pass  # what could not have all has let go of those it had


def test_a_run_asks_for_a_gpu_unless_ray_actors_have_it(tmp_path):
    tag = "dagster-k8s/config"
    assert tag in asset(definitions(tmp_path, device="cuda"), "synthetic_pool").op.tags
    assert tag in definitions(tmp_path, device="cuda").resolve_job_def("distill").tags
    assert tag not in asset(definitions(tmp_path, device="cuda", compute=RAY), "synthetic_pool").op.tags
    assert tag not in definitions(tmp_path, device="cuda", compute=RAY).resolve_job_def("distill").tags


def test_device_assets_are_backfilled_in_as_many_runs_as_the_settings_say(tmp_path):
    single, multi = dg.BackfillPolicy.single_run(), dg.BackfillPolicy.multi_run(25)
    for changes, expected in (({}, single), ({"compute.partitions_per_run": 25}, multi)):
        defined = definitions(tmp_path, **changes)
        for node in GRAPH:
            policy = asset(defined, node.name).backfill_policy
            if node.partitions:
                assert policy == (expected if node.device else single), node.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute.engine": "slurm"}, "compute.engine.*'local' or 'ray'"),
        ({"compute.workers": 0}, "compute.workers"),
        ({"compute.cpus_per_worker": 0}, "compute.cpus_per_worker"),
        ({"compute.gpus_per_worker": -1}, "compute.gpus_per_worker"),
        ({"compute.adress": "auto"}, "unknown setting compute.adress; did you mean compute.address"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(**changes)


def test_variables_to_forward_are_given_as_a_list(monkeypatch):
    monkeypatch.setenv("D3M_COMPUTE__FORWARD_ENVIRONMENT", "HF_HOME, AWS_*")
    assert load_settings().compute.forward_environment == ("HF_HOME", "AWS_*")
