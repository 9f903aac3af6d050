"""Small inversions that tests of several modules share."""

import torch

from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass
from d3m_assets.distillation.settings import InversionSettings

QUICK = InversionSettings(steps=6, samples_per_step=4)
WHOLE = InversionSettings(steps=6, samples_per_step=4, directional=False, learning_rate=0.05, initialization="words")


def task(words, characters, name, plan, **changes):
    return InversionTask(words(name, **changes), characters(name, 12), plan)


def learned(foundation, tasks, settings=QUICK, seed=0, **options):
    found = dict(invert(foundation, tasks, settings, seed, **options))
    assert all(isinstance(f, InvertedClass) for f in found.values()), found
    return [found[i] for i in range(len(tasks))]


def fixed_batch_sizes(foundation, monkeypatch, limit=10**9):
    """Samples of every forward pass that evaluates fixed batches; more than ``limit`` are out of memory."""
    sizes, predict = [], foundation.predict

    def noting(noisy, times, prompts):
        if torch.is_inference_mode_enabled():
            if len(noisy) > limit:
                raise torch.OutOfMemoryError("simulated")
            sizes.append(len(noisy))
        return predict(noisy, times, prompts)

    monkeypatch.setattr(foundation, "predict", noting)
    return sizes
