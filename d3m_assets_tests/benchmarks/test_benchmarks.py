"""The benchmark's parts, run for real with tiny settings."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import (
    choose,
    engine,
    estimate,
    generation,
    inversion,
    loader,
    memory,
    models,
    record,
    scan,
    students,
    variations,
)
from benchmarks.loss import Curve, FixedLoss, classes_per_hour, common_targets
from benchmarks.script_recipe import ScriptOptions, ScriptRun
from d3m_assets.datasets.labelled_images import resize_to_square
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.text import learned_ids
from d3m_assets.distillation.vectors import from_stored
from d3m_assets.errors import FoundationError, StageError
from d3m_assets.foundation.embedded.characters import render
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import load_foundation
from d3m_assets.settings import load_settings
from d3m_assets_tests.foundation.small_pipelines import write_pipeline


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return inversion.digits_classes(tmp_path_factory.mktemp("digits") / "digits", 10, load_settings())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_script_learns_and_only_its_new_row_differs(foundation, digits):
    seven, before = digits[7], foundation.text_encoders[0].table.clone()
    run = ScriptRun(foundation, seven.prompts, seven.files, ScriptOptions(learning_rate=5e-3), 0)
    loss = FixedLoss(foundation, seven.prompts, seven.files, 0)
    start, first = run.rows, loss(run.rows)
    for _ in range(25):
        run.step()
    assert loss(run.rows) < 0.99 * first
    (table,) = run.tables
    assert len(table) == len(before) + 1
    assert torch.equal(table[:-1], before) and not torch.equal(run.rows, start)
    assert torch.equal(foundation.text_encoders[0].table, before)


def test_the_script_and_the_engine_read_the_same_prompt(foundation, digits):
    item = digits[3]
    run = ScriptRun(foundation, item.prompts, item.files, ScriptOptions(), 0)
    batch = next(run.batches)
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and -1 <= batch["pixel_values"].min() < 0
    ours = learned_ids(foundation, item.prompts, 1, 1, 0)
    table = len(foundation.text_encoders[0].table)
    assert torch.equal(batch["input_ids"][0], torch.where(ours < 0, table, ours)[:, 0])


def test_the_script_trains_the_tables_of_both_encoders_of_sdxl(tmp_path, digits):
    tiny = load_foundation(FoundationFiles("sdxl", write_pipeline("sdxl", tmp_path / "sdxl")), "cpu")
    run = ScriptRun(tiny, digits[1].prompts, digits[1].files, ScriptOptions(batch_size=2), 0)
    start = run.rows
    run.step()
    assert run.rows.shape == (1, 80) and (run.rows != start).float().mean() > 0.9
    for table, encoder in zip(run.tables, tiny.text_encoders, strict=True):
        assert torch.equal(table[:-1], encoder.table)


def test_the_script_refuses_a_start_word_of_several_tokens(foundation, digits, words):
    with pytest.raises(StageError, match="prompts.initializer"):
        ScriptRun(foundation, words("7", initializer="qqxyz"), digits[7].files, ScriptOptions(), 0)


@pytest.fixture
def words():
    from d3m_assets.distillation.prompts import ClassPrompts

    return lambda name, initializer: ClassPrompts.of(
        0, name, name, templates=("a photo of a {}",), initializer=initializer, keep_class_name=True
    )


def test_the_fixed_loss_is_what_the_engine_records(foundation, digits):
    item = digits[5]
    task = InversionTask(item.prompts, item.files, EmbeddingPlan(1, 1, "fp16", 64))
    ((_, learned),) = invert(foundation, [task], InversionSettings(steps=4, check_every=2, samples_per_step=4), 0)
    rows = torch.from_numpy(from_stored(learned.vectors, foundation.layout))[0]
    best = min(loss for _, loss in learned.losses)
    assert FixedLoss(foundation, item.prompts, item.files, 0)(rows) == pytest.approx(best, rel=1e-4)


def test_the_time_to_a_target_is_that_of_the_first_loss_at_or_below_it():
    curve = Curve([0.0, 1.0, 2.0, 3.0], [0, 5, 10, 15], [1.0, 0.6, 0.4, 0.5])
    assert curve.best == 0.4
    assert curve.reached(0.6) == (1.0, 5)
    assert curve.reached(0.59) == (2.0, 10)
    assert curve.reached(0.3) is None


def test_targets_are_a_share_of_what_the_worst_variant_reaches():
    good = [Curve([0, 1], [0, 1], [1.0, 0.2]), Curve([0, 1], [0, 1], [2.0, 1.5])]
    poor = [Curve([0, 1], [0, 1], [1.1, 0.5]), Curve([0, 1], [0, 1], [2.0, 1.0])]
    assert common_targets([good, poor], 1.0) == [0.5, 1.5]
    assert common_targets([good, poor], 0.5) == [0.75, 1.75]


def test_classes_per_hour_adds_batches_and_waits_for_the_slowest_of_each():
    slow, fast = Curve([0, 8.0], [0, 1], [1.0, 0.1]), Curve([0, 2.0], [0, 1], [1.0, 0.1])
    assert classes_per_hour([[slow], [fast]], [0.5, 0.5]) == pytest.approx(3600 * 2 / 10)
    assert classes_per_hour([[slow, fast]], [0.5, 0.5]) == pytest.approx(3600 * 2 / 8)
    assert classes_per_hour([[slow], [fast]], [0.5, 0.05]) is None


def test_a_run_writes_what_is_promised(tmp_path, monkeypatch, capsys):
    for name, value in {"INVERSION__STEPS": "4", "INVERSION__CHECK_EVERY": "2", "INVERSION__SAMPLES_PER_STEP": "16",
                        "GENERATION__STEPS": "2", "GENERATION__BATCH_SIZE": "2"}.items():  # fmt: skip
        monkeypatch.setenv(f"D3M_{name}", value)
    monkeypatch.setattr(generation, "PLAIN_STEPS", 2)
    file = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["engine.py", "--classes", "2", "--script-steps", "6", "--seconds", "2", "--repeats",
                                     "1", "--device", "cpu", "--plain-batch", "2", "--output", str(file)])  # fmt: skip
    engine.main()
    printed, result = capsys.readouterr().out, json.loads(file.read_text())
    assert {"date", "command", "commit", "hardware", "versions", "settings", "model"} <= result.keys()
    assert result["hardware"]["device"] and result["versions"]["torch"] == torch.__version__
    assert result["command"].startswith("python -m benchmarks.engine --classes 2")
    rows = result["inversion"]["variants"]
    assert list(rows) == [
        "script", "script, tuned", "engine, one by one", "engine", "engine, start from words", "engine, fused"
    ]  # fmt: skip
    for name, row in rows.items():
        assert row["samples_per_second"] > 0 and row["flops_per_sample"] > 1e7 and row["peak_memory"] > 1e7, name
        assert len(row["curves"]) == 2 and row["curves"][0]["steps"][0] == 0, name
        # What starts near its target has worked for it, too: images are encoded before the first look.
        assert (row["curves"][0]["seconds"][0] > 0) == name.startswith("engine"), name
        assert set(row["classes_per_hour"]) == set(result["inversion"]["targets"]), name
        assert name in printed
    # The script encodes every image in every step; the engine does not.
    assert rows["engine"]["flops_per_sample"] < rows["script"]["flops_per_sample"]
    assert rows["engine"]["flops_per_sample"] == rows["engine, fused"]["flops_per_sample"]
    for name, row in result["generation"]["variants"].items():
        assert row["images_per_second"] > 0 and row["flops_per_image"] > 1e7 and row["mfu"] is None, name
        assert name in printed


@pytest.mark.parametrize(
    ("size", "unet", "text", "pixels", "prediction"),
    [("sd15", 859_520_964, 123_060_480, 512, "epsilon"), ("sd21", 865_910_724, 340_387_840, 768, "v_prediction"),
     ("sdxl", 2_567_463_684, 123_060_480 + 694_659_840, 1024, "epsilon")],
)  # fmt: skip
def test_built_models_have_the_published_sizes(tmp_path, size, unet, text, pixels, prediction):
    built = models.load_model(size, "meta", tmp_path)
    assert models.parameters([built.unet]) == unet
    assert models.parameters([built.vae]) == 83_653_863
    assert models.parameters([e.model for e in built.text_encoders]) == text
    assert built.files.image_size == pixels and built.scheduler_config["prediction_type"] == prediction
    assert built.files.text_widths == {"sd15": (768,), "sd21": (1024,), "sdxl": (768, 1280)}[size]


def test_the_padded_tokenizer_has_clips_length_and_keeps_words_whole():
    tokenizer = models.build_tokenizer()
    ids = tokenizer("a photo of a 7", padding="max_length").input_ids
    assert len(tokenizer) == 49_408 and len(ids) == 77
    assert ids[0] == 49_406 and ids[6] == 49_407 and len(set(ids[1:6])) == 4


def test_impossible_requests_name_the_way_out(tmp_path):
    with pytest.raises(StageError, match="1 to 10"):
        inversion.digits_classes(tmp_path, 11, load_settings())
    with pytest.raises(FoundationError, match="sd15"):
        models.load_model("sd9", "cpu", tmp_path)


def test_peaks_are_known_for_the_named_gpus_only():
    assert record.peak_flops("NVIDIA H200") == record.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert record.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert record.peak_flops("NVIDIA H100 PCIe") is None and record.peak_flops("AMD EPYC") is None


def test_the_memory_of_a_run_is_told_by_stage(tmp_path):
    found = memory.run_stages(tmp_path, classes=2, workers=1, steps=1)
    assert list(found["parent_after"]) == list(memory.STAGES)
    assert found["total"] == found["parent"] + found["workers"] > 1e8
    assert "1.000" in memory.table([found])


def test_students_are_timed_side_by_side_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("D3M_HOME", str(tmp_path / "home"))
    output = tmp_path / "students.json"
    arguments = ["--steps", "4", "--seeds", "2", "--repeats", "1", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["students", *arguments])
    students.main()
    result = json.loads(output.read_text())
    assert len(result["medians"]) == 4
    assert all(rate > 0 for rate in result["medians"].values())
    assert result["against_alone"]["largest_difference"] < 1e-3 < result["against_alone"]["largest_logit"]
    assert "students an hour" in capsys.readouterr().out


@pytest.mark.long
def test_the_loader_is_measured_beside_a_folder(tmp_path, monkeypatch, capsys):
    output = tmp_path / "loader.json"
    arguments = ["--images-per-class", "2", "--workers", "0", "1", "--epochs", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["loader", *arguments, "--output", str(output)])
    loader.main()
    result = json.loads(output.read_text())
    assert set(result["medians"]) >= {"PNG folder", "cold", "memory", "disk"}
    assert all(rate > 0 for by_workers in result["medians"].values() for rate in by_workers.values())
    assert "| images/s | 0 workers | 1 workers |" in capsys.readouterr().out


def test_the_scan_finds_every_image_and_counts_requests(tmp_path, monkeypatch, capsys):
    output = tmp_path / "scan.json"
    arguments = ["--images", "60", "--classes", "3", "--remote-images", "30", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["scan", *arguments])
    scan.main()
    first, again = json.loads(output.read_text())["requests"]
    assert first["get"] == 30 and "get" not in again
    assert first["list"] == again["list"] > 0


def test_the_estimate_is_compared_with_what_was_used(tmp_path):
    from d3m_assets.cost_estimate.estimate import estimate as plan_of
    from d3m_assets.pipeline import Pipeline

    settings = load_settings(home=tmp_path, device="cpu", **{"evaluation.distillations": 1, "students.seeds": (0,)})
    planned = plan_of(Pipeline(settings))
    named = [stage for stages in estimate.STAGES.values() for stage in stages]
    assert sorted(named) == sorted(stage.name for stage in planned.stages)  # none is left out, none is counted twice
    whole = planned.costs[0].device.seconds(planned.stages) * planned.costs[0].device.workers
    parts = [estimate.planned_seconds(planned, stages) for stages in estimate.STAGES.values()]
    assert all(parts) and sum(parts) == pytest.approx(whole)
    assert estimate.used_seconds(settings, "class_catalog raw_dataset") > 0
    assert not [entry for entry in Pipeline(settings).plan().of("raw_dataset") if entry.state != "up to date"]


def test_variations_of_images_keep_more_of_them_the_less_noise_there_is(foundation, words):
    images = render(4, 900_000_000, characters="3").images[..., None]
    found = {
        strength: variations.variations(foundation, words("3", None), images, strength, 2, 0) for strength in (0.1, 0.9)
    }
    assert all(made.shape == (8, 32, 32, 1) and made.dtype == np.uint8 for made in found.values())
    given = np.tile(resize_to_square(images, 32, 1), (2, 1, 1, 1)).astype(int)
    near, far = (np.abs(made - given).mean() for made in found.values())
    assert near < far / 2


def test_settings_are_compared_by_distillation_with_the_first():
    def rows(*accuracies, budgets=("ipc-1", "ipc-5")):
        return pd.DataFrame(
            {"position": position, "budget": budget, "distillation": k, "accuracy": a + 0.1 * position}
            for position, budget in enumerate(budgets) for k, pair in enumerate(accuracies) for a in pair
        )  # fmt: skip

    found = {"": rows((0.5, 0.7), (0.6, 0.6)), "steps=2": rows((0.6, 0.8), (0.72, 0.72), budgets=("128B", "640B"))}
    lines = choose.compared(found).splitlines()
    assert lines[0] == "| setting | ipc-1 | ipc-5 |"
    assert lines[2] == "| defaults | 60.0 ± 0.0 | 70.0 ± 0.0 |"
    # Means of a distillation 70 and 72; differences 10 and 12: ± 12.7 standard errors of 1 point.
    assert lines[3] == "| steps=2 | 71.0 ± 12.7 (+11.0 ± 12.7) | 81.0 ± 12.7 (+11.0 ± 12.7) |"


def test_a_variant_is_distilled_from_several_seeds_without_the_test_split(tmp_path):
    from d3m_assets.evaluation.metrics import test_split_reads

    before = len(test_split_reads())
    quick = (
        "budgets=ipc-1 inversion.steps=1 generation.images_per_class=2 generation.steps=1 students.steps=2 workers=1"
    )
    found = choose.variant_accuracies(quick, tmp_path, 2, 1, class_names=True)
    assert found[["budget", "distillation"]].to_numpy().tolist() == [
        [name, k] for k in (0, 1) for name in ("ipc-1", "class names")
    ]
    assert found["accuracy"].between(0, 1).all()
    assert len(test_split_reads()) == before


def test_baselines_are_measured_without_the_test_split_too(tmp_path, capsys):
    from d3m_assets.evaluation.metrics import test_split_reads
    from d3m_assets.pipeline import Pipeline

    before = len(test_split_reads())
    changes = {"budgets": ("ipc-1",), "students.steps": 2, "students.seeds": (0, 1), "generation.images_per_class": 2,
               "evaluation.baselines": "random"}  # fmt: skip
    pipeline = Pipeline(load_settings(home=tmp_path, workers=1, **changes))
    for asset in ("class_catalog", "raw_dataset"):
        assert all(outcome.error is None for outcome in pipeline.materialize(asset, pipeline.keys(asset)))
    choose.print_baselines(pipeline)
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(": ")[0] for line in lines if " ± " in line]
    assert names == ["random real images ipc-1", "rendered characters", "whole train split"]
    assert len(test_split_reads()) == before
