"""Variations of image codes: do students learn more from coded images that were noised and denoised with their class's prompt?

    python -m benchmarks.variations --store FOLDER

SDEdit (Meng et al., ICLR 2022): each coded image is encoded by the foundation model's autoencoder, noised to a share of the noise
schedule and denoised with the prompt of its class's name, which takes no byte. Students of the default recipe learn from the coded
images, and from these with ``--variations`` variations of each; both are tested on the validation part, and the test split is never
opened. A table in Markdown is written to ``--output``.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.choose import MADE, measure, spread, words
from benchmarks.record import surroundings
from d3m_assets.assets.class_prompts import read_prompts
from d3m_assets.assets.context import Context
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import CLASS_NAME_GUIDANCE
from d3m_assets.datasets.labelled_images import LabelledImages, resize_to_square
from d3m_assets.distillation.generation import make_scheduler, prompt_states
from d3m_assets.distillation.latents import encode
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.text import empty_prompt
from d3m_assets.foundation.loading import Foundation
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey

STEPS = 20


def variations(
    foundation: Foundation, prompts: ClassPrompts, images: np.ndarray, strength: float, count: int, seed: int
) -> np.ndarray:
    """Variations of images of one class, by DDIM.

    Args:
        foundation: The model, on a CPU.
        prompts: Of the class, whose name is the prompt.
        images: uint8 ``[N, H, W, C]``.
        strength: Share of the noise schedule that is gone through, above 0 and at most 1.
        count: Variations of each image.
        seed: Root of the noise.

    Returns:
        uint8 ``[count * N, S, S, C]`` at the model's size.
    """
    import torch

    scheduler = make_scheduler(foundation.scheduler_config, "ddim")
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps[round(STEPS * (1 - strength)) :]
    pixels = np.tile(resize_to_square(images, foundation.files.image_size, 3), (count, 1, 1, 1))
    with torch.inference_mode():
        latents = torch.from_numpy(encode(foundation, pixels)).float()
        noise = torch.randn(latents.shape, generator=random_stream(seed, prompts.class_name, "variations", strength))
        latents = scheduler.add_noise(latents, noise, timesteps[:1])
        text, empty = prompt_states(foundation, prompts, None, None), empty_prompt(foundation)
        both = empty[[0] * len(latents)].followed_by(text[[0] * len(latents)])
        for t in timesteps:
            without, named = foundation.predict(torch.cat([latents] * 2), t, both).chunk(2)
            predicted = without + CLASS_NAME_GUIDANCE * (named - without)
            latents = scheduler.step(predicted, t, latents).prev_sample
        decoded = foundation.decode_latents(latents).permute(0, 2, 3, 1).numpy()
    return resize_to_square(decoded, foundation.files.image_size, images.shape[3])


def with_variations(context: Context, coded: LabelledImages, strength: float, count: int, seed: int) -> LabelledImages:
    """A training set of coded images and their variations, at the model's size."""
    foundation = context.model.reference.load()
    side, channels = foundation.files.image_size, coded.images.shape[3]
    images, labels = [resize_to_square(coded.images, side, channels)], [coded.labels]
    for c in context.dataset.classes:
        own = coded.images[coded.labels == c.position]
        made = variations(foundation, read_prompts(context, c.key), own, strength, count, seed)
        images.append(made)
        labels.append(np.full(len(made), c.position))
    return LabelledImages(np.concatenate(images), np.concatenate(labels), "synthetic")


def main() -> None:
    """Measure codes alone and with variations of each strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", default=["64B", "320B"])
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.3, 0.5], help="shares of the noise schedule")
    parser.add_argument("--variations", type=int, default=4, help="of each coded image")
    parser.add_argument("--distillations", type=int, default=2, help="seeds")
    parser.add_argument("--students", type=int, default=2, help="students of each distillation")
    parser.add_argument("--store", type=Path, help="keep artefacts here; default: a new temporary folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    folder = given.store or Path(tempfile.mkdtemp(prefix="d3m-variations-"))
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in range(given.distillations):
        pipeline = Pipeline(load_settings(**_settings(given, folder, seed)))
        for asset in MADE:
            for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
                if outcome.error:
                    raise outcome.error
        for budget in given.budgets:
            context = pipeline.reading(ArtefactKey("student_metrics", None, budget))
            coded = synthetic_images(context, budget)
            sets = {"codes": coded}
            prompts = pipeline.reading(ArtefactKey("distilled_bundle", None, budget))
            for strength in given.strengths:
                name = f"codes, {given.variations} variations of each, strength {strength:g}"
                sets[name] = with_variations(prompts, coded, strength, given.variations, seed)
            for name, train in sets.items():
                found = measure(context, name, lambda s, train=train: train)
                rows.setdefault(name, {}).setdefault(budget, []).append(float(np.mean(found)))
                print(f"seed {seed} {budget} {name}: {100 * np.mean(found):.1f} %", flush=True)
        pipeline.context.close()
    lines = [f"| training set | {' | '.join(given.budgets)} |", "|---|" + "---|" * len(given.budgets)]
    lines += [f"| {name} | {' | '.join(words(*spread(row[b])) for b in given.budgets)} |" for name, row in rows.items()]
    print("\n".join(lines))
    if given.output:
        facts = surroundings("cpu")
        command = shlex.join(["python", "-m", "benchmarks.variations", *sys.argv[1:]])
        head = f"`{command}`, commit {facts['commit'][:7]}, {facts['hardware']['device']}.\n\n"
        given.output.write_text(head + "\n".join(lines) + "\n")


def _settings(given: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """Settings of one distillation, whose store other measurements of the same seed can share."""
    return {
        "home": folder,
        "storage": str(folder / f"store-{seed}"),
        "seed": seed,
        "payload": "codes",
        "budgets": tuple(given.budgets),
        "validation_fraction": 0.3,
        "device": "auto",
        "students.seeds": tuple(range(seed * given.students, (seed + 1) * given.students)),
        "evaluation.distillations": 1,
    }


if __name__ == "__main__":
    main()
