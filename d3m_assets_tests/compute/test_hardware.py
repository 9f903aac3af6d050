import pytest
from pydantic import ValidationError

from d3m_assets.compute.hardware import GPUS, gpu_called, parse_gpu
from d3m_assets.compute.settings import PlanSettings
from d3m_assets.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "name", "price"),
    [
        ("A100 80GB", "A100 80GB", 1.39),
        ("a100", "A100 80GB", 1.39),
        ("h100-sxm", "H100 SXM", 2.69),
        ("l4", "L4", 0.44),
        ("rtx4090=0", "RTX 4090", 0.0),
        (" H200 = 4.5 ", "H200", 4.5),
    ],
)
def test_gpus_by_their_names(text, name, price):
    gpu = parse_gpu(text)
    assert (gpu.name, gpu.usd_per_hour) == (name, price)
    assert gpu.price_source == ("given" if "=" in text else GPUS[0].price_source)


def test_a_gpu_that_is_not_in_the_table():
    gpu = parse_gpu("RTX 3060:51.2:12=0.1")
    assert (gpu.name, gpu.peak_flops, gpu.memory_bytes, gpu.usd_per_hour) == ("RTX 3060", 51.2e12, 12 * 10**9, 0.1)
    assert parse_gpu("MI300X:1307:192").usd_per_hour is None


@pytest.mark.parametrize("text", ["H1000", "RTX", "", "=3", "L4=free", "L4=-1", "X:0:24", "X:1:0", "a:b:c", "h", "L40"])
def test_other_texts_are_refused_with_the_names_there_are(text):
    with pytest.raises(SettingsError):
        parse_gpu(text)


def test_the_refusal_names_the_gpus_and_the_way_out():
    with pytest.raises(SettingsError, match='"H1000" is not known; known are L4, .*"H1000:100:24=0.50"'):
        parse_gpu("H1000")
    with pytest.raises(ValidationError, match="H1000"):
        PlanSettings(gpus=("H1000",))


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3060", None),
        ("AMD EPYC", None),
    ],
)
def test_devices_by_what_their_driver_calls_them(device, name):
    found = gpu_called(device)
    assert (found.name if found else None) == name


def test_the_names_of_the_table_are_known_as_devices():
    assert [gpu_called(gpu.name) for gpu in GPUS] == list(GPUS)
