"""A class whose images are broken stops nothing but itself and what is made of all classes, and recovers by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from d3m_assets.errors import DatasetError
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import QUICK, open_pipeline

FILE = "train/7/003.png"


def truncate(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def blocked_assets(tally):
    return {key.asset for key in tally.blocked}


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def reasons(pipeline, key):
    (entry,) = [entry for entry in pipeline.plan().entries if entry.key == key]
    return entry.state, entry.reasons


def test_a_broken_class_from_the_start_leaves_the_others_their_pools(tmp_path, image_folder):
    folder = image_folder()
    whole = truncate(folder / FILE)
    pipeline = open_pipeline(tmp_path, folder, budgets=("ipc-1",))
    key = ArtefactKey("raw_dataset", "7")
    state, (reason,) = reasons(pipeline, key)
    assert state == "missing"
    assert reason.startswith(f"{FILE} cannot be decoded")
    tally = pipeline.work_through(pipeline.plan())
    (failed,) = tally.failed
    assert failed.key == key
    assert isinstance(failed.error, DatasetError)
    assert f"class '7' cannot be used: {FILE}" in str(failed.error)
    assert "replace or remove it, or leave it out with the setting `exclude`" in str(failed.error)
    for asset in ("raw_dataset", "class_prompts", "inverted_embeddings", "synthetic_pool"):
        assert {k.class_key for k in tally.made if k.asset == asset} >= {"0", "1"}, asset
    assert {"7"} == {k.class_key for k in tally.blocked if k.asset in ("inverted_embeddings", "synthetic_pool")}
    assert {"distilled_bundle", "student_metrics", "distillation_report"} <= blocked_assets(tally)
    assert tally.deferred == []

    (folder / FILE).write_bytes(whole)
    pipeline = open_pipeline(tmp_path, folder, budgets=("ipc-1",))
    tally = pipeline.work_through(pipeline.plan())
    assert tally.failed == tally.blocked == []
    # What the sound classes have is not made again.
    assert {k.class_key for k in tally.made if k.class_key} == {"7"}
    assert open_pipeline(tmp_path, folder, budgets=("ipc-1",)).plan().pending() == []


def test_what_was_made_of_a_class_outlives_its_breaking(copy):
    folder, store = copy / "images", copy / "home" / "store"
    before = files(store)
    whole = truncate(folder / FILE)
    pipeline = open_pipeline(copy, folder)
    assert reasons(pipeline, ArtefactKey("raw_dataset", "7"))[1][0].startswith(f"{FILE} cannot be decoded")
    assert reasons(pipeline, ArtefactKey("class_catalog")) == ("out of date", ["classes changed: '7'"])
    tally = pipeline.work_through(pipeline.plan())
    assert [o.key for o in tally.failed] == [ArtefactKey("raw_dataset", "7")]
    assert [str(k) for k in tally.made] == ["class_catalog"]
    assert pipeline.plan().extra == []

    (folder / FILE).write_bytes(whole)
    pipeline = open_pipeline(copy, folder)
    assert [str(e.key) for e in pipeline.plan().pending()] == ["class_catalog"]
    assert [str(k) for k in pipeline.work_through(pipeline.plan()).made] == ["class_catalog"]
    after = files(store)
    changed = {str(path) for path in before if after.get(path) != before[path]}
    assert all("class_catalog" in path for path in changed)
    assert open_pipeline(copy, folder).plan().pending() == []


def test_a_broken_class_can_be_left_out_or_its_file(copy):
    folder = copy / "images"
    truncate(folder / FILE)
    without_file = open_pipeline(copy, folder, exclude=FILE)
    assert reasons(without_file, ArtefactKey("raw_dataset", "7")) == ("out of date", [f"images removed: {FILE}"])
    assert without_file.work_through(without_file.plan()).failed == []
    without_class = open_pipeline(copy, folder, exclude="*/7")
    assert [c.name for c in without_class.context.dataset.classes] == ["0", "1"]
    assert ArtefactKey("raw_dataset", "7") in without_class.plan().extra


def test_reasons_name_the_images_that_changed(copy):
    folder = copy / "images"
    key = ArtefactKey("raw_dataset", "1")
    image = Image.open(folder / "train/1/000.png").copy()
    image.putpixel((0, 0), 255 - image.getpixel((0, 0)))
    image.save(folder / "train/1/000.png")
    (folder / "train/1/001.png").rename(folder / "train/1/renamed.png")
    (folder / "test/1/012.png").unlink()
    state, found = reasons(open_pipeline(copy, folder), key)
    assert state == "out of date"
    assert found == [
        "images changed: train/1/000.png; added: train/1/renamed.png; removed: test/1/012.png, train/1/001.png"
    ]
    # A stored table that cannot be read leaves the digests as reason.
    pipeline = open_pipeline(copy, folder)
    table = Path(pipeline.store.uri(key, "images.parquet"))
    table.write_bytes(b"x" * len(table.read_bytes()))
    found = reasons(pipeline, key)[1]
    assert found[0].startswith("setting images "), found


def test_a_new_split_names_the_images_that_moved(copy):
    found = reasons(open_pipeline(copy, copy / "images", validation_fraction=0.5), ArtefactKey("raw_dataset", "1"))[1]
    assert any(reason.startswith("images in another split: train/1/") for reason in found)
    assert "setting validation_fraction 0.1 -> 0.5" in found


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda folder: [p.unlink() for p in (folder / "train/7").iterdir()], id="no train image"),
        pytest.param(lambda folder: [p.unlink() for p in folder.glob("*/7/*")], id="no image"),
        pytest.param(lambda folder: [p.write_bytes(b"") for p in folder.glob("*/7/*")], id="all unreadable"),
        pytest.param(lambda folder: (folder / "train/new").mkdir(), id="an empty new folder"),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"evaluation.table": "full", "evaluation.labels": "hard,soft stored"}])
def test_a_class_without_any_usable_image_can_be_planned(copy, spoil, changes):
    spoil(copy / "images")
    pipeline = open_pipeline(copy, copy / "images", **changes)
    name = "new" if (copy / "images/train/new").exists() else "7"
    (entry,) = [e for e in pipeline.plan().entries if e.key == ArtefactKey("raw_dataset", name)]
    assert entry.state != "up to date"
    assert f"/{name}" in entry.reasons[0]
    assert not {e.key.class_key for e in pipeline.plan().pending()} & {"0", "1"} or changes


def test_the_check_of_the_catalog_shows_every_problem(copy):
    folder = copy / "images"
    assert open_pipeline(copy, folder).verify("class_catalog") == []
    truncate(folder / FILE)
    (folder / "train/1/again.png").write_bytes((folder / "train/1/000.png").read_bytes())
    pipeline = open_pipeline(copy, folder)
    pipeline.work_through(pipeline.plan(), limit=None, materialize=only(pipeline, {"class_catalog"}))
    found = pipeline.verify("class_catalog")
    assert [problem.severity for problem in found] == ["error", "warning"]
    assert FILE in found[0].message
    assert "train/1/000.png = train/1/again.png is the same image 2 times in train" in found[1].message
    table = pipeline.preview(ArtefactKey("class_catalog"))["problems_table"]
    assert table["where"].tolist() == [FILE, "train/1/000.png = train/1/again.png"]


def only(pipeline, assets):
    return lambda asset, keys: pipeline.materialize(asset, keys) if asset in assets else ()


def test_the_table_on_a_terminal_shows_names_as_they_are(tmp_path, image_folder, capsys):
    from d3m_assets.cli.showing import show_problems

    folder = image_folder(("[red]x", "1", "7"))
    truncate(folder / "train/[red]x/003.png")
    show_problems(open_pipeline(tmp_path, folder))
    line = capsys.readouterr().err
    assert line.startswith("error in class [red]x: train/[red]x/003.png cannot be decoded")
    assert line.count("\n") == 1
    (folder / "train/1/again.png").write_bytes((folder / "train/1/000.png").read_bytes())
    show_problems(open_pipeline(tmp_path, folder))
    table = capsys.readouterr().err
    assert "Problems in the data" in table
    assert "[red]x" in table
    assert "how many" in table
    assert "warning" in table


def d3m(home, *arguments):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("D3M_", "DAGSTER_HOME"))}
    settings = [f"--set={name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in QUICK.items()]
    return subprocess.run(
        [sys.executable, "-m", "d3m_assets.cli", *map(str, arguments), *settings],
        env=clean | {"D3M_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_distill_makes_the_rest_exits_1_and_names_the_file(copy):
    import dagster as dg

    from d3m_assets.orchestration.launch import open_instance

    folder, home = copy / "images", copy / "home"
    whole = truncate(folder / FILE)
    (folder / "train/1/again.png").write_bytes((folder / "train/1/000.png").read_bytes())
    done = d3m(home, "distill", "--dataset", folder)
    assert done.returncode == 1
    assert f"d3m: class '7' cannot be used: {FILE} cannot be decoded" in done.stderr
    assert "artefacts that need them were left out" in done.stderr
    assert "Problems in the data" in done.stderr
    assert "train/1/000.png = train/1/again.png" in done.stderr
    assert "Traceback" not in done.stderr
    pending = {str(e.key) for e in open_pipeline(copy, folder).plan().pending()}
    assert "raw_dataset [7]" in pending
    assert "raw_dataset [1]" not in pending
    assert "inverted_embeddings [1, ipc-1]" not in pending
    status = d3m(home, "status", "--dataset", folder)
    assert status.returncode == 0
    assert f"raw_dataset [7] is out of date: {FILE} cannot be decoded" in status.stdout

    settings = open_pipeline(copy, folder).settings
    key = dg.AssetCheckKey(dg.AssetKey("class_catalog"), "images_are_sound")
    with open_instance(settings) as instance:
        (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        evaluation = record.event.dagster_event.event_specific_data
        assert not evaluation.passed
        assert evaluation.severity == dg.AssetCheckSeverity.ERROR
        assert FILE in evaluation.description

    (folder / FILE).write_bytes(whole)
    (folder / "train/1/again.png").unlink()
    done = d3m(home, "distill", "--dataset", folder)
    assert done.returncode == 0, done.stderr
    assert "Problems" not in done.stderr
    with open_instance(settings) as instance:
        (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert record.event.dagster_event.event_specific_data.passed
