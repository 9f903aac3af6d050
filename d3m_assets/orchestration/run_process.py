"""The process of a run that the daemon launched, so that others can see whether it still lives.

Dagster's own launcher leaves this to its code server (1.13.27: ``DefaultRunLauncher`` supports no health check). When that
one dies together with the run, nothing would ever end the run, and whatever waits for it would wait for ever.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
from pathlib import Path

import dagster as dg

from d3m_assets.compute.workers import end_with_parent
from d3m_assets.settings import Settings

PROCESS_TAG = "d3m/process"
"""Tag of a run that works: :func:`launcher_prefix`, the run's id, and process id and start time of its process."""


def launcher_prefix(settings: Settings) -> str:
    """What tags begin with that name a process of this host and home: its name and a digest of the path."""
    home = hashlib.sha256(os.fsencode(settings.home.absolute())).hexdigest()[:12]
    return f"{socket.gethostname()}-{home}-"


def name_process(context: dg.OpExecutionContext | dg.AssetExecutionContext, settings: Settings) -> None:
    """Tag the run with the process that its end depends on: the one that runs its steps or starts a process for each.

    A process of a step ends with it. Does nothing where steps run on other machines, or where there is no ``/proc``.
    """
    executor = context.job_def.executor_def
    if executor is dg.multiprocess_executor:
        end_with_parent()  # which would be taken for the end of the run
    pid = _process_of_run(executor)
    if pid is not None and (started := _started(pid)) is not None:
        tag = f"{_of_run(context.run, settings)}{pid}-{started}"
        if context.run.tags.get(PROCESS_TAG) != tag:
            context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: tag})


def _process_of_run(executor: dg.ExecutorDefinition) -> int | None:
    if executor is dg.in_process_executor:
        return os.getpid()
    if executor is dg.multiprocess_executor and (parent := multiprocessing.parent_process()) is not None:
        return parent.pid
    return None


def process_is_gone(run: dg.DagsterRun, settings: Settings) -> bool:
    """Whether the process that works on a run of this host and home has ended; False for all others."""
    tag, prefix = run.tags.get(PROCESS_TAG, ""), _of_run(run, settings)
    if not tag.startswith(prefix):
        return False
    pid, started = tag.removeprefix(prefix).split("-")
    return _started(int(pid)) != started


def _of_run(run: dg.DagsterRun, settings: Settings) -> str:
    # With the run's id, since a run that is tried again inherits the tags of the one before.
    return f"{launcher_prefix(settings)}{run.run_id}-"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None when there is none, or one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
