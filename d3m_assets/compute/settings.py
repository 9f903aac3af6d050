"""Settings that say where work is done. None of them changes a result, so none is part of a fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from d3m_assets.setting_types import Positive, Section, as_list

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(as_list)]


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
