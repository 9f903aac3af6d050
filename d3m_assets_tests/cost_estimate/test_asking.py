"""Which jobs are asked about, without a process for each."""

import io

import pytest

from d3m_assets.cost_estimate import asking
from d3m_assets.cost_estimate.asking import ask_before, pipeline_to_plan
from d3m_assets.errors import FoundationError, StageError
from d3m_assets.settings import load_settings


@pytest.fixture
def estimates(monkeypatch):
    """How often a job was counted."""
    calls = []
    real = asking.estimate
    monkeypatch.setattr(asking, "estimate", lambda *given, **named: calls.append(1) or real(*given, **named))
    return calls


def ask(pipeline, **options):
    ask_before(pipeline, pipeline.plan(), **options)


def job(tmp_path, described, **changes):
    return pipeline_to_plan(load_settings(home=tmp_path / "home", device="cpu", **changes), described=described)


def test_a_small_job_of_the_embedded_model_is_not_even_counted(tmp_path, estimates):
    ask(job(tmp_path, "10,1300,500,8x8x1"))
    assert not estimates


@pytest.mark.parametrize(
    "changes",
    [
        {"inversion.steps": 100_000},
        {"generation.images_per_class": 100_000},
        {"students.steps": 1_000_000},
        {"students.architecture": "resnet-18", "students.steps": 500_000},
    ],
)
def test_a_long_job_of_the_embedded_model_is_asked_about(tmp_path, estimates, monkeypatch, capsys, changes):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(StageError, match="not begun: this job takes about .* hours on this machine.*Add --yes"):
        ask(job(tmp_path, "10,1300,500,8x8x1", **changes))
    assert estimates and "Time and money" in capsys.readouterr().err
    ask(job(tmp_path, "10,1300,500,8x8x1", **changes), yes=True)
    assert "Time and money" in capsys.readouterr().err


def test_a_large_model_is_asked_about_and_the_limit_is_a_setting(tmp_path, sd15, capsys):
    settings = {"foundation": str(sd15), "budgets": ("4KiB",)}
    with pytest.raises(StageError, match="not begun"):
        ask(job(tmp_path, "2,20,10,64x64x3", **settings))
    capsys.readouterr()
    ask(job(tmp_path, "2,20,10,64x64x3", **settings, **{"plan.ask_above_hours": 1e6}))
    assert capsys.readouterr().err == ""


def test_what_cannot_be_counted_is_begun_and_said(tmp_path, monkeypatch, capsys):
    def fails(*given, **named):
        raise FoundationError("an unusual model")

    monkeypatch.setattr(asking, "estimate", fails)
    ask(job(tmp_path, "10,1300,500,8x8x1", **{"inversion.steps": 100_000}))
    assert "cannot be estimated, so nothing is asked: an unusual model" in capsys.readouterr().err
