import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import BundleError


def recipe(**changes):
    given = {
        "budget": "ipc-2",
        "bytes_per_class": 128,
        "dataset": "digits",
        "image_height": 8,
        "image_width": 8,
        "channels": 1,
        "foundation": "embedded",
        "foundation_fingerprint": "f" * 64,
        "foundation_bytes": 1000,
        "generation": GenerationSettings(steps=3, batch_size=4).fingerprint(),
        "scheduler": "cosine v",
        "seed": 0,
        "templates": ("a photo of a {}",),
        "keep_class_name": True,
    }
    return Recipe(**(given | changes))


def bundle(words, names="37", prompts=2, **changes):
    rng = np.random.default_rng(0)
    plan = EmbeddingPlan(prompts, 1, "int8", 64)
    classes = [
        DistilledClass(words(n, class_id=i), plan, rng.integers(-127, 128, (prompts, 1, 64)).astype(np.int8))
        for i, n in enumerate(names)
    ]
    return Bundle(recipe(**changes), tuple(classes))


def test_round_trip_is_exact(words):
    made = bundle(words)
    data = made.to_bytes()
    back = Bundle.from_bytes(data)
    assert back.recipe == made.recipe
    assert [c.prompts for c in back.classes] == [c.prompts for c in made.classes]
    assert all(np.array_equal(a.vectors, b.vectors) for a, b in zip(back.classes, made.classes, strict=True))
    assert back.to_bytes() == data


@pytest.mark.parametrize("classes", [2, 10, 2000])
def test_size_stays_near_the_payload(words, classes):
    made = bundle(words, names=[f"class-{i}" for i in range(classes)])
    assert made.payload == classes * 128
    assert len(made.to_bytes()) <= made.payload + 4096 + 64 * classes


def test_names_with_any_character_survive(words):
    from dataclasses import replace

    made = bundle(words, names=['Åse ∕ ‘x’ " \\', "日本 語_1"])
    changed = replace(made.classes[0].prompts, class_key="se-x-abcdef", display_name="se x")
    made = replace(made, classes=(replace(made.classes[0], prompts=changed), made.classes[1]))
    assert [c.prompts for c in Bundle.from_bytes(made.to_bytes()).classes] == [c.prompts for c in made.classes]


def test_other_tools_can_read_the_file(words, tmp_path):
    from safetensors import safe_open

    (tmp_path / "b.safetensors").write_bytes(bundle(words).to_bytes())
    with safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.get_tensor("embeddings").shape == (4, 64)
        assert json.loads(file.metadata()["recipe"])["budget"] == "ipc-2"


def test_what_is_not_used_is_left_out_and_another_format_refused_with_the_way_out(words):
    plain = bundle(words).to_bytes()
    assert b"d3m-bundle-5" in plain
    assert b"autoencoder" not in plain
    made = bundle(words, autoencoder="taesd", autoencoder_fingerprint="a" * 64, autoencoder_bytes=100)
    data = made.to_bytes()
    assert Bundle.from_bytes(data).recipe == made.recipe
    with pytest.raises(BundleError, match="d3m-bundle-9.*Upgrade"):
        Bundle.from_bytes(data.replace(b"d3m-bundle-5", b"d3m-bundle-9"))
    for earlier in (b"d3m-bundle-1", b"d3m-bundle-4"):
        with pytest.raises(BundleError, match=f"{earlier.decode()}, in which only the payload.*d3m distill"):
            Bundle.from_bytes(data.replace(b"d3m-bundle-5", earlier))


def test_a_bundle_that_was_read_has_the_hash_of_its_file(words):
    data = bundle(words, "3", prompts=1).to_bytes()
    assert Bundle.from_bytes(data).sha256 == hashlib.sha256(data).hexdigest() == bundle(words, "3", prompts=1).sha256


@pytest.mark.parametrize("kind", ["vectors", "selections"])
def test_every_flipped_bit_of_a_file_is_refused(words, kind):
    made = bundle(words, "3", prompts=1) if kind == "vectors" else selected_bundle(words)
    data = bytearray(made.to_bytes())
    accepted = []
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        try:
            Bundle.from_bytes(bytes(data))
        except BundleError:
            pass
        else:
            accepted.append(bit)
        data[bit // 8] ^= 1 << bit % 8
    assert Bundle.from_bytes(bytes(data)).to_bytes() == bytes(data)
    assert accepted == []


@pytest.mark.parametrize(("old", "new"), [(b'seed\\":0', b'seed\\":1'), (b"ipc-2", b"ipc-3"), (b'"7', b'"8')])
def test_another_meaning_is_told_by_the_hash(words, old, new):
    data = bundle(words).to_bytes()
    assert data.count(old) == 1
    with pytest.raises(BundleError, match="damaged: its hash is wrong"):
        Bundle.from_bytes(data.replace(old, new))


@pytest.mark.parametrize("cut", [1, 7, 8, 100, -1])
def test_a_file_that_is_cut_or_longer_is_refused(words, cut):
    data = bundle(words).to_bytes()
    for changed in (data[:cut], data + bytes(abs(cut)), data[cut:]):
        with pytest.raises(BundleError, match="not a bundle|damaged"):
            Bundle.from_bytes(changed)


def test_damage_is_found(words):
    data = bytearray(bundle(words).to_bytes())
    with pytest.raises(BundleError, match="x.bin is not a bundle"):
        Bundle.from_bytes(bytes(data[:-10]), "x.bin")
    data[-3] ^= 1
    with pytest.raises(BundleError, match="damaged"):
        Bundle.from_bytes(bytes(data))
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.from_bytes(b"hello")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"none\.safetensors"):
        Bundle.load(tmp_path / "none.safetensors")


def test_ledger_adds_up(words):
    made = bundle(words)
    ledger = made.ledger().set_index("item")["bytes"]
    assert ledger["embedding vectors"] == 256
    assert ledger["embedding vectors"] + ledger["recipe and names"] == len(made.to_bytes())
    assert ledger["foundation model"] == 1000


@pytest.mark.parametrize("name", ["", "e\u0301", "x" * 401])
def test_a_class_name_that_no_dataset_gives_is_refused(words, name):
    made = bundle(words)
    first = replace(made.classes[0], prompts=replace(made.classes[0].prompts, class_name=name))
    with pytest.raises(BundleError, match="damaged: 0 class_name|damaged: 0 1"):
        Bundle.from_bytes(replace(made, classes=(first, made.classes[1])).to_bytes())


@pytest.mark.parametrize("key", ["../../x", "A", "", "x" * 65])
def test_a_class_key_that_is_none_is_refused(words, key):
    made = bundle(words)
    first = replace(made.classes[0], prompts=replace(made.classes[0].prompts, class_key=key))
    with pytest.raises(BundleError, match="damaged: .*key"):
        Bundle.from_bytes(replace(made, classes=(first, made.classes[1])).to_bytes())


def test_two_classes_that_would_be_one_are_refused(words):
    with pytest.raises(BundleError, match="two classes of one name"):
        Bundle.from_bytes(bundle(words, names=["3", "4", "3"]).to_bytes())
    made = bundle(words)
    twins = tuple(replace(c, prompts=replace(c.prompts, class_id=7)) for c in made.classes)
    with pytest.raises(BundleError, match="two classes of one number"):
        Bundle.from_bytes(replace(made, classes=twins).to_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"templates": ()},
        {"templates": ("no place",)},
        {"templates": ("{} {0.__class__}",)},
        {"templates": ("{}" + "x" * 10**6,)},
        {"templates": ("{}",) * 1001},
        {"generation": {"steps": -1}},
        {"generation": {"steps": 10**9}},
        {"generation": {"steps": True}},
        {"generation": {"steps": "3"}},
        {"generation": {"guidance_scale": float("nan")}},
        {"generation": {"guidance_scale": float("inf")}},
        {"generation": {"guidance_scale": 2}},
        {"generation": {"tiny_autoencoder": None}},
        {"generation": {"unheard_of": 1}},
        {"seed": 0.0},
        {"seed": -1},
        {"seed": "0"},
        {"seed": True},
        {"seed": 10**400},
        {"image_height": 10**9},
        {"image_width": 0},
        {"channels": 2},
        {"channels": True},
        {"bytes_per_class": -1},
        {"budget": "ipc-1; rm -rf ~"},
        {"dataset": "x" * 10**6},
        {"licence": None},
        {"foundation_fingerprint": "../../x"},
        {"payload": "both"},
        {"keep_class_name": 1},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_an_impossible_recipe_is_a_bundle_error(words, changes):
    with pytest.raises(BundleError, match="damaged"):
        Bundle.from_bytes(bundle(words, **changes).to_bytes())


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_norms_go_with_the_bundle_and_out_of_it_again(words, kind, tmp_path):
    from safetensors.numpy import load_file

    from d3m_assets.distillation.vectors import to_stored
    from d3m_assets.exports.tokens import export_tokens
    from d3m_assets.foundation.vector_layout import VectorLayout

    layout, plan = VectorLayout((64,), (1.0,)), EmbeddingPlan(2, 3, kind, 64, norms=1)
    rows = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32) * np.array([[[1.0]], [[5.0]]])
    made = Bundle(recipe(), (DistilledClass(words("3", class_id=0), plan, to_stored(rows, plan, (64,))),))
    data = made.to_bytes()
    back = Bundle.from_bytes(data)
    assert back.classes[0].plan == plan
    assert back.payload == made.payload == 6 * plan.stored_width * (1 if kind == "int8" else 2)
    assert np.array_equal(back.classes[0].vectors, made.classes[0].vectors)
    assert back.to_bytes() == data
    tokens = export_tokens(back, layout, tmp_path / "out", "diffusers")
    for prompt, token in enumerate(tokens):
        found = np.linalg.norm(load_file(token.path)[token.token], axis=-1)
        np.testing.assert_allclose(found, np.linalg.norm(rows[prompt], axis=-1), rtol=1e-3)


def selected_bundle(words, **changes):
    """Two classes in int4, of which the second keeps all its samples."""
    from dataclasses import replace

    from d3m_assets.distillation.selection import encode_selection

    rng, plan = np.random.default_rng(0), EmbeddingPlan(1, 1, "int4", 64)
    classes = [
        DistilledClass(words(n, class_id=i), plan, rng.integers(0, 256, (1, 1, 32)).astype(np.uint8))
        for i, n in enumerate("37")
    ]
    classes[0] = replace(classes[0], selection=encode_selection([0, 7, 11], 12, 4))
    return Bundle(recipe(**{"criterion": "centres", "candidates": 12, "kept": 4} | changes), tuple(classes))


def test_selections_and_int4_go_with_the_bundle(words):
    made = selected_bundle(words)
    data = made.to_bytes()
    back = Bundle.from_bytes(data)
    assert back.recipe == made.recipe
    assert back.to_bytes() == data
    assert [c.selection for c in back.classes] == [c.selection for c in made.classes]
    assert back.training_numbers(back.classes[0]).tolist() == [0, 7, 11]
    assert back.samples(back.classes[0], 5).tolist() == [0, 7, 11, 12, 13]
    assert back.training_numbers(back.classes[1]) is None
    assert back.samples(back.classes[1], 3).tolist() == [0, 1, 2]
    assert [back.training_images(c) for c in back.classes] == [3, 4]
    assert back.payload == 2 * 32 + len(made.classes[0].selection)
    ledger = back.ledger().set_index("item")["bytes"]
    assert ledger["selection of samples"] == len(made.classes[0].selection)
    assert ledger[["embedding vectors", "selection of samples", "recipe and names"]].sum() == len(data)


def test_a_bundle_without_selection_says_nothing_of_one(words):
    plain = bundle(words)
    assert b"criterion" not in plain.to_bytes()
    assert not any(item.startswith("selection") for item in plain.ledger()["item"])
    assert plain.training_numbers(plain.classes[0]) is None
    assert plain.training_images(plain.classes[0]) == GenerationSettings().images_per_class


@pytest.mark.parametrize("changes", [{"kept": 13}, {"kept": 0}, {"candidates": 10**9}])
def test_an_impossible_selection_is_a_bundle_error(words, changes):
    with pytest.raises(BundleError, match="damaged|no selection"):
        Bundle.from_bytes(selected_bundle(words, **changes).to_bytes())
