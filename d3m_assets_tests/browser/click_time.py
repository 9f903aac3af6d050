"""From the click on *Launch 1 run* to SUCCESS for single classes of the digits, and how much of that was work.

``python -m d3m_assets_tests.browser.click_time --classes 3 7 8`` clicks in a headless Chromium on a real webserver and
daemon, with the instance as it is shipped and settings as they are by default, and prints a table.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from d3m_assets.settings import load_settings
from d3m_assets_tests.browser.ui import Browser
from d3m_assets_tests.orchestration.servers import Servers, as_environment

ASSETS = ("inverted_embeddings", "synthetic_pool")
LAUNCH = "//button[contains(.,'Launch 1 run')]"


@dataclass(frozen=True)
class Click:
    """One click.

    Attributes:
        class_key: The class.
        queued: Seconds from the click to the run's creation.
        started: To its start in a process of its own.
        ended: To SUCCESS.
        work: Seconds in its steps: import of PyTorch, scan, model, inversion, generation.
    """

    class_key: str
    queued: float
    started: float
    ended: float
    work: float

    @property
    def overhead(self) -> float:
        """Seconds that were not work."""
        return self.ended - self.work


def click(servers: Servers, browser: Browser, budget: str, class_key: str, seconds: float = 600) -> Click:
    """Materialise embeddings and pool of a class as an operator does, and see how long it took.

    Raises:
        RuntimeError: The run did not succeed in time.
    """
    browser.launch_dialog(*ASSETS)
    browser.choose(budget, class_key)
    browser.see(LAUNCH)
    clicked = time.time()
    run = browser.launched(LAUNCH)
    if (status := servers.wait_for_end(run, seconds)) != "SUCCESS":
        raise RuntimeError(f"class {class_key}: {status} after {time.time() - clicked:.0f} s\n{servers.logs()}")
    times = servers.times(run)
    since = [times[name] - clicked for name in ("creationTime", "startTime", "endTime")]
    return Click(class_key, *since, work=sum(times["steps"].values()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", nargs="+", default=["3", "7", "8"])
    parser.add_argument("--budget", help="one of the budgets of the settings; the first by default")
    parser.add_argument("--executor", default="in-process", help="execution.executor")
    arguments = parser.parse_args()
    budget = arguments.budget or load_settings().budgets[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = {"dataset": "digits", "home": str(folder / "home"), "execution.executor": arguments.executor}
        with Servers(folder, as_environment(settings)) as servers, Browser(servers, folder) as browser:
            browser.open("/assets/class_catalog")
            catalog = browser.launched("//button[contains(.,'Materialize')]")
            if servers.wait_for_end(catalog, 300) != "SUCCESS":
                raise RuntimeError(servers.logs())
            print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, executor {arguments.executor}, {budget}\n")
            print("| class | click to queued | to started | to SUCCESS | work | overhead |\n|---|---|---|---|---|---|")
            for class_key in arguments.classes:
                done = click(servers, browser, budget, class_key)
                figures = (done.queued, done.started, done.ended, done.work, done.overhead)
                print(f"| {class_key} | " + " | ".join(f"{seconds:.1f} s" for seconds in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
