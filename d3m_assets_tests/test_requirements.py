"""Tests may be skipped for what a machine lacks, but not where it is promised."""

import pytest

from d3m_assets_tests.requirements import VARIABLE, MissingRequirementError, need


def test_what_is_missing_skips_with_its_reason(monkeypatch):
    monkeypatch.setenv(VARIABLE, "ray, proc")
    mark = need("postgres", None, "no PostgreSQL").mark
    assert (mark.name, mark.args, mark.kwargs) == ("skipif", (True,), {"reason": "no PostgreSQL"})


def test_what_is_missing_although_promised_is_an_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, "ray,postgres")
    with pytest.raises(MissingRequirementError, match="names postgres, but: no PostgreSQL"):
        need("postgres", None, "no PostgreSQL")


@pytest.mark.parametrize("promised", ["", "postgres"])
def test_what_is_there_runs(monkeypatch, promised):
    monkeypatch.setenv(VARIABLE, promised)
    assert need("postgres", "/usr/lib/postgresql/15/bin", "no PostgreSQL").mark.args == (False,)


def test_a_misspelt_promise_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "postgress")
    with pytest.raises(ValueError, match="postgress"):
        need("proc", True, "")
