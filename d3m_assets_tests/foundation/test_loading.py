import json
import shutil

import pytest

from d3m_assets.compute.devices import choose_device
from d3m_assets.errors import FoundationError
from d3m_assets.foundation import loading
from d3m_assets.foundation.files import IMAGE_ENCODER, embedded_path
from d3m_assets.foundation.image_encoder import load_image_encoder
from d3m_assets.foundation.loading import find_foundation, load_foundation
from d3m_assets_tests.foundation.small_pipelines import write_pipeline


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(embedded_path(), tmp_path / "model")
    return tmp_path / "model"


def find(path):
    return find_foundation(str(path))


def test_the_embedded_model_is_a_stock_pipeline():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(embedded_path(), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a photo of a 7", num_inference_steps=2).images[0].size == (32, 32)
    size = sum(f.stat().st_size for f in embedded_path().rglob("*.safetensors"))
    assert size < 12e6


def test_facts_come_from_the_files(copy):
    files = find(copy)
    assert (files.text_width, files.text_length, files.image_size) == (64, 24, 32)
    foundation = load_foundation(files, "cpu")
    assert foundation.layout.widths == (64,)
    assert not any(p.requires_grad for p in foundation.unet.parameters())


def test_a_model_has_its_image_encoder_or_does_without(copy):
    encoder = load_foundation(find(copy), "cpu").image_encoder
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    damaged = (copy / IMAGE_ENCODER).read_bytes()[:-1]
    for content in (b"no tensors", damaged):
        (copy / IMAGE_ENCODER).write_bytes(content)
        model = load_foundation(find(copy), "cpu")  # who only generates is not stopped by it
        with pytest.raises(FoundationError, match=r"image_encoder.safetensors is no image encoder of this model"):
            _ = model.image_encoder
    (copy / IMAGE_ENCODER).unlink()
    with pytest.raises(FoundationError, match=r"has no image_encoder.safetensors on this machine"):
        _ = load_foundation(find(copy), "cpu").image_encoder


def test_an_image_encoder_of_other_latents_is_refused(copy):
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
    with pytest.raises(FoundationError, match="it sees 8x8 latents of 4 channels, and the model has others"):
        load_image_encoder(find(copy))


def test_a_path_that_is_no_pipeline_says_so(tmp_path, copy):
    with pytest.raises(FoundationError, match="does not exist"):
        find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FoundationError, match="model_index"):
        find(tmp_path / "empty")
    (copy / "model_index.json").write_text("{")
    with pytest.raises(FoundationError, match="damaged"):
        find(copy)


def test_other_architectures_are_refused_by_name(copy):
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    with pytest.raises(FoundationError, match="FluxPipeline.*StableDiffusionPipeline"):
        find(copy)


def test_pickled_weights_are_not_loaded(copy):
    weights = next((copy / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FoundationError, match="safetensors"):
        find(copy)


def test_truncated_weights_are_named(copy):
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FoundationError, match="cannot be loaded"):
        load_foundation(find(copy), "cpu")


def test_larger_images_are_encoded_fewer_at_a_time(foundation, monkeypatch):
    import torch

    together = []
    encode = foundation.vae.encode
    monkeypatch.setattr(foundation.vae, "encode", lambda part: together.append(len(part)) or encode(part))
    monkeypatch.setattr(loading, "PIXELS_ENCODED_AT_ONCE", 3 * 32 * 32)
    latents = foundation.encode_images(torch.zeros(7, 3, 32, 32))
    assert len(latents) == 7 and together == [3, 3, 1]
    monkeypatch.undo()
    assert [loading.encoded_at_once(side) for side in (32, 512, 1024, 8192)] == [50, 16, 4, 1]


def test_a_device_that_is_not_there_is_refused():
    import torch

    if torch.cuda.is_available():
        assert choose_device("cuda").type == "cuda"
    else:
        with pytest.raises(FoundationError, match="device=auto"):
            choose_device("cuda")


def test_a_model_that_must_be_told_its_guidance_is_refused(tmp_path):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    folder = write_pipeline("sd1", tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "time_cond_proj_dim": 8})
    pipeline.save_pretrained(folder)
    with pytest.raises(FoundationError, match="time_cond_proj_dim"):
        load_foundation(find(folder), "cpu")
