"""Train an image classifier of transformers on a bundle with its Trainer.

    python examples/train_transformers.py bundle.safetensors --steps 500 --output resnet

The Trainer shuffles and splits by index, so it gets the dataset by index; a cache spares later epochs and runs the generation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from d3m_assets import DistilledDataset


def main() -> None:
    """Train for some steps and save the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--foundation", default="embedded", help="the model that the bundle was made for")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--cache", type=Path, help="folder that keeps generated images")
    parser.add_argument("--output", type=Path, default=Path("resnet"))
    options = parser.parse_args()

    dataset = DistilledDataset(options.bundle, options.foundation, cache=options.cache)
    config = ResNetConfig(
        num_channels=dataset.bundle.recipe.channels,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(dataset.classes)),
        label2id={name: label for label, name in enumerate(dataset.classes)},
    )
    arguments = TrainingArguments(
        str(options.output), max_steps=options.steps, per_device_train_batch_size=64, logging_steps=50, report_to=[]
    )
    trainer = Trainer(ResNetForImageClassification(config), arguments, train_dataset=dataset)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
