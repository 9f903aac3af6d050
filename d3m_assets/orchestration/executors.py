"""What runs the steps of assets: the setting ``execution.executor``, turned into an executor of Dagster."""

from __future__ import annotations

import dagster as dg

from d3m_assets.errors import SettingsError
from d3m_assets.settings import Settings


def executor_of(settings: Settings) -> dg.ExecutorDefinition:
    """The executor that the settings name.

    By default all steps share the process of their run, with one scan of the dataset and one model: a process a step
    starts Python and imports PyTorch for each. The job ``distill`` is one step in the process of its run whatever this
    says: its work is spread by ``compute``.

    Raises:
        SettingsError: Its package is not installed.
    """
    name = settings.execution.executor
    if name == "k8s":
        try:
            from dagster_k8s import k8s_job_executor
        except ImportError as error:
            raise _missing(name, "dagster-k8s", "k8s", error) from error
        return k8s_job_executor
    if name == "ray":
        try:
            from dagster_ray import ray_executor
        except ImportError as error:
            raise _missing(name, "dagster-ray", "dagster-ray", error) from error
        return ray_executor
    return dg.multiprocess_executor if name == "processes" else dg.in_process_executor


def _missing(executor: str, package: str, extra: str, error: ImportError) -> SettingsError:
    return SettingsError(
        f'execution.executor is "{executor}", which needs {package}, and that cannot be imported ({error}); '
        f"install d3m-assets[{extra}], or set execution.executor to in-process"
    )
