"""``d3m distill`` on the instance of ``deploy/dagster.yaml``, in a real PostgreSQL, and what is said when it is not there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.errors import InstanceError
from d3m_assets.orchestration.launch import open_instance
from d3m_assets.settings import load_settings
from d3m_assets_tests.postgres import DATABASE, PASSWORD, USER, PrivatePostgres, needs_postgres

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SETTINGS = {
    "D3M_BUDGETS": "ipc-1", "D3M_INVERSION__STEPS": "2", "D3M_INVERSION__SAMPLES_PER_STEP": "2",
    "D3M_GENERATION__IMAGES_PER_CLASS": "4", "D3M_GENERATION__STEPS": "2", "D3M_GENERATION__BATCH_SIZE": "4",
    "D3M_STUDENTS__STEPS": "2", "D3M_STUDENTS__WIDTH": "4", "D3M_STUDENTS__SEEDS": "0,1", "D3M_AUDIT__STEPS": "2",
    "D3M_WORKERS": "1", "D3M_EVALUATION__BASELINES": "random",
    "D3M_EVALUATION__DISTILLATIONS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with PrivatePostgres() as running:
        yield running


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with ``deploy/dagster.yaml``; its variables name a database on a port that nothing listens on."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", folder)
    given = {
        "DAGSTER_HOME": str(folder), "DAGSTER_LOGS": str(tmp_path / "logs"), "DAGSTER_PG_HOST": "127.0.0.1",
        "DAGSTER_PG_PORT": "1", "DAGSTER_PG_DB": DATABASE, "DAGSTER_PG_USERNAME": USER, "DAGSTER_PG_PASSWORD": PASSWORD,
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return folder


def edit(home, old, new):
    text = (home / "dagster.yaml").read_text()
    assert old in text
    (home / "dagster.yaml").write_text(text.replace(old, new))


def d3m(folder, *arguments, **more):
    environment = os.environ | SETTINGS | {"D3M_HOME": str(folder / "home")} | more
    return subprocess.run(
        [sys.executable, "-m", "d3m_assets.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_postgres
def test_distill_records_its_run_there_and_a_second_one_finds_nothing_to_do(home, server, image_folder, tmp_path):
    given = server.environment | {"D3M_DATASET": str(image_folder(names=("0", "1"), train=8, test=4))}
    first = d3m(tmp_path, "distill", **given)
    assert first.returncode == 0, first.stderr
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        with open_instance(load_settings(home=tmp_path / "home")) as instance:
            assert type(instance.run_storage).__module__.startswith("dagster_postgres")
            (run,) = instance.get_runs()
            assert (run.job_name, run.status) == ("distill", dg.DagsterRunStatus.SUCCESS)
            made = instance.fetch_materializations(dg.AssetKey("distilled_bundle"), limit=9).records
            assert [record.partition_key for record in made] == ["ipc-1"]
            # What the webserver does with its connections: with psycopg 3 the first of them would be closed.
            instance.optimize_for_webserver(statement_timeout=15000, pool_recycle=3600, max_overflow=20)
            assert [again.run_id for again in instance.get_runs()] == [run.run_id]
            assert instance.get_runs_count() == 1

            second = d3m(tmp_path, "distill", **given)
            assert "Everything was up to date; nothing was done." in second.stdout, second.stderr
            assert instance.get_runs_count() == 1
    assert not list(home.glob("*.db")), "nothing in SQLite"


def refused(tmp_path):
    with pytest.raises(InstanceError) as caught, open_instance(load_settings(home=tmp_path / "home")):
        pytest.fail("it opened")
    return str(caught.value)


def test_the_command_says_that_the_database_is_unreachable_in_one_line(home, tmp_path):
    done = d3m(tmp_path, "distill")
    assert done.returncode == 1
    *progress, line = done.stderr.splitlines()
    assert all("opening Dagster's instance" in said for said in progress)
    assert line.startswith("d3m: the PostgreSQL database dagster at 127.0.0.1:1 cannot be used: ")
    assert "Connection refused" in line
    assert line.endswith(f"Start it, or correct {home / 'dagster.yaml'}")


def test_an_address_that_cannot_be_read_does_not_give_the_password_away(home, tmp_path):
    config = (home / "dagster.yaml").read_text()
    before, after = config.split("    postgres_db:\n")[0], config.split("run_launcher:")[1]
    url = "postgresql+psycopg2://dagster:s3cret@127.0.0.1:1/other?connect_timeout=s3cret"
    (home / "dagster.yaml").write_text(f"{before}    postgres_url: {url}\nrun_launcher:{after}")
    said = refused(tmp_path)
    assert "the PostgreSQL database other at 127.0.0.1:1 cannot be used" in said
    assert "s3cret" not in said


@needs_postgres
def test_a_wrong_password_is_told_without_it(home, server, tmp_path, monkeypatch):
    for name, value in (server.environment | {"DAGSTER_PG_PASSWORD": "wrong-s3cret"}).items():
        monkeypatch.setenv(name, value)
    said = refused(tmp_path)
    assert f"the PostgreSQL database dagster at 127.0.0.1:{server.port} cannot be used" in said
    assert "password authentication failed" in said
    assert "s3cret" not in said


@needs_postgres
def test_a_database_that_is_lost_during_a_run_is_told_too(home, tmp_path, monkeypatch):
    with PrivatePostgres() as other:
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(InstanceError, match=f"database dagster at 127.0.0.1:{other.port} cannot be used"),
            open_instance(load_settings(home=tmp_path / "home")) as instance,
        ):
            other._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")
            instance.get_runs()


def test_other_errors_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    with pytest.raises(ZeroDivisionError), open_instance(load_settings(home=tmp_path)):
        _ = 1 / 0


def test_the_driver_that_sqlalchemy_takes_by_itself_is_told(home, tmp_path, monkeypatch):
    edit(home, "postgresql+psycopg2", "postgresql")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    said = refused(tmp_path)
    assert "driver psycopg of the PostgreSQL database dagster at 127.0.0.1:1 is not installed" in said
    assert "scheme: postgresql+psycopg2" in said


def test_a_missing_package_is_told(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dagster_postgres", None)
    said = refused(tmp_path)
    assert said.startswith("the PostgreSQL database dagster at 127.0.0.1:1 needs a package that is not installed")
    assert said.endswith("install d3m-assets[postgres]")


def test_a_missing_variable_is_told(home, tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_PG_PASSWORD")
    assert "environment variable DAGSTER_PG_PASSWORD, which is not set" in refused(tmp_path)
