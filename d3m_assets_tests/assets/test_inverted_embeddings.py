"""The learned vectors of a class: what they are learned from, on what, and those that the user already has."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from d3m_assets.assets import context
from d3m_assets.assets.inverted_embeddings import (
    RECORD,
    InversionJob,
    _batch_size,
    _groups,
    inversion_task,
    processor_batch,
)
from d3m_assets.compute.workers import Workers
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.latents import LatentCache
from d3m_assets.distillation.packing import CudaMemory
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.errors import BudgetError, D3MError, FoundationError, StageError
from d3m_assets.foundation.files import IMAGE_ENCODER, embedded_path
from d3m_assets.foundation.model import ModelReference
from d3m_assets.progress import silent
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import open_pipeline, run


def test_training_sees_no_validation_or_test_image(finished, monkeypatch):
    from d3m_assets.distillation import latents

    pipeline = open_pipeline(finished, finished / "images", latent_cache_gib=0)
    rows = pd.concat([pipeline.context.dataset.scan.classes[c].table(0) for c in ("0", "1", "7")])
    allowed = set(rows[rows["split"] == "train"]["relative_path"])
    seen = []
    real = latents.load_images
    monkeypatch.setattr(latents, "load_images", lambda r, images, **k: seen.extend(images) or real(r, images, **k))
    keys = pipeline.keys("inverted_embeddings")
    assert all(o.error is None for o in pipeline.materialize("inverted_embeddings", keys, force=True))
    assert seen
    assert set(map(str, seen)) <= allowed


def test_a_class_that_fails_does_not_take_the_others_with_it(tmp_path, image_folder, monkeypatch):
    from d3m_assets.assets import inverted_embeddings

    folder = image_folder()
    pipeline = open_pipeline(tmp_path, folder, budgets=("ipc-1",))
    for asset in ("class_catalog", "raw_dataset", "foundation_model", "class_prompts"):
        list(pipeline.materialize(asset, pipeline.keys(asset)))
    real = inverted_embeddings.invert

    def one_fails(foundation, tasks, *rest, **options):
        for position, learned in real(foundation, tasks, *rest, **options):
            yield position, StageError("diverged") if tasks[position].prompts.class_name == "1" else learned

    monkeypatch.setattr(inverted_embeddings, "invert", one_fails)
    outcomes = list(pipeline.materialize("inverted_embeddings", pipeline.keys("inverted_embeddings")))
    assert [(o.key.class_key, o.error is None) for o in outcomes] == [("0", True), ("1", False), ("7", True)]
    # What needs the failed one says so instead of working on half a dataset.
    (bundle,) = pipeline.materialize("distilled_bundle", pipeline.keys("distilled_bundle"))
    assert "inverted_embeddings [1, ipc-1], which is missing" in str(bundle.error)


def test_a_gpu_batch_learns_what_processes_learn(copy, monkeypatch):
    pipeline = open_pipeline(copy, copy / "images")
    keys = pipeline.keys("inverted_embeddings")
    from d3m_assets.assets.inverted_embeddings import read_vectors

    before = {k: read_vectors(pipeline.reading(k, own=True), k).astype(int) for k in keys}
    # The processor stands in for the GPU: what is tested is the one batch of all classes and budgets.
    monkeypatch.setattr(context, "open_workers", lambda *settings: Workers(1, on_cpu=False))
    heard = []
    pipeline.context.progress = heard.append
    outcomes = list(pipeline.materialize("inverted_embeddings", keys, force=True))
    assert [o.error for o in outcomes] == [None] * len(keys)
    assert heard[-1].done == heard[-1].total == 3 * len(keys)
    for key in keys:
        assert np.abs(read_vectors(pipeline.reading(key, own=True), key).astype(int) - before[key]).max() <= 2
    assert not list((copy / "home" / "cache" / "inversion").glob("*"))
    from d3m_assets.errors import FoundationError

    def damaged(*model):
        raise FoundationError("damaged weights")

    monkeypatch.setattr(ModelReference, "load", damaged)
    outcomes = list(pipeline.materialize("inverted_embeddings", keys, force=True))
    assert {o.key for o in outcomes} == set(keys)
    assert {str(o.error) for o in outcomes} == {"damaged weights"}


def test_several_gpus_share_the_classes(copy, monkeypatch):
    pipeline = open_pipeline(copy, copy / "images")
    keys = pipeline.keys("inverted_embeddings")
    from d3m_assets.assets.inverted_embeddings import read_vectors

    before = {k: read_vectors(pipeline.reading(k, own=True), k).astype(int) for k in keys}
    # Two processes on the processor stand in for two GPUs.
    monkeypatch.setattr(context, "open_workers", lambda *settings: Workers(2, ("cpu", "cpu"), on_cpu=False))
    for asset in ("inverted_embeddings", "synthetic_pool", "student_metrics"):
        outcomes = list(pipeline.materialize(asset, pipeline.keys(asset), force=True))
        assert [o.error for o in outcomes] == [None] * len(pipeline.keys(asset))
    for key in keys:
        assert np.abs(read_vectors(pipeline.reading(key, own=True), key).astype(int) - before[key]).max() <= 2


def test_mirrored_images_are_learned_from_when_asked_for(finished, monkeypatch):
    from d3m_assets.assets import inverted_embeddings

    seen = []
    monkeypatch.setattr(
        inverted_embeddings, "invert", lambda foundation, tasks, *rest, **options: seen.extend(tasks) or iter(())
    )
    pipeline = open_pipeline(finished, finished / "images", **{"inversion.flip": True})
    list(pipeline.materialize("inverted_embeddings", pipeline.keys("inverted_embeddings")))
    assert {len(t.images.load(32)) - 2 * len(t.images.images) for t in seen} == {0}


def test_what_the_store_refused_need_not_be_learned_again(copy, monkeypatch):
    from d3m_assets.errors import StoreError

    pipeline = open_pipeline(copy, copy / "images", budgets=("ipc-1",))
    key = ArtefactKey("inverted_embeddings", "7", "ipc-1")
    write = pipeline.store.write

    def full(*args, **options):
        raise StoreError("the disk is full")

    monkeypatch.setattr(pipeline.store, "write", full)
    pipeline.store.delete(key)
    (outcome,) = pipeline.materialize("inverted_embeddings", [key])
    assert "disk is full" in str(outcome.error)
    states = copy / "home" / "cache" / "inversion"
    assert len(list(states.iterdir())) == 1
    monkeypatch.setattr(pipeline.store, "write", write)
    heard = []
    pipeline.context.progress = heard.append
    (outcome,) = pipeline.materialize("inverted_embeddings", [key])
    assert outcome.error is None
    assert not any("step" in e.detail for e in heard)
    assert not list(states.iterdir())


def test_embeddings_that_exist_already_are_taken_and_not_learned(copy, tmp_path):
    from safetensors.numpy import save_file

    from d3m_assets.assets.inverted_embeddings import read_vectors

    (copy / "mine").mkdir()
    rows = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    save_file({"<mine>": rows}, copy / "mine" / "7.safetensors")
    pipeline = open_pipeline(copy, copy / "images", imported_embeddings=str(copy / "mine"))
    pending = [str(e.key) for e in pipeline.plan().pending() if e.key.asset == "inverted_embeddings"]
    assert pending == [f"inverted_embeddings [7, {b}]" for b in pipeline.settings.budgets]
    run(pipeline)
    for budget in pipeline.settings.budgets:
        key = ArtefactKey("inverted_embeddings", "7", budget)
        stored = read_vectors(pipeline.reading(key, own=True), key)[0].astype(np.float32)
        cosine = (stored * rows).sum() / np.linalg.norm(stored) / np.linalg.norm(rows)
        assert cosine > 0.999
        assert pipeline.store.manifest(key).metrics["imported_from"] == "7.safetensors"
        assert pipeline.preview(key)["prompt"]
    assert pipeline.plan().pending() == []
    save_file({"<mine>": -rows}, copy / "mine" / "7.safetensors")
    changed = open_pipeline(copy, copy / "images", imported_embeddings=str(copy / "mine")).plan().pending()
    assert {e.key.class_key for e in changed if e.key.asset == "inverted_embeddings"} == {"7"}
    # More vectors than the budget holds.
    save_file({"<mine>": np.repeat(rows, 3, 0)}, copy / "mine" / "7.safetensors")
    with pytest.raises(BudgetError, match="class 7 take 192 bytes.*192B"):
        open_pipeline(copy, copy / "images", budgets=("ipc-1",), imported_embeddings=str(copy / "mine")).plan()


def test_words_dealt_out_to_vectors_are_part_of_what_determines_them(finished):
    def settings_of(**changes):
        pipeline = open_pipeline(finished, finished / "images", **changes)
        return pipeline.spec(ArtefactKey("inverted_embeddings", "7", "ipc-3")).settings

    several = {"prompts.initializer": "square ring"}
    assert "starts" not in settings_of()
    assert "starts" not in settings_of(**several)  # one vector starts from all of them
    assert settings_of(**several, **{"inversion.vectors_per_prompt": 2})["starts"] == ["square", "ring"]


def test_what_vectors_start_from_is_in_their_fingerprint_and_their_record(finished, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(embedded_path(), model)

    def specified(**changes):
        pipeline = open_pipeline(finished, finished / "images", foundation=str(model), **changes)
        return [
            pipeline.spec(ArtefactKey(*of)) for of in (("foundation_model",), ("inverted_embeddings", "7", "ipc-3"))
        ]

    steps = {"inversion.steps": 3}
    (model_of_images, images), (_, words) = (
        specified(**steps),
        specified(**steps, **{"inversion.initialization": "words"}),
    )
    assert images.settings.keys() - words.settings.keys() == {"image_encoder"}
    encoder = model / IMAGE_ENCODER
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\1")
    changed_model, changed = specified(**steps)
    assert changed_model == model_of_images, "nothing is generated by it"
    assert changed != images
    assert specified(**steps, **{"inversion.initialization": "words"})[1] == words
    encoder.unlink()
    assert specified(**steps)[1] == words
    with pytest.raises(StageError, match=r"has no image encoder; set it to words or auto"):
        specified(**{"inversion.initialization": "images"})

    pipeline = open_pipeline(finished, finished / "images")
    (key, *_) = pipeline.keys("inverted_embeddings")
    assert json.loads(pipeline.store.read(key, RECORD))["start"] == "images"


def test_a_machine_with_another_image_encoder_learns_nothing(finished, tmp_path):
    pipeline = open_pipeline(finished, finished / "images")
    (key, *_) = pipeline.keys("inverted_embeddings")
    task, _ = inversion_task(pipeline.reading(key), pipeline.context.item(key))
    reference, cache = pipeline.context.model.reference, LatentCache(tmp_path, 0)
    job = InversionJob(reference, (task,), pipeline.settings.inversion, 0, cache, tmp_path, "of another encoder")
    with pytest.raises(FoundationError, match=r"has another image encoder, or none, on .* than where the job began"):
        job.run(silent)


def test_an_embedding_of_another_width_is_named_before_anything_is_made(finished, tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "mine").mkdir()
    save_file({"<mine>": np.ones((1, 768), np.float32)}, tmp_path / "mine" / "7.safetensors")
    pipeline = open_pipeline(finished, finished / "images", imported_embeddings=str(tmp_path / "mine"))
    with pytest.raises(D3MError, match=r"7\.safetensors holds vectors of shape \(1, 768\).* 64 numbers"):
        pipeline.plan()


def test_embeddings_keep_their_norms_where_whole_vectors_are_learned(copy):
    from safetensors.numpy import save_file

    from d3m_assets.assets.inverted_embeddings import read_vectors
    from d3m_assets.distillation.vectors import from_stored
    from d3m_assets.foundation.loading import load_foundation

    (copy / "mine").mkdir()
    rows = 7 * np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    save_file({"<mine>": rows}, copy / "mine" / "7.safetensors")
    changes = {"inversion.directional": False, "budgets": ("ipc-3",), "imported_embeddings": str(copy / "mine")}
    pipeline = open_pipeline(copy, copy / "images", **changes)
    reasons = {e.key: e.reasons for e in pipeline.plan().pending() if e.key.asset == "inverted_embeddings"}
    assert any(
        "inversion.directional" in reason for reason in reasons[ArtefactKey("inverted_embeddings", "0", "ipc-3")]
    )
    run(pipeline)
    layout = load_foundation(pipeline.context.model.files, "cpu").layout
    key = ArtefactKey("inverted_embeddings", "7", "ipc-3")
    np.testing.assert_allclose(
        from_stored(read_vectors(pipeline.reading(key, own=True), key), layout)[0], rows, atol=0.1
    )
    bundle = Bundle.from_bytes(
        pipeline.store.read(ArtefactKey("distilled_bundle", None, "ipc-3"), "bundle.safetensors")
    )
    assert [c.plan.norms for c in bundle.classes] == [1, 1, 1]
    assert bundle.payload == (2 + 2 + 1) * 66 <= 3 * 192
    assert pipeline.verify("inverted_embeddings") == []
    with pytest.raises(BudgetError, match="66B"):
        open_pipeline(copy, copy / "images", **changes | {"budgets": ("ipc-1",)}).plan()


def test_memory_is_measured_on_a_gpu_unless_a_number_is_asked_for():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert isinstance(_batch_size(cuda, InversionSettings(), 3)["probe"], CudaMemory)
    assert _batch_size(cuda, InversionSettings(classes_per_batch=7), 3) == {"classes_per_batch": 7}
    # On a processor no class may depend on the others, also where a number is asked for.
    assert _batch_size(cpu, InversionSettings(), 3) == {"classes_per_batch": 3, "exact": True}


def test_a_processor_learns_few_classes_together_and_large_models_one_by_one(foundation):
    settings, stable_diffusion = InversionSettings(), SimpleNamespace(config=lambda part: {"sample_size": 64})
    small, large = (InversionTask(None, None, EmbeddingPlan(n, 1, "int8", 64)) for n in (1, 9))
    assert processor_batch(foundation.files, [small], settings) == 6
    assert processor_batch(foundation.files, [small, large], settings) == 5
    assert processor_batch(foundation.files, [small], InversionSettings(classes_per_batch=2)) == 2
    assert processor_batch(stable_diffusion, [small], settings) == 1


@pytest.mark.parametrize(
    ("classes", "workers", "patience", "sizes"),
    [(10, 2, None, [5, 5]), (20, 2, None, [5, 5, 5, 5]), (3, 2, None, [1, 2]), (1, 4, None, [1]),
     (14, 1, None, [4, 5, 5]), (20, 2, 3, [10, 10]), (100, 2, 3, [16, 17, 17, 16, 17, 17])],
)  # fmt: skip
def test_workers_are_given_even_groups(foundation, classes, workers, patience, sizes):
    items = list(range(classes))
    given = SimpleNamespace(
        settings=SimpleNamespace(inversion=InversionSettings(patience=patience)),
        workers=SimpleNamespace(on_cpu=True, count=workers),
        model=SimpleNamespace(files=foundation.files),
    )
    tasks = {item: InversionTask(None, None, EmbeddingPlan(9, 1, "int8", 64)) for item in items}
    groups = _groups(given, items, tasks)
    assert [len(group) for group in groups] == sizes
    assert [item for group in groups for item in group] == items


def test_classes_of_another_budget_do_not_make_batches_smaller(foundation):
    given = SimpleNamespace(
        settings=SimpleNamespace(inversion=InversionSettings()),
        workers=SimpleNamespace(on_cpu=True, count=2),
        model=SimpleNamespace(files=foundation.files),
    )
    prompts = {item: 32 if item < 10 else 1 for item in range(20)}
    tasks = {item: InversionTask(None, None, EmbeddingPlan(n, 1, "int8", 64)) for item, n in prompts.items()}
    groups = _groups(given, list(tasks), tasks)
    assert [len(group) for group in groups] == [1] * 10 + [5, 5]
    assert sorted(item for group in groups for item in group) == list(tasks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_step_is_measured():
    probe = CudaMemory(torch.device("cuda"))
    kept = torch.ones(2**20, device="cuda")
    probe.begin()
    (torch.ones(2**22, device="cuda") * 2).sum().item()
    step = probe.end()
    assert 2 * 2**24 <= step.taken < 2**27
    assert step.free > step.taken
    assert kept.sum() == 2**20
