"""kill -9 of whatever serves and works, at random times, and whether the clock alone puts it right.

``python -m d3m_assets_tests.faults.kills_by_clock --kills 20 --seed 0`` starts a real webserver and daemon with the
instance as it is shipped, sensor and schedule on, the latter every minute. While runs work, one process after the other is
killed: daemon, webserver, a code server, a run or one of its compute workers. Daemon and webserver are started again, as a
service manager does; nothing else is put right by hand. In the end the bundles must be those of an undisturbed run, byte
for byte, and no process of a run and no lock file may be left.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from d3m_assets.orchestration.resources import locks
from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings
from d3m_assets_tests.orchestration.many_runs import CLASSES, SETTINGS, parent, prepare, replace_image
from d3m_assets_tests.orchestration.servers import Servers, WebPage, as_environment
from d3m_assets_tests.processes import alive, marked, wait_until

KINDS = ("dagster-daemon", "dagster-webserver", "code server", "run", "compute worker")
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
LONGER = {"inversion.steps": 60, "students.steps": 40}
"""Settings with which a run works for some seconds."""


@dataclass
class Report:
    """What was seen.

    Attributes:
        killed: How often each kind of process was.
        statuses: How many runs ended in each status.
        left: Processes of runs that were alive in the end.
        lock_files: Of runs that were left.
        equal: Whether bundles and metrics were those of an undisturbed run; how many files were compared.
        seconds_to_right: From the last kill until nothing was pending.
    """

    killed: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    lock_files: list[str] = field(default_factory=list)
    equal: bool = False
    files: int = 0
    seconds_to_right: float = 0.0


def processes(servers: Servers) -> dict[str, list[int]]:
    """Process ids by kind."""
    found = marked(servers.mark)
    spawned = {pid for pid, command in found.items() if "multiprocessing.spawn" in command}
    by_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for pid, command in found.items():
        for kind in KINDS[:2]:
            if f"/{kind} " in command:
                by_kind[kind].append(pid)
        if "dagster api grpc" in command:
            by_kind["code server"].append(pid)
        elif pid in spawned:
            by_kind["compute worker" if parent(pid) in spawned else "run"].append(pid)
    return by_kind


def serving(servers: Servers) -> bool:
    """Whether the webserver answers and has the code location."""
    try:
        return servers.loaded()
    except (AssertionError, KeyError, ValueError, TypeError):  # its code server is being started
        return False


def in_progress(page: WebPage) -> int:
    """Runs that have not ended."""
    return sum(page.status(run) not in ENDED for run in page.runs())


def pending(settings: dict[str, object]) -> int:
    """Artefacts that the plan wants made."""
    return len(Pipeline(load_settings(**settings)).plan().pending())


def random_kills(folder: Path, kills: int, seed: int, seconds_to_right: float = 420) -> Report:
    """Do it in a folder; the environment of :func:`prepare` is set.

    Raises:
        TimeoutError: Servers did not come back, or the clock did not put it right in time.
    """
    choose, report = random.Random(seed), Report()
    images, home = folder / "images", folder / "home"
    given = {**SETTINGS, **LONGER, "dataset": str(images), "home": str(home)}
    automation = {"automation.enabled": True, "automation.cron": "* * * * *"}
    servers = Servers(folder, as_environment(given | automation))
    with servers:
        popen: dict[str, subprocess.Popen[bytes]] = {}
        deadline = time.monotonic() + 60 * kills
        while sum(report.killed.values()) < kills:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sum(report.killed.values())} kills only; {servers.logs()}")
            if not in_progress(servers):
                number = len(servers.runs())
                replace_image(images, CLASSES[number % len(CLASSES)], 1000 + number)
                servers.launch_job("distill")
            kind = choose.choice(KINDS)
            # Until there is one, and then a moment that is different each time.
            if not wait_until(lambda kind=kind: processes(servers)[kind], 20):
                continue
            time.sleep(choose.uniform(0, 4))
            if not (candidates := processes(servers)[kind]):
                continue
            pid = choose.choice(candidates)
            os.kill(pid, 9)
            report.killed[kind] += 1
            print(f"kill {sum(report.killed.values())}: {kind} {pid}", flush=True)
            if kind in popen:
                popen[kind].wait()
            if kind in KINDS[:2]:
                wait_until(lambda pid=pid: not alive(pid), 10)
                popen[kind] = servers.start(kind)
            if not wait_until(lambda: serving(servers), 120):
                raise TimeoutError(f"the webserver did not come back; {servers.logs()}")
        ended = time.monotonic()
        print("left to the clock", flush=True)
        if not wait_until(lambda: _right(servers, given), seconds_to_right):
            raise TimeoutError(f"{pending(given)} artefacts pending, {servers.working()}; {servers.logs()}")
        report.seconds_to_right = time.monotonic() - ended
        report.left = list(servers.left_after(30).values())
        report.statuses = Counter(servers.status(run) for run in servers.runs())
        settings = load_settings(**given)
        report.lock_files = [path.name for path in locks(settings).glob("run-*.lock")]
    code = "from d3m_assets_tests.faults.kills_by_clock import undisturbed; undisturbed()"
    environment = os.environ | as_environment(given | {"home": str(folder / "undisturbed")})
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    # Superseded versions lie in the disturbed store, too: what counts is what the manifests name now.
    expected, found = current(folder / "undisturbed", given), current(home, given)
    report.files, report.equal = len(expected), bool(expected) and expected == found
    return report


def current(home: Path, given: dict[str, object]) -> dict[str, bytes]:
    """Files of the current bundles, by artefact and name."""
    pipeline = Pipeline(load_settings(**(given | {"home": str(home)})))
    found = {}
    for key in pipeline.keys("distilled_bundle"):
        manifest = pipeline.store.manifest(key)
        if manifest is None:
            continue
        for name in manifest.files:
            found[f"{key}/{name}"] = pipeline.store.read(key, name)
    return found


def undisturbed() -> None:
    """Make everything in this process, with the settings of the environment."""
    pipeline = Pipeline(load_settings())
    tally = pipeline.work_through(pipeline.plan())
    if tally.failed:
        raise RuntimeError(str(tally.failed[0].error))


def _right(servers: Servers, given: dict[str, object]) -> bool:
    time.sleep(3)
    return not in_progress(servers) and not pending(given) and not servers.working()


def main() -> None:
    """Run it in a temporary folder and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.environ.update(prepare(Path(name)))
        del os.environ["D3M_SETTINGS"]
        started = time.monotonic()
        report = random_kills(Path(name), arguments.kills, arguments.seed)
    print(f"killed {dict(report.killed)}, seed {arguments.seed}")
    print(f"runs by status: {dict(report.statuses)}")
    print(
        f"nothing pending {report.seconds_to_right:.0f} s after the last kill; {time.monotonic() - started:.0f} s in all"
    )
    print(f"processes left: {len(report.left)} {report.left[:3]}; lock files left: {len(report.lock_files)}")
    print(f"bundles equal to those of an undisturbed run: {report.equal} ({report.files} files)")


if __name__ == "__main__":
    main()
