"""Images generated from the vectors of a class."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.foundation.small_pipelines import write_tiny_autoencoder
from d3m_assets_tests.small_runs import open_pipeline, run

REPORT = ArtefactKey("distillation_report")


def test_a_tiny_autoencoder_redraws_the_pools_and_goes_with_the_bundle(copy):
    from d3m_assets.errors import BundleError
    from d3m_assets.exports.images import regenerate
    from d3m_assets.foundation.loading import load_foundation

    tiny = write_tiny_autoencoder(copy / "taesd", levels=3)
    changes = {"generation.tiny_autoencoder": str(tiny)}
    pipeline = open_pipeline(copy, copy / "images", **changes)
    pending = pipeline.plan().pending()
    assert {e.key.asset for e in pending} == {
        "synthetic_pool", "sample_selection", "distilled_bundle", "foundation_metrics", "student_metrics", "pool_audit",
        "distillation_report",
    }  # fmt: skip
    assert any("generation.autoencoder" in reason for reason in pending[0].reasons)
    key = ArtefactKey("synthetic_pool", "7", "ipc-1")
    before = pipeline.store.read(key, "pool.parquet")
    run(pipeline)
    assert pipeline.store.read(key, "pool.parquet") != before
    # Where the folder lies is nothing; what is in it is everything.
    moved = copy / "moved" / "taesd"
    moved.parent.mkdir()
    tiny.rename(moved)
    changes = {"generation.tiny_autoencoder": str(moved)}
    assert open_pipeline(copy, copy / "images", **changes).plan().pending() == []
    data = pipeline.store.read(ArtefactKey("distilled_bundle", None, "ipc-1"), "bundle.safetensors")
    assert str(copy).encode() not in data
    bundle = Bundle.from_bytes(data)
    assert bundle.recipe.autoencoder == "taesd"
    assert "tiny autoencoder" in set(bundle.ledger()["item"])
    from d3m_assets.assets.distillation_report import ledger as ledger_of

    ledger = ledger_of(pipeline.reading(REPORT))
    assert ledger.loc[ledger["item"].isin(["foundation model", "tiny autoencoder"]), "budget"].tolist() == ["", ""]
    foundation = load_foundation(pipeline.context.model.files, "cpu")
    with pytest.raises(BundleError, match="taesd.*--set generation.tiny_autoencoder="):
        regenerate(bundle, foundation, copy / "out", per_class=1)
    other = write_tiny_autoencoder(copy / "other", levels=3)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(BundleError, match="other has the fingerprint"):
        regenerate(bundle, foundation, copy / "out", per_class=1, autoencoder=TinyAutoencoder(other))
    regenerate(bundle, foundation, copy / "out", per_class=2, autoencoder=TinyAutoencoder(moved))
    pool = pd.read_parquet(BytesIO(pipeline.store.read(key, "pool.parquet")))
    for k in range(2):
        drawn = Image.open(BytesIO(pool["image"][k]["bytes"]))
        assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(copy / "out" / "7" / f"{k:05d}.png")))


def test_lineage_reaches_down_to_the_image(finished):
    pipeline = open_pipeline(finished, finished / "images")
    key = ArtefactKey("synthetic_pool", "7", "ipc-3")
    pool = pd.read_parquet(BytesIO(pipeline.store.read(key, "pool.parquet")))
    assert len(pool) == 6
    row = pool.iloc[4]
    assert row["class_name"] == "7"
    assert row["prompt"] == "a photo of a <d3m-0002ab> 7"
    assert row["prompt_index"] == 1
    assert row["embeddings_fingerprint"] == pipeline.store.manifest(
        ArtefactKey("inverted_embeddings", "7", "ipc-3")
    ).fingerprint  # fmt: skip
    assert row["raw_dataset_fingerprint"] == pipeline.store.manifest(ArtefactKey("raw_dataset", "7")).fingerprint
    assert row["foundation_fingerprint"] == pipeline.context.model.files.fingerprint
    assert row["image"]["path"] == "7/00004.png"
    assert Image.open(BytesIO(row["image"]["bytes"])).size == (32, 32)
