"""The executor of the code location, from the settings."""

import sys

import dagster as dg
import pytest

from d3m_assets.definitions import build_definitions
from d3m_assets.errors import SettingsError


def executor_name(definitions: dg.Definitions) -> str:
    return definitions.resolve_implicit_global_asset_job_def().executor_def.name


@pytest.mark.parametrize(
    ("executor", "name"),
    [("in-process", "in_process"), ("processes", "multiprocess"), ("k8s", "k8s"), ("ray", "ray")],
)
def test_the_setting_chooses_it(executor: str, name: str) -> None:
    definitions = build_definitions(execution={"executor": executor})
    dg.Definitions.validate_loadable(definitions)
    assert executor_name(definitions) == name
    assert definitions.resolve_job_def("distill").executor_def == dg.in_process_executor, "one step in its run"


def test_the_environment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert executor_name(build_definitions()) == "in_process"
    monkeypatch.setenv("D3M_EXECUTION__EXECUTOR", "processes")
    assert executor_name(build_definitions()) == "multiprocess"


def test_one_that_is_given_wins() -> None:
    definitions = build_definitions(executor=dg.multiprocess_executor, execution={"executor": "in-process"})
    assert executor_name(definitions) == "multiprocess"


@pytest.mark.parametrize(
    ("executor", "module", "extra"), [("k8s", "dagster_k8s", "k8s"), ("ray", "dagster_ray", "dagster-ray")]
)
def test_a_missing_package_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, executor: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=rf'execution.executor is "{executor}".*install d3m-assets\[{extra}\]'):
        build_definitions(execution={"executor": executor})


def test_another_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="execution.executor.*'in-process', 'processes', 'k8s' or 'ray'"):
        build_definitions(execution={"executor": "celery"})
