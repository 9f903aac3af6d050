"""Take the pictures of docs/how-to/ui.md from Dagster's UI, after `bash scripts/distill` has filled this clone's home.

    bash scripts/setup test browser && .venv/bin/python scripts/ui_pictures.py

Needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the browser of the tests

from d3m_assets_tests.browser.ui import Browser  # noqa: E402
from d3m_assets_tests.processes import wait_until  # noqa: E402

SIZE = (1700, 1000)


def main() -> None:
    """Write ``docs/ui-lineage.png`` and ``docs/ui-class.png``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "d3m_assets.cli", "ui", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            if not wait_until(lambda: answers(port), 120):
                raise SystemExit((Path(folder) / "log").read_text())
            take(SimpleNamespace(port=port), folder)
        finally:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(60)


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def take(servers: SimpleNamespace, folder: str) -> None:
    """Open the pages and keep what is seen."""
    with Browser(servers, folder, SIZE) as browser:
        browser.lineage(expanded=("dataset", "distillation"))
        browser.see("//*[text()='synthetic_pool']", 120)
        browser.see("//*[text()='class_files']")
        browser.shot("lineage").replace(ROOT / "docs" / "ui-lineage.png")
        browser.open("/assets/synthetic_pool?view=partitions&partition=ipc-5%7C7")
        browser.click("//tr[.//*[normalize-space(text())='synthetic images']]//*[text()='[Show Markdown]']", 120)
        browser.see("//img[starts-with(@src,'data:image/png;base64,')]")
        browser.shot("class").replace(ROOT / "docs" / "ui-class.png")


if __name__ == "__main__":
    main()
