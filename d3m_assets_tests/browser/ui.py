"""Dagster's UI in a headless Chromium: what an operator sees and clicks."""

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from d3m_assets_tests.processes import wait_until
from d3m_assets_tests.requirements import need

BINARIES = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


needs_browser = need(
    "browser",
    find_spec("selenium") and all(binary.exists() for binary in BINARIES),
    "needs Selenium (extra `browser`) and /usr/bin/chromium, /usr/bin/chromedriver (Debian: chromium, chromium-driver)",
)


class Browser:
    """One window on a webserver; every wait is bounded, and one that fails leaves a screenshot.

    Args:
        servers: The webserver.
        folder: For the profile.
        size: Of the window in px.
    """

    def __init__(self, servers, folder, size=(1700, 1100)):
        from selenium import webdriver

        self.servers = servers
        options = webdriver.ChromeOptions()
        options.binary_location = str(BINARIES[0])
        profile = tempfile.mkdtemp(prefix="chromium-", dir=folder)
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(str(BINARIES[1]))
        self.driver = webdriver.Chrome(options=options, service=service)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.driver.quit()

    def open(self, path):
        """Go to a page of the UI."""
        self.driver.get(f"http://127.0.0.1:{self.servers.port}{path}")

    def lineage(self, *assets, expanded=()):
        """Go to the graph of some assets, or of all with groups expanded."""
        if assets:
            chosen = " or ".join(f'key:"{name}"' for name in assets)
            self.open(f"/asset-groups~{quote(chosen, safe='')}")
        else:
            groups = ",".join(f"global@global:{group}" for group in expanded)
            self.open(f"/asset-groups?expanded={quote(groups, safe='')}" if expanded else "/asset-groups")

    def visible(self, xpath):
        """What is shown of an XPath."""
        from selenium.common.exceptions import StaleElementReferenceException

        shown = []
        for element in self.driver.find_elements("xpath", xpath):
            try:
                if element.is_displayed():
                    shown.append(element)
            except StaleElementReferenceException:
                continue
        return shown

    def see(self, xpath, seconds=30):
        """The shown elements of an XPath, waited for."""
        end = time.monotonic() + seconds
        while not (shown := self.visible(xpath)):
            assert time.monotonic() < end, f"{xpath} was not shown within {seconds} s; see {self.shot('not-shown')}"
            time.sleep(0.2)
        return shown

    def click(self, xpath, seconds=30, which=0):
        """Click on what an XPath shows, waited for."""
        end = time.monotonic() + seconds
        while True:
            self.see(xpath, max(1, end - time.monotonic()))
            if self.clicked(xpath, which):
                return
            assert time.monotonic() < end, f"{xpath} cannot be clicked; see {self.shot('not-clicked')}"
            time.sleep(0.3)

    def clicked(self, xpath, which=0):
        """Whether what an XPath shows at this moment took a click, and was neither covered nor drawn anew."""
        from selenium.common.exceptions import WebDriverException

        try:
            self.visible(xpath)[which].click()
        except (WebDriverException, IndexError):
            return False
        return True

    def shot(self, name):
        """Save what is seen where pytest does not tidy up; gives the file."""
        path = Path(tempfile.mkdtemp(prefix="d3m-ui-")) / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path

    def text(self):
        """All text of the page."""
        return self.driver.find_element("tag name", "body").text

    def choose(self, *partition):
        """Pick a partition in the launch dialog, such as a budget and a class of the grid."""
        for chosen in partition:  # a dimension that is chosen no longer shows the placeholder
            item = f"//*[@role='menuitem'][.//*[normalize-space(text())='{chosen}']]"
            for _ in range(10):  # the dialog closes the menu when it is drawn anew with what it has loaded
                if not self.visible(item):
                    self.click("//*[text()='Select a partition or create one']")
                if wait_until(lambda item=item: self.visible(item), 3) and self.clicked(item):
                    break
            else:
                raise AssertionError(f"partition {chosen} cannot be chosen; see {self.shot('not-chosen')}")
            self.escape()

    def type(self, text):
        """Type into what has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        # Keys of the keyboard, not of an element: the page may draw the element anew meanwhile.
        ActionChains(self.driver).send_keys(text).perform()

    def escape(self):
        """Close the topmost menu."""
        from selenium.webdriver.common.keys import Keys

        self.type(Keys.ESCAPE)

    def launched(self, button):
        """Click on a button that launches a run; gives the run's id once it is there."""
        before = set(self.servers.runs())

        def new():
            return [run for run in self.servers.runs() if run not in before]

        self.click(button)
        if not wait_until(new, 20) and self.visible(button):  # it was not listening yet
            self.click(button)
        assert wait_until(new, 60), f"no run was launched; see {self.shot('not-launched')}"
        return new()[0]

    def launch_dialog(self, *assets):
        """Open the launch dialog of some assets from their graph."""
        self.lineage(*assets)
        self.click("//button[contains(.,'Materialize')]")
        dialog = "//*[contains(text(),'Launch runs to materialize')]"
        confirm = "//button[contains(.,'Confirm')]"
        self.see(f"{dialog} | {confirm}")
        if not self.visible(dialog):  # upstream was never made; the run sees to that
            self.click(confirm)
        self.see(dialog)
