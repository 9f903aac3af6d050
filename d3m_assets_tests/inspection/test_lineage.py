"""From an image back to the real images, in a finished small distillation."""

import hashlib
import io
import json
import platform
import shutil
import sys

import numpy as np
import pytest

from d3m_assets import cli
from d3m_assets.assets.distilled_bundle import find_bundle
from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.inverted_embeddings import _members, learned_from
from d3m_assets.datasets.images import encode_png, load_images, read_bytes
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.inversion import cluster
from d3m_assets.distillation.latents import encode
from d3m_assets.errors import BundleError, StageError, StoreError, UndeclaredReadError
from d3m_assets.exports.image_record import KEY, read_record
from d3m_assets.exports.images import regenerate
from d3m_assets.exports.tokens import export_tokens
from d3m_assets.exports.verification import verify
from d3m_assets.inspection.lineage import AtHand, lineage_of_bundle, lineage_of_image, lineage_of_pool_row
from d3m_assets.inspection.pruning import leftovers
from d3m_assets.inspection.verification import subject
from d3m_assets.planning.planner import Inputs
from d3m_assets.planning.versions import NOT_RECORDED, stored_version
from d3m_assets.store import SUPERSEDED, ArtefactKey, Store
from d3m_assets_tests import small_runs

VECTORS = ArtefactKey("inverted_embeddings", "7", "ipc-3")
POOL = ArtefactKey("synthetic_pool", "7", "ipc-3")
BUNDLE = ArtefactKey("distilled_bundle", None, "ipc-3")


def open_copy(root, **changes):
    return small_runs.open_pipeline(root, root / "images", **changes)


def read_bundle(store):
    return Bundle.from_bytes(store.read(BUNDLE, "bundle.safetensors"))


@pytest.fixture(scope="session")
def regenerated(finished, foundation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regenerated") / "out"
    regenerate(read_bundle(open_copy(finished).store), foundation, folder, per_class=6)
    return folder


@pytest.fixture
def own(finished, tmp_path):
    """A copy of the finished distillation, images where they were."""
    shutil.copytree(finished / "home" / "store", tmp_path / "home" / "store")
    return small_runs.open_pipeline(tmp_path, finished / "images")


def make(pipeline, *assets):
    for asset in assets:
        for outcome in pipeline.materialize(asset, pipeline.keys(asset)):
            assert outcome.error is None, outcome.error


def image_lineage(path, at_hand):
    return lineage_of_image(read_record(path), path, at_hand)


def test_a_file_leads_back_to_the_real_images_of_its_prompt(finished, regenerated):
    pipeline = open_copy(finished)
    at_hand = AtHand.of(pipeline.store, lambda: pipeline.context.model.files)
    found = image_lineage(regenerated / "7" / "00001.png", at_hand)
    sections = found.sections
    assert found.notes == []
    assert sections["image"]["prompt"] == "a photo of a <d3m-0002ab> 7"
    assert sections["image"]["seed"] == "0/7/1"
    assert sections["bundle"]["artefact"] == "distilled_bundle [ipc-3]"
    vectors = pipeline.store.manifest(VECTORS)
    assert sections["vectors"]["fingerprint"] == vectors.fingerprint
    assert sections["vectors"]["training"]["stop reason"] == "step limit"
    assert sections["vectors"]["training"]["steps"] == 3
    assert sections["settings"]["generation"]["steps"] == 2
    assert sections["vectors"]["settings"]["inversion"]["steps"] == 3
    assert sections["foundation model"]["name"] == "embedded"
    assert sections["regenerate"]["possible"] == "yes"
    real = sections["real images"]
    assert 0 < real["learned from"] == len(real["images"]) < 10
    for image in real["images"]:
        content = (finished / "images" / image["relative_path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
    # A terminal shows the same.
    from rich.console import Console

    console = Console(width=500, record=True, file=io.StringIO())
    console.print(found.tree())
    text = console.export_text()
    assert all(image["sha256"] in text for image in real["images"])


def test_members_are_the_clusters_that_were_learned_from(finished, foundation):
    pipeline = open_copy(finished)
    version = stored_version(pipeline.store, VECTORS)
    rows = from_parquet(pipeline.store.read(ArtefactKey("raw_dataset", "7"), "images.parquet"))
    rows = rows[rows["split"] == "train"].reset_index(drop=True)
    images = load_images(read_bytes, list(rows["uri"]), size=foundation.files.image_size, channels=1)
    labels = cluster(encode(foundation, images).astype(np.float32), 3, 0)
    for prompt in range(3):
        expected = sorted(rows["relative_path"][labels == prompt])
        assert [image["relative_path"] for image in learned_from(version, prompt)] == expected
    assert len(learned_from(version)) == len(rows)
    record = json.loads(pipeline.store.read(VECTORS, "training.json"))
    assert [len(learned_from(version, prompt)) for prompt in range(3)] == record["cluster_sizes"]


def test_a_mirrored_image_is_the_image_it_was_made_from():
    table = from_parquet(_members([[0, 4, 2], [1, 3, 5]], ["a", "b", "c"], ["0", "1", "2"]))
    assert table.groupby("prompt")["relative_path"].agg("".join).to_dict() == {0: "abc", 1: "abc"}
    assert dict(zip(table["relative_path"], table["sha256"], strict=True)) == {"a": "0", "b": "1", "c": "2"}


def test_imported_vectors_say_that_they_were_imported(finished, foundation, tmp_path):
    bundle = read_bundle(open_copy(finished).store)
    export_tokens(bundle, foundation.layout, tmp_path / "tokens", "diffusers")
    pipeline = small_runs.open_pipeline(
        tmp_path, finished / "images", budgets=("ipc-3",), imported_embeddings=str(tmp_path / "tokens")
    )
    make(
        pipeline,
        "class_catalog",
        "raw_dataset",
        "foundation_model",
        "class_prompts",
        "inverted_embeddings",
        "synthetic_pool",
    )
    pipeline.context.close()
    sections = lineage_of_pool_row(AtHand.of(pipeline.store), "ipc-3", "7", 1).sections
    assert "embedded-d3m-0002ab.safetensors" in sections["vectors"]["training"]["imported from"]
    assert sections["real images"]["learned from"] == "not known: the vectors were imported"
    assert set(pipeline.preview(POOL)["lineage"]["learned from real images"]) == {"not recorded"}


def test_a_pool_row_leads_to_the_same_place(finished, regenerated):
    store = open_copy(finished).store
    row = lineage_of_pool_row(AtHand.of(store), "ipc-3", "7", 1).sections
    file = image_lineage(regenerated / "7" / "00001.png", AtHand.of(store)).sections
    assert {k: row["image"][k] for k in ("class", "prompt", "seed", "index")} == {
        k: file["image"][k] for k in ("class", "prompt", "seed", "index")
    }
    assert row["vectors"] == file["vectors"]
    assert row["real images"] == file["real images"]
    assert row["pool"]["fingerprint"] == store.manifest(POOL).fingerprint
    for wrong, message in (
        (("ipc-3", "nine", 0), "no pool of class nine.*0, 1, 7"),
        (("ipc-9", "7", 0), "its budgets are ipc-1, ipc-3"),
        (("ipc-3", "7", 99), "no image 99, but 6: 0 to 5"),
    ):
        with pytest.raises(StageError, match=message):
            lineage_of_pool_row(AtHand.of(store), *wrong)


def test_a_bundle_says_where_each_class_was_learned(finished):
    pipeline = open_copy(finished)
    found = lineage_of_bundle(read_bundle(pipeline.store), "mine.safetensors", AtHand.of(pipeline.store))
    rows = found.sections["vectors"]["by class"]
    assert [row["class"] for row in rows] == ["0", "1", "7"]
    assert all("3 steps (step limit)" in row["training"] for row in rows)
    assert rows[2]["fingerprint"] == pipeline.store.manifest(VECTORS).fingerprint


def test_without_a_store_a_file_says_what_it_says(regenerated, tmp_path):
    store = Store.open(tmp_path / "nowhere")
    found = image_lineage(regenerated / "7" / "00001.png", AtHand.of(store))
    assert found.sections["image"]["seed"] == "0/7/1"
    assert "vectors" not in found.sections
    assert any("no store at" in note and "nowhere" in note for note in found.notes)
    assert "the bundle is not at hand" in found.sections["regenerate"]["possible"]
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(StageError, match="no store at .*nowhere.*--storage"):
        lineage_of_pool_row(AtHand.of(store), "ipc-3", "7", 1)


def test_a_store_out_of_reach_is_as_good_as_none(regenerated, monkeypatch, tmp_path):
    store = Store.open(tmp_path)

    def refuse(self):
        raise StoreError("cannot list s3://bucket: no credentials")

    monkeypatch.setattr(Store, "assets", refuse)
    found = image_lineage(regenerated / "7" / "00001.png", AtHand.of(store))
    assert found.sections["image"]["seed"] == "0/7/1"
    assert any("no credentials" in note for note in found.notes)


def test_the_bundle_of_an_image_can_be_given_as_a_file(finished, regenerated, tmp_path):
    bundle, nowhere = read_bundle(open_copy(finished).store), Store.open(tmp_path / "nowhere")
    path = regenerated / "7" / "00001.png"
    right = image_lineage(path, AtHand.of(nowhere, lambda: open_copy(finished).context.model.files, bundle, "b"))
    assert right.sections["regenerate"]["possible"] == "yes"
    wrong = Bundle(bundle.recipe, bundle.classes[:1])
    found = image_lineage(path, AtHand.of(nowhere, None, wrong, "wrong.safetensors"))
    assert any("wrong.safetensors is not the bundle of this image" in note for note in found.notes)


def test_replaced_versions_stay_resolvable_until_nothing_names_them(own, finished, regenerated, tmp_path):
    old_vectors, old_bundle = own.store.manifest(VECTORS), own.store.manifest(BUNDLE)
    changed = small_runs.open_pipeline(tmp_path, finished / "images", **{"inversion.steps": 4})
    make(changed, "inverted_embeddings")
    # The pool still names the old vectors.
    row = lineage_of_pool_row(AtHand.of(changed.store), "ipc-3", "7", 1)
    assert row.sections["vectors"]["fingerprint"] == old_vectors.fingerprint
    assert row.sections["vectors"]["state"].startswith("replaced since")
    assert row.sections["vectors"]["training"]["stop reason"] == "step limit"
    assert row.sections["vectors"]["settings"]["inversion"]["steps"] == 3
    assert row.sections["real images"]["learned from"] == "gone with the data of the vectors"
    pool = changed.preview(POOL)["lineage"]
    assert set(pool["vectors"]) == {f"replaced since ({old_vectors.fingerprint[:12]})"}
    assert old_vectors.fingerprint in changed.store.records(SUPERSEDED)
    assert old_vectors.fingerprint not in leftovers(changed).superseded
    old = tmp_path / "old.safetensors"
    old.write_bytes(changed.store.read(BUNDLE, "bundle.safetensors"))
    # With everything made anew only the image in the user's folder remembers; the store still knows until it is pruned.
    small_runs.run(changed)
    changed.context.close()
    with pytest.raises(StageError, match="generated from another version of the vectors than the bundle"):
        subject(old, None, changed.store)
    path = regenerated / "7" / "00001.png"
    found = image_lineage(path, AtHand.of(changed.store))
    assert found.sections["bundle"]["fingerprint"] == old_bundle.fingerprint
    assert found.sections["bundle"]["state"].startswith("replaced since")
    assert found.sections["vectors"]["fingerprint"] == old_vectors.fingerprint
    assert "not at hand" in found.sections["regenerate"]["possible"]
    left = leftovers(changed)
    assert {old_vectors.fingerprint, old_bundle.fingerprint} <= set(left.superseded)
    left.remove(changed.store)
    assert find_bundle(changed.store, read_record(path).bundle) is None
    assert any("knows no bundle" in note for note in image_lineage(path, AtHand.of(changed.store)).notes)
    assert leftovers(changed).superseded == ()


def test_what_an_earlier_version_stored_is_read_and_shown_without(own):
    for key, name in ((VECTORS, "learned_from.parquet"), (BUNDLE, "")):
        path = next((own.settings.home / "store").rglob(f"{key.path}/manifest.json"))
        manifest = json.loads(path.read_text())
        del manifest["provenance"], manifest["sha256"]
        manifest["files"].pop(name, None)
        path.write_text(json.dumps(manifest))
    assert [str(e.key) for e in own.plan().pending()] == []
    sections = lineage_of_pool_row(AtHand.of(own.store), "ipc-3", "7", 1).sections
    assert sections["vectors"]["provenance"] == NOT_RECORDED
    assert sections["real images"]["learned from"] == NOT_RECORDED
    assert sections["vectors"]["training"]["steps"] == 3
    assert own.preview(BUNDLE)["provenance"] == {}
    make_report(own)


def make_report(pipeline):
    key = ArtefactKey("distillation_report")
    (outcome,) = pipeline.materialize("distillation_report", [key], force=True)
    assert outcome.error is None, outcome.error
    return pipeline.store.read(key, "report.html").decode()


def test_provenance_is_no_part_of_the_fingerprint_and_names_no_host(own):
    key = ArtefactKey("class_prompts", "7")
    before = own.store.manifest(key)
    own.run_id = "run-1"
    (outcome,) = own.materialize("class_prompts", [key], force=True)
    after = own.store.manifest(key)
    assert after.fingerprint == before.fingerprint
    assert own.store.records(SUPERSEDED) == []
    assert after.provenance["run"] == "run-1"
    assert after.provenance["versions"]["Python"] == platform.python_version()
    assert "device cpu" in after.provenance["hardware"]
    text = json.dumps({k: v for k, v in after.provenance.items() if k != "hardware"})
    assert str(own.settings.home) not in text
    assert (platform.node() or "-") not in text


def test_the_report_shows_the_chain_of_sample_images(finished):
    page = open_copy(finished).store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert "Where do these images come from?" in page
    assert page.count('href="#origin-') == page.count('<details id="origin-') == 3
    assert "d3m lineage --pool ipc-3 --class 7 --index 1" in page
    vectors = open_copy(finished).store.manifest(VECTORS)
    assert vectors.fingerprint[:12] in page
    assert "real images" in page
    assert "train/7/" in page


def test_previews_name_what_they_come_from(finished):
    pipeline = open_copy(finished)
    table = pipeline.preview(POOL)["lineage"]
    assert list(table["prompt"][:3]) == [f"a photo of a <d3m-0002a{p}> 7" for p in "abc"]
    assert set(table["model"]) == {"embedded"}
    assert table["vectors"].str.contains(r"inverted_embeddings \[7, ipc-3\], learned 20").all()
    assert table["learned from real images"].str.fullmatch(r"\d+ of \d+").all()
    assert not table.map(lambda cell: bool(isinstance(cell, str) and len(cell) == 64)).any(axis=None)
    bundle = pipeline.preview(BUNDLE)
    assert list(bundle["vectors"]["class"]) == ["0", "1", "7"]
    assert "hardware" in bundle["provenance"]


def test_undeclared_versions_cannot_be_read(finished):
    store = open_copy(finished).store
    inputs = Inputs(store, {BUNDLE: [POOL]}, "a test")
    (name,) = inputs.version(POOL).input_names("inverted_embeddings")
    assert inputs.version(POOL).made_from(name).key == VECTORS
    with pytest.raises(UndeclaredReadError):
        inputs.version(VECTORS)


def test_a_bundle_is_compared_with_its_pools(finished, foundation, tmp_path):
    store = open_copy(finished).store
    file = tmp_path / "mine.safetensors"
    file.write_bytes(store.read(BUNDLE, "bundle.safetensors"))
    bundle, pools = subject(file, None, store)
    result = verify(bundle, foundation, pools, exact=True)
    assert result.verdict == "equal"
    assert result.total("checked") == 18
    with pytest.raises(BundleError, match="not made this bundle.*--storage"):
        subject(file, None, Store.open(tmp_path / "nowhere"))


def test_a_folder_finds_its_bundle_in_the_store(finished, regenerated, foundation, tmp_path):
    store = open_copy(finished).store
    bundle, images = subject(regenerated, None, store)
    assert verify(bundle, foundation, images, sample=1).verdict == "equal"
    with pytest.raises(BundleError, match="does not have; name the file with --bundle"):
        subject(regenerated, None, Store.open(tmp_path / "nowhere"))
    other = tmp_path / "other.safetensors"
    other.write_bytes(store.read(ArtefactKey("distilled_bundle", None, "ipc-1"), "bundle.safetensors"))
    with pytest.raises(BundleError, match=r"other\.safetensors has .*name the right one"):
        subject(regenerated, other, store)


@pytest.fixture
def d3m(finished, monkeypatch, capfd):
    """Run a command as the shell would, on the finished distillation; its exit status, output and errors."""
    monkeypatch.setenv("D3M_HOME", str(finished / "home"))
    monkeypatch.setenv("D3M_DATASET", str(finished / "images"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["d3m", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, errors = capfd.readouterr()
        return stopped.value.code or 0, out, errors

    return run


def test_commands_tell_by_their_exit_status(d3m, regenerated, finished, tmp_path):
    status, out, _ = d3m("lineage", regenerated / "7" / "00001.png")
    assert status == 0
    assert "inverted_embeddings [7, ipc-3]" in out
    status, out, _ = d3m("lineage", "--pool", "ipc-3", "--class", "7", "--index", "1", "--json")
    assert json.loads(out)["sections"]["image"]["seed"] == "0/7/1"
    status, _, errors = d3m("lineage")
    assert (status, "--pool" in errors) == (1, True)
    status, out, _ = d3m("verify", regenerated)
    assert (status, "equal: 18 of 18" in out) == (0, True)
    folder = shutil.copytree(regenerated, tmp_path / "out")
    (folder / "7" / "00001.png").write_bytes(encode_png(np.zeros((32, 32), np.uint8)))
    status, out, _ = d3m("verify", folder, "--json")
    assert (status, json.loads(out)["verdict"]) == (1, "not equal")


def test_what_a_hostile_image_says_does_not_reach_the_terminal(d3m, regenerated, tmp_path):
    record = read_record(regenerated / "7" / "00001.png").model_copy(
        update={"class_name": "\x1b]0;owned\x07\u202e", "prompt": "[bold]\x9b31m", "versions": {"\x1b[2J": "\x1b[1m"}}
    )
    path = tmp_path / "hostile.png"
    path.write_bytes(encode_png(np.zeros((4, 4), np.uint8), {KEY: record.to_text()}))
    for arguments in (("lineage", path), ("lineage", path, "--json")):
        status, out, errors = d3m(*arguments)
        assert status == 0
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + errors)
    assert "[bold]" in d3m("lineage", path)[1]
    path.write_bytes(encode_png(np.zeros((4, 4), np.uint8), {KEY: "\x1b[2J{}"}))
    status, out, errors = d3m("lineage", path)
    assert (status, "\x1b" in out + errors) == (1, False)
    assert "hostile.png carries" in errors
