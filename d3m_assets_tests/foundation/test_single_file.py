import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import FoundationError
from d3m_assets.foundation.loading import find_foundation, load_foundation
from d3m_assets_tests.foundation.single_files import write_single_file
from d3m_assets_tests.foundation.small_pipelines import KINDS, write_pipeline


def folder_and_file(kind, root):
    folder = write_pipeline(kind, root / kind)
    return folder, write_single_file(kind, folder, root / f"{kind}.safetensors")


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return folder_and_file(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return folder_and_file("sd1", tmp_path_factory.mktemp("sd1"))


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def refuse(*args, **kwargs):
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def find(path, config=None):
    return find_foundation(str(path), config=None if config is None else str(config))


def draw(foundation):
    prompts = ClassPrompts.of(0, "7", "7", templates=("a photo of a {}",), initializer=None, keep_class_name=True)
    return generate(foundation, prompts, GenerationSettings(steps=2, batch_size=2), 0, count=2)[0]


def test_a_single_file_is_the_same_model_as_its_folder(model, no_network):
    folder, checkpoint = model
    found, whole = find(checkpoint, folder), find(folder)
    ours, theirs = load_foundation(found, "cpu"), load_foundation(whole, "cpu")
    assert ours.scheduler_config["prediction_type"] == theirs.scheduler_config["prediction_type"]
    assert ours.layout == theirs.layout
    assert (found.text_widths, found.text_length, found.image_size) == (whole.text_widths, whole.text_length, 16)
    assert found.weight_bytes == checkpoint.stat().st_size
    pairs = [(ours.unet, theirs.unet), (ours.vae, theirs.vae)]
    pairs += [(a.model, b.model) for a, b in zip(ours.text_encoders, theirs.text_encoders, strict=True)]
    for a, b in pairs:
        mine, real = a.state_dict(), b.state_dict()
        assert mine.keys() == real.keys()
        assert all(torch.equal(mine[name], real[name]) for name in real)
    assert draw(ours).tobytes() == draw(theirs).tobytes()


def test_the_configurations_need_no_weights(sd1, tmp_path):
    import shutil

    folder, checkpoint = sd1
    shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    assert draw(load_foundation(find(checkpoint, tmp_path / "configs"), "cpu")).shape == (2, 16, 16, 3)
    # The weights in the folder are not used, so they are no part of what identifies the model.
    assert find(checkpoint, tmp_path / "configs").fingerprint == find(checkpoint, folder).fingerprint


def test_the_fingerprint_follows_the_checkpoint_and_its_configurations(sd1, tmp_path):
    import shutil

    folder, checkpoint = sd1
    before = find(checkpoint, folder).fingerprint
    assert before != find(folder).fingerprint
    shutil.copytree(folder, tmp_path / "other")
    scheduler = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("epsilon", "v_prediction"))
    assert find(checkpoint, tmp_path / "other").fingerprint != before
    tensors = load_file(checkpoint)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    assert find(tmp_path / "other.safetensors", folder).fingerprint != before


def test_without_configurations_the_setting_is_named(sd1, tmp_path):
    folder, checkpoint = sd1
    with pytest.raises(FoundationError, match="Set foundation_config to a diffusers folder"):
        find(checkpoint)
    with pytest.raises(FoundationError, match="foundation_config path .*nowhere does not exist"):
        find(checkpoint, tmp_path / "nowhere")
    with pytest.raises(FoundationError, match="model_index"):
        find(checkpoint, tmp_path)
    with pytest.raises(FoundationError, match="leave foundation_config away"):
        find(folder, folder)


def test_pickled_checkpoints_are_refused(tmp_path):
    for suffix in (".ckpt", ".pt"):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(b"\x80")
        with pytest.raises(FoundationError, match="pickled.*safetensors.torch.save_file"):
            find(path)
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(FoundationError, match="is no model"):
        find(tmp_path / "model.gguf")


def test_a_misspelt_file_is_not_looked_for_on_the_hub(no_network):
    with pytest.raises(FoundationError, match="does not exist"):
        find("models/misspelt.safetensors")


def test_configurations_of_another_architecture_are_refused(sd1, tmp_path):
    folder, checkpoint = sd1
    xl, xl_file = folder_and_file("sdxl", tmp_path)
    with pytest.raises(FoundationError, match="its architecture is SD 1.x, but .*StableDiffusionXLPipeline"):
        find(checkpoint, xl)
    with pytest.raises(FoundationError, match="its architecture is SDXL"):
        find(xl_file, folder)
    wide = write_pipeline("sd2", tmp_path / "sd2")
    with pytest.raises(FoundationError, match=r"its text encoder is SD 1.x, 32 wide, but .* 48 wide"):
        find(checkpoint, wide)
    tensors = load_file(checkpoint)
    first = tensors["model.diffusion_model.input_blocks.0.0.weight"]
    inpainting = {
        **tensors,
        "model.diffusion_model.input_blocks.0.0.weight": first.repeat(1, 3, 1, 1)[:, :9].contiguous(),
    }
    save_file(inpainting, tmp_path / "inpainting.safetensors")
    with pytest.raises(FoundationError, match="of 9 channels, but .* of 4"):
        find(tmp_path / "inpainting.safetensors", folder)


@pytest.mark.parametrize("part", ["model.diffusion_model", "first_stage_model", "cond_stage_model"])
def test_a_part_that_is_not_in_the_file_is_named(sd1, tmp_path, part):
    folder, checkpoint = sd1
    tensors = {name: t for name, t in load_file(checkpoint).items() if not name.startswith(part)}
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(FoundationError, match=rf"{part}\*|{part}\.\*"):
        find(tmp_path / "part.safetensors", folder)


def test_what_only_loading_finds_is_named_too(sd1, tmp_path):
    folder, checkpoint = sd1
    tensors = load_file(checkpoint)
    for part, name in (
        ("unet", "model.diffusion_model.out.2.bias"),
        ("vae", "first_stage_model.quant_conv.bias"),
        ("text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
    ):
        save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / "lacking.safetensors")
        with pytest.raises(FoundationError, match=f"lacks weights.* for {part}, .*foundation_config"):
            load_foundation(find(tmp_path / "lacking.safetensors", folder), "cpu")
    name = "model.diffusion_model.time_embed.2.weight"
    save_file({**tensors, name: tensors[name].repeat(2, 1)}, tmp_path / "shape.safetensors")
    with pytest.raises(FoundationError, match="cannot be loaded.*foundation_config"):
        load_foundation(find(tmp_path / "shape.safetensors", folder), "cpu")
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(FoundationError, match="incomplete"):
        find(tmp_path / "cut.safetensors", folder)


def test_half_precision_is_loaded_as_the_device_wants_it(sd1, tmp_path):
    folder, checkpoint = sd1
    save_file({name: t.half() for name, t in load_file(checkpoint).items()}, tmp_path / "half.safetensors")
    ours = load_foundation(find(tmp_path / "half.safetensors", folder), "cpu")
    assert {p.dtype for m in (ours.unet, ours.vae, ours.text_encoders[0].model) for p in m.parameters()} == {
        torch.float32
    }
    assert np.isfinite(draw(ours)).all()
