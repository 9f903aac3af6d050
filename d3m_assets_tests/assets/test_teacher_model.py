"""The classifier of the real data: when it is made, what it is refused for, and where it comes from."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from d3m_assets.errors import StageError
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline, run

STUDENTS = ArtefactKey("student_metrics", None, "ipc-1")


def test_the_teacher_is_made_only_when_a_row_needs_it(finished):
    pipeline = open_pipeline(finished, finished / "images")
    assert pipeline.keys("teacher_model") == []
    assert not any(e.key.asset == "teacher_model" for e in pipeline.plan().entries)
    assert not any("teacher" in name for key in pipeline.keys("student_metrics") for name in pipeline.spec(key).inputs)
    assert "evaluation.labels" in pipeline.skip_reason(ArtefactKey("teacher_model"))
    with pytest.raises(StageError, match="not part of"):
        pipeline.spec(ArtefactKey("teacher_model"))
    # What decides about soft labels and a teacher that nobody asks is no reason to do anything again.
    changes = {
        "evaluation.temperature": 3,
        "evaluation.stored_classes": 2,
        "teacher.steps": 9,
        "evaluation.labels": "hard",
    }
    assert open_pipeline(finished, finished / "images", **changes).plan().pending() == []


def test_what_changes_the_teacher_or_the_labels_redoes_what_depends_on_it(soft):
    def pending(**changes):
        return {e.key.asset for e in open_pipeline(soft, soft / "images", **SOFT | changes).plan().pending()}

    metrics = {"student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics"}
    told = {*metrics, "pool_labels", "distillation_report"}
    assert pending(**{"teacher.width": 5}) == {"teacher_model", *told}
    assert pending(**{"evaluation.temperature": 5.0}) == told
    assert pending(**{"evaluation.stored_classes": 2}) == told
    assert pending(**{"evaluation.stored_classes": 3}) == set()  # all there are
    assert pending(**{"evaluation.baselines": "random,herding"}) == {"reference_metrics", "distillation_report"}
    assert pending(**{"students.steps": 5}) == {*metrics, "distillation_report"}


def test_one_changed_image_trains_the_teacher_again(soft, tmp_path):

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT)
    weights = pipeline.store.read(ArtefactKey("teacher_model"), "teacher.safetensors")
    changed = next(i for i in pipeline.context.dataset.scan.classes["7"].images if i.split == "train").uri
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT)
    entries = {str(e.key): e.reasons for e in pipeline.plan().pending()}
    assert entries["teacher_model"] == ["input raw_dataset [7] changed"]
    run(pipeline)
    assert pipeline.store.read(ArtefactKey("teacher_model"), "teacher.safetensors") != weights


def test_a_teacher_of_permuted_classes_is_refused_where_it_is_loaded(soft, tmp_path):

    from d3m_assets.assets.teacher_model import loaded_teacher, read_teacher
    from d3m_assets.errors import TeacherError

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline, key = open_pipeline(tmp_path, tmp_path / "images", **SOFT), ArtefactKey("teacher_model")
    record = json.loads(pipeline.store.read(key, "teacher.json")) | {"class_names": ["1", "0", "7"]}
    files = {
        "teacher.json": json.dumps(record).encode(),
        "teacher.safetensors": pipeline.store.read(key, "teacher.safetensors"),
    }
    pipeline.store.write(key, pipeline.spec(key), files, {})
    assert "classes are 1, 0, 7" in pipeline.verify("teacher_model")[0].message
    with pytest.raises(TeacherError, match="classes are 1, 0, 7; the dataset's are 0, 1, 7"):
        loaded_teacher(read_teacher(pipeline.reading(STUDENTS)), "cpu")
    for digest in pipeline.store.records("students"):  # students that are known would not ask the teacher
        pipeline.store.drop_record("students", digest)
    (outcome,) = pipeline.materialize("student_metrics", [STUDENTS], force=True)
    assert "1, 0, 7" in str(outcome.error)


def test_a_teacher_that_guesses_fails_its_check(soft, tmp_path):

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline, key = open_pipeline(tmp_path, tmp_path / "images", **SOFT), ArtefactKey("teacher_model")
    assert open_pipeline(tmp_path, tmp_path / "images").verify("teacher_model") == []
    files = {name: pipeline.store.read(key, name) for name in ("teacher.json", "teacher.safetensors")}
    for right, problems in ((30, []), (11, ["right on 37% of 30 held-out images, no better than a guess"])):
        record = json.loads(files["teacher.json"]) | {"accuracy": right / 30, "n_validation": 30}
        pipeline.store.write(key, pipeline.spec(key), files | {"teacher.json": json.dumps(record).encode()}, {})
        found = pipeline.verify("teacher_model")
        assert [p.severity for p in found] == ["error"] * len(problems)
        assert all(text in p.message for text, p in zip(problems, found, strict=True))


def test_a_checkpoint_as_teacher(soft, tmp_path):

    import torch
    from transformers import ViTConfig, ViTForImageClassification

    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    names = {0: "7", 1: "1", 2: "0"}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, id2label=names)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    given = SOFT | {"teacher.checkpoint": str(tmp_path / "vit"), "evaluation.labels": "soft teacher"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **given)
    made = run(pipeline)
    assert ArtefactKey("teacher_model") in made
    record = json.loads(pipeline.store.read(ArtefactKey("teacher_model"), "teacher.json"))
    assert record["outputs"] == [2, 1, 0]
    # Moved it is the same; changed it is not; other settings of a trained teacher do not matter.
    shutil.move(tmp_path / "vit", tmp_path / "moved")
    moved = given | {"teacher.checkpoint": str(tmp_path / "moved"), "teacher.steps": 7}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **moved)
    assert pipeline.plan().pending() == []
    (outcome,) = pipeline.materialize("student_metrics", [ArtefactKey("student_metrics", None, "ipc-1")], force=True)
    assert outcome.error is None
    (tmp_path / "moved" / "config.json").write_text((tmp_path / "moved" / "config.json").read_text() + "\n")
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **moved)
    assert "teacher_model" in {e.key.asset for e in pipeline.plan().pending()}


def test_without_a_validation_image_there_is_no_teacher(copy):
    pipeline = open_pipeline(copy, copy / "images", **SOFT | {"validation_fraction": 0})
    list(pipeline.materialize("raw_dataset", pipeline.keys("raw_dataset")))
    (outcome,) = pipeline.materialize("teacher_model", pipeline.keys("teacher_model"))
    assert "validation_fraction" in str(outcome.error)
