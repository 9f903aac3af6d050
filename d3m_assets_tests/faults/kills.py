"""Kills at random moments, and whether the end is that of an undisturbed run.

``python -m d3m_assets_tests.faults.kills --count 100 --front shell`` starts ``d3m distill``, again and again until it succeeds;
with ``--front daemon`` a real daemon does, with sensor and schedule on, and with ``--front ui`` it is ``d3m ui`` that is
started again and again. Meanwhile one process after the other of its tree, chosen at random, is killed at a random moment:
mostly by SIGKILL, the command itself at times by SIGTERM or SIGINT. In the end all data files have to be those of an undisturbed
run, and nothing may be left: no process, lock file, temporary file or unfinished run, and no artefact of which Dagster does not
know.

Many kills share one job, since what is finished is kept: their moments are drawn over the whole of an undisturbed run and come in
its order. A moment is told by what is stored by then and the processor time since, not by the clock, so that neither a busy
machine nor the start of the next attempt moves it.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import httpx
import pytest

from d3m_assets.orchestration.recovery import unrecorded
from d3m_assets.orchestration.resources import locks
from d3m_assets.orchestration.unfinished import UNFINISHED
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets_tests.faults.kills_by_clock import in_progress, pending, processes
from d3m_assets_tests.orchestration.many_runs import SETTINGS, parent, prepare
from d3m_assets_tests.orchestration.servers import COMMANDS, Servers, WebPage, as_environment
from d3m_assets_tests.processes import marked, new_mark, wait_until

COMMAND = [sys.executable, "-m", "d3m_assets.cli"]
SHARE_OF_SIGNALS = 0.15
"""Of the kills of a tree, those that go to the command itself as SIGTERM or SIGINT."""
KILLS_OF_A_CHAIN = 10
"""Kills along one job before it is left to finish and compared."""
SECONDS_OF_A_RUN = 1800.0
SECONDS_BETWEEN_READINGS = 0.02
SECONDS_BETWEEN_LOOKS = 3.0
NOT_SERVING = (httpx.HTTPError, AssertionError, KeyError, ValueError, TypeError)
"""What asking a web server raises while it, or its code server, is being started."""
AUTOMATION = {"automation.enabled": True, "automation.cron": "* * * * *"}
OF_THIS_RUN = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    rb"|(?<=commit: )[0-9a-f]+(-dirty)?|(?<=<td>)[0-9a-f]{7,40}(-dirty)?(?=</td>)"
)
"""Times, Dagster's ids of runs and our commit, which the page of the report names."""
LEFT = ("processes", "lock files", "temporary files", "unfinished runs", "unrecorded artefacts")
WRONG = ("files missing", "files that differ", "runs that failed")
KINDS = {
    "d3m_assets.cli": "command",
    "webserver": "web server",
    "dagster._daemon": "daemon",
    "dagster-daemon": "daemon",
    "dagster code-server": "code server's proxy",
    "dagster api grpc": "code server",
    "resource_tracker": "resource tracker",
}
"""What processes are, by words of their command lines."""


def run(count: int, seed: int, front: str) -> dict[str, int]:
    """Kill ``count`` times.

    Args:
        count: Of kills.
        seed: Of what is killed when.
        front: One of :data:`FRONTS`.

    Returns:
        How often what was killed, how many jobs and files were compared, and everything that was wrong or left:
        the values of :data:`LEFT` and :data:`WRONG` are to be 0.

    Raises:
        TimeoutError: Runs did not come to an end.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `&`; what is started here would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    counts, choose = Counter(dict.fromkeys((*LEFT, *WRONG), 0)), random.Random(seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        for variable, value in prepare(folder).items():
            patch.setenv(variable, value)
        patch.delenv("D3M_SETTINGS")
        expected, timeline = _undisturbed(folder)
        with FRONTS[front](folder, timeline) as opened:
            while counts["kills"] < count:
                before = counts["kills"]
                opened.begin()
                for moment in moments(timeline, min(KILLS_OF_A_CHAIN, count - counts["kills"]), choose):
                    if not opened.reach(moment):
                        break
                    opened.kill(choose, counts)
                opened.finish(counts)
                _compare(folder, opened.home, expected, counts)
                opened.count_left(counts)
                counts["jobs"] += 1
                print(dict(counts), flush=True)
                if counts["kills"] == before:
                    raise TimeoutError("a job came to its end before any of its moments was reached")
    return dict(counts)


def clean(counts: dict[str, int]) -> bool:
    """Whether nothing was wrong and nothing was left."""
    return bool(counts["files compared"]) and not any(counts[name] for name in (*LEFT, *WRONG))


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Attributes:
        stored: Artefacts that are committed by then.
        seconds: Of processor time of all processes since the last of them was.
    """

    stored: int
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """An undisturbed run.

    Attributes:
        commits: Processor time of all its processes until the commit of each artefact, in seconds, ascending.
        end: That until its end.
    """

    commits: Sequence[float]
    end: float

    def moment(self, seconds: float) -> Moment:
        """The moment after some seconds of processor time."""
        stored = bisect.bisect_right(self.commits, seconds)
        return Moment(stored, seconds - (self.commits[stored - 1] if stored else 0.0))


class ProcessorTime:
    """Processor time of all processes with a mark, also of those that have ended.

    Args:
        mark: By which they are found.
    """

    def __init__(self, mark: dict[str, str]) -> None:
        self._mark = mark
        self._spent: dict[int, float] = {}
        self._living: Sequence[int] = ()
        self._looked = 0.0

    def seconds(self) -> float:
        """Until now; what a process spends between its last reading and its end, some hundredths, is not seen."""
        if (now := time.monotonic()) > self._looked + 0.5:  # all processes of the machine are looked at
            self._looked, self._living = now, list(marked(self._mark))
        for pid in self._living:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                self._spent[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return sum(self._spent.values())


def moments(timeline: Timeline, count: int, choose: random.Random) -> list[Moment]:
    """Random moments of a run, in the order in which one job can be killed at all of them.

    Half of them are evenly spread over the processor time of the run and half over its artefacts, most of which are
    committed within a few seconds. Those before the first commit, while everything starts, are put anywhere between the
    others: there is such a start after each kill.
    """
    drawn = []
    for _ in range(count):
        if choose.random() < 0.5:
            drawn.append(choose.uniform(0, timeline.end))
        else:
            bounds = [0.0, *timeline.commits, timeline.end]
            after = choose.randrange(len(bounds) - 1)
            drawn.append(choose.uniform(bounds[after], bounds[after + 1]))
    found = [timeline.moment(seconds) for seconds in sorted(drawn)]
    ordered = [moment for moment in found if moment.stored]
    for moment in found:
        if not moment.stored:
            ordered.insert(choose.randint(0, len(ordered)), moment)
    return ordered


def _settings_of(folder: Path, home: Path) -> dict[str, object]:
    return {**SETTINGS, "dataset": str(folder / "images"), "home": str(home)}


def _undisturbed(folder: Path) -> tuple[dict[str, str], Timeline]:
    """Hashes of the files of a run that nothing disturbs, by artefact and name, and when it commits what."""
    home, mark = folder / "home", new_mark()  # the place of all others: the report may name it
    environment = os.environ | as_environment(_settings_of(folder, home)) | mark
    commits: list[float] = []
    processor, started = ProcessorTime(mark), time.monotonic()
    with (folder / "log").open("w") as log:
        command = subprocess.Popen(
            [*COMMAND, "distill", "--yes"], env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    while (status := command.poll()) is None:
        now = processor.seconds()
        commits += [now] * (_stored(home) - len(commits))
        time.sleep(SECONDS_BETWEEN_READINGS)
    end = processor.seconds()
    if status:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    hashes = _hashes(folder, home)
    shutil.rmtree(home)
    print(
        f"undisturbed: {len(commits)} artefacts in {time.monotonic() - started:.0f} s, {end:.0f} s of processors, the first "
        f"after {commits[0]:.0f} s of them",
        flush=True,
    )
    return hashes, Timeline(commits, end)


def _stored(home: Path) -> int:
    """How many artefacts are committed."""
    return sum(1 for _ in home.glob("store/*/**/manifest.json"))


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


@contextlib.contextmanager
def _instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        with dg.DagsterInstance.get() as instance:
            yield instance


class Front(ABC):
    """What a person has opened, and how it works on and is started again.

    Args:
        folder: For everything that it writes.
        timeline: Of an undisturbed run.

    Attributes:
        home: Of the settings.
        mark: By which its processes are found.
        processor: Time of all its processes.
        began: What of it was spent when what works was last started.
    """

    def __init__(self, folder: Path, timeline: Timeline) -> None:
        self.folder, self.home, self.timeline = folder, folder / "home", timeline
        self.settings = _settings_of(folder, self.home)
        self.mark, self.began = new_mark(), 0.0
        self.processor = ProcessorTime(self.mark)
        self.temporary = folder / "temporary"
        self.temporary.mkdir()

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *error: object) -> None:
        def end() -> bool:
            for pid in marked(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not marked(self.mark)

        wait_until(end, 30)

    @abstractmethod
    def keep_working(self) -> bool:
        """Start again what a person would start again; whether there is still something to do."""

    @abstractmethod
    def finish(self, counts: Counter[str]) -> None:
        """Let the job come to its end, and count the processes that outlive it."""

    def begin(self) -> None:
        """Begin a job, with nothing in its home."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()

    def reach(self, moment: Moment) -> bool:
        """Wait for a moment of the job; whether it was reached before everything was done."""
        reached: float | None = None
        deadline = time.monotonic() + SECONDS_OF_A_RUN
        while True:
            if not self.keep_working():
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"{moment} was not reached; {self.log()}")
            spent = self.processor.seconds()
            if reached is None and _stored(self.home) >= moment.stored:
                reached = spent
            # What has just been started is where it was only when it has started.
            began = self.began + (self.timeline.commits[0] if moment.stored else 0.0)
            if reached is not None and spent >= max(reached, began) + moment.seconds:
                return True
            time.sleep(SECONDS_BETWEEN_READINGS)

    def tree(self) -> dict[int, str]:
        """Command lines of the processes that may be killed, by process id."""
        return marked(self.mark)

    def kill(self, choose: random.Random, counts: Counter[str]) -> None:
        """Kill a process of the tree, or ask the command itself to end."""
        tree = self.tree()
        if not tree:
            return
        commands = [pid for pid, line in tree.items() if _kind(pid, line, tree) == "command"]
        if commands and choose.random() < SHARE_OF_SIGNALS:
            pid, number = commands[0], choose.choice([signal.SIGTERM, signal.SIGINT])
        else:
            pid, number = choose.choice(sorted(tree)), signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            counts["kills"] += 1
            counts[f"{number.name} of {_kind(pid, tree[pid], tree)}"] += 1

    def count_left(self, counts: Counter[str]) -> None:
        """What a job has left in its home, apart from processes."""
        settings = load_settings(**self.settings)
        pipeline = Pipeline(settings)
        counts["lock files"] += len(list(locks(settings).glob("run-*.lock")))
        found = [path for path in self.home.rglob("*") if path.name.startswith((".probe-", ".ui-"))]
        found += [*self.home.rglob("*.tmp"), *(path for path in self.temporary.rglob("*") if path.is_file())]
        counts["temporary files"] += len(found)
        for path in found:
            print(f"left: {path}", flush=True)
        with _instance(self.instance) as instance:
            counts["unfinished runs"] += instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED))
            counts["unrecorded artefacts"] += len(list(unrecorded(instance, pipeline, pipeline.plan())))

    @property
    def instance(self) -> Path:
        """Folder of Dagster's instance."""
        return self.home / "dagster"

    def log(self) -> str:
        """The end of what was written."""
        return (self.folder / "log").read_text()[-3000:]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = os.environ | as_environment(self.settings) | self.mark | {"TMPDIR": str(self.temporary)}
        with (self.folder / "log").open("a") as log:
            started = subprocess.Popen(
                [*COMMAND, *words], env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.began = self.processor.seconds()
        return started

    def _count_processes(self, counts: Counter[str], seconds: float) -> None:
        wait_until(lambda: not self.tree(), seconds)
        for command in self.tree().values():
            counts["processes"] += 1
            print(f"left: {command}", flush=True)


def _kind(pid: int, line: str, tree: dict[int, str]) -> str:
    if kind := next((kind for words, kind in KINDS.items() if words in line), ""):
        return kind
    if "multiprocessing.spawn" not in line:
        return "other"  # such as those with which Dagster copies the output of a run
    above = tree.get(parent(pid), "")
    return "worker" if "multiprocessing.spawn" in above or "d3m_assets.cli" in above else "run"


class Shell(Front):
    """``d3m distill``, started again at once whenever it has ended, until it succeeds."""

    command: subprocess.Popen[bytes] | None = None
    failed = 0

    def begin(self) -> None:
        super().begin()
        self.command, self.failed = None, 0

    def keep_working(self) -> bool:
        status = None if self.command is None else self.command.poll()
        if status == 0:
            return False
        if self.command is None or status is not None:
            self.command = self._start("distill", "--yes")
        return True

    def finish(self, counts: Counter[str]) -> None:
        # The attempt whose process was killed last may fail, the one after it has no reason to.
        status: int | None = None
        for _ in range(2):
            if not self.keep_working():
                status = 0
                break
            assert self.command is not None
            try:
                status = self.command.wait(SECONDS_OF_A_RUN)
            except subprocess.TimeoutExpired:
                break
        if status != 0:
            counts["runs that failed"] += 1
            print(self.log(), flush=True)
        self._count_processes(counts, 30)


class Served(Front):
    """A web page on which a person asks for ``distill`` with a click, whenever nothing is at work and something is to be done."""

    page: WebPage
    looked = 0.0

    @abstractmethod
    def keep_serving(self) -> None:
        """Start again the servers that have ended."""

    def keep_working(self) -> bool:
        return self._keep_working(clicks=True)

    def _keep_working(self, *, clicks: bool) -> bool:
        self.keep_serving()
        if time.monotonic() > self.looked + SECONDS_BETWEEN_LOOKS:
            self.looked = time.monotonic()
            try:
                if not in_progress(self.page):
                    if not pending(self.settings):
                        return False
                    if clicks:
                        self._click()
            except NOT_SERVING:  # what answers is being started
                pass
        return True

    def _click(self) -> None:
        try:
            self.page.launch_job("distill")
            self.began = self.processor.seconds()
        except AssertionError:
            # The web server does not start its own code server again by itself; a person clicks on *Reload*.
            self.page.ask('mutation {reloadRepositoryLocation(repositoryLocationName: "d3m_assets") {__typename}}')

    def finish(self, counts: Counter[str]) -> None:
        if not wait_until(self._is_finished, SECONDS_OF_A_RUN):
            counts["runs that failed"] += 1
            print(self.log(), flush=True)

    @abstractmethod
    def _is_finished(self) -> bool:
        """Whether everything is made and recorded; asked again and again."""

    def _unrecorded(self) -> int:
        pipeline = Pipeline(load_settings(**self.settings))
        with _instance(self.instance) as instance:
            return len(list(unrecorded(instance, pipeline, pipeline.plan())))


class Page(Served):
    """``d3m ui``, started again at once whenever it has ended. The clock is off: all runs come of clicks."""

    command: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path, timeline: Timeline) -> None:
        super().__init__(folder, timeline)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.page = WebPage(probe.getsockname()[1])

    def keep_serving(self) -> None:
        if self.command is None or self.command.poll() is not None:
            # What the one before has started ends with it, but not in the same moment.
            if not wait_until(self._port_is_free, 60):
                raise TimeoutError(f"port {self.page.port} is held by {list(self.tree().values())}; {self.log()}")
            self.command = self._start("ui", "--port", str(self.page.port))

    def _port_is_free(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.page.port)) != 0

    def _is_finished(self) -> bool:
        if self._keep_working(clicks=True):
            return False
        if self._unrecorded():  # the next run of any kind records what the store has and Dagster lacks
            with contextlib.suppress(*NOT_SERVING):
                self._click()
            return False
        return True

    def finish(self, counts: Counter[str]) -> None:
        super().finish(counts)
        assert self.command is not None
        self.command.send_signal(signal.SIGINT)
        self.command.wait(SECONDS_OF_A_RUN)
        self.command = None
        self._count_processes(counts, 90)  # a code server whose owner was killed ends after 45 s


class Daemon(Served):
    """Dagster's own web server and daemon, with sensor and schedule on; both are started again, as by a service manager."""

    def __init__(self, folder: Path, timeline: Timeline) -> None:
        super().__init__(folder, timeline)
        self.servers = self.page = Servers(folder, as_environment(self.settings | AUTOMATION))
        self.mark = self.servers.mark
        self.processor = ProcessorTime(self.mark)

    def __enter__(self) -> Daemon:
        self.servers.__enter__()
        return self

    def begin(self) -> None:
        with _instance(self.instance) as instance:
            instance.wipe_assets(list(instance.all_asset_keys()))
        super().begin()
        self.looked = 0.0

    def keep_serving(self) -> None:
        running = processes(self.servers)
        for command in COMMANDS:
            if not running[command.name]:
                self.servers.start(command.name)

    def _is_finished(self) -> bool:
        # The clock alone: a click after the last kill would hide that it does nothing.
        return not self._keep_working(clicks=False) and not self._unrecorded()

    def finish(self, counts: Counter[str]) -> None:
        super().finish(counts)
        for command in self.servers.left_after(30).values():
            counts["processes"] += 1
            print(f"left: {command}", flush=True)

    @property
    def instance(self) -> Path:
        return self.servers.folder

    def log(self) -> str:
        return self.servers.logs()


FRONTS: dict[str, Callable[[Path, Timeline], Front]] = {"shell": Shell, "daemon": Daemon, "ui": Page}


def main() -> None:
    """Run it and print the counts; the exit status is 1 if anything was wrong or left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--front", choices=FRONTS, default="shell")
    arguments = parser.parse_args()
    started = time.monotonic()
    counts = run(arguments.count, arguments.seed, arguments.front)
    for name, number in counts.items():
        print(f"{name}: {number}")
    print(f"seed {arguments.seed}, {time.monotonic() - started:.0f} s; {'clean' if clean(counts) else 'NOT CLEAN'}")
    raise SystemExit(not clean(counts))


if __name__ == "__main__":
    main()
