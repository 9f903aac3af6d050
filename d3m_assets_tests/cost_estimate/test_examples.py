"""Every ready configuration is planned by the real command, on a stand-in of the dataset's shape and the model's size."""

import json
from pathlib import Path

import pytest
from PIL import Image

from d3m_assets_tests.cost_estimate.stand_ins import write_images
from d3m_assets_tests.test_cli import d3m

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="an installed package has no examples")


def planned(tmp_path, name, *arguments):
    """The plan of an example. The settings that tests make everything small with are left away."""
    unset = dict.fromkeys(
        ("D3M_BUDGETS", "D3M_INVERSION__STEPS", "D3M_INVERSION__SAMPLES_PER_STEP", "D3M_GENERATION__IMAGES_PER_CLASS",
         "D3M_GENERATION__STEPS", "D3M_GENERATION__BATCH_SIZE", "D3M_STUDENTS__STEPS", "D3M_STUDENTS__WIDTH",
         "D3M_STUDENTS__SEEDS", "D3M_AUDIT__STEPS", "D3M_WORKERS", "D3M_EVALUATION__BASELINES",
         "D3M_EVALUATION__DISTILLATIONS"), "",
    )  # fmt: skip
    done = d3m(tmp_path / "home", "plan", "--json", *arguments, D3M_SETTINGS=str(EXAMPLES / name), **unset)
    return json.loads(done.stdout)


def test_every_configuration_is_among_those_below():
    assert sorted(path.name for path in EXAMPLES.glob("*.toml")) == [
        "imagenet-1k-ray.toml", "imagenette-sd15-one-gpu.toml", "own-folder-cpu.toml"
    ]  # fmt: skip


def check_imagenette(found):
    assert found["pending"]["inverted_embeddings"] == 10 * 2
    assert {of["budget"]: of["allowed"] for of in found["bytes"]} == {"4KiB": 4096, "16KiB": 16384}
    costs = {cost["device"]["name"]: cost for cost in found["costs"]}
    assert list(costs) == ["RTX 4090", "L40S", "A100 80GB"]
    # What the example promises: one GPU of 24 GB holds it, and it takes hours, not days.
    assert all(cost["fits"] for cost in costs.values())
    assert 0.5 < costs["RTX 4090"]["hours"] < 24
    assert costs["RTX 4090"]["dollars"] < 20
    assert "d3m distill" in found["runs"]


def test_imagenette_described(tmp_path, sd15):
    found = planned(
        tmp_path, "imagenette-sd15-one-gpu.toml", "--foundation", sd15, "--describe", "10,9469,3925,224x224x3"
    )
    check_imagenette(found)


@pytest.mark.long
def test_imagenette_as_a_folder_of_as_many_images(tmp_path, sd15):
    folder = write_images(tmp_path / "imagenette", classes=10, train=9469, test=3925, width=224, height=224)
    found = planned(tmp_path, "imagenette-sd15-one-gpu.toml", "--foundation", sd15, "--dataset", folder)
    assert "10 classes" in found["dataset"] and "3,925 test images, 224x224 colour" in found["dataset"]
    check_imagenette(found)


def test_imagenet_on_a_ray_cluster(tmp_path, sd15):
    found = planned(tmp_path, "imagenet-1k-ray.toml", "--foundation", sd15, "--describe", "1000,1281167,50000,64x64x3")
    assert found["pending"]["inverted_embeddings"] == found["pending"]["synthetic_pool"] == 1000
    assert all(cost["device"]["devices"] == 8 and cost["fits"] for cost in found["costs"])
    # Every image is encoded once, so the cache that the example sets is large enough; and the driver's memory is told.
    (encoding,) = [stage for stage in found["stages"] if stage["kind"] == "encoding"]
    assert encoding["amount"] == "1,153,050 images"
    assert found["host_bytes"] == (1_281_167 + 50_000) * 64 * 64 * 3
    assert "teacher_model" not in found["pending"]


def test_an_own_folder_on_a_processor(tmp_path, characters):
    for k in range(20):
        for i, image in enumerate(characters("0123456789abcdefghij"[k], 100, seed=k)[..., 0]):
            target = tmp_path / "symbols" / f"symbol {k}" / f"{i:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((28, 28)).save(target)
    found = planned(tmp_path, "own-folder-cpu.toml", "--dataset", tmp_path / "symbols")
    assert "20 classes" in found["dataset"] and "28x28 grey" in found["dataset"]
    (cost,) = found["costs"]
    assert cost["device"]["is_cpu"] and cost["dollars"] is None
    assert 0 < cost["hours"] < 5
    (of,) = found["bytes"]
    assert (of["allowed"], of["vector_bytes"] + of["selection_bytes"] <= 784) == (784, True)
