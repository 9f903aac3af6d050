"""The examples as they stand, for a few steps, and Lightning's own keeping of the place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_examples = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="an installed package has no examples")


def run(script, *arguments, cwd):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_examples
def test_pytorch_goes_on_with_another_number_of_workers(bundle_file, tmp_path):
    import torch

    def parameters(name):
        return torch.load(tmp_path / name, weights_only=True)["model"]

    common = (bundle_file, "--batch-size", 4, "--cache", tmp_path / "cache")
    run("train_pytorch.py", *common, "--steps", 7, "--checkpoint", "whole.pt", cwd=tmp_path)
    run("train_pytorch.py", *common, "--steps", 3, "--checkpoint", "parts.pt", "--workers", 2, cwd=tmp_path)
    out = run("train_pytorch.py", *common, "--steps", 7, "--checkpoint", "parts.pt", cwd=tmp_path)
    assert "step 7: loss" in out
    whole, parts = parameters("whole.pt"), parameters("parts.pt")
    assert all(torch.allclose(whole[name], parts[name]) for name in whole)


@needs_examples
def test_transformers(bundle_file, tmp_path):
    run("train_transformers.py", bundle_file, "--steps", 2, "--output", "model", cwd=tmp_path)
    from transformers import ResNetForImageClassification

    model = ResNetForImageClassification.from_pretrained(tmp_path / "model")
    assert model.config.id2label == {0: "0", 1: "1", 2: "7"}


@needs_examples
def test_lightning_goes_on_in_mid_epoch(bundle_file, tmp_path):
    import torch

    def parameters(folder):
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["state_dict"]

    torch.manual_seed(0)
    common = (bundle_file, "--batch-size", 4)
    run("train_lightning.py", *common, "--steps", 2, "--output", "parts", cwd=tmp_path)
    run("train_lightning.py", *common, "--steps", 7, "--output", "whole", "--resume", "parts/last.ckpt", cwd=tmp_path)
    checkpoint = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    (state,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert state == {"position": 8}
    # Stopped again, at the end of an epoch (four batches of four; two samples are dropped), and in the next one.
    run("train_lightning.py", *common, "--steps", 4, "--output", "parts", "--resume", "parts/last.ckpt", cwd=tmp_path)
    run("train_lightning.py", *common, "--steps", 5, "--output", "parts", "--resume", "parts/last.ckpt", cwd=tmp_path)
    run("train_lightning.py", *common, "--steps", 7, "--output", "parts", "--resume", "parts/last.ckpt", cwd=tmp_path)
    whole, parts = parameters("whole"), parameters("parts")
    assert all(torch.allclose(whole[name], parts[name]) for name in whole)
