"""``d3m doctor``: what is in order is ok, and each thing that is not is an error with what to do."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import s3fs

from d3m_assets.cli import diagnosis
from d3m_assets.foundation.files import embedded_path
from d3m_assets.settings import load_settings
from d3m_assets.store import Store
from d3m_assets_tests.cli.test_first_steps import d3m


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()  # the environment says where S3 is
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def found(check, **settings):
    settings = load_settings(home="home", **settings)
    return list(check(settings))


def test_all_is_well_and_then_a_model_and_a_dataset_are_gone(tmp_path, image_folder):
    folder, home = image_folder(("0", "1")), tmp_path / "home"
    well = d3m(tmp_path, "doctor", "--dataset", folder, D3M_HOME=str(home))
    assert well.returncode == 0, well.stdout
    assert "Everything is in place" in well.stdout
    assert not list(home.rglob("*.probe*"))
    sick = d3m(
        tmp_path, "doctor", "--json", "--dataset", "gone", "--foundation", "./no-model", "--set", "device=cuda:7",
        "--storage", "foo://reader:hush@x", D3M_HOME=str(home),
    )  # fmt: skip
    assert sick.returncode == 1
    rows = {row["what"]: row for row in json.loads(sick.stdout)}
    wrong = {what for what, row in rows.items() if row["state"] == "error"}
    assert wrong == {"dataset", "model", "device", "storage"}
    assert all(rows[what]["remedy"] for what in wrong)
    assert "hush" not in sick.stdout + sick.stderr


def test_a_damaged_weight_file_is_named(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(embedded_path(), copy)
    weights = next(copy.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    (finding,) = found(diagnosis.check_model, foundation=str(copy))
    assert finding.state == "error"
    assert str(weights) in finding.detail
    for file in copy.glob("vae/*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    (finding,) = [f for f in diagnosis.examine(load_settings(home="home", foundation=str(copy))) if f.what == "model"]
    assert finding.state == "error"
    assert "pickled weights are not loaded" in finding.detail + finding.remedy


def test_versions_outside_their_ranges_are_told(monkeypatch):
    monkeypatch.setattr(
        diagnosis,
        "_requirements",
        lambda: (">=3.20", [("numpy>=99", ""), ("no-such-package>=1", ""), ("torch", "gpu")]),
    )
    findings = {finding.what: finding for finding in found(diagnosis.check_versions)}
    assert findings["Python"].state == findings["numpy"].state == findings["no-such-package"].state == "error"
    assert findings["numpy"].remedy == 'pip install "numpy>=99"'
    assert findings["optional extras"].detail == "with gpu"
    monkeypatch.undo()
    assert {f.state for f in found(diagnosis.check_versions)} == {"ok"}


def test_a_missing_bucket_is_told_and_not_made(s3_options, monkeypatch):
    for name, value in (
        ("ACCESS_KEY_ID", "k"),
        ("SECRET_ACCESS_KEY", "s"),
        ("ENDPOINT_URL", s3_options["endpoint_url"]),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    (finding,) = found(diagnosis.check_storage, storage="s3://d3m/artefacts")
    assert finding.state == "ok"
    store = Store.open("s3://d3m/artefacts/digits")
    assert store._fs.find("d3m") == []
    (finding,) = [
        f for f in diagnosis.examine(load_settings(home="home", storage="s3://other/x")) if f.what == "storage"
    ]
    assert finding.state == "error"
    assert "create the bucket" in finding.remedy
    store._fs.invalidate_cache()
    assert not store._fs.exists("other")


def test_a_server_that_does_not_answer_is_told(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    (finding,) = [f for f in diagnosis.examine(load_settings(home="home", storage="s3://b/x")) if f.what == "storage"]
    assert finding.state == "error"
    assert "no server answers there" in finding.remedy


def test_automation_without_a_daemon_is_a_warning(tmp_path):
    from d3m_assets.orchestration.launch import open_instance

    settings = load_settings(home="home", **{"automation.enabled": True})
    assert [f.what for f in diagnosis.check_instance(settings)] == ["Dagster instance"]  # nothing is made by looking
    assert not (tmp_path / "home").exists()
    with open_instance(settings):
        pass
    instance, daemon = diagnosis.check_instance(settings)
    assert instance.state == "ok" and daemon.state == "warning"
    assert "d3m ui" in daemon.remedy
    (tmp_path / "home" / "dagster" / "dagster.yaml").write_text("storage: {postgres: {postgres_db: {hostname: here}}}")
    (finding,) = [f for f in diagnosis.examine(settings) if f.what.startswith("Dagster")]
    assert finding.state == "error"
    assert "dagster.yaml cannot be used: Missing required" in finding.detail
    assert "correct it" in finding.remedy
