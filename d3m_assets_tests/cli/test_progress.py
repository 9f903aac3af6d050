"""A run whose output is a pipe says something every few seconds, from its first moment until its table is printed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from d3m_assets.terminal import SECONDS_BETWEEN_LINES
from d3m_assets_tests import small_runs
from d3m_assets_tests.cli.test_first_steps import CLEAN


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_stage_of_a_run_is_silent_for_long(tmp_path, image_folder):
    settings = [
        f"--set={name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in (small_runs.QUICK | small_runs.SELECTED | {"workers": 2}).items()
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "d3m_assets.cli", "distill", "--dataset", image_folder(("0", "1")), *settings],
        env=CLEAN | {"D3M_HOME": str(tmp_path / "home")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        moments, lines = [time.monotonic()], []
        for line in process.stderr:
            moments.append(time.monotonic())
            lines.append(line)
        assert process.wait() == 0, lines[-20:]
    assert lines[-1].startswith("table"), lines[-20:]  # behind it the table is printed, and the process ends
    gaps = [after - before for before, after in zip(moments, moments[1:], strict=False)]
    where = max(range(len(gaps)), key=gaps.__getitem__)
    # Twice the promise, since other tests run beside.
    assert max(gaps) < 2 * SECONDS_BETWEEN_LINES, (max(gaps), lines[max(0, where - 2) : where + 1])
    stages = {line.split()[0] for line in lines}
    assert stages >= {"start", "scan", "inverted_embeddings", "synthetic_pool"}
