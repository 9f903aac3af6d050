"""Settings that say where work is done. None of them changes a result, so none is part of a fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from d3m_assets.compute.hardware import parse_gpu
from d3m_assets.errors import SettingsError
from d3m_assets.setting_types import Positive, Section, as_list, distinct

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(as_list)]


def _gpu(value: str) -> str:
    # The text stays as it is written, so that a dump of the settings can be read back.
    try:
        parse_gpu(value)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    return value


Gpus = Annotated[
    tuple[Annotated[str, AfterValidator(_gpu)], ...],
    NoDecode,
    BeforeValidator(as_list),
    Field(min_length=1),
    AfterValidator(distinct),
]


class PlanSettings(Section):
    """What `d3m plan` compares, and from when on `d3m distill` asks before it begins. None of it changes a result."""

    gpus: Gpus = Field(
        default=("L4", "RTX 4090", "L40S", "A100 80GB", "H100 SXM"),
        description="GPUs to estimate for: NAME of the table, NAME=DOLLARS_AN_HOUR, or NAME:TFLOPS:GB=DOLLARS_AN_HOUR.",
    )
    utilisation: float = Field(
        default=0.15,
        gt=0,
        le=1,
        description="Part of a GPU's peak that is taken as reached where nothing was measured.",
    )
    measurements: Path | None = Field(
        default=None,
        description="Folder of result files of benchmarks.engine; none: benchmarks/results of a clone, where there is one.",
    )
    ask_above_hours: float = Field(
        default=1.0,
        ge=0,
        description="Estimated hours from which on `d3m distill` shows the plan and asks first.",
    )


class ComputeSettings(Section):
    """Where the work of device assets is done: on this machine, or on the nodes of a Ray cluster."""

    engine: Literal["local", "ray"] = Field(
        default="local", description='"local": processes of this machine; "ray": actors of a Ray cluster.'
    )
    address: str = Field(
        default="auto",
        min_length=1,
        description="Ray cluster: auto (the one that this machine is a node of, or $RAY_ADDRESS), host:port, ray://host:10001.",
    )
    workers: Positive | None = Field(
        default=None, description="Ray actors; none: as many as the cluster has room for, one a GPU or a core."
    )
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs of an actor; none: 1, or 0 where device is cpu or the cluster has no GPU."
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Cores that an actor reserves; it computes on one.")
    forward_environment: Names = Field(
        default=(),
        description="Environment variables that actors get from this process, such as HF_HOME or AWS_*; their values are "
        "visible to whoever may inspect the cluster.",
    )
    idle_seconds: float = Field(
        default=60.0, ge=0, description="Actors without work give their GPUs back after this time."
    )
    state_dir: Path | None = Field(
        default=None,
        description="Folder of unfinished inversions; on a file system that all nodes share, another node goes on with "
        "them. None: <home>/cache/inversion.",
    )
    partitions_per_run: Positive | None = Field(
        default=None,
        description="Most partitions of a device asset in one run of a Dagster backfill; none: all in one run.",
    )
