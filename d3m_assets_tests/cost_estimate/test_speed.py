"""Speeds: measured where a measurement of such a model on such a device is at hand, assumed elsewhere, and always said which."""

import json
import logging

import pytest

from d3m_assets.compute.devices import cores, device_name
from d3m_assets.compute.hardware import parse_gpu
from d3m_assets.cost_estimate.estimate import estimate
from d3m_assets.cost_estimate.job_devices import measured_file
from d3m_assets.cost_estimate.job_work import Stage
from d3m_assets.cost_estimate.report import dollars_words, flops_words, hours_words
from d3m_assets.cost_estimate.speed import (
    CPU_UTILISATION,
    Measurement,
    cpu_device,
    gpu_device,
    keep_measured,
    read_benchmarks,
    read_measured,
)
from d3m_assets_tests.cost_estimate.test_job_work import work_of
from d3m_assets_tests.small_runs import open_pipeline


def result(device, parameters=1, image_size=8):
    engine = {"samples_per_second": 50.0, "flops_per_sample": 4e9}
    fused = {"samples_per_second": 90.0, "flops_per_sample": 4e9}
    return {
        "date": "2026-11-20T10:00:00+00:00",
        "hardware": {"device": device},
        "model": {"unet_parameters": parameters, "image_size": image_size},
        "inversion": {"variants": {"script": engine, "engine": engine, "engine, fused": fused}},
        "generation": {"variants": {"engine, 10 steps": {"images_per_second": 10.0, "flops_per_image": 3e10}}},
    }


def test_results_of_the_benchmark_give_speeds(tmp_path, caplog):
    (tmp_path / "engine-2026-11-20-1000.json").write_text(json.dumps(result("NVIDIA A100-SXM4-80GB")))
    (tmp_path / "engine-2026-11-21-1000.json").write_text("{}")
    (tmp_path / "loader-2026-11-21-1000.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        (found,) = read_benchmarks(tmp_path)
    assert "engine-2026-11-21-1000.json is no result" in caplog.text
    assert found.flops_per_second == {"inversion": 2e11, "generation": 3e11}
    device = gpu_device(parse_gpu("a100"), work_of(), [found], 0.15)
    assert device.measured and device.source == "measured 2026-11-20, engine-2026-11-20-1000.json"
    # Encoding is taken as fast as generation, training of classifiers as fast as the optimizer steps of vectors.
    speeds = {"inversion": 2e11, "generation": 3e11, "encoding": 3e11, "training": 2e11}
    assert device.flops_per_second == speeds
    for other in (
        gpu_device(parse_gpu("h100"), work_of(), [found], 0.15),
        gpu_device(parse_gpu("X:312:80"), work_of(), [found], 0.15),
        gpu_device(parse_gpu("a100"), work_of().__class__(**{**vars(work_of()), "image_size": 16}), [found], 0.15),
    ):
        assert not other.measured and other.source.startswith("assumed: 15% of ")  # fmt: skip
    assert read_benchmarks(None) == read_benchmarks(tmp_path / "absent") == []


def test_time_and_money_by_hand():
    device = gpu_device(parse_gpu("X:100:24=2"), work_of(), [], 0.5, devices=4)
    stages = [
        Stage("inversion", "inversion", "", 50e12 * 3600 * 8),
        Stage("students", "training", "", 1e9, 4 * 360_000_000),
    ]
    # Eight hours of computing, and four hours in which launches are waited for, on four of them.
    assert device.seconds(stages) == pytest.approx((8 + 4) / 4 * 3600)
    assert device.dollars(device.seconds(stages)) == pytest.approx(3 * 4 * 2)
    assert gpu_device(parse_gpu("X:100:24"), work_of(), [], 0.5).dollars(3600) is None


def test_a_processor_without_a_measurement_is_looked_at():
    device = cpu_device(work_of(), [], 1)
    assert not device.measured and "measured now" in device.source
    assert f"{CPU_UTILISATION:.0%}" in device.source
    assert 1e8 < device.flops_per_second["inversion"] < 1e13


def test_the_embedded_models_benchmark_is_of_this_processor(tmp_path):
    (tmp_path / "engine-1.json").write_text(json.dumps(result(device_name("cpu"))))
    device = cpu_device(work_of(), read_benchmarks(tmp_path), None)
    # Measured on one thread; every core has a worker.
    assert device.flops_per_second["inversion"] == 2e11 * cores()
    assert device.workers == cores()


def test_a_measurement_is_kept_and_replaced(tmp_path, caplog):
    file = tmp_path / "home" / "measured-speed.json"
    assert read_measured(file) == []
    one, other, again = (Measurement("cpu", n, 8, {"inversion": s}, "x") for n, s in ((1, 1.0), (2, 2.0), (1, 3.0)))
    for measurement in (one, other, again):
        keep_measured(file, measurement)
    assert read_measured(file) == [again, other]
    file.write_text("[1]")
    assert read_measured(file) == [] and "cannot be read" in caplog.text


def test_measuring_does_the_real_work_and_is_used_from_then_on(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr("d3m_assets.cost_estimate.measuring.SECONDS", 0.05)
    pipeline = open_pipeline(tmp_path, image_folder(), device="cpu")
    first = estimate(pipeline, measured=True)
    (kept,) = read_measured(measured_file(pipeline))
    assert set(kept.flops_per_second) == {"inversion", "generation", "training"}
    assert all(1e5 < speed < 1e13 for speed in kept.flops_per_second.values())
    device = first.costs[0].device
    assert device.measured and "d3m plan --measure" in device.source
    again = estimate(open_pipeline(tmp_path, tmp_path / "images", device="cpu"))
    assert again.costs[0].device == device


@pytest.mark.parametrize(
    ("words", "value", "expected"),
    [
        (flops_words, 0, "0"),
        (flops_words, 3.21e15, "3.21 PFLOP"),
        (flops_words, 12_345e18, "12,345 EFLOP"),
        (hours_words, 0, "0 s"),
        (hours_words, 1 / 3600 / 10, "< 1 s"),
        (hours_words, 40 / 3600, "40 s"),
        (hours_words, 0.5, "30 min"),
        (hours_words, 6.66, "6.7 h"),
        (hours_words, 240, "10 days"),
        (dollars_words, None, "–"),
        (dollars_words, 1.5, "$1.50"),
        (dollars_words, 12_345.6, "$12,346"),
    ],
)
def test_numbers_for_people(words, value, expected):
    assert words(value) == expected
