"""The same commands on a dataset that nothing was tuned on: other characters, other fonts, another size."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d3m_assets.evaluation.baselines import BASELINES, ENCODED
from d3m_assets.evaluation.baselines import NAMES as ALL_BASELINES
from d3m_assets_tests.datasets.unseen_fonts import write_unseen_fonts
from d3m_assets_tests.test_cli import d3m, store_of

NAMES = ["4 in print", "A in print", "K in print", "g in print"]

METHODS = [baseline.method for baseline in BASELINES.values()]
ENCODED_METHODS = [baseline.method for baseline in ENCODED.values()]


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    return write_unseen_fonts(tmp_path_factory.mktemp("fonts") / "printed")


def test_the_fonts_are_held_out_and_the_images_differ(fonts):
    from d3m_assets.foundation.embedded.characters import FONTS, HELD_OUT_FONTS

    assert not set(FONTS) & set(HELD_OUT_FONTS)
    files = sorted(fonts.rglob("*.png"))
    assert len(files) == len({p.read_bytes() for p in files}) == 4 * 24
    again = write_unseen_fonts(fonts.parent / "again")
    assert [p.read_bytes() for p in sorted(again.rglob("*.png"))] == [p.read_bytes() for p in files]


FULL = {"D3M_EVALUATION__TABLE": "full", "D3M_TEACHER__STEPS": "80", "D3M_TEACHER__WIDTH": "8",
        "D3M_VALIDATION_FRACTION": "0.3", "D3M_EVALUATION__BASELINES": ",".join(ALL_BASELINES),
        "D3M_EVALUATION__DISTILLATIONS": "2",
        # So many that a share of them says something.
        "D3M_GENERATION__IMAGES_PER_CLASS": "20"}  # fmt: skip


@pytest.mark.long
def test_the_whole_table_and_the_other_commands(fonts, tmp_path):
    home = tmp_path / "home"
    done = d3m(home, "distill", "--dataset", fonts, **FULL)
    for row in ("D3M", "D3M, fresh samples", *METHODS, *ENCODED_METHODS, "class-name prompts", "whole train split"):
        assert row in done.stdout
    # The renderer draws single characters only, so there is no row of drawn ones.
    assert "rendered characters" not in done.stdout
    for reference in (*METHODS, *ENCODED_METHODS):
        assert re.search(f"(than|from|with) {re.escape(reference)}", done.stdout), reference

    status = json.loads(d3m(home, "status", "--dataset", fonts, "--json", **FULL).stdout)
    assert {e["state"] for e in status["entries"]} == {"up to date"}
    rows = pd.DataFrame(json.loads(d3m(home, "metrics", "--dataset", fonts, "--json", **FULL).stdout))
    assert set(rows["n_evaluated"]) == {4 * 8}
    for baseline in METHODS:
        sizes = rows[rows["method"] == baseline].groupby("budget")["bytes_per_class"].agg(set).to_dict()
        assert sizes == {"ipc-1": {144}, "ipc-2": {288}}, baseline
    for baseline in ENCODED_METHODS:
        own = rows[rows["method"] == baseline]
        allowed = own["budget"].map({"16B": 16, "32B": 32, "ipc-1": 144, "ipc-2": 288})
        assert (own["bytes_per_class"] <= allowed).all(), baseline
        # As many as are there raw, or more.
        assert (own["images_per_class"] >= allowed // 144).all(), baseline
    assert set(rows.loc[rows["method"] == "D3M", "n"]) == {2}
    assert set(rows.loc[rows["method"] == "D3M", "distillations"]) == {2}
    assert rows["mean"].between(0, 1).all()

    store = store_of(home)
    assert store.name.startswith("printed")
    manifests = sorted((store / "pool_audit").rglob("manifest.json"))
    assert [m.parent.name for m in manifests] == ["budget=ipc-1", "budget=ipc-2"]
    for manifest in manifests:
        found = json.loads(manifest.read_text())["metrics"]
        assert found["images"] == 4 * 20
        assert found["memorised"] < 0.2
    report = (home / "report.html").read_text()
    for words in (*NAMES, "Faults of the distilled images", "Scores of the field", "What is taken for what",
                  "Against each baseline of equal bytes", "What one change brings", "What the teacher says"):  # fmt: skip
        assert words in report, words

    bundle = next((store / "distilled_bundle" / "budget=ipc-1").glob("*.safetensors"))
    out = tmp_path / "regenerated"
    d3m(home, "regenerate", bundle, "--per-class", "2", "--output", out)
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == NAMES


@pytest.mark.parametrize(("wrong", "share"), [("copies", 1.0), ("noise", 0.0)])
def test_the_audit_tells_copies_from_noise_here_too(fonts, wrong, share):
    """At the stored size of this dataset, in pixels alone."""
    from d3m_assets.datasets.images import load_images, read_bytes
    from d3m_assets.evaluation.audit import ImageSet, audit_pool

    def of(split: str) -> ImageSet:
        files = [p for name in NAMES for p in sorted(Path(fonts / split / name).glob("*.png"))]
        labels = np.array([NAMES.index(p.parent.name) for p in files])
        return ImageSet(
            labels, {"pixels": load_images(read_bytes, [str(p) for p in files], size=12, channels=1).reshape(-1, 144)}
        )

    train, held_out = of("train"), of("test")
    noise = np.random.default_rng(0).integers(0, 256, train.spaces["pixels"].shape, dtype=np.uint8)
    pool = train if wrong == "copies" else ImageSet(train.labels, {"pixels": noise})
    found = audit_pool(pool, train, held_out, n_classes=4).summary
    assert found["memorised"] == share
    assert (found["off_class"] > 0.5) == (wrong == "noise")
    unseen = audit_pool(held_out, train, held_out, n_classes=4).summary
    assert unseen["memorised"] < 0.1
