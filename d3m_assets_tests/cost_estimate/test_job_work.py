"""The work that is planned beside what a real distillation of the same settings does."""

import dataclasses
import json
from collections import Counter

import pytest

from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.measuring import FILE
from d3m_assets.assets.sample_selection import CODE
from d3m_assets.cost_estimate.asking import pipeline_to_plan
from d3m_assets.cost_estimate.counting import Count
from d3m_assets.cost_estimate.dataset_description import DatasetDescription
from d3m_assets.cost_estimate.estimate import estimate
from d3m_assets.cost_estimate.job_work import generation_flops, inversion_flops, training_work
from d3m_assets.cost_estimate.model_work import ModelWork
from d3m_assets.distillation.settings import GenerationSettings, InversionSettings
from d3m_assets.errors import BudgetError, DatasetError, FoundationError, SettingsError
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.settings import load_settings
from d3m_assets_tests.small_runs import QUICK, SELECTED, open_pipeline, run

SHARED = ("class_catalog", "raw_dataset", "class_prompts", "foundation_model")
DISTILLED = (*SHARED, "inverted_embeddings", "synthetic_pool", "selection_model", "sample_selection")


def work_of(**flops):
    counts = {name: Count(flops.get(name, 0), 0, 0) for name in
              ("predict", "predict_gradient", "encode_prompt", "prompt_gradient", "encode_image", "decode_image")}  # fmt: skip
    return ModelWork(parameters={"unet": 1}, weight_bytes=1, latent_bytes=1, image_size=8, **counts)


def test_an_inversion_by_hand():
    model = work_of(predict=10, predict_gradient=100, encode_prompt=1, prompt_gradient=2)
    settings = InversionSettings(steps=25, check_every=10)
    # Evaluations before steps 0, 10, 20 and at the end: 66 samples are the least multiple of three prompts above 64.
    assert inversion_flops(model, settings, prompts=3, samples=18) == 25 * (18 * 100 + 3 * 2) + 4 * (66 * 10 + 3 * 1)


@pytest.mark.parametrize(
    ("guidance", "interval", "factor"), [(1.0, (0, 1), 1), (2.0, (0, 1), 2), (2.0, (0.2, 0.7), 1.5)]
)
def test_generation_by_hand(guidance, interval, factor):
    model = work_of(predict=1000, encode_prompt=7, decode_image=30)
    settings = GenerationSettings(steps=4, batch_size=50, guidance_scale=guidance, guidance_interval=interval)
    # 120 images are three whole batches; two prompts and the empty one are encoded.
    assert generation_flops(model, settings, 120, prompts=2) == 150 * (4 * factor * 1000 + 30) + 3 * 7


def test_a_student_by_hand():
    work = training_work(StudentSettings(width=4), n_classes=10, channels=1, side=16)
    forward = 2 * 9 * (256 * 1 * 4 + 64 * 4 * 4 + 16 * 4 * 4) + 2 * 16 * 10
    assert work.forward == forward
    # Gradients of weights and of inputs; the first convolution has no gradient of its input.
    assert work.image == 3 * forward - 2 * 9 * 256 * 4


def test_bytes_are_those_that_a_distillation_stores(tmp_path, image_folder):
    changes = SELECTED | {"budgets": ("ipc-1", "ipc-3"), "inversion.storage_type": "auto"}
    pipeline = open_pipeline(tmp_path, image_folder(), **changes)
    planned = {(of.budget, of.classes): of for of in estimate(pipeline).bytes}
    run(pipeline, DISTILLED)
    for (budget, classes), of in planned.items():
        assert classes == 3
        for key in [k for k in pipeline.keys("inverted_embeddings") if k.budget == budget]:
            manifest = pipeline.store.manifest(key)
            assert manifest.metrics["payload_bytes"] == of.vector_bytes
            assert (manifest.metrics["prompts"], manifest.metrics["vectors"]) == (of.prompts, of.vectors)
            selection = dataclasses.replace(key, asset="sample_selection")
            assert len(pipeline.store.read(selection, CODE)) == of.selection_bytes
            pool = dataclasses.replace(key, asset="synthetic_pool")
            assert pipeline.store.manifest(pool).metrics["images"] == of.candidates
        assert of.vector_bytes + of.selection_bytes <= of.allowed
    assert {of.selection_bytes > 0 for of in planned.values()} == {True}
    # What is made is not made again: the students and their helpers are left.
    left = estimate(open_pipeline(tmp_path, tmp_path / "images", **changes))
    assert {"inversion", "generation", "encoding of images"}.isdisjoint(stage.name for stage in left.stages)
    assert "inverted_embeddings" not in left.pending
    assert "students" in {stage.name for stage in left.stages}


def test_students_are_as_many_as_a_distillation_trains(tmp_path, finished):
    new = open_pipeline(tmp_path, finished / "images")
    (students,) = [stage for stage in estimate(new).stages if stage.name == "students"]
    store, lines = open_pipeline(finished, finished / "images").store, []
    for asset in (
        "reference_metrics",
        "frontier_metrics",
        "whole_dataset_metrics",
        "foundation_metrics",
        "student_metrics",
    ):
        lines += [from_parquet(store.read(key, FILE)) for key in new.keys(asset)]
    trained = sum(len(table) for table in lines)
    assert students.amount.startswith(f"up to {trained} students")


def test_nothing_is_left_of_a_finished_distillation(finished):
    found = estimate(open_pipeline(finished, finished / "images"))
    assert found.pending == {} and found.stages == [] and found.current > 20
    assert found.runs == "none: everything is up to date"
    assert {cost.hours for cost in found.costs} == {0.0}
    assert found.flops == 0
    json.loads(found.to_json())


def test_a_described_dataset_costs_what_the_same_dataset_costs(tmp_path, image_folder):
    changes = {"validation_fraction": 0.0, "device": "cpu"} | QUICK | SELECTED
    folder = image_folder(train=11, test=5)
    read = load_settings(dataset=str(folder), home=tmp_path / "home", **changes)
    scanned, described = (
        json.loads(estimate(pipeline_to_plan(read, described=text)).to_json()) for text in (None, "3,33,15,8x8x1")
    )
    # Names differ, and nothing else; the renderer of the embedded model knows those of both.
    assert scanned.pop("dataset").partition(":")[2] == described.pop("dataset").partition(":")[2]
    assert described == scanned


def test_classes_that_share_a_batch_on_a_processor_take_memory_together(tmp_path):
    def memory(**changes):
        steps = {"inversion.samples_per_step": 64, "generation.batch_size": 1, "generation.decode_batch_size": 1}
        settings = load_settings(home=tmp_path, device="cpu", **QUICK | steps | changes)
        return estimate(pipeline_to_plan(settings, described="10,1300,500,8x8x1")).costs[0].least_memory

    alone = memory(**{"inversion.classes_per_batch": 1})
    assert memory(**{"inversion.classes_per_batch": 8}) > 1.1 * alone
    assert memory() == alone  # 96 samples are no two classes of 64


@pytest.mark.parametrize(
    "text",
    ["", "10", "1,10,10,8x8x1", "10,5,10,8x8x1", "10,100,0,8x8x1", "10,100,10,8x8x4", "10,100,10,0x8x1", "a,b,c,d"],
)
def test_impossible_descriptions_are_refused(text):
    with pytest.raises(SettingsError, match="--describe"):
        DatasetDescription.parse(text)


def test_a_described_dataset_has_nothing_to_read(tmp_path):
    dataset = DatasetDescription.parse("3,30,10,8x8x1").dataset("x", 0.1)
    assert Counter(c.n_train for c in dataset.classes) == {9: 3}
    with pytest.raises(DatasetError, match="no images"):
        dataset.source.read(None)


def test_what_cannot_be_planned_is_said(tmp_path, image_folder, sd15):
    folder = image_folder()
    with pytest.raises(DatasetError):
        estimate(open_pipeline(tmp_path, tmp_path / "absent"))
    with pytest.raises(BudgetError, match="smallest budget that can hold one"):
        estimate(open_pipeline(tmp_path, folder, budgets=("8B",)))
    with pytest.raises(FoundationError, match="does not exist"):
        settings = load_settings(dataset=str(folder), home=tmp_path / "home", foundation=str(tmp_path / "no model"))
        estimate(pipeline_to_plan(settings))
    with pytest.raises(FoundationError, match="nothing can be measured"):
        settings = load_settings(dataset=str(folder), home=tmp_path / "home", foundation=str(sd15), budgets=("4KiB",))
        estimate(pipeline_to_plan(settings), measured=True)


def test_runs_of_a_backfill_are_those_of_dagsters_policy(tmp_path, image_folder):
    import math

    import dagster as dg

    from d3m_assets.orchestration.assets import build_assets
    from d3m_assets.orchestration.partitions import Partitions

    pipeline = open_pipeline(tmp_path, image_folder(), **{"compute.partitions_per_run": 4})
    counts = estimate(pipeline).run_counts
    assert counts["distill"] == 1
    definitions = build_assets(
        pipeline.graph, Partitions.of(pipeline.settings.budgets), pipeline.settings, dg.in_process_executor
    )
    of_assets = {d.key.to_user_string(): d for d in definitions}
    assert set(counts["backfill"]) == {
        asset.name for asset in pipeline.graph if asset.partitions and pipeline.keys(asset.name)
    }
    for name, runs in counts["backfill"].items():
        partitions = {(key.class_key, key.budget) for key in pipeline.keys(name)}
        most = of_assets[name].backfill_policy.max_partitions_per_run
        assert runs == (1 if most is None else math.ceil(len(partitions) / most)), name
    assert counts["backfill"]["inverted_embeddings"] == 2
