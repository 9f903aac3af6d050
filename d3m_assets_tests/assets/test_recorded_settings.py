"""What decides about an artefact has to be in its fingerprint: settings read by makers against settings that are declared."""

import shutil

import pytest

from d3m_assets.assets.graph import GRAPH
from d3m_assets.assets.synthetic_pool import SyntheticPool
from d3m_assets.assets.whole_dataset_metrics import WholeDatasetMetrics
from d3m_assets.errors import UndeclaredReadError
from d3m_assets.evaluation.baselines import NAMES
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.assets.recording import RecordingPipeline
from d3m_assets_tests.small_runs import SELECTED, SOFT, open_pipeline

HARMLESS = {
    "home": "where caches lie on this machine",
    "latent_cache_gib": "how much of them is kept",
    "workers": "who does the work",
    "compute.engine": "who does the work",
    "compute.state_dir": "where unfinished work lies",
    "compile_unet": "the same arithmetic, compiled",
    "students.recipe": "the name of what the other settings of students are unless given; each of them is declared",
    "inversion.classes_per_batch": "how many classes share a batch, on which no class depends",
}
OF_CODES = {"codec_choice", "image_codes", "payload_choice"}
"""Made only with another payload, which refuses stored labels: :mod:`d3m_assets_tests.assets.test_image_codes` records them."""
WITH_HARD_LABELS = HARMLESS | dict.fromkeys(
    ("evaluation.temperature", "evaluation.stored_classes"), "handed to every student, and used where labels are soft"
)
EVERYTHING = SOFT | SELECTED | {
    "budgets": ("ipc-1",), "evaluation.table": "full", "evaluation.baselines": ",".join(NAMES),
    "evaluation.distillations": 2, "evaluation.labels": "hard,soft stored,soft teacher",
    "inversion.steps": 2, "generation.images_per_class": 4, "students.steps": 2, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory, finished):
    """The graph with all rows, two distillations and two networks, made from nothing under the recording settings."""
    root = tmp_path_factory.mktemp("recorded")
    shutil.copytree(finished / "images", root / "images")
    recording = RecordingPipeline(open_pipeline(root, root / "images", **EVERYTHING))
    recording.make()
    return recording


@pytest.fixture(scope="module")
def plain(tmp_path_factory, finished):
    """The same for the settings by default, under which other branches are taken."""
    root = tmp_path_factory.mktemp("plain")
    shutil.copytree(finished / "images", root / "images")
    recording = RecordingPipeline(open_pipeline(root, root / "images", budgets=("ipc-1",)))
    recording.make()
    return recording


def test_every_asset_is_made_shown_and_checked_with_its_declared_inputs_alone(everything):
    assert {key.asset for key in everything.used} == set(GRAPH.names) - OF_CODES
    assert {key.replicate for key in everything.used} == {0, 1}
    assert everything.pipeline.plan().pending() == []


def test_the_recording_sees_what_is_read(everything):
    used = {asset: set() for asset in GRAPH.names}
    for key, names in everything.used.items():
        used[key.asset] |= names
    assert {"inversion.learning_rate", "inversion.steps", "seed", "device"} <= used["inverted_embeddings"]
    assert {"generation.guidance_scale", "generation.scheduler", "generation.steps"} <= used["synthetic_pool"]
    assert {"students.learning_rate", "students.width", "evaluation.labels"} <= used["student_metrics"]
    assert {"teacher.learning_rate", "teacher.steps"} <= used["teacher_model"]
    assert "selection.criterion" in used["sample_selection"]
    assert "audit.quantile" in used["pool_audit"]
    assert used["foundation_model"] == {"foundation"}


def test_no_maker_reads_a_setting_that_is_not_in_its_fingerprint(everything):
    assert everything.undeclared(HARMLESS) == {}
    read = set().union(*everything.used.values())
    assert HARMLESS.keys() <= read, "an excuse for a setting that no maker reads"


def test_no_maker_reads_an_undeclared_setting_by_default_either(plain):
    # Real images share the bytes of the pool's labels only where labels are stored.
    of_labels = {"generation.images_per_class", "selection.kept"}
    # How many are kept at most is what the bytes of labels are counted with.
    assert plain.undeclared(WITH_HARD_LABELS) == {
        "reference_metrics": of_labels, "student_metrics": {"selection.kept"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("described", "missing"),
    [
        ({}, "generation.guidance_scale"),
        ({"generation": {"steps": 2}}, "generation.scheduler"),
    ],
)
def test_a_fingerprint_that_leaves_a_setting_out_is_found(finished, tmp_path, monkeypatch, described, missing):
    shutil.copytree(finished / "images", tmp_path / "images")
    recording = RecordingPipeline(open_pipeline(tmp_path, tmp_path / "images", budgets=("ipc-1",)))
    monkeypatch.setattr(SyntheticPool, "settings", lambda self, context, item: described)
    recording.make(
        "class_catalog", "raw_dataset", "foundation_model", "class_prompts", "inverted_embeddings", "synthetic_pool"
    )
    found = recording.undeclared(HARMLESS)
    assert set(found) == {"synthetic_pool"}
    assert missing in found["synthetic_pool"]


def test_a_maker_that_reads_what_it_does_not_declare_is_stopped(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images")
    pool = ArtefactKey("synthetic_pool", "7", "ipc-1")
    assert pipeline.store.manifest(pool) is not None
    told = r"synthetic_pool \[7, ipc-1\] was read for whole_dataset_metrics.*Add it to `deps` and `inputs`"
    for reads in (lambda inputs: inputs.read(pool, "pool.parquet"), lambda inputs: inputs.manifest(pool)):
        monkeypatch.setattr(WholeDatasetMetrics, "rows", lambda self, context, item, reads=reads: reads(context.inputs))
        with pytest.raises(UndeclaredReadError, match=told):
            list(pipeline.materialize("whole_dataset_metrics", [ArtefactKey("whole_dataset_metrics")], force=True))
