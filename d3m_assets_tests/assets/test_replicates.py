"""Several distillations of the same dataset, each from a seed of its own."""

import numpy as np

from d3m_assets.assets.inverted_embeddings import read_vectors
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import open_pipeline, run

TWO = {"evaluation.distillations": 2, "evaluation.baseline_students": 1}
"""Rivals keep the students that they have with one distillation."""

REPLICATED = {"inverted_embeddings", "synthetic_pool", "sample_selection"}


def contents(root):
    store = root / "home" / "store"
    return {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_a_second_distillation_is_a_key_of_its_own_and_moves_nothing_of_the_first(copy):
    pipeline = open_pipeline(copy, copy / "images", **TWO)
    second = {
        ArtefactKey(asset, name, budget, 1)
        for asset in REPLICATED for name in ("0", "1", "7") for budget in ("ipc-1", "ipc-3")
    }  # fmt: skip
    downstream = {"student_metrics", "foundation_metrics", "distillation_report"}
    pending = {e.key for e in pipeline.plan().pending()}
    assert {key for key in pending if key.asset in REPLICATED} == second
    assert {key.asset for key in pending} == REPLICATED | downstream
    before = contents(copy)
    made = run(pipeline)
    assert set(made) == pending
    assert second <= {key for asset in REPLICATED for key in pipeline.store.keys(asset)}
    first = {path: data for path, data in before.items() if any(f"/{asset}/" in str(path) for asset in REPLICATED)}
    assert len(first) > 24
    after = contents(copy)
    assert {path: after[path] for path in first} == first
    for key in (key for key in second if key.asset != "sample_selection"):  # which keeps all samples here
        other = ArtefactKey(key.asset, key.class_key, key.budget, 0)
        name = "embeddings.safetensors" if key.asset == "inverted_embeddings" else "pool.parquet"
        assert pipeline.store.read(key, name) != pipeline.store.read(other, name)
    # Every student of a replicate reads the pool of that replicate, and the bundle holds the first.
    spec = pipeline.spec(ArtefactKey("student_metrics", None, "ipc-1"))
    assert {"synthetic_pool [7, ipc-1]", "synthetic_pool [7, ipc-1, replicate 1]"} <= set(spec.inputs)
    assert not any("replicate" in name for name in pipeline.spec(ArtefactKey("distilled_bundle", None, "ipc-1")).inputs)
    # One distillation again: the second is left over, and is not asked for.
    back = open_pipeline(copy, copy / "images").plan()
    assert set(back.extra) == second
    assert {e.key.asset for e in back.pending()} == downstream


def test_embeddings_that_exist_already_are_the_same_in_every_replicate(copy):
    from safetensors.numpy import save_file

    (copy / "mine").mkdir()
    rows = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    save_file({"<mine>": rows}, copy / "mine" / "7.safetensors")
    pipeline = open_pipeline(copy, copy / "images", imported_embeddings=str(copy / "mine"), **TWO)
    run(pipeline)

    def vectors(name):
        keys = [ArtefactKey("inverted_embeddings", name, "ipc-1", replicate) for replicate in (0, 1)]
        return [read_vectors(pipeline.reading(key, own=True), key) for key in keys]

    first, second = vectors("7")
    assert np.array_equal(first, second)
    assert not np.array_equal(*vectors("1"))  # these are learned
    # Their images differ all the same: they are generated from seeds of their own.
    pools = [pipeline.store.read(ArtefactKey("synthetic_pool", "7", "ipc-1", r), "pool.parquet") for r in (0, 1)]
    assert pools[0] != pools[1]
