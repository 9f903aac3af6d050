"""Train a small network on a bundle with Lightning, which saves and restores the place in the stream of samples by itself.

python examples/train_lightning.py bundle.safetensors --steps 500 --output run
python examples/train_lightning.py bundle.safetensors --steps 1000 --output run --resume run/last.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

from d3m_assets import DistilledDataLoader, IterableDistilledDataset


class Classifier(lightning.LightningModule):
    """Two convolutions."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        loss = nn.functional.cross_entropy(self.layers(batch["pixel_values"]), batch["label"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train for some steps and write a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--foundation", default="embedded", help="the model that the bundle was made for")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("run"))
    parser.add_argument("--resume", type=Path)
    options = parser.parse_args()

    dataset = IterableDistilledDataset(
        options.bundle, options.foundation, batch_size=options.batch_size, drop_last=True
    )
    trainer = lightning.Trainer(
        max_steps=options.steps, default_root_dir=options.output, logger=False, enable_checkpointing=False
    )
    model = Classifier(dataset.bundle.recipe.channels, len(dataset.classes))
    trainer.fit(model, DistilledDataLoader(dataset), ckpt_path=options.resume)
    trainer.save_checkpoint(options.output / "last.ckpt")
    print(f"step {trainer.global_step}: loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main()
