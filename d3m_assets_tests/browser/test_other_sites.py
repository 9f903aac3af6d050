"""A page of another site, open in the browser in which the UI is open, too."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from d3m_assets_tests.browser.ui import Browser, needs_browser
from d3m_assets_tests.orchestration.servers import needs_servers
from d3m_assets_tests.orchestration.web_page import DELETE, Page

pytestmark = [pytest.mark.long, needs_browser, needs_servers]

ATTACK = """
const [url, mutation, done] = arguments, out = {}, address = url + '?query=' + encodeURIComponent(mutation);
const body = JSON.stringify({query: mutation}), attempts = {
    get: () => fetch(address, {mode: 'no-cors'}),
    form: () => fetch(address, {method: 'POST', mode: 'no-cors'}),
    json: () => fetch(url, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: body}),
};
(async () => {
    for (const [name, attempt] of Object.entries(attempts))
        out[name] = await attempt().then(answer => answer.type, error => String(error));
    await new Promise(resolve => {
        const socket = new WebSocket(url.replace('http', 'ws'), 'graphql-ws');
        socket.onopen = () => { out.websocket = 'open'; resolve(); };
        socket.onerror = () => { out.websocket = 'refused'; resolve(); };
    });
    done(out);
})();
"""


class Site(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<h1>another site</h1>")

    def log_message(self, *_) -> None:
        """Say nothing."""


@pytest.fixture
def site():
    """Address of another site on this machine, which a browser lets ask here."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_works_and_another_site_can_delete_nothing(site, tmp_path):
    page = Page(tmp_path)
    try:
        run = page.add_run()
        with Browser(page, tmp_path) as browser:
            browser.open("/runs")
            browser.see(f"//*[contains(text(),'{run[:8]}')]", 60)
            browser.driver.get(site)
            browser.driver.set_script_timeout(60)
            url = f"http://127.0.0.1:{page.port}/graphql"
            seen = browser.driver.execute_async_script(ATTACK, url, DELETE % run)
        assert page.has(run)
        assert seen["websocket"] == "refused"
        assert seen.keys() == {"get", "form", "json", "websocket"}
    finally:
        page.process.kill()
        page.process.communicate()
