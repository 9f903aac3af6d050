"""How far regenerated pixels move when batch size, threads or number format change: what the tolerance of `d3m verify` rests on.

    python -m benchmarks.regeneration

Images of the digits' class names by the embedded model, on this CPU; the reference is what pools are generated with: one
thread, float32, 50 images together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IMAGES, CLASSES = 50, "0123456789"


def main() -> None:
    """Print a row a change: images that stay equal, mean and largest difference of the worst image."""
    import torch

    from d3m_assets.distillation.generation import generate
    from d3m_assets.distillation.prompts import ClassPrompts
    from d3m_assets.distillation.settings import GenerationSettings
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    foundation = load_foundation(FoundationFiles("embedded", embedded_path()), "cpu")

    def images(*, threads: int = 1, batch_size: int = IMAGES, seed: int = 0, dtype: Any = torch.float32) -> np.ndarray:
        torch.set_num_threads(threads)
        for part in (foundation.unet, foundation.vae, *(encoder.model for encoder in foundation.text_encoders)):
            part.to(dtype)
        settings = GenerationSettings(batch_size=batch_size)
        made = []
        for class_id, name in enumerate(CLASSES):
            words = ClassPrompts.of(
                class_id, name, name, templates=("a photo of a {}",), initializer=None, keep_class_name=True
            )
            made.append(generate(foundation, words, settings, seed, count=IMAGES, channels=1)[0])
        return np.concatenate(made).astype(np.int16)

    reference = images()
    print(f"{len(reference)} images of {reference.shape[1]} x {reference.shape[2]} px; torch {torch.__version__}")
    print(
        "| change | equal images | mean difference: least, median, worst image | largest | off by more than 16: least, worst |"
    )
    print("|---|---|---|---|---|")
    changes: dict[str, dict[str, Any]] = {
        "none": {},
        "2 threads": {"threads": 2},
        "batches of 25": {"batch_size": 25},
        "batches of 7": {"batch_size": 7},
        "one at a time": {"batch_size": 1},
        "bfloat16, as on a GPU": {"dtype": torch.bfloat16},
        "another seed (other images)": {"seed": 1},
    }
    for name, change in changes.items():
        difference = np.abs(images(**change) - reference)
        by_image = difference.reshape(len(difference), -1)
        mean, far = by_image.mean(1), (by_image > 16).mean(1)
        print(
            f"| {name} | {(by_image.max(1) == 0).sum()} | {mean.min():.3f}, {np.median(mean):.3f}, {mean.max():.3f} "
            f"| {by_image.max()} | {far.min():.3f}, {far.max():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
