"""From a click: what an operator does in Dagster's UI, in a real browser on a real webserver and daemon."""

import pytest

from d3m_assets_tests import small_runs
from d3m_assets_tests.browser.ui import Browser, needs_browser
from d3m_assets_tests.orchestration.servers import Servers, as_environment, needs_servers
from d3m_assets_tests.processes import needs_proc, wait_until

pytestmark = [pytest.mark.long, needs_browser, needs_proc, needs_servers, pytest.mark.timeout(1500)]

DISTILLED = ("inverted_embeddings", "synthetic_pool", "sample_selection")
LAUNCH = "//button[contains(.,'Launch 1 run')]"


@pytest.fixture
def ui(image_folder, tmp_path):
    """Start servers with nothing made yet, and a browser; the classes of the dataset are not known to Dagster."""
    folder, opened = image_folder(("0", "1")), []

    def ui(**changes):
        home = {"dataset": str(folder), "home": str(tmp_path / "home"), "workers": 2}
        servers = Servers(tmp_path, as_environment(small_runs.QUICK | home | changes)).__enter__()
        opened.append(servers)
        opened.append(Browser(servers, tmp_path))
        return servers, opened[-1]

    yield ui
    for thing in reversed(opened):
        thing.__exit__()


def succeed(servers, run):
    assert servers.wait_for_end(run, 400) == "SUCCESS", servers.logs()


def see_picture(browser, asset, partition, label):
    """A picture of a partition: the UI shows markdown of over 1000 characters on a click, in place."""
    browser.open(f"/assets/{asset}?view=partitions&partition={partition}")
    browser.click(f"//tr[.//*[normalize-space(text())='{label}']]//*[text()='[Show Markdown]']")
    (picture, *_) = browser.see("//img[starts-with(@src,'data:image/png;base64,')]")
    assert picture.get_property("naturalWidth") > 50


def test_one_class_from_raw_data_to_pool_and_students(ui, tmp_path):
    servers, browser = ui()
    browser.lineage()
    for group in ("dataset", "distillation", "evaluation"):
        browser.see(f"//*[text()='{group}']")
    browser.open("/assets/teacher_model")
    browser.see("//*[contains(text(),'Not made under these settings: no row of the table needs a teacher')]")

    # The catalog makes the classes known; then one click on a cell makes everything above it.
    browser.open("/assets/class_catalog")
    succeed(servers, browser.launched("//button[contains(.,'Materialize')]"))
    browser.launch_dialog(*DISTILLED)
    browser.choose("ipc-1", "0")
    succeed(servers, browser.launched(LAUNCH))
    made = {path.parent.relative_to(tmp_path / "home").as_posix() for path in tmp_path.rglob("home/**/manifest.json")}
    for name in ("raw_dataset", "class_prompts", "foundation_model", *DISTILLED):
        assert len([folder for folder in made if name in folder]) == 1, made

    see_picture(browser, "synthetic_pool", "ipc-1%7C0", "synthetic images")
    see_picture(browser, "raw_dataset", "0", "real images")
    see_picture(browser, "inverted_embeddings", "ipc-1%7C0", "loss curve")
    browser.see("//*[normalize-space(text())='loss of the vectors kept']")

    # The rest of the budget, then its students and bundle.
    browser.launch_dialog(*DISTILLED)
    browser.choose("ipc-1", "1")
    succeed(servers, browser.launched(LAUNCH))
    browser.launch_dialog("student_metrics", "distilled_bundle")
    browser.choose("ipc-1")
    succeed(servers, browser.launched(LAUNCH))
    browser.open("/assets/distilled_bundle?view=partitions&partition=ipc-1")
    browser.see("//*[normalize-space(text())='ledger']")


def test_a_run_that_is_terminated_is_gone_with_all_its_processes(ui):
    servers, browser = ui(**{"inversion.steps": 100_000})
    browser.open("/assets/class_catalog")
    succeed(servers, browser.launched("//button[contains(.,'Materialize')]"))
    browser.launch_dialog("inverted_embeddings")
    browser.choose("ipc-1", "0")
    run = browser.launched(LAUNCH)
    assert wait_until(lambda: len(servers.working()) >= 3, 300), (servers.working(), servers.logs())

    browser.open(f"/runs/{run}")
    browser.click("//button[contains(.,'Terminate')]")
    browser.click("//div[contains(@class,'Dialog') or @role='dialog']//button[contains(.,'Terminate')]")
    assert not servers.left_after(20)
    assert servers.wait_for_end(run, 120) == "CANCELED", servers.logs()
