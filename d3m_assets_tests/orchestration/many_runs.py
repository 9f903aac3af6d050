"""Scheduled runs in a row, started as the daemon starts them, and what they leave behind on the machine.

``python -m d3m_assets_tests.orchestration.many_runs --runs 50`` prints the counts. A code server stays open, as the daemon
keeps it; each run of ``distill`` is launched into it by Dagster's own run launcher, after an image was replaced.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import numpy as np
from dagster._cli.job import _create_run
from dagster._cli.workspace.cli_target import WorkspaceOpts, get_workspace_from_cli_opts
from dagster._core.instance import InstanceRef
from PIL import Image

from d3m_assets.orchestration.launch import ensure_instance_home
from d3m_assets.orchestration.resources import locks
from d3m_assets.settings import load_settings
from d3m_assets_tests.processes import left_after, marked, new_mark, wait_until
from d3m_assets_tests.small_runs import QUICK

LOCATION = "d3m_assets.definitions"
CLASSES = ("a", "b")
SETTINGS = QUICK | {
    "workers": 2,
    "students.seeds": (0,),
    "generation.images_per_class": 3,
    "device": "cpu",
}


@dataclass
class Report:
    """What was measured.

    Attributes:
        seconds: Of each run.
        failed: Runs that did not succeed.
        left: Processes alive after the runs that were not there before the first, by process id.
        lock_files: Lock files of runs that are left.
        memory: Resident memory of the code server after each run, in MiB.
        workers_seen: Most Python processes of a run, its own and its workers, at one time.
        materializations: Of ``inverted_embeddings``, in all.
    """

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    left: dict[int, str] = field(default_factory=dict)
    lock_files: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    workers_seen: int = 0
    materializations: int = 0


def replace_image(dataset: Path, name: str, seed: int, place: str = "train/{}/0.png") -> None:
    """Write a small grey image that was not there before."""
    path = dataset / place.format(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def prepare(folder: Path) -> dict[str, str]:
    """A dataset and settings; returns the environment that names them."""
    for position, name in enumerate(CLASSES):
        for n in range(5):
            replace_image(folder / "images", name, 100 * position + n, f"{'train' if n < 4 else 'test'}/{{}}/{n}.png")
    given = {**SETTINGS, "dataset": str(folder / "images"), "home": str(folder / "home")}
    (folder / "d3m.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
    return {
        "D3M_SETTINGS": str(folder / "d3m.toml"),
        "DAGSTER_HOME": "",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def many_runs(folder: Path, runs: int, seconds_a_run: float = 300) -> Report:
    """Launch runs one after the other; the environment of :func:`prepare` is set."""
    settings, report, mark = load_settings(), Report(), new_mark()
    home = ensure_instance_home(settings)
    os.environ.update(mark)
    options = WorkspaceOpts(module_name=(LOCATION,))
    with (
        dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance,
        get_workspace_from_cli_opts(instance, version="", workspace_opts=options) as workspace,
    ):
        location = workspace.code_locations[0]
        repository = location.get_repositories()["__repository__"]
        before = set(marked(mark))
        for number in range(runs):
            replace_image(folder / "images", CLASSES[number % len(CLASSES)], 1000 + number)
            started = time.monotonic()
            job = repository.get_full_job("distill")
            run = _create_run(instance, location, repository, job, {}, {}, None, None)
            instance.launch_run(run.run_id, workspace)
            while not (status := instance.get_run_by_id(run.run_id)).is_finished:
                spawned = set(marked(mark, "multiprocessing.spawn")) - before
                report.workers_seen = max(report.workers_seen, len(spawned))
                if time.monotonic() - started > seconds_a_run:
                    raise TimeoutError(f"run {number} of {runs} is {status.status} after {seconds_a_run:.0f} s")
                time.sleep(0.2)
            report.failed += not status.is_success
            report.seconds.append(time.monotonic() - started)
            wait_until(lambda: not new_since(before, mark), 15)
            report.left |= new_since(before, mark)
            report.memory.append(sum(map(resident, before)) / 2**20)
        report.lock_files = [path.name for path in locks(settings).glob("run-*.lock")]
        records = instance.fetch_materializations(dg.AssetKey("inverted_embeddings"), limit=10_000).records
        report.materializations = len(records)
    # The code server ends by itself some seconds after its user does.
    report.left |= {pid: command for pid, command in left_after(mark, 60).items() if pid not in report.left}
    for name in mark:
        del os.environ[name]
    return report


def new_since(before: set[int], mark: dict[str, str]) -> dict[int, str]:
    """Living processes that were not there before; the code server's one resource tracker, which ends with it, is not new."""
    found = {}
    for pid, command in marked(mark).items():
        if pid not in before and not ("resource_tracker" in command and parent(pid) in before):
            found[pid] = command
    return found


def parent(pid: int) -> int:
    """Process id of the parent; 0: it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main() -> None:
    """Run it in a temporary folder and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update(prepare(Path(folder)))
        report = many_runs(Path(folder), runs)
    print(f"runs {runs}, failed {report.failed}, materializations of inverted_embeddings {report.materializations}")
    print(f"seconds a run: first {report.seconds[0]:.1f}, last {report.seconds[-1]:.1f}, sum {sum(report.seconds):.0f}")
    print(f"most Python processes of a run at one time: {report.workers_seen}")
    print(f"processes left: {len(report.left)} {list(report.left.values())[:3]}")
    print(f"lock files left: {len(report.lock_files)}")
    steps = sorted({1, 2, runs // 4, runs // 2, runs} - {0})
    print(
        "code server, MiB resident after run "
        + ", ".join(f"{n}: {report.memory[n - 1]:.0f}" for n in steps if n <= runs)
    )


if __name__ == "__main__":
    main()
