"""Train a small network on a bundle in a plain PyTorch loop: every epoch sees images that no other has seen.

    python examples/train_pytorch.py bundle.safetensors --steps 500 --checkpoint run.pt

Run again with more steps, it goes on where it stopped, with the samples that would have come next, whatever --workers says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from d3m_assets import DistilledDataLoader, IterableDistilledDataset


def network(channels: int, classes: int) -> nn.Module:
    """Three convolutions."""
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    """Train for some steps and say the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--foundation", default="embedded", help="the model that the bundle was made for")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder by which workers share the work of generation")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()

    dataset = IterableDistilledDataset(
        options.bundle, options.foundation, batch_size=options.batch_size, cache=options.cache
    )
    # CUDA and forked processes do not go together.
    start = {"multiprocessing_context": "spawn"} if options.workers and torch.cuda.is_available() else {}
    loader = DistilledDataLoader(dataset, num_workers=options.workers, **start)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = network(dataset.bundle.recipe.channels, len(dataset.classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    if options.checkpoint and options.checkpoint.exists():
        saved = torch.load(options.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["data"])
        step = saved["step"]

    while step < options.steps:
        for batch in loader:  # an epoch, or the rest of one
            images, labels = batch["pixel_values"].to(device), batch["label"].to(device)
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == options.steps:
                print(f"step {step}: loss {loss.item():.3f}", flush=True)
            if step >= options.steps:
                break

    if options.checkpoint:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "data": loader.state_dict(),
                "step": step,
            },
            options.checkpoint,
        )


if __name__ == "__main__":
    main()
