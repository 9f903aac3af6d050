"""A persistent instance of its own for every test, and compute that costs nothing."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.orchestration.launch import open_instance
from d3m_assets.settings import Settings, load_settings
from d3m_assets_tests.orchestration import fakes

warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> fakes.FakeMakers:
    """What the assets of the graph make, faked."""
    fake = fakes.FakeMakers()
    fake.install(monkeypatch.setattr)
    return fake


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makers: fakes.FakeMakers) -> Settings:
    """Three classes, two budgets, and a home in a temporary folder."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    return fakes.make_settings(tmp_path)


@pytest.fixture(scope="session")
def empty_instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of an instance in which nothing happened yet; making one costs a second, copying it nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")
        folder = tmp_path_factory.mktemp("empty")
        with open_instance(load_settings(home=folder)):
            return folder / "dagster"


@pytest.fixture
def instance(settings: Settings, empty_instance: Path) -> Iterator[dg.DagsterInstance]:
    """The instance that the shell would use."""
    shutil.copytree(empty_instance, settings.home / "dagster")
    with open_instance(settings) as opened:
        yield opened
