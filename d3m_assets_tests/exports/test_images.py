import numpy as np
import pytest
from PIL import Image

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.generation import generate
from d3m_assets.errors import BundleError
from d3m_assets.exports.images import regenerate
from d3m_assets_tests.distillation.test_bundle import bundle


def test_regenerate_writes_what_generate_gives(foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    seen = []
    count = regenerate(
        Bundle.from_bytes(made.to_bytes()),
        foundation,
        tmp_path / "out",
        per_class=3,
        on_class=lambda *a: seen.append(a),
    )
    assert count == 6
    assert seen == [("3", 1, 2), ("7", 2, 2)]
    c = made.classes[1]
    generated, _ = generate(
        foundation, c.prompts, made.generation_settings(), 0, count=3, vectors=c.vectors, plan=c.plan, channels=1
    )
    for k in range(3):
        with Image.open(tmp_path / "out" / "7" / f"{k:05d}.png") as image:
            assert np.array_equal(np.asarray(image), generated[k, :, :, 0])


def test_regenerate_refuses_another_model_and_a_used_folder(foundation, words, tmp_path):
    with pytest.raises(BundleError, match="embedded.*another model"):
        regenerate(bundle(words), foundation, tmp_path / "out", per_class=1)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    right = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    with pytest.raises(BundleError, match="not empty"):
        regenerate(right, foundation, mine, per_class=1)
    assert (mine / "thesis.txt").read_text() == "keep"
