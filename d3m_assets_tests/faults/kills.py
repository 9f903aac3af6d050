"""Kills at random moments, and whether the end is that of an undisturbed run.

``python -m d3m_assets_tests.faults.kills --count 100 --front shell`` starts ``d3m distill``, again and again until it succeeds;
with ``--front daemon`` a real daemon does, with sensor and schedule on. Meanwhile a process of its tree, chosen at random, is
killed at a random moment: mostly by SIGKILL, the command itself at times by SIGTERM or SIGINT. In the end all data files have
to be those of an undisturbed run, and nothing may be left: no process, lock file, temporary file or unfinished run, and no
artefact of which Dagster does not know.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from d3m_assets.orchestration.recovery import unrecorded
from d3m_assets.orchestration.resources import locks
from d3m_assets.orchestration.unfinished import UNFINISHED
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets_tests.faults.kills_by_clock import in_progress, pending, processes, serving
from d3m_assets_tests.orchestration.many_runs import SETTINGS, prepare
from d3m_assets_tests.orchestration.servers import Servers, as_environment
from d3m_assets_tests.processes import left_after, marked, new_mark, wait_until

COMMAND = [sys.executable, "-m", "d3m_assets.cli", "distill", "--yes"]
SHARE_OF_SIGNALS = 0.3
"""Of the kills of a command, those that go to the command itself as SIGTERM or SIGINT."""
KILLS_OF_A_CHAIN = 3
"""Most kills before a command is left to finish, from a shell."""
SECONDS_OF_A_RUN = 900.0
DAEMON_KINDS = ("dagster-daemon", "code server", "run", "compute worker")
OF_THIS_RUN = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    rb"|(?<=commit: )[0-9a-f]+(-dirty)?|(?<=<td>)[0-9a-f]{7,40}(-dirty)?(?=</td>)"
)
"""Times, Dagster's ids of runs and our commit, which the page of the report names."""
LEFT = ("processes", "lock files", "temporary files", "unfinished runs", "unrecorded artefacts")
WRONG = ("files missing", "files that differ", "runs that failed")


def run(count: int, seed: int, front: str) -> dict[str, int]:
    """Kill ``count`` times.

    Args:
        count: Of kills.
        seed: Of what is killed when.
        front: ``"shell"`` or ``"daemon"``.

    Returns:
        How often what was killed, how many chains of runs and files were compared, and everything that was wrong or left:
        the values of :data:`LEFT` and :data:`WRONG` are to be 0.

    Raises:
        TimeoutError: Runs did not come to an end.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `&`; what is started here would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    counts = Counter(dict.fromkeys((*LEFT, *WRONG), 0))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        for variable, value in prepare(folder).items():
            patch.setenv(variable, value)
        patch.delenv("D3M_SETTINGS")
        kills = {"shell": _kills_of_a_shell, "daemon": _kills_of_a_daemon}[front]
        kills(folder, count, random.Random(seed), counts)
    return dict(counts)


def clean(counts: dict[str, int]) -> bool:
    """Whether nothing was wrong and nothing was left."""
    return bool(counts["files compared"]) and not any(counts[name] for name in (*LEFT, *WRONG))


def _settings_of(folder: Path, home: Path) -> dict[str, object]:
    return {**SETTINGS, "dataset": str(folder / "images"), "home": str(home)}


def _undisturbed(folder: Path) -> tuple[dict[str, str], float]:
    """Hashes of the files of a run that nothing disturbs, by artefact and name, and the seconds that it takes."""
    home, started = folder / "home", time.monotonic()  # the place of all others: the report may name it
    environment = os.environ | as_environment(_settings_of(folder, home))
    subprocess.run(
        COMMAND, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seconds, hashes = time.monotonic() - started, _hashes(folder, home)
    shutil.rmtree(home)
    return hashes, seconds


def _hashes(folder: Path, home: Path) -> dict[str, str]:
    """SHA-256 of the files that the manifests of a home name now, by artefact and name."""
    pipeline = Pipeline(load_settings(**_settings_of(folder, home)))
    found = {}
    for entry in pipeline.plan().entries:
        if (manifest := pipeline.store.manifest(entry.key)) is not None:
            for name in manifest.files:
                content = pipeline.store.read(entry.key, name, manifest)
                comparable = OF_THIS_RUN.sub(b"", content) if name.endswith(".html") else content
                found[f"{entry.key}/{name}"] = hashlib.sha256(comparable).hexdigest()
    return found


def _compare(folder: Path, home: Path, expected: dict[str, str], counts: Counter[str]) -> None:
    found = _hashes(folder, home)
    counts["files compared"] += len(expected)
    counts["files missing"] += len(expected.keys() - found.keys())
    differing = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    counts["files that differ"] += len(differing)
    for name in differing:
        print(f"differs: {name}", flush=True)


def _temporary_files(home: Path) -> int:
    return sum(path.name.endswith(".tmp") or path.name.startswith(".probe-") for path in home.rglob("*"))


def _count_left(folder: Path, home: Path, counts: Counter[str]) -> None:
    """What a chain of runs has left in its home, apart from processes."""
    settings = load_settings(**_settings_of(folder, home))
    counts["lock files"] += len(list(locks(settings).glob("run-*.lock")))
    pipeline = Pipeline(settings)
    counts["temporary files"] += _temporary_files(home)
    with _instance(home / "dagster") as instance:
        counts["unfinished runs"] += instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED))
        counts["unrecorded artefacts"] += len(list(unrecorded(instance, pipeline, pipeline.plan())))


@contextlib.contextmanager
def _instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        with dg.DagsterInstance.get() as instance:
            yield instance


def _kills_of_a_shell(folder: Path, count: int, choose: random.Random, counts: Counter[str]) -> None:
    expected, seconds = _undisturbed(folder)
    while counts["kills"] < count:
        home, mark = folder / "home", new_mark()
        temporary = folder / f"temporary {counts['chains']}"
        temporary.mkdir()
        environment = os.environ | as_environment(_settings_of(folder, home)) | mark | {"TMPDIR": str(temporary)}
        most = choose.randint(1, min(KILLS_OF_A_CHAIN, count - counts["kills"]))
        with _ended(mark):
            _chain(most, environment, folder, seconds, mark, choose, counts)
            left = left_after(mark, 30)
        counts["processes"] += len(left)
        for command in left.values():
            print(f"left: {command}", flush=True)
        _compare(folder, home, expected, counts)
        _count_left(folder, home, counts)
        counts["temporary files"] += sum(path.is_file() for path in temporary.rglob("*"))
        counts["chains"] += 1
        print(dict(counts), flush=True)
        shutil.rmtree(home)


@contextlib.contextmanager
def _ended(mark: dict[str, str]) -> Iterator[None]:
    """End all processes with a mark after the body, however it ended."""
    try:
        yield
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _chain(
    most: int,
    environment: dict[str, str],
    folder: Path,
    seconds: float,
    mark: dict[str, str],
    choose: random.Random,
    counts: Counter[str],
) -> None:
    """Start the command until it succeeds; the first ``most`` times, a process of its tree is killed."""
    for attempt in range(most + 2):
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(
                COMMAND, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        if attempt < most:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(choose.uniform(0, seconds))
            if child.poll() is None:
                _kill_one(child.pid, mark, choose, counts)
        # What it started has to end by itself; the next one is started at once, as a person does.
        if child.wait(SECONDS_OF_A_RUN) == 0:
            return
    counts["runs that failed"] += 1
    print((folder / "log").read_text()[-2000:], flush=True)


def _kill_one(command: int, mark: dict[str, str], choose: random.Random, counts: Counter[str]) -> None:
    """Kill a process of a command's tree, or ask the command itself to end."""
    if choose.random() < SHARE_OF_SIGNALS:
        pid, number = command, choose.choice([signal.SIGTERM, signal.SIGINT])
    else:
        pid, number = choose.choice(sorted(marked(mark)) or [command]), signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        counts["kills"] += 1
        counts[f"{number.name} of the {'command' if pid == command else 'command’s child'}"] += 1


def _kills_of_a_daemon(folder: Path, count: int, choose: random.Random, counts: Counter[str]) -> None:
    expected, seconds = _undisturbed(folder)
    home = folder / "home"
    given = _settings_of(folder, home)
    automation = {"automation.enabled": True, "automation.cron": "* * * * *"}
    with Servers(folder, as_environment(given | automation)) as servers:
        daemon: subprocess.Popen[bytes] | None = None
        while counts["kills"] < count:
            with _instance(servers.folder) as instance:
                instance.wipe_assets(list(instance.all_asset_keys()))
            shutil.rmtree(home, ignore_errors=True)
            _launch(servers)
            time.sleep(choose.uniform(0, seconds))
            by_kind = processes(servers)
            if not (candidates := [kind for kind in DAEMON_KINDS if by_kind[kind]]):
                continue
            kind = choose.choice(candidates)
            with contextlib.suppress(ProcessLookupError):
                os.kill(choose.choice(by_kind[kind]), signal.SIGKILL)
                counts["kills"] += 1
                counts[f"SIGKILL of a {kind}"] += 1
            if kind == "dagster-daemon":
                if daemon is not None:
                    daemon.wait()
                daemon = servers.start(kind)
            if not wait_until(lambda: serving(servers), 240):
                raise TimeoutError(f"the web server did not come back; {servers.logs()}")
            if not wait_until(lambda: _nothing_to_do(servers, given), SECONDS_OF_A_RUN):
                raise TimeoutError(f"{pending(given)} artefacts pending, {servers.working()}; {servers.logs()}")
            counts["processes"] += len(servers.left_after(30))
            _compare(folder, home, expected, counts)
            # The next tick of the sensor, once a minute, records what a kill has left unrecorded.
            wait_until(lambda: not _unrecorded(servers, given), 90)
            counts["unrecorded artefacts"] += _unrecorded(servers, given)
            counts["temporary files"] += _temporary_files(home)
            counts["lock files"] += len(list(locks(load_settings(**given)).glob("run-*.lock")))
            counts["unfinished runs"] += in_progress(servers)
            counts["chains"] += 1
            print(dict(counts), flush=True)


def _launch(servers: Servers) -> None:
    """Launch ``distill``, also while a code server that was killed before is being started."""
    deadline = time.monotonic() + 240
    while True:
        try:
            servers.launch_job("distill")
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            # The web server does not start its own code server again by itself; a person clicks on *Reload*.
            servers.ask('mutation {reloadRepositoryLocation(repositoryLocationName: "d3m_assets") {__typename}}')
            time.sleep(2)


def _nothing_to_do(servers: Servers, given: dict[str, object]) -> bool:
    time.sleep(3)
    return not in_progress(servers) and not pending(given) and not servers.working()


def _unrecorded(servers: Servers, given: dict[str, object]) -> int:
    pipeline = Pipeline(load_settings(**given))
    with _instance(servers.folder) as instance:
        return len(list(unrecorded(instance, pipeline, pipeline.plan())))


def main() -> None:
    """Run it and print the counts; the exit status is 1 if anything was wrong or left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--front", choices=("shell", "daemon"), default="shell")
    arguments = parser.parse_args()
    started = time.monotonic()
    counts = run(arguments.count, arguments.seed, arguments.front)
    for name, number in counts.items():
        print(f"{name}: {number}")
    print(f"seed {arguments.seed}, {time.monotonic() - started:.0f} s; {'clean' if clean(counts) else 'NOT CLEAN'}")
    raise SystemExit(not clean(counts))


if __name__ == "__main__":
    main()
