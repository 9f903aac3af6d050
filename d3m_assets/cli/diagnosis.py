"""The checks of ``d3m doctor``: each looks at one thing that a run needs, and says what to do where it is not in order."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from d3m_assets.addresses import masked
from d3m_assets.errors import D3MError
from d3m_assets.foundation.files import EMBEDDED, FoundationFiles
from d3m_assets.ledger import byte_size
from d3m_assets.settings import ENVIRONMENT_PREFIX, FILE_VARIABLE, Settings, settings_file
from d3m_assets.store_errors import remedy

State = Literal["ok", "warning", "error"]
PACKAGE = "d3m-assets"
LEAST_DISK, GOOD_DISK = 200 * 2**20, 5 * 2**30
"""Bytes of free disk below which a run cannot be expected to end, and below which a larger one may not."""
GOOD_MEMORY = 2 * 2**30
"""Bytes of free memory from which the embedded model and its students fit beside each other."""
ALIVE_SECONDS = 90.0
"""Age of a heartbeat of Dagster's daemon from which nobody is behind it: it gives one every 30 s."""
LARGE_MODEL = 500 * 2**20
"""Bytes of weights from which a CPU takes hours a class."""


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        what: What was looked at.
        state: Whether it is in order.
        detail: What is there.
        remedy: What to do; empty where it is in order.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""

    def facts(self) -> dict[str, str]:
        """As JSON values; passwords in addresses are hidden."""
        return {name: masked(value) for name, value in asdict(self).items()}


Check = Callable[[Settings], Iterator[Finding]]


def examine(settings: Settings) -> Iterator[Finding]:
    """What every check finds, one after the other; a check that fails is an error of what it looks at."""
    for what, check in CHECKS.items():
        try:
            yield from check(settings)
        except D3MError as error:
            detail, _, advice = str(error).rpartition("; ")
            yield Finding(what, "error", detail or advice, advice if detail else "")
        except Exception as error:  # of any of the libraries that are looked at
            yield Finding(what, "error", f"{type(error).__name__}: {error}", remedy(error) or "see the message")


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Where the settings come from; that they can be read is known by now."""
    file = settings_file()
    variables = sorted(name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX))
    parts = [str(file) if file else "no d3m.toml here", *(v for v in variables if v.upper() != FILE_VARIABLE)]
    advice = "" if file or variables else "`d3m init PATH` writes a d3m.toml for your dataset"
    yield Finding("settings", "ok", ", ".join(parts), advice)


def check_versions(settings: Settings) -> Iterator[Finding]:
    """Python and packages against the ranges that this package states."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, requirements = _requirements()
    version = platform.python_version()
    if SpecifierSet(python).contains(version, prereleases=True):
        yield Finding("Python", "ok", version)
    else:
        yield Finding("Python", "error", f"{version}, but {python} is needed", f"install Python {python}")
    extras: dict[str, list[str]] = {}
    wrong, count = [], 0
    for text, extra in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        installed = _version(requirement.name)
        if extra:
            missing = [] if installed is not None else [requirement.name]
            extras[extra] = extras.get(extra, []) + missing
        count += not extra
        if installed is None and not extra:
            wrong.append(Finding(requirement.name, "error", "not installed", f'pip install "{_plain(requirement)}"'))
        elif installed is not None and not requirement.specifier.contains(installed, prereleases=True):
            severity: State = "warning" if extra else "error"
            wrong.append(
                Finding(
                    requirement.name,
                    severity,
                    f"{installed}, but {requirement.specifier} is needed",
                    f'pip install "{_plain(requirement)}"',
                )
            )
    if not any(finding.state == "error" for finding in wrong):
        yield Finding("packages", "ok", f"{count} as needed, {PACKAGE} {_version(PACKAGE) or 'from a checkout'}")
    yield from wrong
    there = sorted(name for name, missing in extras.items() if not missing)
    absent = sorted(name for name, missing in extras.items() if missing)
    parts = [f"with {', '.join(there)}" if there else "", f"without {', '.join(absent)}" if absent else ""]
    hint = f"where you need one: pip install {PACKAGE}[{absent[0]}]" if absent else ""
    yield Finding("optional extras", "ok", "; ".join(part for part in parts if part) or "none", hint)


def _plain(requirement: Any) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _requirements() -> tuple[str, list[tuple[str, str]]]:
    """The range of Python, and each requirement with the extra that it is for; from pyproject.toml in a checkout."""
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        found = [(text, "") for text in project["dependencies"]]
        for extra, texts in project.get("optional-dependencies", {}).items():
            found += [(text, extra) for text in texts]
        return project["requires-python"], found
    from packaging.requirements import Requirement

    about = metadata.metadata(PACKAGE)
    names = ["", *(about.get_all("Provides-Extra") or [])]
    found = []
    for text in metadata.requires(PACKAGE) or []:
        marker = Requirement(text).marker
        # What needs no extra holds for every one of them.
        extra = next((name for name in names if marker is None or marker.evaluate({"extra": name})), None)
        if extra is not None:
            found.append((text, extra))
    return about["Requires-Python"] or "", found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_device(settings: Settings) -> Iterator[Finding]:
    """That the device computes, and how much memory is free."""
    import torch

    from d3m_assets.compute.devices import choose_devices, cores

    if settings.compute.engine == "ray":
        yield Finding("device", "ok", "Ray's workers compute; they are not looked at from here")
        return
    for name in choose_devices(settings.device):
        device = torch.device(name)
        if float(torch.ones(8, device=device).sum()) != 8:
            yield Finding("device", "error", f"{name} computes wrongly", "update its driver, or set device = cpu")
        elif device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            detail = f"{name}: {torch.cuda.get_device_name(device)}, {byte_size(free)} of {byte_size(total)} free"
            low = free < GOOD_MEMORY
            yield Finding("device", "warning" if low else "ok", detail, "end what uses the GPU" if low else "")
        else:
            yield Finding("device", "ok", f"{name}: {cores()} cores, PyTorch {torch.__version__}")
    if (free_memory := _free_memory()) is not None:
        low = free_memory < GOOD_MEMORY
        advice = "end other programs, or set workers = 1" if low else ""
        yield Finding("memory", "warning" if low else "ok", f"{byte_size(free_memory)} free", advice)


def _free_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


def check_model(settings: Settings) -> Iterator[Finding]:
    """That the model is there, complete, in safetensors, and of a kind that is supported; nothing is fetched."""
    from safetensors import safe_open

    from d3m_assets.foundation.loading import find_foundation

    # To look whether the model is at hand must not fetch it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    files = find_foundation(
        settings.foundation,
        config=settings.foundation_config,
        revision=settings.foundation_revision,
        digests=settings.home / "cache" / "digests.json",
    )
    for path in _weights(files):
        try:
            with safe_open(path, "numpy") as content:
                content.keys()
        except Exception as error:  # safetensors' own
            yield Finding("model", "error", f"{path} is damaged: {error}", "fetch or copy the model again")
            return
    detail = f"{files.kind}, {byte_size(files.weight_bytes)}, SHA-256 {files.fingerprint[:12]}…, {files.source}"
    yield Finding("model", "ok", f"{files.name if files.name == EMBEDDED else 'own'}: {detail}")
    if files.weight_bytes > LARGE_MODEL and settings.compute.engine != "ray":
        from d3m_assets.compute.devices import choose_device

        if choose_device(settings.device).type == "cpu":
            advice = "use a machine with a GPU, or Ray (compute.engine)"
            yield Finding("model", "warning", "a model of this size takes hours a class without a GPU", advice)


def _weights(files: FoundationFiles) -> list[Path]:
    return [files.checkpoint] if files.checkpoint else sorted(files.path.glob("*/*.safetensors"))


def check_dataset(settings: Settings) -> Iterator[Finding]:
    """That there is something where the dataset is said to be; it is not read."""
    import fsspec

    if settings.dataset == "digits":
        yield Finding("dataset", "ok", "digits, which come with scikit-learn")
        return
    fs, root = fsspec.url_to_fs(settings.dataset)
    wild = any(c in root.partition("?")[0] for c in "*{")
    if wild or fs.exists(root):
        yield Finding("dataset", "ok", f"{settings.dataset}; `d3m status` reads and checks it")
    else:
        here = "" if "://" in settings.dataset else f" (looked in {Path.cwd()})"
        yield Finding("dataset", "error", f"{settings.dataset} does not exist{here}", "correct `dataset`")


def check_storage(settings: Settings) -> Iterator[Finding]:
    """That a file can be written where artefacts are kept, read and deleted."""
    from d3m_assets.store import Store

    store = Store.open(settings.storage_url)
    begun = time.monotonic()
    store.probe()
    yield Finding(
        "storage", "ok", f"{store.url}: written, read and deleted in {1000 * (time.monotonic() - begun):.0f} ms"
    )


def check_home(settings: Settings) -> Iterator[Finding]:
    """That caches and the instance have a place, and how much room there is."""
    home = settings.home.absolute()
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        yield Finding("home", "error", f"{place} cannot be written: {error.strerror or error}", remedy(error))
        return
    free = shutil.disk_usage(place).free
    state: State = "error" if free < LEAST_DISK else "warning" if free < GOOD_DISK else "ok"
    advice = "free some space (`d3m prune` lists what nothing needs), or set `home` to a larger disk"
    yield Finding("home", state, f"{home}: {byte_size(free)} free", "" if state == "ok" else advice)


def check_instance(settings: Settings) -> Iterator[Finding]:
    """That Dagster's instance opens, and whether its daemon lives."""
    from d3m_assets.orchestration.instance_errors import explained
    from d3m_assets.orchestration.launch import ensure_instance_home

    folder = Path(os.environ.get("DAGSTER_HOME") or settings.home.absolute() / "dagster")
    if not (folder / "dagster.yaml").exists():
        yield Finding("Dagster instance", "ok", f"{folder}: made by the first run")
        return
    from d3m_assets.orchestration.dagster_private import instance_without_captured_output

    home = ensure_instance_home(settings)
    with explained(home), instance_without_captured_output(home) as instance:
        runs = instance.get_runs_count()
        beats = [beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
    yield Finding("Dagster instance", "ok", f"{home}: {runs} runs")
    alive = bool(beats) and time.time() - max(beats) < ALIVE_SECONDS
    needed = settings.automation.enabled and not alive
    advice = "start `d3m ui`: schedules, sensors and runs from the web page need it"
    yield Finding(
        "Dagster daemon", "warning" if needed else "ok", "runs" if alive else "does not run", "" if alive else advice
    )


def check_code_location(settings: Settings) -> Iterator[Finding]:
    """That Dagster can load the assets under these settings, and has its web page."""
    import dagster as dg

    from d3m_assets.definitions import build_definitions

    definitions = build_definitions(settings)
    dg.Definitions.validate_loadable(definitions)
    count = len(definitions.resolve_all_asset_keys())
    yield Finding("code location", "ok", f"{count} assets load")


CHECKS: dict[str, Check] = {
    "settings": check_settings,
    "versions": check_versions,
    "home": check_home,
    "storage": check_storage,
    "dataset": check_dataset,
    "model": check_model,
    "device": check_device,
    "Dagster instance": check_instance,
    "code location": check_code_location,
}
"""The checks by what they look at, quick ones first."""
