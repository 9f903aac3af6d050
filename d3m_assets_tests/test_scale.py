"""Requests and work an artefact stay what they are: counted, not timed."""

import sqlite3
from contextlib import closing
from types import SimpleNamespace

import dagster as dg
import pytest

from benchmarks import counting
from benchmarks.memory import write_images
from benchmarks.orchestration import exponent, open_free, settings_of
from d3m_assets.orchestration import checks, events
from d3m_assets.orchestration.dagster_private import event_log_kept_open
from d3m_assets.orchestration.launch import open_instance, run_pending
from d3m_assets.orchestration.partitions import CLASSES, class_changes
from d3m_assets.planning.compare import compare_all
from d3m_assets.planning.planner import Inputs
from d3m_assets.store import MANIFEST, ArtefactKey, Spec, Store
from d3m_assets.store_listing import ManifestCache

KEY = ArtefactKey("pool", class_key="a")
SPEC = Spec({}, {"n": 1}, "1")
CATALOG_READS = 3
"""Requests for the class catalog, which the scan needs before there is a plan."""


@pytest.fixture(autouse=True)
def nothing_stored(monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))  # opening an instance would set it for all tests
    counting.reset(files=True)
    yield
    counting.reset(files=True)


def distilled(folder, classes):
    """A pipeline with free makers and a counting store, with everything made."""
    write_images(folder / "images", classes)
    pipeline = open_free(settings_of(folder, storage="counting://store"))
    tally = pipeline.work_through(pipeline.plan())
    assert not tally.failed, tally.failed[0].error
    return pipeline, len(tally.made)


def requests_of(work):
    counting.reset()
    work()
    return counting.counted()


def test_a_plan_is_one_listing_and_a_read_of_each_commit_record(tmp_path):
    _, made = distilled(tmp_path, 3)
    elsewhere = settings_of(tmp_path, storage="counting://store").model_copy(update={"home": tmp_path / "other"})
    opened = open_free(elsewhere)
    assert requests_of(opened.plan) == {"list": 1, "get": made + CATALOG_READS}
    assert not opened.last_plan().pending()
    assert requests_of(opened.plan) == {"list": 1}
    assert requests_of(lambda: open_free(elsewhere).plan()) == {"list": 1, "get": CATALOG_READS}


def test_what_was_written_here_is_not_read_back(tmp_path):
    pipeline, _ = distilled(tmp_path, 3)
    assert requests_of(pipeline.plan) == {"list": 1}
    assert not pipeline.last_plan().pending()


def test_a_plan_reads_what_another_process_changed_and_nothing_else(tmp_path):
    pipeline, _ = distilled(tmp_path, 3)
    key = pipeline.keys("synthetic_pool")[0]
    Store.open(pipeline.store.url).write(key, Spec({}, {}, "other"), {"first.bin": b"x"}, {})
    assert requests_of(pipeline.plan) == {"list": 1, "get": 1}
    assert key in [entry.key for entry in pipeline.last_plan().pending()]


def test_requests_an_artefact_do_not_grow_with_the_classes(tmp_path):
    def requests(classes):
        counting.reset(files=True)
        write_images(tmp_path / str(classes) / "images", classes)
        pipeline = open_free(settings_of(tmp_path / str(classes), storage="counting://store"))
        plan = pipeline.plan()
        counting.reset()
        tally = pipeline.work_through(plan)
        return sum(counting.counted().values()), len(tally.made)

    (few, made_few), (some, made_some), (many, made_many) = map(requests, (2, 4, 8))
    assert (many - some) / (made_many - made_some) == (some - few) / (made_some - made_few) < 10


def test_making_what_is_missing_costs_its_puts_and_its_inputs(tmp_path):
    pipeline, _ = distilled(tmp_path, 3)
    keys = pipeline.keys("synthetic_pool")[:3]
    for key in keys:
        pipeline.store.delete(key)
    found = requests_of(lambda: list(pipeline.materialize("synthetic_pool", keys)))
    inputs = sum(len(pipeline.inputs(key)) for key in keys)
    assert inputs == 9
    # Two files and a commit record, for each of three; a file of each input; a listing of the asset. And once, before the
    # work, a probe of whether the store takes anything: written, read and deleted.
    assert found == {"list": 1, "put": 9 + 1, "get": inputs + 1, "delete": 1}
    assert not pipeline.plan().pending()


def test_replacing_deletes_the_files_of_the_old_version_without_looking_again(tmp_path):
    pipeline, _ = distilled(tmp_path, 3)
    keys = pipeline.keys("class_prompts")
    found = requests_of(lambda: list(pipeline.materialize("class_prompts", keys, force=True)))
    assert found == {"list": 1, "put": 9 + 1, "get": 1, "delete": 6 + 1}  # with the probe before the work
    assert all(len(pipeline.store.listing("class_prompts").files(key)) == 3 for key in keys)


def test_each_asset_is_verified_once_whatever_the_number_of_its_checks(tmp_path, monkeypatch):
    pipeline, _ = distilled(tmp_path, 2)
    asked = []
    verify = pipeline.verify
    monkeypatch.setattr(pipeline, "verify", lambda asset: asked.append(asset) or verify(asset))
    logged = []
    checks.evaluate(SimpleNamespace(log_event=logged.append), pipeline, set(pipeline.graph.names))
    assert len(asked) == len(set(asked)) > 3
    assert len(logged) == len(list(checks.checks_of(pipeline.graph)))
    assert any(len(asset.checks) > 1 for asset in pipeline.graph)


def test_the_version_of_an_upstream_that_is_lineage_only_is_joined_once(tmp_path, monkeypatch):
    write_images(tmp_path / "images", 4)
    settings = settings_of(tmp_path)
    pipeline = open_free(settings)
    joined = []
    monkeypatch.setattr(events, "joined", lambda prints: joined.append(len(prints)) or "0" * 64)
    with open_instance(settings) as instance:
        assert not run_pending(settings, instance, pipeline).done.failed
    # Whatever joins more than the classes it is made from is of a budget or the whole dataset: a few, not one a class.
    assert joined.count(0) <= len(pipeline.graph)


@pytest.fixture(params=["local", "memory", "s3-like"])
def store(request, tmp_path):
    url = {"local": str(tmp_path / "store"), "memory": f"memory://scale-{tmp_path.name}", "s3-like": "counting://s"}
    return Store.open(url[request.param])


def status_of(store):
    return compare_all(store, {KEY: SPEC})[KEY]


def test_looking_at_many_sees_a_replaced_version_although_the_old_one_was_kept(store):
    store.write(KEY, SPEC, {"x.bin": b"1"}, {})
    assert status_of(store).state == "up to date"
    Store.open(store.url).write(KEY, Spec({}, {"n": 2}, "1"), {"x.bin": b"1"}, {})
    assert status_of(store).reasons == ["setting n 2 -> 1"]


def test_looking_at_many_sees_damage_although_the_commit_record_was_kept(store):
    manifest = store.write(KEY, SPEC, {"x.bin": b"1"}, {})
    assert status_of(store).state == "up to date"
    store._fs.rm_file(f"{store._folder(KEY)}/{manifest.files['x.bin'].path}")
    assert status_of(store).reasons == ["file x.bin missing"]
    store._fs.pipe_file(f"{store._folder(KEY)}/{MANIFEST}", b"{")
    assert "is damaged" in status_of(store).reasons[0]
    store.delete(KEY)
    assert status_of(store).state == "missing"


def test_a_version_written_between_the_listing_and_the_look_is_no_damage(store):
    store.write(KEY, SPEC, {"x.bin": b"1"}, {})
    listing = store.listing()
    Store.open(store.url).write(KEY, SPEC, {"x.bin": b"22"}, {})
    ((key, stored),) = store.look_all([KEY], listing)
    assert key == KEY and not stored.damage
    assert store.read(KEY, "x.bin", stored.manifest) == b"22"


def test_a_listing_of_an_asset_shows_what_one_of_the_store_shows(store):
    store.write(KEY, SPEC, {"x.bin": b"1"}, {})
    other = ArtefactKey("report", budget="ipc-1", replicate=2)
    store.write(other, SPEC, {"y.bin": b"1"}, {})
    assert store.listing().artefacts() == [KEY, other]
    assert store.listing("pool").artefacts() == [KEY]
    assert store.listing("pool").files(KEY).keys() == store.listing().files(KEY).keys()
    assert store.listing("nothing").artefacts() == []


def test_files_of_a_quicker_writer_are_swept_later_and_never_read(store, monkeypatch):
    before = store.look(KEY)
    other = Store.open(store.url).write(KEY, Spec({}, {"n": 2}, "1"), {"x.bin": b"2"}, {})
    store.write(KEY, SPEC, {"x.bin": b"1"}, {}, replaces=before)
    assert store.read(KEY, "x.bin") == b"1"
    ((_, stored),) = store.look_all([KEY], store.listing())
    assert stored.strays and not stored.damage
    monkeypatch.setattr(Store, "_abandoned", lambda self, path: path.endswith(other.files["x.bin"].path))
    store.write(KEY, SPEC, {"x.bin": b"3"}, {}, replaces=stored)
    assert len(store.listing().files(KEY)) == 2


def test_a_kept_commit_record_is_followed_to_the_newer_version_when_its_file_is_gone(store):
    old = store.write(KEY, SPEC, {"x.bin": b"1"}, {})
    Store.open(store.url).write(KEY, SPEC, {"x.bin": b"22"}, {})
    assert store.read(KEY, "x.bin", old) == b"22"


def test_a_cache_that_is_no_database_is_begun_anew(tmp_path):
    file = tmp_path / "manifests.sqlite"
    file.write_bytes(b"no database" * 1000)
    ManifestCache(file).keep({"a": ("1", b"x")})
    assert ManifestCache(file).contents({"a": "1", "b": "1"}) == {"a": b"x"}


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ManifestCache(tmp_path / "file" / "manifests.sqlite")
    cache.keep({"a": ("1", b"x")})
    assert cache.contents({"a": "1"}) == {} and cache.latest("a") is None


def test_a_cache_knows_other_versions_and_unknown_ones_from_the_kept_one():
    cache = ManifestCache()
    cache.keep({"a": ("1", b"x"), "b": ("", b"y")})
    assert cache.contents({"a": "2"}) == {}
    assert cache.contents({"b": ""}) == {}
    assert cache.latest("b") == b"y"
    assert cache.contents({"b": '"415290769594460e2e485922904f345d"'}) == {"b": b"y"}  # its MD5, as S3 tells it
    many = {str(n): ("1", b"z") for n in range(1200)}
    cache.keep(many)
    assert len(cache.contents(dict.fromkeys(many, "1"))) == 1200


def test_the_event_log_is_not_written_back_after_every_event(tmp_path):
    with open_instance(settings_of(tmp_path)) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("a"))
        log = next((tmp_path / "dagster").rglob("event_log.db"))
        ahead = log.with_name(log.name + "-wal")

        def record_one():
            instance.report_runless_asset_event(dg.AssetMaterialization("a"))
            return ahead.exists()

        assert not record_one()
        with event_log_kept_open(instance):
            assert record_one()
            with closing(sqlite3.connect(log)) as other:  # no transaction is left open that would keep it growing
                assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert not ahead.exists()
        assert len(instance.fetch_materializations(dg.AssetKey("a"), limit=9).records) == 3


def test_class_changes_keep_the_order_of_the_dataset():
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(CLASSES, ["gone", "b"])
        assert class_changes(instance, iter(["c", "b", "a"])) == (["c", "a"], ["gone"])


def test_the_exponent_of_a_power_law_is_found():
    assert exponent([(x, 3 * x**1.5) for x in (10, 100, 1000)]) == pytest.approx(1.5)


def test_inputs_are_found_by_their_parts_in_order_without_looking_through_all(tmp_path):
    keys = [ArtefactKey("pool", c, b, r) for r in (0, 1) for b in ("ipc-2", "ipc-1") for c in "ba"]
    inputs = Inputs(Store.open(tmp_path), {ArtefactKey("score"): [*keys, ArtefactKey("model")]}, "a test")
    assert inputs.keys("pool") == keys
    assert inputs.keys("pool", budget="ipc-1", class_key="a") == [keys[3], keys[7]]
    assert inputs.keys("pool", class_key="a", budget="ipc-1", replicate=1) == [keys[7]]
    assert inputs.keys("pool", class_key="c") == [] == inputs.keys("nothing")
    inputs.keys("pool").clear()
    assert inputs.keys("pool") == keys
