"""`d3m plan` and the question of `d3m distill`, as a person or a script meets them."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from d3m_assets.cost_estimate.asking import pipeline_to_plan, show
from d3m_assets.cost_estimate.estimate import estimate
from d3m_assets.settings import load_settings
from d3m_assets_tests.foundation.small_pipelines import write_pipeline
from d3m_assets_tests.test_cli import d3m, environment, store_of


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that is not the embedded one, so that jobs with it are counted."""
    return write_pipeline("sd1", tmp_path_factory.mktemp("small") / "small")


def answered(home, answer, *arguments, timeout=300, **more):
    """Run ``d3m`` at a terminal and answer its question; returns its exit status and all that it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "d3m_assets.cli", *map(str, arguments)],
        env=environment(home, TERM="xterm", **more), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown, begun, asked = "", time.monotonic(), False
    while time.monotonic() - begun < timeout:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        if not asked and "[y/N]" in shown:
            asked = True
            os.write(ours, f"{answer}\n".encode())
    status = process.wait(timeout=60)
    os.close(ours)
    return status, shown


def test_a_page_and_json(tmp_path, image_folder):
    page = d3m(tmp_path / "home", "plan", "--dataset", image_folder(), "--gpu", "a100=2", "--gpu", "RTX 3060:51:12=0.1")
    for words in ("Bytes of a class", "Time and money", "this machine", "A100 80GB", "RTX 3060", "Alternatives",
                  "class-name prompts", "diffusers' textual_inversion script", "assumed: 15% of 312 TFLOP/s"):  # fmt: skip
        assert words in page.stdout, page.stdout
    assert not (tmp_path / "home" / "store").exists()
    assert not (tmp_path / "home" / "dagster").exists()
    told = d3m(tmp_path / "home", "plan", "--dataset", tmp_path / "images", "--gpu", "a100=2", "--json")
    found = json.loads(told.stdout)
    assert [cost["device"]["name"] for cost in found["costs"][1:]] == ["A100 80GB"]
    assert found["costs"][1]["dollars"] == pytest.approx(2 * found["costs"][1]["hours"])
    assert found["flops"] == sum(stage["flops"] for stage in found["stages"]) > 0
    assert found["pending"]["inverted_embeddings"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "/no/such/folder"), "/no/such/folder"),
        (("--gpu", "H1000"), 'the GPU "H1000" is not known; known are L4'),
        (("--budget", "8B", "--describe", "3,30,10,8x8x1"), "the smallest budget that can hold one is"),
        (("--foundation", "/no/such/model", "--describe", "3,30,10,8x8x1"), "/no/such/model does not exist"),
        (("--describe", "three classes"), "write CLASSES,TRAIN,TEST,WIDTHxHEIGHTxCHANNELS"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, arguments, message):
    done = d3m(tmp_path / "home", "plan", *arguments, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr


def test_a_long_job_is_not_begun_where_nobody_can_be_asked(tmp_path, image_folder, small):
    long = {"D3M_PLAN__ASK_ABOVE_HOURS": "0"}
    job = ("distill", "--dataset", image_folder(), "--foundation", small, "--budget", "ipc-1")
    refused = d3m(tmp_path / "home", *job, check=False, **long)
    assert refused.returncode == 1
    assert "not begun: this job takes about" in refused.stderr and "Add --yes" in refused.stderr
    assert "Time and money" in refused.stderr
    assert not list((tmp_path / "home").rglob("manifest.json"))
    status, shown = answered(tmp_path / "home", "n", *job, **long)
    assert status == 1 and "not begun; nothing was made" in shown and "Time and money" in shown
    assert not (tmp_path / "home" / "store").exists()


def test_a_hub_model_is_asked_about_before_its_weights_are_fetched(tmp_path, image_folder, sd15):
    kept, commit = tmp_path / "hub" / "models--someone--sd15", "0" * 40
    shutil.copytree(sd15, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    refused = d3m(
        tmp_path / "home", "distill", "--dataset", image_folder(), "--foundation", "someone/sd15", "--budget", "16KiB",
        check=False, HF_HUB_CACHE=str(tmp_path / "hub"), D3M_PLAN__ASK_ABOVE_HOURS="0.01",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "not begun: this job takes about" in refused.stderr, refused.stderr
    assert not (tmp_path / "home" / "store").exists()


@pytest.mark.long
def test_a_long_job_begins_with_yes_or_when_the_answer_is_yes(tmp_path, image_folder, small):
    # More seconds than hours are asked about here; a job below the limit begins without a word.
    job = ("distill", "--dataset", image_folder(), "--foundation", small, "--budget", "128B")
    begun = d3m(tmp_path / "home", *job, "--yes", D3M_PLAN__ASK_ABOVE_HOURS="0")
    assert "Time and money" in begun.stderr and "Report:" in begun.stdout
    assert (store_of(tmp_path / "home") / "distilled_bundle").exists()
    again = d3m(tmp_path / "home", *job, D3M_PLAN__ASK_ABOVE_HOURS="0")
    assert "Everything was up to date" in again.stdout and "Time and money" not in again.stderr
    status, shown = answered(
        tmp_path / "home", "y", *job, "--set", "generation.steps=3", D3M_PLAN__ASK_ABOVE_HOURS="0", timeout=500
    )
    assert status == 0 and "Report:" in shown
    # Progress has the terminal again after the answer.
    assert "synthetic_pool" in shown.partition("[y/N]")[2]
    quiet = d3m(tmp_path / "home", *job, "--set", "generation.steps=1")
    assert "Time and money" not in quiet.stderr and "Report:" in quiet.stdout


def test_the_limit_and_gpus_are_settings():
    settings = load_settings(**{"plan.gpus": "a100, H200=4", "plan.ask_above_hours": "2.5"})
    assert settings.plan.gpus == ("a100", "H200=4")
    assert settings.plan.ask_above_hours == 2.5


@pytest.mark.parametrize("payload", ["codes", "both", "auto"])
def test_image_codes_are_planned_too(tmp_path, payload):
    settings = load_settings(home=tmp_path, device="cpu", payload=payload, validation_fraction=0.3, budgets=("64B",))
    found = estimate(pipeline_to_plan(settings, described="10,1300,500,8x8x1"))
    stages = {stage.name for stage in found.stages}
    assert ("inversion" in stages, "generation" in stages, bool(found.bytes)) == ((payload != "codes",) * 3)
    assert found.pending["codec_choice"] == 1 and "students" in stages
    told = io.StringIO()
    show(found, told)
    assert ("up to 16" in told.getvalue()) == (payload == "both")
