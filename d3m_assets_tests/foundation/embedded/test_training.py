import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from d3m_assets.errors import SettingsError
from d3m_assets.foundation.embedded import training
from d3m_assets.foundation.embedded.training import Muon, TrainingSettings, train
from d3m_assets.foundation.embedded.training import _build as build
from d3m_assets.foundation.files import IMAGE_ENCODER
from d3m_assets_tests.processes import alive

TINY = TrainingSettings(processes=1, vae_steps=3, vae_batch=4, images=12, steps=4, batch=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny training, to be copied: its checkpoints in ``work``, its pipeline in ``model``."""
    root = tmp_path_factory.mktemp("trained")
    train(TINY, root / "work", root / "model")
    return root


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_stopped_training_goes_on_and_writes_a_pipeline(copy):
    before = load_file(copy / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    # As a stop right after the autoencoder would leave it.
    (copy / "work" / "diffusion.safetensors").unlink()
    train(TINY, copy / "work", copy / "again")
    after = load_file(copy / "again" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before)
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(copy / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a bold 7", num_inference_steps=2).images[0].size == (32, 32)
    norms = pipeline.text_encoder.get_input_embeddings().weight.norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=2e-3)


class Stopped(Exception):
    pass


def test_a_training_stopped_between_two_steps_ends_in_the_same_bits(tmp_path, monkeypatch):
    """Weights, average, AdamW's moments and Muon's momentum all come back from the checkpoint."""

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        modules = {"net": torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5))}
        folder.mkdir(exist_ok=True)
        trainer = training._Trainer(modules, TINY, 6, folder / "state.safetensors")
        assert set(trainer.matrices) == {"net.0.weight", "net.2.weight"}
        while trainer.step < 6:
            if trainer.step == stop_at:
                trainer.save()
                raise Stopped
            generator = torch.Generator().manual_seed(trainer.step)
            images = torch.randn(4, 3, 8, 8, generator=generator)
            trainer.update((modules["net"](images) - images.mean()).square().mean())
        return {**{n: p.detach() for n, p in trainer.parameters.items()}, "average": trainer.average["net.2.weight"]}

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop_at=3)
    resumed = run(tmp_path / "stopped")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_muon_makes_updates_whose_singular_values_are_about_equal():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(6, 3, 2, 2))
    parameter.grad = torch.randn(6, 3, 2, 2) * torch.logspace(0, -1.5, 6).view(6, 1, 1, 1)
    raw = torch.linalg.svdvals(parameter.grad.view(6, 12))
    Muon([parameter]).step(1.0)
    values = torch.linalg.svdvals(parameter.detach().view(6, 12)) / (0.2 * 12**0.5)
    assert raw.max() / raw.min() > 10
    assert 0.6 < values.min() <= values.max() < 1.3


def test_checkpoints_of_other_settings_are_refused(copy):
    with pytest.raises(SettingsError, match="--work"):
        train(replace(TINY, steps=5), copy / "work", copy / "model")


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="--processes"):
        train(replace(TINY, processes=3), tmp_path / "work", tmp_path / "model")


def weights(pipeline, part):
    (file,) = (pipeline / part).glob("*.safetensors")
    return load_file(file)


def test_training_can_go_on_from_a_pipeline(copy):
    # So small a rate leaves what it begins from where it was, as far as 16 bits tell.
    onwards = replace(TINY, start=str(copy / "model"), steps=1, learning_rate=1e-9)
    train(onwards, copy / "work2", copy / "further")
    for part in ("vae", "unet", "text_encoder"):
        before, after = weights(copy / "model", part), weights(copy / "further", part)
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[n].float(), after[n].float(), atol=2e-3) for n in before), part
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(copy / "model", "vae").values(), weights(copy / "further", "vae").values(), strict=True)
    )
    assert not (copy / "work2" / "autoencoder.safetensors").exists()
    before, after = (load_file(copy / name / IMAGE_ENCODER) for name in ("model", "further"))
    assert all(torch.allclose(before[n].float(), after[n].float(), atol=2e-3) for n in before), "image encoder"
    recorded = json.loads((copy / "further" / "training.json").read_text())["settings"]
    assert recorded["start"] == "model"  # and not where it was on this machine

    file = copy / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import save_file

    save_file({n: t for n, t in load_file(file).items() if n != "conv_in.weight"}, file)
    with pytest.raises(SettingsError, match=r"another architecture.*conv_in\.weight"):
        build(onwards)


def test_workers_do_not_outlive_a_killed_training(tmp_path):
    program = (
        "from pathlib import Path\nfrom d3m_assets.foundation.embedded.training import TrainingSettings, train\n"
        "if __name__ == '__main__':\n"
        "    settings = TrainingSettings(processes=1, vae_steps=100_000, vae_batch=2, images=4, steps=1, batch=2)\n"
        f"    train(settings, Path({str(tmp_path / 'work')!r}), Path({str(tmp_path / 'model')!r}), "
        "lambda event: print(event.done, flush=True))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    try:
        parent.stdout.readline()  # it is training
        listing = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent.pid)]
        children = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
        (worker,) = (int(child.split()[0]) for child in children if "spawn_main" in child)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 20
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not alive(worker)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
