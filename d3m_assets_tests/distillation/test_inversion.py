import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from d3m_assets.datasets.loose_files import LooseFiles, records_of
from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings
from d3m_assets.distillation.inversion import cluster, invert, start_facts
from d3m_assets.distillation.inversion_state import InversionTask, InvertedClass
from d3m_assets.distillation.latents import ImageFiles, LatentCache, encode
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.errors import StageError
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.image_encoder import embed
from d3m_assets_tests.distillation.inversions import QUICK, learned, task


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
    longer = InversionSettings(steps=40, samples_per_step=16)
    one, other = (learned(foundation, [task(words, characters, "4", plan)], longer, seed)[0] for seed in (0, 1))
    assert one.vectors.tobytes() != other.vectors.tobytes()


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


def test_equal_images_leave_no_prompt_without_any(foundation, words, characters):
    images = np.repeat(characters("2", 2), 2, axis=0)
    plan = EmbeddingPlan(prompts=4, vectors=1, storage_type="int8", width=64)
    (result,) = learned(foundation, [InversionTask(words("2"), images, plan)])
    still = InversionSettings(steps=1, samples_per_step=4, learning_rate=1e-9)
    (start,) = learned(foundation, [InversionTask(words("2"), images, plan)], still)
    assert len({vector.tobytes() for vector in start.vectors}) == 4, "no two prompts start at the same place"
    assert min(result.cluster_sizes) > 0
    assert np.any(result.vectors, axis=-1).all()


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
    (one,) = learned(
        foundation, [task(words, characters, "1", plan_embeddings("x", 64, width=64), initializer="7 8")], still
    )
    table = encoder.table[encoder.tokenizer("7 8", add_special_tokens=False).input_ids].sum(0)
    start = torch.nn.functional.normalize(table, dim=0).numpy()
    row = from_stored(one.vectors, foundation.layout)[0, 0]
    assert start @ row / np.linalg.norm(row) > 0.9


def test_vectors_start_from_what_the_image_encoder_sees_of_their_cluster(foundation, words, characters):
    still = InversionSettings(steps=1, samples_per_step=4, learning_rate=1e-9)
    work = task(words, characters, "7", EmbeddingPlan(3, 2, "fp16", 64))
    (found,) = learned(foundation, [work], still)
    rows = torch.from_numpy(from_stored(found.vectors, foundation.layout))
    seen = embed(foundation.image_encoder, torch.from_numpy(encode(foundation, work.images)))
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(12))
    assert found.cluster_sizes != [12, 12, 12]
    for of_prompt, members in zip(rows, found.members, strict=True):
        mean = torch.nn.functional.normalize(seen[members].mean(0), dim=0)
        first, second = of_prompt
        torch.testing.assert_close(first, mean, atol=2e-3, rtol=0)
        assert 0.9 < float(second @ mean) < 0.99, "parted from the first, but near it"

    # Whole vectors start there, too, at the norm of the token table.
    plan = EmbeddingPlan(1, 1, "fp16", 64)
    direction, whole = (
        learned(foundation, [task(words, characters, "7", replace(plan, norms=norms))], settings)[0].losses[0][1]
        for norms, settings in ((0, still), (1, still.model_copy(update={"directional": False})))
    )
    assert direction == pytest.approx(whole, abs=1e-5)

    # Closer to the class than its name is.
    plan = plan_embeddings("x", 64, width=64)
    by_images, by_words = (
        learned(foundation, [task(words, characters, "7", plan)], still.model_copy(update={"initialization": kind}))[
            0
        ].losses[0][1]
        for kind in ("images", "words")
    )
    assert by_images < by_words


def test_what_a_stopped_run_left_of_another_start_is_not_taken_up(foundation, words, characters, tmp_path):
    work = task(words, characters, "7", plan_embeddings("x", 64, width=64))
    (kept,) = learned(foundation, [work], states=tmp_path)
    assert kept.state.exists()
    from_words = QUICK.model_copy(update={"initialization": "words"})
    (found,), (alone,) = (learned(foundation, [work], from_words, states=states) for states in (tmp_path, None))
    assert found.state != kept.state
    assert found.vectors.tobytes() == alone.vectors.tobytes() != kept.vectors.tobytes()


def test_words_are_the_start_where_they_are_given_or_the_model_sees_no_images(foundation, words, monkeypatch):
    files, auto = foundation.files, InversionSettings()
    images = {"image_encoder": hashlib.sha256(files.image_encoder.read_bytes()).hexdigest()}
    assert start_facts(files, words("7"), auto, 1) == images
    assert start_facts(files, words("7", initializer="one"), auto, 1) == {}
    as_words, as_images = (InversionSettings(initialization=kind) for kind in ("words", "images"))
    assert start_facts(files, words("7"), as_words, 1) == {}
    assert start_facts(files, words("7", initializer="one"), as_images, 1) == images
    monkeypatch.setattr(FoundationFiles, "image_encoder", None)
    assert start_facts(files, words("7"), auto, 1) == {}
    with pytest.raises(StageError, match=r"embedded has no image encoder; set it to words or auto"):
        start_facts(files, words("7"), as_images, 1)


def test_a_damaged_cache_of_latents_changes_nothing_that_is_learned(foundation, words, characters, tmp_path, caplog):
    from PIL import Image

    paths = []
    for i, image in enumerate(characters("5", 6)[..., 0]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    files = ImageFiles(LooseFiles(), records_of(paths), 1)
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
