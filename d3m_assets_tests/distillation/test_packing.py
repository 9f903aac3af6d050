import numpy as np
import pytest
import torch

from d3m_assets.distillation.budgets import plan_embeddings
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass
from d3m_assets.distillation.packing import Packing, StepMemory, samples_that_fit
from d3m_assets.distillation.settings import InversionSettings

QUICK = InversionSettings(steps=6, samples_per_step=4)


def test_a_share_of_the_free_memory_is_filled():
    assert samples_that_fit(taken=100, samples=4, free=1000, share=0.85) == 34
    assert samples_that_fit(taken=100, samples=4, free=1000, share=1.0) == 40
    # What does not grow with the samples makes the estimate smaller, never larger.
    assert samples_that_fit(taken=100 + 300, samples=4, free=1000) < 34
    assert samples_that_fit(taken=10**12, samples=1, free=1) == 1
    assert samples_that_fit(taken=0, samples=4, free=100) > 0


def test_classes_join_while_their_samples_fit():
    packing = Packing.to_measure(64)
    assert packing.takes([], 10**6)  # one class is always tried
    assert not packing.takes([4], 4)  # until something is known
    assert packing.learn(StepMemory(taken=400, free=4000), 4)
    assert (packing.samples, packing.bytes_per_sample) == (34, 100)
    assert packing.takes([4] * 7, 4)
    assert not packing.takes([4] * 8, 4)
    assert not packing.takes([16, 16], 4)
    assert not packing.learn(StepMemory(taken=1, free=4000), 4)  # only a larger step says more
    assert packing.learn(StepMemory(taken=32 * 90, free=4000), 32)
    assert packing.samples == 37


def test_the_number_of_classes_has_a_limit_of_its_own():
    packing = Packing.to_measure(3)
    packing.learn(StepMemory(taken=1, free=10**9), 1)
    assert packing.takes([1, 1], 1)
    assert not packing.takes([1, 1, 1], 1)
    assert packing.halve(3) == 1
    assert not packing.takes([1], 1)
    plain = Packing(2)
    assert plain.takes([100], 100)
    assert not plain.takes([100, 100], 100)
    assert not plain.learn(StepMemory(1, 1), 1)


class Device:
    """A device of so many bytes, on which a sample of a step takes 100, and whatever the probe believes."""

    def __init__(self, monkeypatch, foundation, memory, believed=100):
        self.steps, self.believed, self.memory = [], believed, memory
        predict = foundation.predict

        def counting(noisy, times, prompts):
            if torch.is_grad_enabled():
                if 100 * len(noisy) > memory:
                    raise torch.OutOfMemoryError("simulated")
                self.steps.append(len(noisy))
            return predict(noisy, times, prompts)

        monkeypatch.setattr(foundation, "predict", counting)

    def begin(self):
        self.before = len(self.steps)

    def end(self):
        (samples,) = self.steps[self.before :]
        return StepMemory(self.believed * samples, self.memory)


@pytest.fixture
def tasks(words, characters):
    def of(names, plan):
        return [InversionTask(words(name), characters(name, 12), plan) for name in names]

    return of


def run(foundation, tasks, **options):
    found = dict(invert(foundation, tasks, QUICK, 0, **options))
    assert all(isinstance(f, InvertedClass) for f in found.values()), found
    return [found[i] for i in range(len(tasks))]


def test_the_batch_grows_to_what_fits_and_nothing_else_changes(foundation, tasks, monkeypatch):
    work = tasks("0123456", plan_embeddings("ipc-1", 64, width=64))
    separate = run(foundation, work)
    device, told = Device(monkeypatch, foundation, memory=1500), []
    found = run(foundation, work, classes_per_batch=64, probe=device, progress=lambda e: told.append(e.detail))
    # One class of four samples, then three: 85 % of 1500 bytes are twelve samples of 100.
    assert device.steps[0] == 4
    assert set(device.steps[1:11]) == {12}
    assert max(device.steps) == 12
    for a, b in zip(separate, found, strict=True):
        assert np.abs(a.vectors.astype(int) - b.vectors.astype(int)).max() <= 1
        assert a.packing is None
        assert (b.packing.samples, b.packing.bytes_per_sample) == (12, 100)
    assert "12 samples fit" in told[0]
    assert told[1].startswith("3 classes at a time")


def test_classes_with_more_prompts_are_fewer_at_a_time(foundation, tasks, monkeypatch):
    work = tasks("01234", plan_embeddings("ipc-4", 256, width=64))  # four prompts of two samples each
    device = Device(monkeypatch, foundation, memory=2100)
    run(foundation, work, classes_per_batch=64, probe=device)
    assert max(device.steps) == 16


def test_a_wrong_estimate_is_mended_by_halving(foundation, tasks, monkeypatch, caplog):
    work = tasks("0123456", plan_embeddings("ipc-1", 64, width=64))
    separate = run(foundation, work)
    device = Device(monkeypatch, foundation, memory=1500, believed=50)
    found = run(foundation, work, classes_per_batch=64, probe=device)
    assert "3 classes a batch" in caplog.text
    assert max(device.steps) == 12
    for a, b in zip(separate, found, strict=True):
        assert np.abs(a.vectors.astype(int) - b.vectors.astype(int)).max() <= 1
