import numpy as np
import pytest
import torch

from d3m_assets.distillation import inversion
from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.optimizers import adamw_step, cosine_rate, make_optimizer, spherical_adam_step
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.vectors import from_stored
from d3m_assets_tests.distillation.inversions import QUICK, WHOLE, learned, task


def test_the_cosine_schedule_and_adamw_are_those_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 8, generator=generator)
    theirs = torch.nn.Parameter(rows.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.05, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    exp_avg, exp_avg_sq = torch.zeros(3, 8), torch.zeros(3, 8)
    for step in range(6):
        gradient = torch.randn(3, 8, generator=generator)
        rate = cosine_rate(0.05, step, 6)
        assert rate == pytest.approx(schedule.get_last_lr()[0])
        rows, exp_avg, exp_avg_sq = adamw_step(rows, gradient, exp_avg, exp_avg_sq, step + 1, rate)
        theirs.grad = gradient
        optimizer.step()
        schedule.step()
    assert torch.allclose(rows, theirs, atol=1e-6)
    assert torch.allclose(exp_avg_sq, optimizer.state[theirs]["exp_avg_sq"])


def test_a_step_on_the_sphere_turns_a_row_by_the_rate_and_ignores_its_radius():
    rows = torch.nn.functional.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    gradient = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(4, 64)
    turned, exp_avg, exp_avg_sq = spherical_adam_step(rows, gradient, zero, zero, 1, 0.15)
    assert torch.allclose(turned.norm(dim=-1), torch.ones(4))
    assert torch.allclose((turned * rows).sum(-1).arccos().tan(), torch.full((4,), 0.15), rtol=1e-4)
    assert torch.allclose((exp_avg * rows).sum(-1), torch.zeros(4), atol=1e-6)
    assert torch.equal(exp_avg_sq, exp_avg_sq[:, :1].expand(4, 64))
    along_the_radius, *_ = spherical_adam_step(rows, gradient + 3 * rows, zero, zero, 1, 0.15)
    assert torch.allclose(along_the_radius, turned, atol=1e-5)


def test_both_optimizers_start_from_the_same_embeddings(foundation):
    directions = foundation.layout.unit(torch.randn(2, 64))
    for settings in (QUICK, WHOLE):
        optimizer = make_optimizer(settings, foundation.layout)
        rows = optimizer.initial_rows(directions)
        assert torch.equal(optimizer.embeddings(rows), foundation.layout.scaled(directions))
        assert optimizer.learns_norms is not settings.directional


def test_another_optimizer_needs_nothing_but_its_own_class(foundation, words, characters, tmp_path, monkeypatch):
    class Momentum:
        """Its state has other names than Adam's; a stopped run takes it up all the same."""

        learns_norms = True

        def initial_rows(self, directions):
            return foundation.layout.scaled(directions)

        def initial_state(self, rows):
            return {"momentum": torch.zeros_like(rows)}

        def embeddings(self, rows):
            return rows

        def step(self, rows, gradient, state, step, rate):
            momentum = 0.9 * state["momentum"] + gradient
            return rows - rate * momentum, {"momentum": momentum}

    monkeypatch.setattr(inversion, "make_optimizer", lambda settings, layout: Momentum())
    work = [task(words, characters, "3", EmbeddingPlan(1, 1, "fp16", 64, norms=1))]
    (undisturbed,) = learned(foundation, work, WHOLE)

    def stop(event):
        if event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(invert(foundation, work, WHOLE, 0, stop, states=tmp_path, save_every=0))
    steps = []
    (again,) = learned(
        foundation, work, WHOLE, states=tmp_path, save_every=0, progress=lambda event: steps.append(event.done)
    )
    assert steps == [4, 5, 6]
    assert again.vectors.tobytes() == undisturbed.vectors.tobytes()


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_whole_vectors_keep_their_norms_and_fused_classes_learn_alike(foundation, words, characters, kind):
    plan = plan_embeddings("x", 280, width=64, storage_type=kind, norms=1)
    tasks = [task(words, characters, name, plan) for name in "358"]
    fused, norms = learned(foundation, tasks, WHOLE, classes_per_batch=3), []
    for t, together in zip(tasks, fused, strict=True):
        (alone,) = learned(foundation, [t], WHOLE)
        a, b = (from_stored(found.vectors, foundation.layout) for found in (alone, together))
        assert np.abs(a - b).max() < 0.01
        norms.append(np.linalg.norm(b, axis=-1) / foundation.layout.norms[0])
        assert together.vectors.nbytes == plan.payload
        assert together.losses[0] == pytest.approx(alone.losses[0], abs=1e-5)
    assert np.abs(np.array(norms) - 1).max() > 1e-3


def test_whole_vectors_start_as_directions_do_and_lower_the_loss(foundation, words, characters):
    wrong = {"initializer": "8", "keep_class_name": False}
    plans = [plan_embeddings("x", 70, width=64, norms=norms) for norms in (0, 1)]
    rates = {"learning_rate": 0.02, "directional": False}
    (turned,) = learned(foundation, [task(words, characters, "1", plans[0], **wrong)])
    (moved,) = learned(
        foundation,
        [task(words, characters, "1", plans[1], **wrong)],
        InversionSettings(steps=40, samples_per_step=16, **rates),
    )
    assert turned.losses[0][1] == pytest.approx(moved.losses[0][1], abs=1e-6)
    assert min(loss for _, loss in moved.losses) < moved.losses[0][1] - 0.005


def test_a_plan_that_would_lose_the_norms_is_a_defect(foundation, words, characters):
    with pytest.raises(ValueError, match="norms"):
        list(invert(foundation, [task(words, characters, "3", plan_embeddings("x", 64, width=64))], WHOLE, 0))
