"""Prompts and image codes in one bundle: bytes, numbers of images, decoding beside generating, and what is refused."""

import json
import shutil
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from d3m_assets import cli
from d3m_assets.assets import selection_model
from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.image_codes import FILE as CODE
from d3m_assets.assets.image_codes import MEMBERS
from d3m_assets.assets.payload_choice import read_distilled
from d3m_assets.assets.sample_selection import CODE as SELECTION
from d3m_assets.assets.sample_selection import TABLE
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import FILE as POOL
from d3m_assets.assets.synthetic_pool import pool_images
from d3m_assets.datasets.images import decode_png
from d3m_assets.datasets.labelled_images import resize_to_square
from d3m_assets.distillation import bundle_file
from d3m_assets.distillation.budgets import EmbeddingPlan, plan_embeddings, plan_selection, split_bytes
from d3m_assets.distillation.bundle import Bundle, Recipe
from d3m_assets.errors import BudgetError, BundleError, StageError
from d3m_assets.evaluation.codecs import decode_images, encode_images
from d3m_assets.evaluation.codecs.reading import code_header
from d3m_assets.evaluation.settings import TeacherSettings
from d3m_assets.exports.image_record import CODED, GENERATED, read_record
from d3m_assets.exports.images import regenerate
from d3m_assets.exports.stream import ImageStream, generate_class
from d3m_assets.exports.tokens import export_tokens
from d3m_assets.exports.verification import FolderImages, verify
from d3m_assets.inspection.lineage import AtHand, lineage_of_bundle, lineage_of_image, lineage_of_pool_row
from d3m_assets.inspection.verification import PoolImages
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.assets.recording import RecordingPipeline
from d3m_assets_tests.assets.test_recorded_settings import HARMLESS
from d3m_assets_tests.small_runs import QUICK, SELECTED, open_pipeline, run

ALLOWED = 96
BOTH = SELECTED | {
    "payload": "both", "codes_share": 0.5, "validation_fraction": 0.3, "students.steps": 8, "budgets": (f"{ALLOWED}B",),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """A selecting network of a second; what it selects is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection_model, "RECIPE", TeacherSettings(width=4, steps=40))
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory, finished):
    """A finished small distillation whose payload is both."""
    root = tmp_path_factory.mktemp("both")
    shutil.copytree(finished / "images", root / "images")
    run(opened(root))
    return root


def opened(root, **changes):
    return open_pipeline(root, root / "images", **(BOTH | changes))


def bundle_of(root):
    stored = opened(root).store.read(ArtefactKey("distilled_bundle", None, "96B"), "bundle.safetensors")
    return Bundle.from_bytes(stored, "b")


def read(root, asset, file, class_key):
    return opened(root).store.read(ArtefactKey(asset, class_key, "96B"), file)


def kept_of(root, class_key):
    """Numbers and pixels of the generated samples that are kept, by the artefacts alone."""
    samples = from_parquet(read(root, "sample_selection", TABLE, class_key))
    pool = from_parquet(read(root, "synthetic_pool", POOL, class_key))
    kept = pool[pool["index"].isin(samples.loc[samples["kept"], "index"])]
    return kept["index"].tolist(), pool_images(kept)


def decoded(root, class_key, side):
    """The coded images by the code alone, at the size of the generated ones."""
    return resize_to_square(decode_images(read(root, "image_codes", CODE, class_key), (8, 8, 1)), side, 1)


@pytest.fixture(scope="module")
def folder(both, foundation, tmp_path_factory):
    """The images that its bundle regenerates."""
    out = tmp_path_factory.mktemp("regenerated") / "out"
    regenerate(bundle_of(both), foundation, out)
    return out


@pytest.mark.parametrize(
    ("allowed", "share", "expected"),
    [
        (64, 0.5, (32, 32)),
        (65, 0.5, (33, 32)),
        (10, 0.29, (8, 2)),
        (100, 0.29, (71, 29)),
        (10**6, 1e-05, (999_990, 10)),
    ],
)
def test_the_bytes_of_a_class_are_split_without_rest(allowed, share, expected):
    assert split_bytes(allowed, share) == expected


def test_the_default_share_leaves_64_bytes_a_vector_with_a_selection_and_codes():
    """As docs/explanation/image-codes.md says of the embedded model, whose vectors have 64 numbers."""
    prompts, codes = split_bytes(64, load_settings(payload="both").codes_share)
    assert (prompts, codes) == (48, 16)
    for allowed, candidates, charged in ((prompts, 138, 48), (64, 150, 49)):
        selection = plan_selection(allowed, EmbeddingPlan(1, 1, "int4", 64).payload, images=50)
        plan = plan_embeddings("64B", allowed - selection.bytes, width=64, storage_type="int4")
        assert (plan.prompts, plan.vectors, selection.candidates) == (1, 1, candidates)
        assert plan.payload + selection.bytes == charged


def test_every_byte_is_charged_and_within_its_share(both):
    bundle, sizes = bundle_of(both), []
    for c in bundle.classes:
        key = c.prompts.class_key
        selection, code = read(both, "sample_selection", SELECTION, key), read(both, "image_codes", CODE, key)
        assert (c.selection, c.codes) == (selection, code) and selection and code
        assert c.vectors.nbytes == c.plan.payload and c.vectors.nbytes + len(selection) <= ALLOWED // 2
        assert len(code) <= ALLOWED // 2
        assert c.payload == c.vectors.nbytes + len(selection) + len(code)
        sizes.append((c.vectors.nbytes, len(selection), len(code)))
    totals = np.sum(sizes, axis=0).tolist()
    ledger = bundle.ledger().set_index("item")["bytes"]
    assert [ledger[item] for item in ("embedding vectors", "selection of samples", "image codes")] == totals
    assert bundle.payload == sum(totals)
    assert ledger.sum() - ledger["foundation model"] == len(bundle.to_bytes())
    rows = from_parquet(opened(both).store.read(ArtefactKey("student_metrics", None, "96B"), "metrics.parquet"))
    assert rows["bytes_per_class"].to_numpy() == pytest.approx(sum(totals) / 3, abs=1e-9)
    assert rows["detail"].str.contains("both: up to 48 bytes a class of prompts with their selection, and 48 of").all()


def test_students_learn_from_the_kept_samples_and_the_decoded_codes(both):
    context = opened(both).reading(ArtefactKey("student_metrics", None, "96B"))
    train = synthetic_images(context, "96B")
    for key in "017":
        _, generated = kept_of(both, key)
        expected = np.concatenate([generated, decoded(both, key, generated.shape[1])])
        position = context.dataset.class_by_key[key].position
        assert np.array_equal(train.images[train.labels == position], expected)


def test_a_training_set_says_which_image_is_of_which_kind(both):
    """Teacher's labels, audit and report go by these columns."""
    context = opened(both).reading(ArtefactKey("pool_labels", "7", "96B"))
    table, rejected = (read_distilled(context, "7", "96B", kept=kept) for kept in (True, False))
    codes = from_parquet(read(both, "image_codes", MEMBERS, "7"))["index"].tolist()
    kept, _ = kept_of(both, "7")
    assert table["index"].tolist() == [*kept, *codes]
    assert table["origin"].tolist() == [GENERATED] * len(kept) + [CODED] * len(codes)
    assert set(table["class_name"]) == {"7"} and table["class_id"].nunique() == 1
    assert set(rejected["index"]) == set(range(codes[0])) - set(kept)


def test_what_is_regenerated_is_the_pool_and_the_codes_byte_for_byte(both, folder, foundation):
    bundle = bundle_of(both)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    origins = {row["file_name"]: row["origin"] for row in rows}
    for c in bundle.classes:
        numbers, generated = kept_of(both, c.prompts.class_key)
        codes = list(bundle.code_numbers(c))
        candidates = len(from_parquet(read(both, "synthetic_pool", POOL, c.prompts.class_key)))
        assert codes[0] == candidates == bundle.recipe.candidates
        assert codes == from_parquet(read(both, "image_codes", MEMBERS, c.prompts.class_key))["index"].tolist()
        files = sorted((folder / c.prompts.class_name).glob("*.png"))
        assert [int(path.stem) for path in files] == [*numbers, *codes]
        images = np.stack([decode_png(path.read_bytes()) for path in files])
        expected = np.concatenate([generated, decoded(both, c.prompts.class_key, images.shape[1])])
        assert np.array_equal(images, expected)
        records = [read_record(path) for path in files]
        assert [r.origin for r in records] == [GENERATED] * len(numbers) + [CODED] * len(codes)
        assert [origins[f"{c.prompts.class_name}/{path.name}"] for path in files] == [r.origin for r in records]
        assert {bool(r.foundation) for r in records[: len(numbers)]} == {True}
        assert {(r.foundation, r.prompt, r.seed, r.precision) for r in records[len(numbers) :]} == {("", "", "", "")}
        assert all(r.selected for r in records)
    total = sum(bundle.training_images(c) for c in bundle.classes)
    result = verify(bundle, foundation, FolderImages(folder))
    assert (result.verdict, result.total("checked")) == ("equal", total)
    result = verify(bundle, foundation, PoolImages(bundle, opened(both).store))
    assert (result.verdict, result.total("checked"), result.total("missing")) == ("equal", total, 0)


def test_images_of_tar_shards_say_their_origin_too(both, folder, foundation, tmp_path):
    regenerate(bundle_of(both), foundation, tmp_path / "out", image_format="webdataset")
    found = {}
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as archive:
            told = [json.load(archive.extractfile(name)) for name in archive.getnames() if name.endswith(".json")]
        found |= {(facts["class_name"], facts["index"]): facts["origin"] for facts in told}
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert found == {(row["class_name"], row["index"]): row["origin"] for row in rows}
    assert set(found.values()) == {GENERATED, CODED}


def test_a_missing_and_a_foreign_image_are_found(both, folder, foundation, tmp_path):
    bundle = bundle_of(both)
    c = bundle.classes[0]
    for name, count in (
        (f"{bundle.code_numbers(c)[0]:05d}.png", "missing"),
        (None, "unselected"),
        (None, "unreadable"),
    ):
        out = tmp_path / count
        shutil.copytree(folder, out)
        files = sorted((out / c.prompts.class_name).glob("*.png"))
        if count == "missing":
            (out / c.prompts.class_name / name).unlink()
        elif count == "unselected":
            rejected = next(k for k in range(bundle.recipe.candidates) if k not in bundle.training_numbers(c))
            shutil.copy(files[0], files[0].with_name(f"{rejected:05d}.png"))
        else:
            shutil.copy(sorted((out / bundle.classes[1].prompts.class_name).glob("*.png"))[-1], files[-1])
        assert verify(bundle, foundation, FolderImages(out)).total(count) == 1


def test_the_end_of_the_class_with_most_codes_is_missed(both, foundation, tmp_path):
    bundle = bundle_of(both)
    codec = code_header(bundle.classes[0].codes, (8, 8, 1)).codec
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    classes = zip(bundle.classes, (5, 3, 3), strict=True)
    unequal = replace(bundle, classes=tuple(replace(c, codes=encode_images(codec, pixels[:n])) for c, n in classes))
    assert regenerate(unequal, foundation, tmp_path / "out") == sum(unequal.training_images(c) for c in unequal.classes)
    assert verify(unequal, foundation, FolderImages(tmp_path / "out")).verdict == "equal"
    first = unequal.classes[0]
    (tmp_path / "out" / first.prompts.class_name / f"{unequal.code_numbers(first)[-1]:05d}.png").unlink()
    cut = verify(unequal, foundation, FolderImages(tmp_path / "out"))
    assert (cut.verdict, cut.total("missing")) == ("not equal", 1)


def test_fewer_images_than_are_generated_lack_no_codes(both, folder, foundation, tmp_path):
    """As an export of three images a class leaves them, which was stopped within the last class."""
    bundle = bundle_of(both)
    for c, count in zip(bundle.classes, (3, 3, 1), strict=True):
        name = c.prompts.class_name
        (tmp_path / name).mkdir()
        for number in bundle.samples(c, count):
            assert number < bundle.code_numbers(c).start
            shutil.copy(folder / name / f"{number:05d}.png", tmp_path / name)
    cut = verify(bundle, foundation, FolderImages(tmp_path))
    assert [c.missing for c in cut.classes] == [0, 0, 2]
    last = bundle.classes[1]
    shutil.copy(
        folder / last.prompts.class_name / f"{bundle.code_numbers(last)[0]:05d}.png", tmp_path / last.prompts.class_name
    )
    whole = [bundle.training_images(c) - there for c, there in zip(bundle.classes, (3, 4, 1), strict=True)]
    assert [c.missing for c in verify(bundle, foundation, FolderImages(tmp_path)).classes] == whole


def test_an_export_that_was_stopped_ends_with_the_same_bytes(both, folder, foundation, tmp_path):
    bundle = bundle_of(both)
    first = bundle.classes[0]
    # Among the coded images of the first class.
    stop = bundle.training_images(first) - len(bundle.code_numbers(first)) + 1

    class Stopped(Exception):
        pass

    def stopped(event):
        if event.done == stop:
            raise Stopped

    with pytest.raises(Stopped):
        regenerate(bundle, foundation, tmp_path / "out", progress=stopped)
    assert len(list((tmp_path / "out").glob("*/*.png"))) == stop
    regenerate(bundle, foundation, tmp_path / "out")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if (tmp_path / "out" / path).read_bytes() != (folder / path).read_bytes()] == []
    whole = [image.image for image in ImageStream(bundle, foundation).images()]
    rest = [image.image for image in ImageStream(bundle, foundation).images(stop)]
    assert np.array_equal(np.stack(whole[stop:]), np.stack(rest))


def test_more_images_than_the_training_set_has_are_fresh_ones_behind_the_codes(both, foundation, tmp_path):
    bundle = bundle_of(both)
    count = max(bundle.training_images(c) for c in bundle.classes) + 2
    regenerate(bundle, foundation, tmp_path / "out", per_class=count)
    for c in bundle.classes:
        files = sorted((tmp_path / "out" / c.prompts.class_name).glob("*.png"))
        fresh = [path for path in files if not read_record(path).selected]
        beyond = bundle.first_fresh(c)
        assert [int(path.stem) for path in fresh] == list(range(beyond, beyond + count - bundle.training_images(c)))
        assert len(files) == count
    assert verify(bundle, foundation, FolderImages(tmp_path / "out")).verdict == "equal"


def test_datasets_read_both_parts(both, folder, tmp_path):
    from d3m_assets.loading.datasets import DistilledDataset, IterableDistilledDataset

    bundle = bundle_of(both)
    paths = [path for c in bundle.classes for path in sorted((folder / c.prompts.class_name).glob("*.png"))]
    expected = np.stack([decode_png(path.read_bytes()) for path in paths])[..., 0]
    for _ in range(2):  # the second time from the cache
        dataset = DistilledDataset(bundle, cache=tmp_path, device="cpu", transform=lambda pixels: pixels.numpy()[0])
        assert np.array_equal([dataset[i]["pixel_values"] for i in range(len(dataset))], expected)
    stream = IterableDistilledDataset(
        bundle, batch_size=4, cache=tmp_path, device="cpu", transform=lambda p: p.numpy()[0]
    )
    fresh = [sample["pixel_values"] for sample in stream]
    assert len(fresh) == len(expected)
    coded = {image.tobytes() for c in bundle.classes for image in decoded(both, c.prompts.class_key, expected.shape[1])}
    assert coded.isdisjoint(image.tobytes() for image in fresh)


def test_a_flipped_bit_of_either_part_is_refused(both):
    bundle = bundle_of(both)
    data = bundle.to_bytes()
    parts = [b"".join(getattr(c, part) for c in bundle.classes) for part in ("selection", "codes")]
    parts.append(np.concatenate([c.vectors.reshape(-1) for c in bundle.classes]).tobytes())
    for part in parts:
        start = data.rindex(part)
        for bit in range(8 * len(part)):
            damaged = bytearray(data)
            damaged[start + bit // 8] ^= 1 << bit % 8
            with pytest.raises(BundleError, match="damaged: its hash is wrong"):
                Bundle.from_bytes(bytes(damaged))


def test_versions_that_know_no_bundle_of_both_ask_for_an_upgrade(both, monkeypatch):
    bundle = bundle_of(both)
    data = bundle.to_bytes()
    assert b"d3m-bundle-6" in data and b"d3m-bundle-5" not in data
    assert Bundle.from_bytes(data).to_bytes() == data
    for made, wrong in ((bundle, "d3m-bundle-5"), (of_prompts(bundle), "d3m-bundle-6")):
        assert wrong.encode() not in made.to_bytes()
        Bundle.from_bytes(made.to_bytes())
        with monkeypatch.context() as patch:
            patch.setattr(Recipe, "file_format", wrong)
            forged = made.to_bytes()
        with pytest.raises(BundleError, match=f"damaged: its format is {wrong}"):
            Bundle.from_bytes(forged)
    monkeypatch.setattr(bundle_file, "_FORMATS", ("d3m-bundle-5",))
    with pytest.raises(BundleError, match="d3m-bundle-6; this version reads d3m-bundle-5. Upgrade d3m-assets"):
        Bundle.from_bytes(data)


def of_prompts(bundle):
    """The same without its image codes."""
    recipe = replace(bundle.recipe, payload="", payload_choice="")
    return Bundle(recipe, tuple(replace(c, codes=b"") for c in bundle.classes))


def test_a_bundle_that_has_one_part_too_few_or_too_many_is_refused(both):
    bundle = bundle_of(both)
    first, *others = bundle.classes
    codec = code_header(first.codes, (8, 8, 1)).codec
    longer = encode_images(codec, np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8))
    room = ALLOWED - first.payload + len(first.codes)
    assert room < len(longer) and len(first.codes) <= room
    forged = [
        replace(bundle, recipe=replace(bundle.recipe, payload="")),
        replace(bundle, recipe=replace(bundle.recipe, payload="codes")),
        replace(bundle, recipe=replace(bundle.recipe, bytes_per_class=first.payload - 1)),
        *(replace(bundle, classes=(replace(first, codes=code), *others)) for code in (b"", b"\xff" * 8, longer)),
        replace(bundle, classes=tuple(replace(c, codes=b"") for c in bundle.classes)),
    ]
    for one in forged:
        with pytest.raises(BundleError, match="damaged"):
            Bundle.from_bytes(one.to_bytes())
    exact = replace(bundle, recipe=replace(bundle.recipe, bytes_per_class=max(c.payload for c in bundle.classes)))
    assert Bundle.from_bytes(exact.to_bytes()) is not None


def test_lineage_of_either_part(both, folder):
    bundle, at_hand = bundle_of(both), AtHand.of(opened(both).store)
    c = next(c for c in bundle.classes if c.prompts.class_key == "7")
    members = from_parquet(read(both, "image_codes", MEMBERS, "7"))
    number, last = bundle.code_numbers(c)[-1], members.iloc[-1]
    expected = [{"relative_path": last["relative_path"], "sha256": last["sha256"]}]
    path = folder / "7" / f"{number:05d}.png"
    for found in (
        lineage_of_image(read_record(path), path, at_hand),
        lineage_of_pool_row(at_hand, "96B", "7", number),
    ):
        assert found.sections["image"]["origin"] == CODED
        assert found.sections["real images"]["images"] == expected
    first = int(bundle.training_numbers(c)[0])
    path = folder / "7" / f"{first:05d}.png"
    for found in (lineage_of_image(read_record(path), path, at_hand), lineage_of_pool_row(at_hand, "96B", "7", first)):
        assert "origin" not in found.sections["image"]
        assert found.sections["vectors"]["training"]["steps"] == 3
    of_bundle = lineage_of_bundle(bundle, "b.safetensors", at_hand).sections
    assert [row["class"] for row in of_bundle["vectors"]["by class"]] == ["0", "1", "7"]
    assert [row["artefact"] for row in of_bundle["image codes"]["by class"]] == [
        f"image_codes [{k}, 96B]" for k in "017"
    ]


def test_an_image_of_a_bundle_that_generates_is_regenerated_with_the_model_alone(both, folder, foundation):
    bundle, store = bundle_of(both), opened(both).store
    codes = next(bundle.code_numbers(c) for c in bundle.classes if c.prompts.class_key == "7")
    path = folder / "7" / f"{codes[0]:05d}.png"
    record = read_record(path)
    other = SimpleNamespace(name="other", fingerprint="f" * 64)
    for find_model, expected in (
        (None, "not here: foundation model at hand: not looked for"),
        (lambda: foundation.files, "yes"),
        (lambda: other, "not here: foundation model at hand: no: the settings name"),
    ):
        for at_hand in (AtHand.of(store, find_model), AtHand(None, "", find_model, bundle, "b")):
            way = lineage_of_image(record, path, at_hand).sections["regenerate"]
            assert way["possible"].startswith(expected)
        way = lineage_of_pool_row(AtHand.of(store, find_model), "96B", "7", codes[0]).sections["regenerate"]
        assert way["possible"].startswith(expected)
        assert "no model is needed" not in way["with"]
    told = rf"synthetic_pool .* no image 999, but {codes[0]}: 0 to {codes[0] - 1}; and image_codes .*: {codes[0]} to {codes[-1]}"
    with pytest.raises(StageError, match=told):
        lineage_of_pool_row(AtHand.of(store), "96B", "7", 999)


def test_both_parts_are_shown(both, foundation, tmp_path):
    pipeline, bundle = opened(both), bundle_of(both)
    assert run(pipeline) == []
    shown = pipeline.preview(ArtefactKey("distilled_bundle", None, "96B"))
    assert [len(shown[part]) for part in ("vectors", "image codes")] == [3, 3]
    assert shown["image codes"]["bytes"].tolist() == [len(c.codes) for c in bundle.classes]
    page = pipeline.store.read(ArtefactKey("distillation_report"), "report.html").decode()
    assert "D3M 96B, coded" in page and "D3M 96B, rejected" in page
    assert "a coded real image" in page and "both: up to 48 bytes a class of prompts" in page
    (tmp_path / "b.safetensors").write_bytes(bundle.to_bytes())
    told = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "b.safetensors")])
    assert told.exit_code == 0, told.output
    assert "vectors of a class" in told.output and "coded images of a class" in told.output
    assert f"6 of {bundle.recipe.candidates} by centres" in told.output
    tokens = export_tokens(bundle, foundation.layout, tmp_path / "tokens", "diffusers")
    assert len(tokens) == sum(c.plan.prompts for c in bundle.classes)


def test_that_codes_are_copies_is_no_fault_and_that_generated_images_are_not_is_looked_at(both):
    summary = json.loads(opened(both).store.read(ArtefactKey("pool_audit", None, "96B"), "audit.json"))
    images = from_parquet(opened(both).store.read(ArtefactKey("pool_audit", None, "96B"), "images.parquet"))
    assert "coded_real_images" not in summary
    generated = images[images["index"] < bundle_of(both).recipe.candidates]
    assert 0 < len(generated) < len(images) == summary["images"]
    assert summary["memorised"] == generated["memorised"].mean()
    assert images["origin"].tolist() == [GENERATED if index in generated.index else CODED for index in images.index]
    coded = images[images["origin"] == CODED]
    assert len(coded) and not coded["memorised"].any()


def test_new_codes_do_not_generate_images_again_and_new_vectors_do_not_encode_again(both):
    def specs(**changes):
        pipeline = opened(both, **changes)
        names = ("synthetic_pool", "image_codes")
        return [pipeline.spec(ArtefactKey(name, "7", "96B")).fingerprint for name in names]

    pool, codes = specs()
    assert specs(**{"students.steps": 9})[0] == pool
    assert specs(**{"inversion.steps": 4})[1] == codes
    more = specs(codes_share=0.25)
    assert more[0] != pool and more[1] != codes


def test_a_budget_that_is_too_small_for_both_says_what_to_do(both):
    told = "leaves 8 bytes a class to prompts beside 8 for image codes.*needs 16.*lower codes_share"
    with pytest.raises(BudgetError, match=told):
        plan_embeddings("16B", 8, width=32, storage_type="int4", codes=8)
    with pytest.raises(BudgetError, match="leaves 8 bytes a class to prompts beside 8 for image codes"):
        opened(both, budgets=("16B",)).plan()
    pipeline = opened(both, codes_share=0.02)
    (outcome,) = pipeline.materialize("codec_choice", pipeline.keys("codec_choice"))
    assert "image codes have 1 bytes a class; give more bytes, a larger codes_share" in str(outcome.error)


def test_dagster_makes_and_shows_both_parts(both, tmp_path, monkeypatch):
    import dagster as dg

    from d3m_assets.definitions import build_definitions
    from d3m_assets.orchestration.launch import open_instance
    from d3m_assets.orchestration.partitions import CLASSES
    from d3m_assets_tests.orchestration.runs import events, run_assets

    monkeypatch.setenv("DAGSTER_HOME", "")
    store = tmp_path / "store"
    shutil.copytree(both / "home" / "store", store)
    settings = load_settings(dataset=str(both / "images"), home=tmp_path, storage=str(store), **(QUICK | BOTH))
    before = bundle_of(both)
    for gone in ("image_codes", "distilled_bundle"):
        shutil.rmtree(next(store.rglob(gone)))
    with open_instance(settings) as instance:
        instance.add_dynamic_partitions(CLASSES, ["0", "1", "7"])
        definitions = build_definitions(settings)
        assert run_assets(definitions, instance, ["inverted_embeddings", "image_codes"], "96B|0", "96B|7").success
        assert run_assets(definitions, instance, ["distilled_bundle"], "96B").success
        codes = {
            event.partition: event.metadata["bytes charged to the class"].value
            for event in events(instance, "image_codes")
        }
        assert codes == {f"96B|{c.prompts.class_key}": len(c.codes) for c in before.classes}
        (event,) = events(instance, "distilled_bundle")
        assert event.metadata["bytes charged to the class"].value == before.payload
        for part in ("vectors", "image codes"):
            assert isinstance(event.metadata[part], dg.MarkdownMetadataValue | dg.TableMetadataValue)
    made = next(store.rglob("distilled_bundle")).rglob("*bundle*.safetensors")
    assert [path.read_bytes() for path in made] == [before.to_bytes()]


@pytest.mark.long
def test_makers_declare_what_they_read(finished, tmp_path):
    shutil.copytree(finished / "images", tmp_path / "images")
    recording = RecordingPipeline(opened(tmp_path))
    recording.make()
    harmless = HARMLESS | dict.fromkeys(("evaluation.temperature", "evaluation.stored_classes"), "labels are hard")
    accepted = {"selection.kept", "generation.images_per_class", "budgets"}
    found = {asset: names - accepted for asset, names in recording.undeclared(harmless).items()}
    assert {asset: names for asset, names in found.items() if names} == {}
    assert [problem for problem in recording.problems if "code" in problem] == []


def test_without_a_selection_codes_follow_the_samples(both, foundation):
    bundle = bundle_of(both)
    plain = replace(
        bundle,
        recipe=replace(bundle.recipe, criterion="", candidates=0, kept=0),
        classes=tuple(replace(c, selection=b"") for c in bundle.classes),
    )
    assert Bundle.from_bytes(plain.to_bytes()).to_bytes() == plain.to_bytes()
    c = plain.classes[0]
    codes = len(plain.code_numbers(c))
    assert plain.code_numbers(c).start == plain.generation_settings().images_per_class == 6
    assert plain.samples(c, 6 + codes + 2).tolist() == list(range(6 + codes + 2))
    images, samples = generate_class(plain, c, foundation, 6 + codes)
    assert np.array_equal(images[6:], resize_to_square(plain.coded_images(c), images.shape[1], 1))
    assert [s.prompt == "" for s in samples] == [False] * 6 + [True] * codes
