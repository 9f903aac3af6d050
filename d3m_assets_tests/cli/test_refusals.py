"""Disks that are full or read-only, and paths that are too long: a sentence, never a traceback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from d3m_assets_tests import small_runs
from d3m_assets_tests.requirements import need

CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("D3M_", "DAGSTER_HOME"))} | {"HF_HUB_OFFLINE": "1"}


def with_disk(folder, options):
    """Words before a command that give it, and nobody else, a file system of its own in a folder."""
    mount = 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"'
    return ["unshare", "-m", "sh", "-c", mount, options, str(folder)]


def _can_mount() -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([*with_disk("/mnt", "size=64k"), "true"], capture_output=True).returncode == 0
    return False


needs_mount = need("mount", _can_mount(), "file systems cannot be mounted here (unshare -m)")


def d3m(*arguments, quick=True, before=(), **environment):
    settings = [
        f"--set={n}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in small_runs.QUICK.items()
    ]
    return subprocess.run(
        [*before, sys.executable, "-m", "d3m_assets.cli", *map(str, arguments), *(settings if quick else [])],
        env=CLEAN | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def told(done, *words):
    """The last lines of what was said: a sentence with what to do, and no traceback."""
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    last = done.stderr[done.stderr.index("d3m: ") :]
    assert len(last) < 6000
    for word in words:
        assert word in last, last
    return last


@pytest.mark.long
@needs_mount
@pytest.mark.timeout(1200)
def test_disks_that_are_read_only_or_full(tmp_path, image_folder):
    folder, home, place = image_folder(("0", "1")), tmp_path / "home", tmp_path / "place"
    place.mkdir()
    read_only, tiny, small = (with_disk(place, options) for options in ("size=1m,ro", "size=64k", "size=500k"))
    data = {"D3M_DATASET": str(folder), "D3M_HOME": str(home)}
    at_home, in_store = data | {"D3M_HOME": f"{place}/home"}, data | {"D3M_STORAGE": f"{place}/store"}
    told(d3m("distill", before=read_only, **at_home), str(place), "name another place")
    told(d3m("distill", before=tiny, **at_home), str(place), "free some space")
    told(d3m("distill", before=small, **at_home), str(place), "free some space")
    told(d3m("distill", before=read_only, **in_store), str(place), "name another place")
    told(d3m("distill", before=tiny, **in_store), str(place), "free some space")
    told(d3m("init", folder, "--output", place / "d3m.toml", quick=False, before=read_only, **data), str(place))
    # With room, the same command goes on from what was finished.
    done = d3m("distill", **data)
    assert done.returncode == 0, done.stderr[-2000:]
    bundle = next(home.rglob("distilled_bundle/**/*.safetensors"))
    for command in (["regenerate"], ["export", "--format", "bundle-repository"], ["export"]):
        words = [command[0], bundle, *command[1:], "--output", place / "out"]
        told(d3m(*words, quick=False, before=read_only, **data), str(place), "name another place")
        full = with_disk(place, "size=4k")
        told(d3m(*words, quick=False, before=full, **data), "free some space")


def test_a_path_of_five_thousand_characters(tmp_path, image_folder):
    folder = image_folder(("0", "1"))
    long = tmp_path / "/".join(["x" * 100] * 50)
    for name in ("D3M_STORAGE", "D3M_HOME", "D3M_DATASET"):
        settings = {"D3M_HOME": str(tmp_path / "home"), "D3M_DATASET": str(folder)} | {name: str(long)}
        done = d3m("distill", **settings)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        assert "too long" in done.stderr or "longer than" in done.stderr or "does not exist" in done.stderr
