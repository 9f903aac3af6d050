import numpy as np
import pytest
import torch

from d3m_assets.distillation import inversion_state
from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.inversion import _Engine, cluster, invert
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.text import encode, extended_tables, learned_ids
from d3m_assets.distillation.vectors import from_stored, to_stored
from d3m_assets.errors import StageError

QUICK = InversionSettings(steps=6, samples_per_step=4)


def task(words, characters, name, plan, **changes):
    return InversionTask(words(name, **changes), characters(name, 12), plan)


def learned(foundation, tasks, settings=QUICK, seed=0, **options):
    found = dict(invert(foundation, tasks, settings, seed, **options))
    assert all(isinstance(f, InvertedClass) for f in found.values()), found
    return [found[i] for i in range(len(tasks))]


def test_fused_classes_learn_what_separate_runs_learn(foundation, words, characters):
    plan = plan_embeddings("ipc-2", 256, width=64, storage_type="fp16")
    tasks = [task(words, characters, name, plan) for name in "358"]
    fused = learned(foundation, tasks, classes_per_batch=3)
    for t, together in zip(tasks, fused, strict=True):
        (alone,) = learned(foundation, [t])
        assert np.abs(alone.vectors.astype(float) - together.vectors.astype(float)).max() < 2e-3  # one unit of fp16
        np.testing.assert_allclose([x for _, x in alone.losses], [x for _, x in together.losses], atol=1e-5)


def test_a_class_alone_is_the_same_to_the_last_bit(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    first, again = (learned(foundation, [task(words, characters, "4", plan)])[0] for _ in range(2))
    assert first.vectors.tobytes() == again.vectors.tobytes()
    (other,) = learned(foundation, [task(words, characters, "4", plan)], seed=1)
    assert first.vectors.tobytes() != other.vectors.tobytes()


def test_learning_lowers_the_loss_on_fixed_inputs(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    settings = InversionSettings(steps=40, samples_per_step=16)
    # Starts from another digit's word, so that there is something to learn.
    wrong = task(words, characters, "1", plan, initializer="8", keep_class_name=False)
    (result,) = learned(foundation, [wrong], settings)
    assert result.losses[-1][1] < result.losses[0][1] - 0.005
    assert [s for s, _ in result.losses][0] == 0
    assert [s for s, _ in result.losses][-1] == 40


def test_the_foundation_model_is_left_as_it_was(foundation, words, characters):
    before = {n: p.clone() for n, p in foundation.text_encoders[0].model.state_dict().items()}
    learned(foundation, [task(words, characters, "2", plan_embeddings("ipc-1", 64, width=64))])
    after = foundation.text_encoders[0].model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_several_prompts_learn_clusters(foundation, words, characters):
    plan = EmbeddingPlan(prompts=3, vectors=2, storage_type="int8", width=64)
    (result,) = learned(foundation, [task(words, characters, "7", plan)])
    assert result.vectors.shape == (3, 2, 64)
    assert sum(result.cluster_sizes) == 12
    assert min(result.cluster_sizes) >= 1
    assert len({v.tobytes() for v in result.vectors}) == 3


def test_clusters_are_numbered_from_the_largest():
    points = np.concatenate([np.zeros((3, 2)), np.full((9, 2), 5.0)]) + np.random.default_rng(0).normal(0, 0.1, (12, 2))
    assert cluster(points, 2, 0).tolist() == [1] * 3 + [0] * 9
    assert cluster(points, 1, 0).tolist() == [0] * 12


def test_a_class_that_diverges_is_named_and_the_others_go_on(foundation, words, characters, monkeypatch):
    plan = plan_embeddings("ipc-2", 128, width=64)
    tasks = [task(words, characters, name, plan) for name in "358"]
    (alone,) = learned(foundation, tasks[:1])
    draw = inversion_state.ClassState.draw

    def poisoned(self, seed, name, *rest):
        clean, noise, times = draw(self, seed, name, *rest)
        return clean, noise * (float("nan") if self.task.prompts.class_name == "5" and name == 3 else 1.0), times

    monkeypatch.setattr(inversion_state.ClassState, "draw", poisoned)
    found = dict(invert(foundation, tasks, QUICK, 0, classes_per_batch=3))
    assert isinstance(found[1], StageError)
    assert "inversion of 5 diverged at step 3" in str(found[1])
    assert "learning_rate" in str(found[1])
    assert np.abs(found[0].vectors.astype(int) - alone.vectors.astype(int)).max() <= 1
    assert isinstance(found[2], InvertedClass)


@pytest.mark.parametrize("budget", [64, 192])
def test_images_whose_latents_are_no_numbers_are_named(foundation, words, characters, monkeypatch, budget):
    encode_images = foundation.encode_images
    calls = []

    def poisoned(images):
        calls.append(1)
        return encode_images(images) * (float("nan") if len(calls) == 1 else 1.0)

    monkeypatch.setattr(foundation, "encode_images", poisoned)
    tasks = [task(words, characters, name, plan_embeddings("x", budget, width=64)) for name in "35"]
    found = dict(invert(foundation, tasks, QUICK, 0))
    assert "latents of class 3" in str(found[0])
    assert isinstance(found[1], InvertedClass)


def test_a_stopped_run_goes_on_where_it_was(foundation, words, characters, tmp_path):
    plan = plan_embeddings("ipc-2", 128, width=64)
    tasks = [task(words, characters, name, plan) for name in "47"]
    settings = InversionSettings(steps=12, samples_per_step=8, check_every=4)
    undisturbed = learned(foundation, tasks, settings, states=tmp_path / "a", classes_per_batch=2)

    class Stop(Exception):
        pass

    for stop_at in (1, 5, 8, 11):
        folder = tmp_path / str(stop_at)
        seen = []

        def stopping(event, stop_at=stop_at, seen=seen):
            seen.append(event.done)
            if len(seen) == stop_at:
                raise Stop

        with pytest.raises(Stop):
            list(invert(foundation, tasks, settings, 0, stopping, classes_per_batch=2, states=folder, save_every=0))
        assert len(list(folder.glob("*.safetensors"))) == 2
        steps = []
        again = learned(foundation, tasks, settings, states=folder, classes_per_batch=2,
                        progress=lambda e, steps=steps: steps.append(e.done))  # fmt: skip
        assert len(steps) == 12 - stop_at
        for a, b in zip(undisturbed, again, strict=True):
            assert a.vectors.tobytes() == b.vectors.tobytes()
            assert a.losses == b.losses
        # What is finished is kept until the caller has stored it: another run needs no step.
        steps.clear()
        third = learned(
            foundation, tasks, settings, states=folder, progress=lambda e, steps=steps: steps.append(e.done)
        )
        assert steps == []
        assert [t.vectors.tobytes() for t in third] == [u.vectors.tobytes() for u in undisturbed]
        assert {t.state for t in third} == set(folder.glob("*"))


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:-4] + b"\1\2\3\4", lambda b: b""])
def test_a_damaged_state_is_begun_anew(foundation, words, characters, tmp_path, damage, caplog):
    plan = plan_embeddings("ipc-1", 64, width=64)
    work = [task(words, characters, "4", plan)]
    (undisturbed,) = learned(foundation, work)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(invert(foundation, work, QUICK, 0, stop, states=tmp_path, save_every=0))
    (state,) = tmp_path.glob("*")
    state.write_bytes(damage(state.read_bytes()))
    (again,) = learned(foundation, work, states=tmp_path)
    assert "begins anew" in caplog.text
    assert again.vectors.tobytes() == undisturbed.vectors.tobytes()


def test_a_class_whose_loss_has_settled_makes_room_for_the_next(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    # Steps too small to change anything: every look after the first is one without progress.
    settings = InversionSettings(steps=40, samples_per_step=4, check_every=2, patience=2, learning_rate=1e-6)
    at_a_time = []
    found = learned(foundation, [task(words, characters, name, plan) for name in "123"], settings, classes_per_batch=2,
                    progress=lambda e: at_a_time.append(int(e.detail.split()[0])))  # fmt: skip
    assert [f.stop_reason for f in found] == ["loss settled"] * 3
    assert [f.losses[-1][0] for f in found] == [4, 4, 4]
    assert at_a_time == [2, 2, 2, 2, 1, 1, 1, 1]


def test_the_best_rows_are_kept(foundation, words, characters, monkeypatch):
    plan = plan_embeddings("ipc-1", 64, width=64)
    seen = {}
    record = inversion_state.ClassState.record

    def noting(self, loss):
        seen[self.step] = self.rows.clone()
        record(self, loss)

    monkeypatch.setattr(inversion_state.ClassState, "record", noting)
    # A rate that throws the rows about.
    settings = InversionSettings(steps=8, samples_per_step=4, check_every=1, learning_rate=3.0)
    (found,) = learned(foundation, [task(words, characters, "3", plan)], settings)
    best = min(found.losses, key=lambda record: record[1])
    assert found.best_step == best[0] < 8
    assert len(found.losses) == len(seen) == 9
    assert np.array_equal(found.vectors, to_stored(seen[best[0]].view(1, 1, 64).numpy(), plan, (64,)))
    assert not np.array_equal(found.vectors, to_stored(seen[8].view(1, 1, 64).numpy(), plan, (64,)))


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_state(foundation, words, characters, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    work = [task(words, characters, "4", plan_embeddings("ipc-1", 64, width=64))]
    learned(foundation, work, states=tmp_path / "file" / "states", save_every=0)
    assert "cannot be kept" in caplog.text


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


def test_every_vector_reaches_the_text_encoder(foundation, words):
    prompts = words("3")
    ids = learned_ids(foundation, prompts, 2, 3, 0)
    assert [-1 - i for i in ids.flatten().tolist() if i < 0] == [0, 1, 2, 3, 4, 5]
    with extended_tables(foundation) as rows, torch.inference_mode():
        vectors = torch.randn(6, 64)
        rows.set(vectors)
        before = encode(foundation, ids).states
        vectors[5] += 1
        rows.set(vectors)
        after = encode(foundation, ids).states
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_vectors_that_do_not_fit_are_refused(foundation, words):
    with pytest.raises(StageError, match="24 tokens"):
        learned_ids(foundation, words("3"), 1, 30, 0)


def test_equal_images_leave_no_prompt_without_any(foundation, words, characters):
    images = np.repeat(characters("2", 2), 2, axis=0)
    plan = EmbeddingPlan(prompts=4, vectors=1, storage_type="int8", width=64)
    (result,) = learned(foundation, [InversionTask(words("2"), images, plan)])
    assert min(result.cluster_sizes) > 0
    assert np.any(result.vectors, axis=-1).all()


def test_min_snr_weights_follow_the_paper(foundation):
    engine = _Engine(foundation, InversionSettings(snr_gamma=5.0), 0)
    assert engine.velocity
    times = torch.tensor([10, 300, 700])
    signal = engine.schedule.alphas_cumprod[times].double()
    ratio = signal / (1 - signal)
    expected = torch.minimum(ratio, torch.tensor(5.0)) / (ratio + 1)
    assert torch.allclose(engine.min_snr_weights(times, 5.0).double(), expected, atol=1e-6)
    engine.velocity = False
    expected = torch.minimum(ratio, torch.tensor(5.0)) / ratio
    assert torch.allclose(engine.min_snr_weights(times, 5.0).double(), expected, atol=1e-6)


def test_weights_and_timestep_law_change_the_steps_and_not_the_fixed_loss(foundation, words, characters):
    plan = plan_embeddings("ipc-1", 64, width=64)
    (plain,) = learned(foundation, [task(words, characters, "3", plan)])
    for changes in ({"snr_gamma": 1.0}, {"timestep_power": 0.4}):
        (other,) = learned(foundation, [task(words, characters, "3", plan)], QUICK.model_copy(update=changes))
        assert other.losses[0] == plain.losses[0]  # the same measure for every setting
        assert other.losses[-1] != plain.losses[-1]


def test_a_low_power_draws_the_noisy_timesteps_more_often(foundation, words, characters):
    state = _Engine(foundation, QUICK, 0).begin(0, task(words, characters, "3", plan_embeddings("x", 64, width=64)),
                                                None, None)  # fmt: skip
    uniform, noisy = (state.draw(0, "x", 64, 1000, power)[2].float().mean() for power in (1.0, 0.5))
    assert abs(uniform - 500) < 20
    assert noisy > 620


WHOLE = InversionSettings(steps=6, samples_per_step=4, directional=False, learning_rate=0.05)


def test_whole_vectors_are_learned_as_adamw_learns_them(foundation, words, characters):
    plan = EmbeddingPlan(2, 1, "fp16", 64, norms=1)
    engine = _Engine(foundation, WHOLE, 0)
    state = engine.begin(0, task(words, characters, "3", plan), None, None)
    assert torch.allclose(state.rows.norm(dim=-1), torch.tensor(foundation.layout.norms[0]))  # where it begins
    theirs = torch.nn.Parameter(state.rows.clone())
    optimiser = torch.optim.AdamW([theirs], lr=WHOLE.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, WHOLE.steps)
    with extended_tables(foundation) as rows:
        for _ in range(WHOLE.steps):
            ((_, gradient),) = engine.gradients([state], rows)
            engine.update(state, gradient)
            theirs.grad = gradient
            optimiser.step()
            schedule.step()
    assert torch.allclose(state.rows, theirs, atol=1e-6)
    assert not torch.allclose(state.rows.norm(dim=-1), torch.tensor(foundation.layout.norms[0]), rtol=1e-3)


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
    (moved,) = learned(foundation, [task(words, characters, "1", plans[1], **wrong)],
                       InversionSettings(steps=40, samples_per_step=16, **rates))  # fmt: skip
    assert turned.losses[0][1] == pytest.approx(moved.losses[0][1], abs=1e-6)
    assert min(loss for _, loss in moved.losses) < moved.losses[0][1] - 0.005


def test_a_plan_that_would_lose_the_norms_is_a_defect(foundation, words, characters):
    with pytest.raises(ValueError, match="norms"):
        list(invert(foundation, [task(words, characters, "3", plan_embeddings("x", 64, width=64))], WHOLE, 0))


def test_every_word_of_the_initializer_starts_its_vectors(foundation, words, characters):
    plan = EmbeddingPlan(2, 4, "fp16", 64)
    still = InversionSettings(steps=1, samples_per_step=4, learning_rate=1e-9)
    work = task(words, characters, "1", plan, initializer="7 8 square")
    (found,) = learned(foundation, [work], still)
    rows = from_stored(found.vectors, foundation.layout)
    encoder = foundation.text_encoders[0]

    def nearest(row):
        candidates = ["1", "7", "8", "square", "a", "photo"]
        ids = [encoder.tokenizer(word, add_special_tokens=False).input_ids for word in candidates]
        table = torch.stack([torch.nn.functional.normalize(encoder.table[i].sum(0), dim=0) for i in ids])
        return candidates[int((table @ torch.from_numpy(row)).argmax())]

    assert [[nearest(row) for row in prompt] for prompt in rows] == [["7", "8", "square", "7"]] * 2
    # A single vector starts from all of them, as it always has.
    (one,) = learned(foundation, [task(words, characters, "1", plan_embeddings("x", 64, width=64), initializer="7 8")],
                     still)  # fmt: skip
    table = encoder.table[encoder.tokenizer("7 8", add_special_tokens=False).input_ids].sum(0)
    start = torch.nn.functional.normalize(table, dim=0).numpy()
    row = from_stored(one.vectors, foundation.layout)[0, 0]
    assert start @ row / np.linalg.norm(row) > 0.9


def test_a_damaged_cache_of_latents_changes_nothing_that_is_learned(foundation, words, characters, tmp_path, caplog):
    import hashlib

    from PIL import Image

    paths = []
    for i, image in enumerate(characters("5", 6)[..., 0]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    files = ImageFiles(tuple(map(str, paths)), tuple(hashlib.sha256(p.read_bytes()).hexdigest() for p in paths), 1)
    work = [InversionTask(words("5"), files, plan_embeddings("x", 128, width=64))]
    cache = LatentCache(tmp_path / "cache", 10**6)
    (first,) = learned(foundation, work, cache=cache)
    (file,) = (tmp_path / "cache").iterdir()
    sound = file.read_bytes()
    file.write_bytes(sound[:-64] + b"\x3c" * 64)
    (again,) = learned(foundation, work, cache=cache)
    assert "damaged" in caplog.text
    assert again.vectors.tobytes() == first.vectors.tobytes()
    assert file.read_bytes() == sound


def looked_at(foundation, monkeypatch, limit=10**9):
    """Samples of every forward pass of the looks at the loss on fixed inputs; more than ``limit`` are out of memory."""
    sizes, predict = [], foundation.predict

    def noting(noisy, times, prompts):
        if torch.is_inference_mode_enabled():
            if len(noisy) > limit:
                raise torch.OutOfMemoryError("simulated")
            sizes.append(len(noisy))
        return predict(noisy, times, prompts)

    monkeypatch.setattr(foundation, "predict", noting)
    return sizes


def test_classes_of_a_batch_are_looked_at_together_and_seen_alike(foundation, words, characters, monkeypatch):
    plans = [EmbeddingPlan(prompts, 1, "int8", 64) for prompts in (1, 3, 5)]
    tasks = [task(words, characters, name, plan) for name, plan in zip("358", plans, strict=True)]
    settings = InversionSettings(steps=4, samples_per_step=16, check_every=2)
    separate = [learned(foundation, [t], settings)[0] for t in tasks]
    sizes = looked_at(foundation, monkeypatch)
    together = learned(foundation, tasks, settings, classes_per_batch=3)
    for a, b in zip(separate, together, strict=True):
        np.testing.assert_allclose([x for _, x in a.losses], [x for _, x in b.losses], atol=1e-5)
    # 64 samples for one prompt in parts of 16, 22 for each of three in parts of 6, 13 for each of five in parts of 4.
    one_look = [16 + 18 + 20] * 3 + [16 + 12 + 5]
    assert sizes == one_look * 3


def test_a_look_that_is_too_large_is_taken_in_halves(foundation, words, characters, monkeypatch):
    plan = plan_embeddings("ipc-1", 64, width=64)
    tasks = [task(words, characters, name, plan) for name in "0123"]
    calm = learned(foundation, tasks, classes_per_batch=4)
    sizes = looked_at(foundation, monkeypatch, limit=8)
    found = learned(foundation, tasks, classes_per_batch=4)
    assert set(sizes) == {8}
    for a, b in zip(calm, found, strict=True):
        np.testing.assert_allclose([x for _, x in a.losses], [x for _, x in b.losses], atol=1e-5)
    looked_at(foundation, monkeypatch, limit=3)
    refused = dict(invert(foundation, tasks, QUICK, 0, classes_per_batch=4))
    assert all("alone does not fit into the memory" in str(error) for error in refused.values())
    assert len(refused) == 4
