"""Levers at equal bytes: what each does to vectors, samples and bytes, and that the table is of the validation part."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import learning_variants, levers
from benchmarks.learning_variants import (
    DiscriminativeObjective,
    SamplerObjective,
    SubspaceAdam,
    learn,
    learn_in_basis,
    nearest_of_starts,
    other_prompts,
    shared_basis,
    through_basis,
)
from benchmarks.levers import Cell, as_markdown, cells_of, in_proportion
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.inversion import invert, prepare_class
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.latents import LatentCache
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.text import extended_tables
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.errors import StageError
from d3m_assets.evaluation.metrics import test_split_reads
from d3m_assets.evaluation.teacher import Teacher
from d3m_assets.foundation.vector_layout import VectorLayout
from d3m_assets.store import ArtefactKey

SETTINGS = InversionSettings(steps=2, samples_per_step=4, check_every=2)
PLAN = EmbeddingPlan(prompts=2, vectors=1, storage_type="fp16", width=64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tasks(characters):
    return [
        InversionTask(
            ClassPrompts.of(k, name, name, templates=("a photo of a {}",), initializer=None, keep_class_name=True),
            characters(name, 6, seed=k).repeat(3, -1),
            PLAN,
        )
        for k, name in enumerate("17")
    ]


@pytest.fixture
def cache(tmp_path):
    return LatentCache(tmp_path, 0)


def states_of(foundation, tasks, objective):
    return [
        prepare_class(foundation, k, task, objective.settings, objective.seed, objective.optimizer)
        for k, task in enumerate(tasks)
    ]


def gradients(foundation, objective, states):
    with extended_tables(foundation) as rows:
        return objective.gradients(states, rows)


def mean_term(foundation, objective, states):
    """The term alone, on the fixed batches."""
    with extended_tables(foundation) as rows, torch.no_grad():
        rows.set(objective.optimizer.embeddings(torch.cat([state.rows for state in states])))
        samples = [8] * len(states)
        batches = [objective.sample(state, "fixed", 8) for state in states]
        texts = objective.text_states(states, [0] * len(states))
        terms = objective.errors_and_terms(states, texts, batches, samples, "fixed")[1]
        return float(torch.cat(terms).mean())


def margin(foundation, objective, states):
    """How much larger, in logarithms, errors are under the other class's prompts than under the own."""
    with extended_tables(foundation) as rows, torch.no_grad():
        rows.set(objective.optimizer.embeddings(torch.cat([state.rows for state in states])))
        batches = [objective.sample(state, "fixed", 16) for state in states]
        texts = objective.text_states(states, [0, 0])
        own, other = (torch.cat(objective.losses(states, t, batches, [16, 16])) for t in (texts, texts[[2, 3, 0, 1]]))
        return float((other.log() - own.log()).mean())


def moved(states, slopes, objective, rate):
    """The states after one step along the gradient."""
    for state, (_, gradient) in zip(states, slopes, strict=True):
        state.rows, _ = objective.optimizer.step(state.rows, gradient, state.optimizer_state, 1, rate)
    return states


def test_without_a_variant_the_product_s_vectors_are_learned(foundation, tasks, cache):
    ours = learn(foundation, tasks, learning_variants.plain(foundation, SETTINGS, 3), cache)
    for position, result in invert(foundation, tasks, SETTINGS, 3):
        assert result.vectors.tobytes() == ours[position].vectors.tobytes()


def test_the_discriminative_term_separates_the_prompts_of_classes(foundation, tasks):
    plain = learning_variants.plain(foundation, SETTINGS, 0)
    without = DiscriminativeObjective(foundation, SETTINGS, 0, plain.optimizer, 0.0)
    for (loss, slope), (expected, base) in zip(
        *(gradients(foundation, o, states_of(foundation, tasks, o)) for o in (without, plain)), strict=True
    ):
        assert loss == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(slope, base, rtol=1e-3, atol=1e-6)
    from_words = SETTINGS.model_copy(update={"initialization": "words"})  # images would leave little to separate
    alone = DiscriminativeObjective(foundation, from_words, 0, plain.optimizer, 1e4)
    states = states_of(foundation, tasks, alone)
    before = margin(foundation, plain, states)
    assert mean_term(foundation, alone, states) > 0
    assert margin(foundation, plain, moved(states, gradients(foundation, alone, states), alone, 0.1)) > before


def test_negatives_are_prompts_of_other_classes_and_all_of_them():
    prompts = torch.tensor([2, 1, 3])
    own = torch.tensor([0, 1, 2]).repeat_interleave(200)
    drawn = other_prompts(own, prompts, torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 0, 1, 2, 2, 2])[drawn]
    assert not (owner == own).any()
    assert [sorted(set(drawn[own == k].tolist())) for k in range(3)] == [[2, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2]]


def test_gradients_reach_the_vectors_through_the_sampler(foundation, tasks):
    def by_brightness(images):
        level = images.mean((1, 2, 3)) * 20
        return torch.stack([level, -level], 1)

    network = Teacher(by_brightness, torch.nn.Linear(1, 2), ("bright", "dark"), 16, 1, "cpu")
    plain = learning_variants.plain(foundation, SETTINGS, 0)
    objective = SamplerObjective(foundation, SETTINGS, 0, plain.optimizer, 1e4, network)
    states = states_of(foundation, tasks, objective)
    before = mean_term(foundation, objective, states)
    assert before > 0
    assert (
        mean_term(foundation, objective, moved(states, gradients(foundation, objective, states), objective, 0.1))
        < before
    )


def test_every_prompt_starts_where_its_cluster_is_denoised_best(foundation, tasks):
    objective = learning_variants.plain(foundation, SETTINGS, 0)
    (state,) = states_of(foundation, tasks[:1], objective)
    first = state.rows

    def losses():
        rows.set(objective.optimizer.embeddings(state.rows))
        batch = objective.sample(state, "starts", 32)
        with torch.no_grad():
            return objective.losses([state], objective.text_states([state], [0]), [batch], [32])[0]

    with extended_tables(foundation) as rows:
        before = losses()
        nearest_of_starts(objective, state, rows, draws=1)
        assert torch.equal(state.rows, first)
        nearest_of_starts(objective, state, rows)
        after = losses()
    changed = (state.rows != first).any(1)
    assert changed.any()
    assert torch.equal(after < before, changed)
    torch.testing.assert_close(state.rows.norm(dim=1), torch.ones(2))
    assert torch.equal(state.rows, state.best_rows)


def test_vectors_of_a_shared_basis_are_what_their_coefficients_say(foundation, tasks, cache):
    layout = foundation.layout
    random = np.random.default_rng(0)
    stored = [random.normal(size=(5, 1, 64)).astype(np.float16) for _ in range(2)]
    basis = shared_basis(stored, layout, 4)
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-5)
    with pytest.raises(StageError, match="10 vectors"):
        shared_basis(stored, layout, 11)
    plan = replace(PLAN, storage_type="int4", width=4)
    learned = learn_in_basis(foundation, [replace(t, plan=plan) for t in tasks], SETTINGS, 0, cache, basis)
    rows = np.concatenate([from_stored(r.vectors, VectorLayout((64,), (1.0,))) for r in learned])
    np.testing.assert_allclose(rows @ basis.T @ basis, rows, atol=2e-3)  # float16
    np.testing.assert_allclose(through_basis(rows, basis, plan), rows, atol=2e-3)
    optimizer = SubspaceAdam(layout, torch.from_numpy(basis))
    start = optimizer.initial_rows(torch.eye(64)[:2])
    stepped, _ = optimizer.step(start, torch.ones(2, 64), optimizer.initial_state(start), 1, 0.1)
    assert not torch.equal(stepped, start)
    torch.testing.assert_close(stepped @ optimizer.basis.T @ optimizer.basis, stepped)


def test_prompts_are_used_in_proportion_to_their_clusters_whatever_is_taken():
    order = in_proportion([60, 30, 10], 100)
    assert np.bincount(order).tolist() == [60, 30, 10]
    assert order[:3].tolist() == [0, 1, 0]
    assert np.bincount(order[:10]).tolist() == [6, 3, 1]


def test_the_table_compares_with_the_first_row_by_seed():
    def result(accuracy):
        return {"accuracy": accuracy, "layout": "1 x 1, int4", "bytes": 50, "candidates": 150, "kept": 50.0,
                "recognised": 0.9, "worst": 0.8, "learning": 3.0, "seconds": 5.0}  # fmt: skip

    zero, one, letters = Cell("digits", "64B", 0), Cell("digits", "64B", 1), Cell("letters", "1024B", 0)
    results = {
        ("defaults", zero): result([0.9, 0.9]), ("defaults", one): result([0.8, 0.8]),
        ("int8", zero): result([0.93, 0.91]), ("int8", one): result([0.82, 0.82]), ("int8", letters): result([0.5, 0.5]),
        ("fp16", zero): {"unfit": "too small"}, ("fp16", letters): result([0.5, 0.5]),
    }  # fmt: skip
    lines = as_markdown(results, ["defaults", "int8", "fp16"]).splitlines()
    assert "| int8 | +2.0 ± 0.0 | – | +2.0 |" in lines  # no defaults of the letters, so nothing to compare with
    (fp16, _) = [line for line in lines if line.startswith("| fp16 | ") and line.count("|") == 9]
    assert fp16 == "| fp16 | does not fit | – | – | – | – | – | – |"
    assert any(
        "| 90.0 %, 80.0 % | 87.0 ± 63.5 (93.0, 91.0, 82.0, 82.0) | +2.0 ± 0.0 | 5 (3) |" in line for line in lines
    )


def test_datasets_are_named_with_their_budgets():
    assert cells_of(["digits=64B", "letters"], 2) == [
        Cell("digits", "64B", 0), Cell("digits", "64B", 1), Cell("letters", "1024B", 0), Cell("letters", "1024B", 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="needs budgets"):
        cells_of(["/data/mnist"], 1)


@pytest.mark.long
def test_rows_are_measured_resumed_and_the_first_is_the_product(tmp_path, image_folder, monkeypatch):
    reads = len(test_split_reads())
    quick = {"inversion.steps": "1", "generation.images_per_class": "4", "generation.steps": "1", "students.steps": "2"}
    options = levers.Options(tmp_path / "store", 1, quick)
    cell = Cell(str(image_folder()), "256B", 0)
    names = ["defaults", "no selection", "cluster weights", "discriminative 0.3", "cluster starts", "shared basis",
             "through the sampler", "codes"]  # fmt: skip
    results = {name: levers.measured(options, cell, name) for name in names}
    assert all(0 <= accuracy <= 1 for result in results.values() for accuracy in result["accuracy"])
    assert all(result["bytes"] <= 256 for name, result in results.items() if name != "codes")
    assert results["no selection"]["kept"] == results["no selection"]["candidates"] == 4
    assert results["defaults"]["candidates"] == 12
    assert results["cluster weights"]["layout"] == results["defaults"]["layout"] == "7 x 1, int4"
    assert results["cluster weights"]["bytes"] == results["defaults"]["bytes"] + 7

    # What the benchmark trains students on is what the product distils.
    trained = []
    monkeypatch.setattr(levers, "measure", lambda context, name, sets, budget: trained.append(sets(0)) or [0.5])
    (options.folder / "results").rename(options.folder / "known")
    levers.measured(options, cell, "defaults")
    pipeline = levers.open_pipeline(options, cell, {})
    levers.make(pipeline, levers.MADE)
    made = synthetic_images(pipeline.reading(ArtefactKey("student_metrics", None, "256B")), "256B")
    pipeline.context.close()
    assert np.array_equal(trained[0].images, made.images)

    # What is known is not measured again.
    monkeypatch.setattr(levers, "_of_prompts", None)
    assert levers.measured(options, cell, "defaults")["accuracy"] == [0.5]
    assert len(test_split_reads()) == reads
