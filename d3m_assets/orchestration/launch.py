"""Launching from a shell: an instance in the user's home, and a run of ``distill`` in this process."""

import contextlib
import importlib.resources
import math
import os
import secrets
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import filelock

from d3m_assets.errors import StageError
from d3m_assets.orchestration.dagster_private import instance_without_captured_output, make_database
from d3m_assets.orchestration.damaged_databases import is_damage, put_aside
from d3m_assets.orchestration.instance_errors import explained
from d3m_assets.orchestration.jobs import build_distill, run_config
from d3m_assets.orchestration.partitions import register_classes
from d3m_assets.orchestration.recovery import recover
from d3m_assets.orchestration.resources import PipelineResource, locks
from d3m_assets.orchestration.run_process import launcher_prefix, process_is_gone
from d3m_assets.orchestration.unfinished import UNFINISHED
from d3m_assets.planning.planner import Planner, Tally
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.settings import Settings

MOST_FAILURES_LISTED = 20
"""A full disk or a missing file may fail every class for the same reason."""
LAUNCHER_TAG = "d3m/launcher"
"""Tag of runs that a shell started: :func:`launcher_prefix` and a random part."""
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def ensure_instance_home(settings: Settings) -> Path:
    """Folder of the Dagster instance: ``$DAGSTER_HOME`` when set, else ``<home>/dagster``.

    It gets a ``dagster.yaml`` and a ``workspace.yaml`` (for ``dagster dev -w``) when it has none; existing ones are
    the user's and are left alone. The environment variable is set for this process and those it starts, because
    Dagster finds the instance by it.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or settings.home.absolute() / "dagster").absolute()
    home.mkdir(parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        if not (home / name).exists():
            template = importlib.resources.files("d3m_assets.orchestration").joinpath(name)
            temporary = home / f".{name}.{secrets.token_hex(4)}"
            temporary.write_bytes(template.read_bytes())
            temporary.replace(home / name)
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    return home


def _warn(text: str) -> None:
    print(f"d3m: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_instance(settings: Settings, warn: Callable[[str], object] = _warn) -> Iterator[dg.DagsterInstance]:
    """The instance, for use in this process. Databases of it that are damaged are put aside.

    Output of runs is not captured to files: that would take the terminal away from the progress display.

    Args:
        settings: Whose instance it is.
        warn: Told of each database that was put aside; by default on standard error.

    Raises:
        InstanceError: Its database cannot be used, now or later in the body.
    """
    home = ensure_instance_home(settings)
    with explained(home), usable_databases(home, warn), instance_without_captured_output(home) as instance:
        fail_abandoned_runs(instance, settings)
        yield instance


@contextlib.contextmanager
def usable_databases(home: Path, warn: Callable[[str], object] = _warn) -> Iterator[None]:
    """Put damaged databases of an instance aside before the body, and those that the body meets after it.

    Args:
        home: Folder of the instance.
        warn: Told of each.
    """
    _put_aside(home, warn)
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None and not is_damage(link):
            link = link.__cause__ or link.__context__
        if link is not None:  # in a large one, of which the first look has seen the head
            _put_aside(home, warn, most_bytes=math.inf)
        raise


def _put_aside(home: Path, warn: Callable[[str], object], **limit: float) -> None:
    """Put damaged databases aside and new ones in their place, one process at a time: another one may begin at this moment."""
    with filelock.FileLock(home / "databases.lock"):
        for sentence in put_aside(home, make_database, **limit):
            warn(sentence)


@dataclass(frozen=True)
class Launched:
    """A finished run of ``distill``.

    Attributes:
        run_id: Of the Dagster run; None when nothing was pending and none was launched.
        done: What it did.
    """

    run_id: str | None
    done: Tally

    def raise_for_failures(self) -> None:
        """Raise what failed, one line each.

        Raises:
            StageError: Something failed.
        """
        if self.done.failed:
            lines = [str(outcome.error) for outcome in self.done.failed[:MOST_FAILURES_LISTED]]
            if (more := len(self.done.failed) - len(lines)) > 0:
                lines.append(f"and {more} more; `d3m status` lists what is missing")
            if self.done.blocked:
                lines.append(f"{len(self.done.blocked)} artefacts that need them were left out")
            raise StageError("\n".join(lines))


def run_pending(
    settings: Settings,
    instance: dg.DagsterInstance,
    pipeline: Planner,
    *,
    progress: Progress = silent,
    limit: int | None = None,
) -> Launched:
    """Bring everything up to date in one run in this process, recorded in ``instance``.

    Args:
        settings: What to distill and how.
        instance: From :func:`open_instance`.
        pipeline: Of these settings; it has its own progress listener.
        progress: Hears an event of stage ``"waiting"`` while another process has the device.
        limit: Most partitions of each asset, None for no limit.

    Returns:
        What was done. Failures are collected in it; what does not depend on them was done all the same.

    Raises:
        D3MError: The dataset, settings or store cannot be used at all.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was finished is kept.
    """
    register_classes(instance, pipeline.context.values("class"))
    plan = pipeline.plan()
    if not plan.pending():
        recover(instance, pipeline, plan)
        return Launched(None, Tally())

    def log(text: str) -> None:
        progress(ProgressEvent("waiting", 0, 0, text))

    def reopen(settings: Settings, *, progress: Progress = silent) -> Planner:
        return pipeline

    done: list[Tally] = []
    run_id = str(uuid.uuid4())
    # With failures the run ends in dagster.Failure, for the UI; the caller has them in the result.
    with run_lock(settings) as tag:
        try:
            build_distill(settings, plan=plan, finished=done.append, log=log).execute_in_process(
                run_id=run_id,
                instance=instance,
                resources={"pipelines": PipelineResource(settings, reopen, pipeline)},
                run_config={**run_config(limit), **QUIET},
                tags={LAUNCHER_TAG: tag},
            )
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        except dg.Failure:
            if not done:
                raise
    return Launched(run_id, done[0])


def fail_abandoned_runs(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Mark runs as failed whose process was killed, where nothing else would ever end them.

    That is a process started from a shell, or one that was killed together with its code server. Several hosts and homes
    may record their runs in one database. Whether a process lives can be seen, by its lock or its number, only on its own
    host and in its own home, so all other runs are left to those who started them.

    Returns:
        Their ids.
    """
    abandoned = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if process_is_gone(run, settings):
            # Its last act may have been to end the run.
            if (now := instance.get_run_by_id(run.run_id)) is not None and not now.is_finished:
                instance.report_run_failed(run, "The process that worked on this run was killed.")
                abandoned.append(run.run_id)
            continue
        launcher = run.tags.get(LAUNCHER_TAG, "")
        if not launcher.startswith(launcher_prefix(settings)):
            continue
        lock = filelock.FileLock(locks(settings) / f"run-{launcher}.lock")
        try:
            with lock.acquire(timeout=0):
                instance.report_run_failed(run, "The process that worked on this run ended without finishing it.")
                abandoned.append(run.run_id)
        except filelock.Timeout:
            continue
        Path(lock.lock_file).unlink(missing_ok=True)
    _remove_locks_of_the_dead(settings)
    return abandoned


def _remove_locks_of_the_dead(settings: Settings) -> None:
    """Remove lock files of runs whose process was killed: the lock is gone with it, the file is not."""
    for path in locks(settings).glob(f"run-{launcher_prefix(settings)}*.lock"):
        with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(path).acquire(timeout=0):
            path.unlink()


@contextlib.contextmanager
def run_lock(settings: Settings) -> Iterator[str]:
    """A tag for runs of this process, which others can see to be alive by its lock."""
    tag = launcher_prefix(settings) + secrets.token_hex(8)
    folder = locks(settings)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"run-{tag}.lock"
    lock = filelock.FileLock(path)
    try:
        lock.acquire()
        while not path.exists():  # another process took it for one of the dead, between its creation and its locking
            lock.release()
            lock.acquire()
        yield tag
    finally:
        path.unlink(missing_ok=True)
        lock.release()
