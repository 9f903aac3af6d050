"""The command line as a user runs it: real processes, a real Dagster instance, the real embedded model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.distillation.bundle import Bundle

SETTINGS = {
    "D3M_BUDGETS": "ipc-1,ipc-2", "D3M_INVERSION__STEPS": "4", "D3M_INVERSION__SAMPLES_PER_STEP": "4",
    "D3M_GENERATION__IMAGES_PER_CLASS": "5", "D3M_GENERATION__STEPS": "2", "D3M_GENERATION__BATCH_SIZE": "5",
    "D3M_STUDENTS__STEPS": "5", "D3M_STUDENTS__WIDTH": "4", "D3M_STUDENTS__SEEDS": "0,1", "D3M_AUDIT__STEPS": "3",
    "D3M_WORKERS": "1", "D3M_EVALUATION__BASELINES": "random", "D3M_EVALUATION__DISTILLATIONS": "1",
}  # fmt: skip


def environment(home, **more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("D3M_", "DAGSTER_HOME"))}
    return clean | SETTINGS | {"D3M_HOME": str(home), "HF_HUB_OFFLINE": "1"} | more


def d3m(home, *arguments, check=True, **more):
    done = subprocess.run(
        [sys.executable, "-m", "d3m_assets.cli", *map(str, arguments)],
        env=environment(home, **more), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def store_of(home):
    """The store of a home's only dataset."""
    (folder,) = (home / "store").iterdir()
    return folder


def bundles(home):
    return {p.parent.name: p.read_bytes() for p in (store_of(home) / "distilled_bundle").rglob("*.safetensors")}


def test_a_wrong_budget_is_refused_before_dataset_and_torch_are_touched(tmp_path):
    code = (
        "import sys; sys.argv = ['d3m', 'distill', '--dataset', '/no/such/folder', '--budget', 'ipc-1', '--budget', '1MB']\n"
        "from d3m_assets.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'dagster', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert done.stderr == (
        "d3m: setting budgets: \"1MB\" is not a budget: write 1MiB (1,048,576 bytes) or 1000000B (got '1MB')\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_distill_status_metrics_inspect_regenerate(tmp_path, image_folder):
    folder, home = image_folder(), tmp_path / "home"
    first = d3m(home, "distill", "--dataset", folder, D3M_WORKERS="2")
    assert "random real images" in first.stdout
    assert (home / "report.html").stat().st_size > 10_000
    assert "inverted_embeddings" in first.stderr  # progress

    begun = time.monotonic()
    again = d3m(home, "distill", "--dataset", folder)
    assert "nothing was done" in again.stdout
    assert time.monotonic() - begun < 60

    status = json.loads(d3m(home, "status", "--dataset", folder, "--json").stdout)
    assert {e["state"] for e in status["entries"]} == {"up to date"}
    changed = d3m(home, "status", "--dataset", folder, "--set", "generation.steps=3").stdout
    assert "setting generation.steps 2 -> 3" in changed

    rows = json.loads(d3m(home, "metrics", "--dataset", folder, "--json").stdout)
    assert {r["method"] for r in rows} >= {"D3M", "random real images", "class-name prompts", "whole train split"}

    bundle = next((store_of(home) / "distilled_bundle" / "budget=ipc-1").glob("*.safetensors"))
    facts = json.loads(d3m(tmp_path / "else", "inspect", bundle, "--json").stdout)
    assert [c["class_name"] for c in facts["classes"]] == ["0", "1", "7"]
    assert "'embedded' (fingerprint" in facts["fits"][0]
    out = tmp_path / "regenerated"
    d3m(tmp_path / "else", "regenerate", bundle, "--per-class", "3", "--output", out)
    loaded = Bundle.load(bundle)
    numbers = {c.prompts.class_name: loaded.training_numbers(c)[:3] for c in loaded.classes}
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        f"{name}/{k:05d}.png" for name, first in numbers.items() for k in first
    ]
    assert [c["images"] for c in facts["classes"]] == [5, 5, 5]
    pool = pd.read_parquet(next((store_of(home) / "synthetic_pool" / "budget=ipc-1" / "class=7").glob("pool*.parquet")))
    stopped = d3m(tmp_path / "else", "regenerate", bundle, "--per-class", "4", "--output", out, check=False)
    assert stopped.returncode == 1
    assert "holds another export, complete: images is 9 there and 12 here" in stopped.stderr
    repository = tmp_path / "repository"
    d3m(tmp_path / "else", "export", bundle, "--format", "bundle-repository", "--output", repository)
    assert "\nFits\n" in d3m(tmp_path / "else", "inspect", repository).stdout
    d3m(tmp_path / "else", "export", repository, "--format", "prompt-embeds", "--output", tmp_path / "embeds")
    assert (tmp_path / "embeds" / "prompt_embeds.json").is_file()
    tokens = tmp_path / "tokens"
    d3m(tmp_path / "else", "export", bundle, "--format", "a1111", "--output", tokens)
    assert sorted(p.name for p in tokens.iterdir()) == [
        *(f"embedded-d3m-000{i}aa.safetensors" for i in range(3)), "tokens.json"
    ]  # fmt: skip
    again = d3m(tmp_path / "else", "export", bundle, "--output", tokens, check=False)
    assert again.returncode != 0
    assert "--output" in again.stderr
    assert len(pool) == 15
    index = numbers["7"][2]
    stored = np.asarray(Image.open(BytesIO(pool["image"][index]["bytes"])))
    assert np.array_equal(stored, np.asarray(Image.open(out / "7" / f"{index:05d}.png")))


def test_soft_labels_and_a_chosen_baseline_from_one_command(tmp_path, image_folder):
    folder, home = image_folder(train=20), tmp_path / "home"
    wanted = {
        "D3M_EVALUATION__LABELS": "hard,soft teacher", "D3M_EVALUATION__BASELINES": "random,herding",
        "D3M_TEACHER__STEPS": "20", "D3M_TEACHER__WIDTH": "4", "D3M_VALIDATION_FRACTION": "0.3",
    }  # fmt: skip
    plain = d3m(home, "status", "--dataset", folder).stdout
    assert "teacher_model            not needed by these settings" in plain
    done = d3m(home, "distill", "--dataset", folder, **wanted).stdout
    rows = json.loads(d3m(home, "metrics", "--dataset", folder, "--json", **wanted).stdout)
    found = {(r["method"], r["labels"]) for r in rows}
    methods = {"D3M", "random real images", "real images by herding", "class-name prompts", "whole train split"}
    assert found >= {(m, labels) for m in methods for labels in ("hard", "soft teacher")}
    assert re.search("Soft labels from the teacher: .* (than|from|with) real images by herding at", done)
    report = (home / "report.html").read_text()
    assert "Against each baseline of equal bytes" in report
    assert "with everything shared and teacher" in report
    assert "nothing was done" in d3m(home, "distill", "--dataset", folder, **wanted).stdout


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_at_many_moments_it_ends_with_the_same_bytes(tmp_path, image_folder):
    folder = image_folder()
    d3m(tmp_path / "undisturbed", "distill", "--dataset", folder)
    wanted = bundles(tmp_path / "undisturbed")
    assert len(wanted) == 2

    home = tmp_path / "killed"
    embeddings = home / "store" / folder.name / "inverted_embeddings"
    finished: dict[str, bytes] = {}
    for after in (1, 2, 3, 2, 3, 2, 3, 2, 3, 2):  # so many new artefacts, then kill -9
        process = subprocess.Popen(
            [sys.executable, "-m", "d3m_assets.cli", "distill", "--dataset", str(folder)],
            env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        before = len(list(home.rglob("manifest.json")))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(home.rglob("manifest.json"))) >= before + after:
                break
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for manifest in embeddings.rglob("manifest.json"):
            content = manifest.read_bytes()
            assert finished.setdefault(str(manifest), content) == content, "a finished class was redone"
    d3m(home, "distill", "--dataset", folder)
    assert finished
    for manifest, content in finished.items():
        assert Path(manifest).read_bytes() == content
    assert bundles(home) == wanted


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_is_answered_at_once_and_loses_nothing(tmp_path, image_folder, times):
    folder, home, log = image_folder(), tmp_path / "home", tmp_path / "log"
    long = {"D3M_INVERSION__STEPS": "100000", "D3M_PLAN__ASK_ABOVE_HOURS": "1000"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "d3m_assets.cli", "distill", "--dataset", str(folder)],
            env=environment(home, **long), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while "step " not in log.read_text() and time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    began = time.monotonic()
    for wanted in ("stopping …", "ended at once")[:times]:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of its foreground
        while wanted not in log.read_text() and time.monotonic() < began + 30:
            time.sleep(0.02)
    # Two seconds, and as many again where other tests run beside.
    assert time.monotonic() - began < 4, log.read_text()
    assert process.wait(60) == 130
    told = log.read_text()
    assert "Traceback" not in told
    assert ("d3m: stopped; what was finished is kept" in told) == (times == 1)
    made = sorted(home.rglob("manifest.json"))
    assert made
    d3m(home, "distill", "--dataset", folder)
    assert bundles(home)
    d3m(home, "status", "--dataset", folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--dataset", "/nowhere/at/all"], "/nowhere/at/all"),
        (["distill", "--budget", "31B"], "32B"),
        (["distill", "--budget", "lots"], "lots"),
        (["distill", "--set", "inversion.stepz=3"], "inversion.steps"),
        (["distill", "--set", "inversion.steps=0"], "inversion.steps"),
        (["distill", "--set", "nonsense"], "name=value"),
        (["status", "--foundation", "/nowhere"], "/nowhere"),
        (["inspect", "/nowhere/b.safetensors"], "/nowhere/b.safetensors"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(tmp_path, arguments, message):
    done = d3m(tmp_path / "home", *arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_for_another_model_is_refused(tmp_path, image_folder):
    import shutil

    from d3m_assets.foundation.files import embedded_path

    folder, home = image_folder(), tmp_path / "home"
    d3m(home, "distill", "--dataset", folder, "--budget", "ipc-1")
    bundle = next((store_of(home) / "distilled_bundle").rglob("*.safetensors"))
    other = tmp_path / "other"
    shutil.copytree(embedded_path(), other)
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    done = d3m(home, "regenerate", bundle, "--output", tmp_path / "out", "--foundation", other, check=False)
    assert done.returncode == 1
    assert "another model" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_a_single_file_and_a_tiny_autoencoder_asks_for_both(tmp_path):
    from d3m_assets.distillation.budgets import EmbeddingPlan
    from d3m_assets.distillation.bundle import Bundle, DistilledClass
    from d3m_assets.distillation.prompts import ClassPrompts
    from d3m_assets.foundation.files import FoundationFiles
    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder
    from d3m_assets_tests.distillation.test_bundle import recipe
    from d3m_assets_tests.foundation.single_files import write_single_file
    from d3m_assets_tests.foundation.small_pipelines import write_pipeline, write_tiny_autoencoder

    folder = write_pipeline("sd1", tmp_path / "folder")
    checkpoint = write_single_file("sd1", folder, tmp_path / "model.safetensors")
    tiny = write_tiny_autoencoder(tmp_path / "taesd")
    words = ClassPrompts.of(0, "7", "7", templates=("a photo of a {}",), initializer=None, keep_class_name=True)
    vectors = np.random.default_rng(0).integers(-127, 128, (1, 1, 32)).astype(np.int8)
    made = recipe(
        foundation="model.safetensors", foundation_fingerprint=FoundationFiles("", folder, checkpoint).fingerprint,
        autoencoder="taesd", autoencoder_fingerprint=TinyAutoencoder(tiny).fingerprint, autoencoder_bytes=1,
    )  # fmt: skip
    bundle = tmp_path / "bundle.safetensors"
    bundle.write_bytes(Bundle(made, (DistilledClass(words, EmbeddingPlan(1, 1, "int8", 32), vectors),)).to_bytes())
    command = ["regenerate", bundle, "--output", tmp_path / "out", "--per-class", 2, "--foundation", checkpoint]
    home = tmp_path / "home"
    assert "Set foundation_config" in d3m(home, *command, check=False).stderr
    command += ["--set", f"foundation_config={folder}"]
    assert "--set generation.tiny_autoencoder=FOLDER" in d3m(home, *command, check=False).stderr
    assert "2 images of 1 classes" in d3m(home, *command, "--set", f"generation.tiny_autoencoder={tiny}").stdout
    assert len(list((tmp_path / "out" / "7").iterdir())) == 2
