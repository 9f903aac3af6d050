import numpy as np
import pytest
import torch

from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InvertedClass
from d3m_assets.distillation.objective import DenoisingObjective
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.errors import StageError
from d3m_assets_tests.distillation.inversions import QUICK, fixed_batch_sizes, learned, task


def test_a_class_that_diverges_is_named_and_the_others_go_on(foundation, words, characters, monkeypatch):
    plan = plan_embeddings("ipc-2", 128, width=64)
    tasks = [task(words, characters, name, plan) for name in "358"]
    (alone,) = learned(foundation, tasks[:1])
    sample = DenoisingObjective.sample

    def poisoned(self, state, stream, *rest):
        batch = sample(self, state, stream, *rest)
        broken = state.task.prompts.class_name == "5" and stream == 3
        return batch._replace(noise=batch.noise * float("nan")) if broken else batch

    monkeypatch.setattr(DenoisingObjective, "sample", poisoned)
    found = dict(invert(foundation, tasks, QUICK, 0, classes_per_batch=3))
    assert isinstance(found[1], StageError)
    assert "inversion of 5 diverged at step 3" in str(found[1])
    assert "learning_rate" in str(found[1])
    assert np.abs(found[0].vectors.astype(int) - alone.vectors.astype(int)).max() <= 1
    assert isinstance(found[2], InvertedClass)


def test_a_class_whose_loss_has_settled_makes_room_for_the_next(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    # Steps too small to change anything: every evaluation after the first is one without progress.
    settings = InversionSettings(steps=40, samples_per_step=4, check_every=2, patience=2, learning_rate=1e-6)
    at_a_time = []
    found = learned(
        foundation,
        [task(words, characters, name, plan) for name in "123"],
        settings,
        classes_per_batch=2,
        progress=lambda e: at_a_time.append(int(e.detail.split()[0])),
    )
    assert [f.stop_reason for f in found] == ["loss settled"] * 3
    assert [f.losses[-1][0] for f in found] == [4, 4, 4]
    assert at_a_time == [2, 2, 2, 2, 1, 1, 1, 1]


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(foundation, words, characters, monkeypatch, caplog):
    plan = plan_embeddings("ipc-1", 64, width=64)
    tasks = [task(words, characters, name, plan) for name in "01234"]
    calm = learned(foundation, tasks, classes_per_batch=5)
    forward = foundation.unet.forward

    def small(sample, *args, **kwargs):
        if len(sample) > 8 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("simulated")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(foundation.unet, "forward", small)
    found = learned(foundation, tasks, classes_per_batch=5)
    for a, b in zip(calm, found, strict=True):
        assert np.abs(a.vectors.astype(int) - b.vectors.astype(int)).max() <= 1
    assert "2 classes a batch" in caplog.text
    big = InversionSettings(steps=2, samples_per_step=16)
    ((position, error),) = invert(foundation, tasks[:1], big, 0)
    assert position == 0
    assert "samples_per_step" in str(error)


def test_fixed_batches_that_do_not_fit_are_evaluated_in_halves(foundation, words, characters, monkeypatch):
    plan = plan_embeddings("ipc-1", 64, width=64)
    tasks = [task(words, characters, name, plan) for name in "0123"]
    calm = learned(foundation, tasks, classes_per_batch=4)
    sizes = fixed_batch_sizes(foundation, monkeypatch, limit=8)
    found = learned(foundation, tasks, classes_per_batch=4)
    assert set(sizes) == {8}
    for a, b in zip(calm, found, strict=True):
        np.testing.assert_allclose([x for _, x in a.losses], [x for _, x in b.losses], atol=1e-5)
    fixed_batch_sizes(foundation, monkeypatch, limit=3)
    refused = dict(invert(foundation, tasks, QUICK, 0, classes_per_batch=4))
    assert all("alone does not fit into the memory" in str(error) for error in refused.values())
    assert len(refused) == 4


def _bits(result):
    return result.vectors.tobytes(), result.losses, result.best_step


def test_an_exact_batch_gives_each_class_the_bits_that_it_gets_alone(foundation, words, characters, tmp_path):
    one, several = plan_embeddings("ipc-1", 64, width=64), EmbeddingPlan(3, 1, "int8", 64)
    settings = InversionSettings(steps=4, samples_per_step=16, check_every=2)
    tasks = [task(words, characters, name, one) for name in "358"] + [task(words, characters, "7", several)]
    alone = [_bits(learned(foundation, [t], settings)[0]) for t in tasks]
    batch = {"exact": True, "classes_per_batch": 4}
    assert [_bits(r) for r in learned(foundation, tasks, settings, **batch)] == alone
    # At another place, beside others, and after a stop that left it behind its neighbours.
    assert [_bits(r) for r in learned(foundation, tasks[::-1], settings, **batch)] == alone[::-1]

    class Stop(Exception):
        pass

    def stopping(event):
        if event.done == 3:
            raise Stop

    with pytest.raises(Stop):
        list(invert(foundation, tasks[:1], settings, 0, stopping, states=tmp_path, save_every=0))
    steps = []
    again = learned(
        foundation, tasks[1::-1], settings, states=tmp_path, progress=lambda e: steps.append(e.done), **batch
    )
    assert [_bits(r) for r in again] == alone[1::-1]
    assert steps[0] == 5  # 4 of one class, 1 of the other


def test_classes_are_learned_one_at_a_time_where_batches_round(foundation, words, characters, monkeypatch):
    tasks = [task(words, characters, digit, plan_embeddings("ipc-1", 64, width=64)) for digit in "358"]
    alone = [_bits(learned(foundation, [t])[0]) for t in tasks]
    compute, sizes = DenoisingObjective.gradients, []

    def rounding(self, states, learned_rows):
        sizes.append(len(states))
        results = compute(self, states, learned_rows)
        if len(states) == 1:
            return results
        return [(loss, gradient * torch.linspace(1, 1.5, 64)) for loss, gradient in results]

    monkeypatch.setattr(DenoisingObjective, "gradients", rounding)
    found = learned(foundation, tasks, classes_per_batch=3, exact=True)
    assert [_bits(r) for r in found] == alone
    assert sizes == [3] + [1] * 3 * QUICK.steps
    sizes.clear()
    assert [_bits(r) for r in learned(foundation, tasks, classes_per_batch=3)] != alone
    assert set(sizes) == {3}


def test_batches_of_a_shape_are_compared_twice(foundation, words, characters, monkeypatch):
    tasks = [task(words, characters, digit, plan_embeddings("ipc-1", 64, width=64)) for digit in "3546"]
    gradients, sizes = DenoisingObjective.gradients, []

    def noting(self, states, learned_rows):
        sizes.append(len(states))
        # As where kernels do not depend on the size of the batch, whatever machine this is.
        return [gradients(self, [state], learned_rows)[0] for state in states]

    monkeypatch.setattr(DenoisingObjective, "gradients", noting)
    learned(foundation, tasks, classes_per_batch=2, exact=True)
    assert sizes == [2, 1, 1] * 2 + [2] * (2 * QUICK.steps - 2)
