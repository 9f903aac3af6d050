import numpy as np
import pytest
import torch

from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.inversion import InversionTask, cluster, from_stored, invert, random_stream, to_stored
from d3m_assets.distillation.text import encode, extended_table, learned_ids
from d3m_assets.errors import StageError
from d3m_assets.settings import InversionSettings

QUICK = InversionSettings(steps=6, samples_per_step=4)


def task(words, characters, name, plan, **changes):
    return InversionTask(words(name, **changes), characters(name, 12), plan)


def test_fused_classes_learn_what_separate_runs_learn(foundation, words, characters):
    plan = plan_embeddings("ipc-2", 256, width=64, storage_type="fp16")
    tasks = [task(words, characters, name, plan) for name in "358"]
    fused = invert(foundation, tasks, QUICK, 0)
    for t, together in zip(tasks, fused, strict=True):
        (alone,) = invert(foundation, [t], QUICK, 0)
        assert np.abs(alone.vectors.astype(float) - together.vectors.astype(float)).max() < 2e-3  # one unit of fp16
        np.testing.assert_allclose([x for _, x in alone.losses], [x for _, x in together.losses], atol=1e-5)


def test_a_class_alone_is_the_same_to_the_last_bit(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    first, again = (invert(foundation, [task(words, characters, "4", plan)], QUICK, 0)[0] for _ in range(2))
    assert first.vectors.tobytes() == again.vectors.tobytes()
    (other,) = invert(foundation, [task(words, characters, "4", plan)], QUICK, 1)
    assert first.vectors.tobytes() != other.vectors.tobytes()


def test_learning_lowers_the_loss_on_fixed_inputs(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    settings = InversionSettings(steps=40, samples_per_step=16)
    # Starts from another digit's word, so that there is something to learn.
    wrong = task(words, characters, "1", plan, initializer="8", keep_class_name=False)
    (result,) = invert(foundation, [wrong], settings, 0)
    assert result.losses[-1][1] < result.losses[0][1] - 0.005
    assert [s for s, _ in result.losses][0] == 0
    assert [s for s, _ in result.losses][-1] == 40


def test_the_foundation_model_is_left_as_it_was(foundation, words, characters):
    before = {n: p.clone() for n, p in foundation.text_encoder.state_dict().items()}
    invert(foundation, [task(words, characters, "2", plan_embeddings("ipc-1", 64, width=64))], QUICK, 0)
    after = foundation.text_encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_several_prompts_learn_clusters(foundation, words, characters):
    plan = EmbeddingPlan(prompts=3, vectors=2, storage_type="int8", width=64)
    (result,) = invert(foundation, [task(words, characters, "7", plan)], QUICK, 0)
    assert result.vectors.shape == (3, 2, 64)
    assert sum(result.cluster_sizes) == 12
    assert min(result.cluster_sizes) >= 1
    assert len({v.tobytes() for v in result.vectors}) == 3


def test_clusters_are_numbered_from_the_largest():
    points = np.concatenate([np.zeros((3, 2)), np.full((9, 2), 5.0)]) + np.random.default_rng(0).normal(0, 0.1, (12, 2))
    assert cluster(points, 2, 0).tolist() == [1] * 3 + [0] * 9
    assert cluster(points, 1, 0).tolist() == [0] * 12


def test_a_class_that_diverges_is_named(foundation, words, characters, monkeypatch):
    broken = foundation.encode_images
    monkeypatch.setattr(foundation, "encode_images", lambda images: broken(images) * float("nan"))
    with pytest.raises(StageError, match="5.*learning_rate"):
        invert(foundation, [task(words, characters, "5", plan_embeddings("ipc-1", 64, width=64))], QUICK, 0)


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("fp16", 0.001)])
def test_storage_keeps_the_direction_and_needs_no_scale(kind, tolerance):
    rows = np.random.default_rng(0).normal(size=(5, 2, 64)).astype(np.float32)
    plan = EmbeddingPlan(5, 2, kind, 64)
    stored = to_stored(rows, plan)
    assert stored.nbytes == plan.payload
    back = from_stored(stored, 0.4)
    np.testing.assert_allclose(np.linalg.norm(back, axis=-1), 0.4, rtol=1e-5)
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    assert (1 - (unit * back / 0.4).sum(-1)).max() < tolerance


@pytest.mark.parametrize("bad", [np.zeros((1, 1, 4), np.int8), np.full((1, 1, 4), np.nan, np.float16)])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(StageError, match="zero or not finite"):
        from_stored(bad, 1.0)


def test_streams_depend_on_every_part():
    def draw(*parts):
        return torch.rand(3, generator=random_stream(*parts)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({tuple(draw(*p)) for p in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]}) == 4


def test_every_vector_reaches_the_text_encoder(foundation, words):
    prompts = words("3")
    ids = learned_ids(foundation, prompts, 2, 3, 0)
    size = len(foundation.table)
    assert [i - size for i in ids.flatten().tolist() if i >= size] == [0, 1, 2, 3, 4, 5]
    with extended_table(foundation) as table, torch.inference_mode():
        table.rows = torch.randn(6, 64)
        before = encode(foundation, ids)
        table.rows[5] += 1
        after = encode(foundation, ids)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_vectors_that_do_not_fit_are_refused(foundation, words):
    with pytest.raises(StageError, match="24 tokens"):
        learned_ids(foundation, words("3"), 1, 30, 0)


def test_equal_images_leave_no_prompt_without_any(foundation, words, characters):
    images = np.repeat(characters("2", 2), 2, axis=0)
    plan = EmbeddingPlan(prompts=4, vectors=1, storage_type="int8", width=64)
    (result,) = invert(foundation, [InversionTask(words("2"), images, plan)], QUICK, 0)
    assert min(result.cluster_sizes) > 0
    assert np.any(result.vectors, axis=-1).all()
