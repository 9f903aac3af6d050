"""Image codes as a payload from end to end: what is made from what, bundle, decoding, bytes, and what it may look at."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from d3m_assets import cli
from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.graph import GRAPH
from d3m_assets.assets.image_codes import FILE, MEMBERS, read_stored_code
from d3m_assets.assets.payload_choice import FILE as CHOICE
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import FILE as POOL
from d3m_assets.assets.synthetic_pool import pool_images
from d3m_assets.datasets.images import decode_png
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.errors import BundleError, SettingsError, StageError
from d3m_assets.evaluation.codecs import decode_images, encode_images
from d3m_assets.evaluation.codecs.reading import code_header
from d3m_assets.exports.bundle_repository import from_pretrained, save_pretrained
from d3m_assets.exports.image_record import CODED, read_record
from d3m_assets.exports.images import regenerate
from d3m_assets.exports.tokens import export_tokens
from d3m_assets.exports.verification import FolderImages, verify
from d3m_assets.inspection.lineage import AtHand, _parts, lineage_of_bundle, lineage_of_image, lineage_of_pool_row
from d3m_assets.inspection.verification import PoolImages
from d3m_assets.planning.versions import Version, stored_version
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.assets.recording import RecordingPipeline
from d3m_assets_tests.assets.test_recorded_settings import HARMLESS
from d3m_assets_tests.small_runs import open_pipeline, run

SMALL = {"validation_fraction": 0.3, "students.steps": 8, "evaluation.distillations": 2, "budgets": ("16B", "64B")}
CODES = SMALL | {"payload": "codes"}
AUTO = SMALL | {"payload": "auto", "budgets": ("64B",)}
BUDGETS = {"16B": 16, "64B": 64}


def finish(root, source, settings):
    shutil.copytree(source / "images", root / "images")
    run(open_pipeline(root, root / "images", **settings))
    return root


@pytest.fixture(scope="module")
def coded(tmp_path_factory, finished):
    """A finished small distillation whose payload is codes, at budgets of which one holds no vector."""
    return finish(tmp_path_factory.mktemp("coded"), finished, CODES)


@pytest.fixture(scope="module")
def decided(tmp_path_factory, finished):
    """A finished small distillation whose payload was decided."""
    return finish(tmp_path_factory.mktemp("decided"), finished, AUTO)


def opened(root, settings=CODES):
    return open_pipeline(root, root / "images", **settings)


def bundle_of(pipeline, budget="64B"):
    return Bundle.from_bytes(pipeline.store.read(ArtefactKey("distilled_bundle", None, budget), "bundle.safetensors"))


def read(pipeline, asset, file, class_key="7", budget="64B", replicate=0):
    return pipeline.store.read(ArtefactKey(asset, class_key, budget, replicate), file)


def test_nothing_is_inverted_or_generated(coded):
    pipeline = opened(coded)
    assert {"inverted_embeddings", "sample_selection", "payload_choice"}.isdisjoint(pipeline.store.assets())
    assert run(pipeline) == []
    for asset in ("inverted_embeddings", "sample_selection"):
        assert GRAPH[asset].unused(pipeline.settings) == "payload is codes"


def test_the_bytes_that_are_charged_are_those_that_are_stored_and_within_the_budget(coded):
    pipeline = opened(coded)
    for budget, allowed in BUDGETS.items():
        bundle = bundle_of(pipeline, budget)
        for c in bundle.classes:
            assert c.codes == read(pipeline, "image_codes", FILE, c.prompts.class_key, budget)
            assert 0 < c.payload == len(c.codes) <= allowed
        ledger = bundle.ledger().set_index("item")["bytes"]
        assert ledger["image codes"] == bundle.payload
        assert ledger.sum() == len(bundle.to_bytes())  # and no model
        rows = from_parquet(pipeline.store.read(ArtefactKey("student_metrics", None, budget), "metrics.parquet"))
        keys = [key for key in pipeline.keys("image_codes") if key.budget == budget]
        assert set(rows["bytes_per_class"]) == {np.mean([len(pipeline.store.read(key, FILE)) for key in keys])}
    assert bundle_of(pipeline, "64B").payload > bundle_of(pipeline, "16B").payload


def test_students_train_on_what_the_code_decodes_to(coded):
    pipeline = opened(coded)
    context = pipeline.reading(ArtefactKey("student_metrics", None, "64B"))
    for replicate in (0, 1):
        train = synthetic_images(context, "64B", replicate)
        position = context.dataset.class_by_key["7"].position
        images = decode_images(read(pipeline, "image_codes", FILE, replicate=replicate), (8, 8, 1))
        assert np.array_equal(train.images[train.labels == position], images)
    table = from_parquet(pipeline.store.read(ArtefactKey("student_metrics", None, "64B"), "metrics.parquet"))
    assert table["detail"].str.contains("coded as .*chosen on validation images among").all()


def test_a_coded_image_is_near_the_training_image_that_is_recorded(coded):
    pipeline = opened(coded)
    members = from_parquet(read(pipeline, "image_codes", MEMBERS))
    images = bundle_of(pipeline).coded_images(
        next(c for c in bundle_of(pipeline).classes if c.prompts.class_key == "7")
    )
    assert len(members) == len(images)
    folder = coded / "images"
    of_train = {path: decode_png(path.read_bytes()) for path in (folder / "train").glob("*/*.png")}
    for path, image in zip(members["relative_path"], images, strict=True):
        nearest = min(of_train, key=lambda p: np.abs(of_train[p].astype(int).reshape(8, 8) - image[..., 0]).sum())
        assert nearest.relative_to(folder).as_posix() == path


def test_a_second_run_gives_the_same_bytes(coded, tmp_path, finished):
    again = opened(finish(tmp_path, finished, CODES))
    for budget in BUDGETS:
        assert bundle_of(again, budget).to_bytes() == bundle_of(opened(coded), budget).to_bytes()
    for key in again.keys("image_codes"):
        assert again.store.read(key, FILE) == opened(coded).store.read(key, FILE)


@pytest.mark.parametrize("image_format", ["folder", "huggingface", "webdataset"])
def test_regenerating_needs_no_model_and_gives_the_pool(coded, tmp_path, image_format):
    pipeline = opened(coded)
    bundle = bundle_of(pipeline)
    count = regenerate(bundle, None, tmp_path / "out", image_format=image_format)
    assert count == sum(bundle.training_images(c) for c in bundle.classes) > 3
    assert "coded with loss and decoded" in (tmp_path / "out" / "README.md").read_text()
    if image_format == "huggingface":
        import pandas as pd

        table = pd.concat(pd.read_parquet(path) for path in sorted((tmp_path / "out" / "data").glob("*.parquet")))
        assert set(table["origin"]) == {CODED}
        assert len(table) == count
    if image_format != "folder":
        return
    for c in bundle.classes:
        pool = from_parquet(read(pipeline, "synthetic_pool", POOL, c.prompts.class_key))
        files = sorted((tmp_path / "out" / c.prompts.class_name).glob("*.png"))
        assert np.array_equal(np.stack([decode_png(path.read_bytes()) for path in files]), pool_images(pool))
        assert read_record(files[0]).origin == CODED
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert {row["origin"] for row in rows} == {CODED}
    assert {row["prompt"] for row in rows} == {""}
    result = verify(bundle, None, FolderImages(tmp_path / "out"))
    assert (result.verdict, result.total("checked")) == ("equal", count)
    assert verify(bundle, None, PoolImages(bundle, pipeline.store)).verdict == "equal"
    extra = tmp_path / "out" / "7" / "00099.png"
    shutil.copy(files[0], extra)
    assert verify(bundle, None, FolderImages(tmp_path / "out")).total("unselected") == 1
    extra.unlink()
    files[0].unlink()
    assert verify(bundle, None, FolderImages(tmp_path / "out")).total("missing") == 1


def test_the_end_of_the_largest_class_is_missed(coded, tmp_path):
    bundle = bundle_of(opened(coded))
    shape = bundle.recipe.image_height, bundle.recipe.image_width, bundle.recipe.channels
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    codec = code_header(bundle.classes[0].codes, shape).codec
    counts = (5, 3, 3)
    classes = tuple(
        replace(c, codes=encode_images(codec, pixels[:n])) for c, n in zip(bundle.classes, counts, strict=True)
    )
    unequal = replace(bundle, classes=classes)
    assert regenerate(unequal, None, tmp_path / "out") == sum(counts)
    assert verify(unequal, None, FolderImages(tmp_path / "out")).verdict == "equal"
    (tmp_path / "out" / classes[0].prompts.class_name / "00004.png").unlink()
    cut = verify(unequal, None, FolderImages(tmp_path / "out"))
    assert (cut.verdict, cut.total("missing")) == ("not equal", 1)


def test_more_images_than_are_coded_are_refused_with_the_way_out(coded, tmp_path):
    bundle = bundle_of(opened(coded))
    fewest = min(bundle.training_images(c) for c in bundle.classes)
    assert regenerate(bundle, None, tmp_path / "few", per_class=fewest) == 3 * fewest
    assert verify(bundle, None, FolderImages(tmp_path / "few")).verdict == "equal"
    with pytest.raises(BundleError, match=rf"no prompt to generate more from.*at most {fewest}.*payload=prompts"):
        regenerate(bundle, None, tmp_path / "many", per_class=1000)
    assert not (tmp_path / "many").exists()
    with pytest.raises(BundleError, match="holds coded real images and no prompts"):
        export_tokens(bundle, None, tmp_path / "tokens", "diffusers")


def test_a_repository_of_a_coded_bundle_has_a_card_without_prompts(coded, tmp_path):
    bundle = bundle_of(opened(coded))
    save_pretrained(bundle, tmp_path / "repository")
    assert from_pretrained(tmp_path / "repository").to_bytes() == bundle.to_bytes()
    card = (tmp_path / "repository" / "README.md").read_text()
    assert "coded real images of 3 classes" in card
    assert bundle.recipe.payload_choice in card
    assert "prompt_embeds" not in card
    assert "textual-inversion" not in card


def test_a_flipped_bit_of_a_code_is_refused(coded):
    bundle = bundle_of(opened(coded), "16B")
    data, codes = bundle.to_bytes(), b"".join(c.codes for c in bundle.classes)
    start = data.index(codes, len(data) - len(codes) - 16)
    for bit in range(8 * len(codes)):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleError, match="damaged: its hash is wrong"):
            Bundle.from_bytes(bytes(damaged))


@pytest.mark.parametrize("code", [b"", b"\xff" * 8, b"\x05\xff\xff\xff\xff\x0f1234", b"\0\x10\0"])
def test_a_bundle_with_a_hash_that_is_right_and_a_code_that_is_none_is_refused(coded, code):
    bundle = bundle_of(opened(coded))
    first, *others = bundle.classes
    forged = replace(bundle, classes=(DistilledClass.coded(first.prompts, code), *others))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.from_bytes(forged.to_bytes())


def test_a_code_beyond_the_budget_of_its_recipe_is_refused(coded):
    bundle = bundle_of(opened(coded))
    forged = replace(bundle, recipe=replace(bundle.recipe, bytes_per_class=20))
    with pytest.raises(BundleError, match="bytes of image codes"):
        Bundle.from_bytes(forged.to_bytes())


def test_codes_and_prompts_do_not_stand_in_one_bundle(coded, finished):
    of_codes = bundle_of(opened(coded))
    assert b"d3m-bundle-5" in of_codes.to_bytes()
    of_prompts = Bundle.from_bytes(
        open_pipeline(finished, finished / "images").store.read(
            ArtefactKey("distilled_bundle", None, "ipc-1"), "bundle.safetensors"
        )
    )
    for bundle, payload in ((of_codes, ""), (of_prompts, "codes"), (of_prompts, "both")):
        forged = replace(bundle, recipe=replace(bundle.recipe, payload=payload))
        with pytest.raises(BundleError, match="damaged"):
            Bundle.from_bytes(forged.to_bytes())


def test_datasets_decode_without_a_model(coded, tmp_path):
    torch = pytest.importorskip("torch")
    from d3m_assets.loading.datasets import DistilledDataset, IterableDistilledDataset

    bundle = bundle_of(opened(coded))
    for cache in (None, tmp_path / "cache"):
        dataset = DistilledDataset(bundle, foundation=tmp_path / "there is none", cache=cache, device="cpu")
        images = np.concatenate([bundle.coded_images(c) for c in bundle.classes])
        assert len(dataset) == len(images)
        for i in range(len(dataset)):
            assert torch.equal(dataset[i]["pixel_values"], torch.from_numpy(images[i].copy()).permute(2, 0, 1) / 255)
    with pytest.raises(ValueError, match="no fresh ones; give fresh=False"):
        IterableDistilledDataset(bundle, batch_size=2)
    epoch = list(IterableDistilledDataset(bundle, batch_size=2, fresh=False))
    assert len(epoch) == len(images)
    assert sorted(sample["pixel_values"].sum().item() for sample in epoch) == pytest.approx(
        sorted(float(image.sum()) / 255 for image in images)
    )
    with pytest.raises(BundleError, match="no prompt to generate more from"):
        DistilledDataset(bundle, images_per_class=1000)


def test_lineage_ends_at_the_one_real_image(coded, tmp_path):
    pipeline = opened(coded)
    bundle = bundle_of(pipeline)
    regenerate(bundle, None, tmp_path / "out")
    path = tmp_path / "out" / "7" / "00001.png"
    members = from_parquet(read(pipeline, "image_codes", MEMBERS))
    expected = [{"relative_path": members["relative_path"][1], "sha256": members["sha256"][1]}]
    at_hand = AtHand.of(pipeline.store)
    of_file = lineage_of_image(read_record(path), path, at_hand)
    of_pool = lineage_of_pool_row(at_hand, "64B", "7", 1)
    for found in (of_file, of_pool):
        assert found.sections["image"]["origin"] == CODED
        assert found.sections["real images"]["images"] == expected
        assert found.sections["image codes"]["codec"] in bundle.recipe.payload_choice
        assert found.notes == []
    of_bundle = lineage_of_bundle(bundle, "b.safetensors", at_hand)
    rows = of_bundle.sections["image codes"]["by class"]
    assert [row["artefact"] for row in rows] == [f"image_codes [{c}, 64B]" for c in "017"]
    assert of_bundle.sections["regenerate"]["possible"] == "yes"


def test_what_is_stored_is_shown_and_checked(coded, tmp_path):
    shutil.copytree(coded, tmp_path, dirs_exist_ok=True)
    pipeline = opened(tmp_path)
    key = ArtefactKey("image_codes", "7", "64B")
    assert pipeline.preview(key)["coded_images_png"]
    asset, item = GRAPH["image_codes"], pipeline.context.item(key)
    assert list(asset.verify(pipeline.reading(key, own=True), item)) == []
    stored = {name: pipeline.store.read(key, name) for name in (FILE, MEMBERS)}
    pipeline.store.write(key, pipeline.spec(key), stored | {FILE: b"\xff" + stored[FILE][1:]}, {})
    again = opened(tmp_path)
    (finding,) = asset.verify(again.reading(key, own=True), item)
    assert "no code of images" in finding.text


def test_copies_of_training_images_are_meant_and_so_told(coded):
    pipeline = opened(coded)
    key = ArtefactKey("pool_audit", None, "64B")
    context, item = pipeline.reading(key, own=True), pipeline.context.item(key)
    summary = json.loads(pipeline.store.read(key, "audit.json"))
    assert summary["coded_real_images"] is True
    assert not any(finding.check == "not_memorised" for finding in GRAPH["pool_audit"].verify(context, item))
    page = pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert "chosen on validation images among" in page
    assert "a coded real image" in page


def test_inspect_tells_codec_and_choice_and_regenerate_opens_no_model(coded, tmp_path, monkeypatch):
    bundle = bundle_of(opened(coded))
    (tmp_path / "b.safetensors").write_bytes(bundle.to_bytes())
    monkeypatch.setattr("d3m_assets.cli.bundles.model_of", lambda *args: pytest.fail("a model was opened"))
    shown = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "b.safetensors")])
    assert shown.exit_code == 0, shown.output
    assert "chosen on validation images among" in shown.output
    assert "coded images of a class" in shown.output
    out = ["--output", str(tmp_path / "out")]
    made = CliRunner().invoke(cli.app, ["regenerate", str(tmp_path / "b.safetensors"), *out])
    assert made.exit_code == 0, made.output


def training_images(pipeline, bundle):
    """Images of each class that the payload of a bundle has, from the artefacts that it was made from."""
    if not bundle.generates:
        return [decode_images(read(pipeline, "image_codes", FILE, c), (8, 8, 1)) for c in "017"]
    return [pool_images(from_parquet(read(pipeline, "synthetic_pool", POOL, c))) for c in "017"]


def test_a_new_code_does_not_generate_images_again(finished, tmp_path):
    def spec(**changes):
        pipeline = opened(finished, SMALL | {"budgets": ("64B",)} | changes)
        return pipeline.spec(ArtefactKey("synthetic_pool", "7", "64B")).fingerprint

    assert spec(payload="auto") == spec() == spec(**{"payload": "auto", "students.steps": 9})
    assert spec(payload="codes") not in (spec(), spec(**{"payload": "codes", "students.steps": 9}))


def test_auto_decides_by_validation_and_tells(decided, foundation):
    pipeline = opened(decided, AUTO)
    assert run(pipeline) == []
    choice = json.loads(pipeline.store.read(ArtefactKey("payload_choice", None, "64B"), CHOICE))
    means = {payload: np.mean(values) for payload, values in choice["accuracies"].items()}
    assert all(len(values) == 2 for values in choice["accuracies"].values())
    assert choice["payload"] == ("codes" if means["codes"] > means["prompts"] else "prompts")
    bundle = bundle_of(pipeline)
    assert bundle.generates == (choice["payload"] == "prompts")
    assert choice["sentence"] in bundle.recipe.payload_choice
    page = pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert choice["sentence"] in page
    context = pipeline.reading(ArtefactKey("student_metrics", None, "64B"))
    assert np.array_equal(synthetic_images(context, "64B").images, np.concatenate(training_images(pipeline, bundle)))
    given = foundation if bundle.generates else None
    assert verify(bundle, given, PoolImages(bundle, pipeline.store)).verdict == "equal"


@pytest.mark.parametrize("payload", ["prompts", "codes"])
def test_either_decision_goes_through_all_that_follows(decided, tmp_path, foundation, monkeypatch, payload):
    from d3m_assets.assets import payload_choice

    shutil.copytree(decided, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(next((tmp_path / "home").rglob("payload_choice")))
    better = {"prompts": [0.5, 0.5], "codes": [0.4, 0.4]} | {payload: [0.75, 0.5]}
    monkeypatch.setattr(payload_choice, "_accuracies", lambda *args: better)
    pipeline = opened(tmp_path, AUTO)
    for asset in ("distilled_bundle", "student_metrics", "pool_audit", "distillation_report"):
        shutil.rmtree(next((tmp_path / "home").rglob(asset)))
    run(pipeline)
    bundle = bundle_of(pipeline)
    assert bundle.generates == (payload == "prompts")
    assert f"{payload} by the validation part: " in bundle.recipe.payload_choice
    regenerate(bundle, foundation if bundle.generates else None, tmp_path / "out")
    for c, images in zip("017", training_images(pipeline, bundle), strict=True):
        files = sorted((tmp_path / "out" / c).glob("*.png"))
        assert np.array_equal(np.stack([decode_png(path.read_bytes()) for path in files]), images)
    given = foundation if bundle.generates else None
    assert verify(bundle, given, PoolImages(bundle, pipeline.store)).verdict == "equal"
    found = lineage_of_pool_row(AtHand.of(pipeline.store), "64B", "7", 0)
    assert (found.sections["image"].get("origin") == CODED) != bundle.generates


@pytest.mark.parametrize("settings", [CODES | {"budgets": ("64B",)}, AUTO], ids=["codes", "auto"])
def test_makers_declare_what_they_read_and_the_test_split_decides_nothing(finished, tmp_path, monkeypatch, settings):
    from d3m_assets.assets import measuring, raw_dataset

    shutil.copytree(finished / "images", tmp_path / "images")
    recording = RecordingPipeline(opened(tmp_path, settings))
    reported = []
    real = raw_dataset.test_images
    monkeypatch.setattr(
        measuring, "test_images", lambda context, reader: reported.append(reader) or real(context, reader)
    )
    monkeypatch.setattr(raw_dataset, "test_images", lambda *args, **options: pytest.fail("the test split was opened"))
    recording.make()
    assert {name.partition(" ")[0] for name in reported} <= {
        "student_metrics", "reference_metrics", "frontier_metrics", "whole_dataset_metrics", "foundation_metrics",
    }  # fmt: skip
    harmless = HARMLESS | dict.fromkeys(("evaluation.temperature", "evaluation.stored_classes"), "labels are hard")
    # Real images share the bytes of labels only where labels are stored, which codes refuse; budgets are keys of what is shown.
    accepted = {"selection.kept", "generation.images_per_class", "budgets"}
    found = {asset: names - accepted for asset, names in recording.undeclared(harmless).items()}
    assert {asset: names for asset, names in found.items() if names} == {}
    assert [problem for problem in recording.problems if "code" in problem] == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"validation_fraction": 0.0}, "payload=codes is decided on the validation part.*validation_fraction=0.1"),
        ({"evaluation.labels": "hard,soft stored"}, "leave 'soft stored' out"),
        ({"imported_embeddings": "somewhere"}, "leave one of the two out"),
        ({"payload": "neither"}, "'prompts', 'codes', 'both' or 'auto'"),
        ({"payload": "both", "codes_share": 1.0}, "codes_share"),
        ({"codes_share": 0.25}, "with payload=codes a class does not have both; leave it out, or give payload=both"),
        ({"payload": "prompts", "codes_share": 0.5}, "with payload=prompts a class does not have both"),
        ({"payload": "both", "validation_fraction": 0.0}, "payload=both is decided on the validation part"),
    ],
)
def test_settings_that_contradict_codes_are_refused_with_the_way_out(changes, told):
    with pytest.raises(SettingsError, match=told):
        load_settings(**({"payload": "codes"} | changes))


def test_a_budget_that_holds_no_coded_image_says_so(finished, tmp_path):
    shutil.copytree(finished / "images", tmp_path / "images")
    pipeline = opened(tmp_path, CODES | {"budgets": ("1B",)})
    tally = pipeline.work_through(pipeline.plan())
    failed = {str(outcome.key): str(outcome.error) for outcome in tally.failed}
    assert "no coded image of every class fits into 1B" in failed["codec_choice [1B]"]


def test_a_shape_that_no_image_has_is_refused(coded):
    bundle = bundle_of(opened(coded))
    for changes in ({"channels": 2}, {"image_height": 8.0}, {"image_width": 0}):
        hostile = replace(bundle, recipe=replace(bundle.recipe, **changes)).to_bytes()
        with pytest.raises(BundleError, match="damaged"):
            Bundle.from_bytes(hostile)


def test_codes_that_another_setting_left_empty_are_told(coded):
    pipeline = opened(coded)
    key = ArtefactKey("image_codes", "7", "64B")
    context = pipeline.reading(key, own=True)
    context.inputs.read = lambda *given: b""
    with pytest.raises(StageError, match="give more bytes, or payload=prompts"):
        read_stored_code(context, key)


def test_lineage_goes_by_the_payload_of_the_bundle_and_not_by_an_older_choice(decided):
    store = opened(decided, AUTO).store
    pool = stored_version(store, ArtefactKey("synthetic_pool", "7", "64B"))
    chosen = json.loads(store.read(ArtefactKey("payload_choice", None, "64B"), "payload.json"))["payload"]
    assert _parts(store, pool) == {chosen}
    older = pool.manifest.model_copy(update={"inputs": {}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "d3m_assets.inspection.lineage.stored_version",
            lambda *given: Version(ArtefactKey("distilled_bundle", None, "64B"), older, True, store),
        )
        assert _parts(store, pool) == {"prompts"}
