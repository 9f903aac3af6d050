"""A real web server with an instance, and what pages of other sites send to it."""

import json
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from d3m_assets.orchestration.web_access import is_loopback, names_for
from d3m_assets_tests.orchestration.servers import COMMANDS
from d3m_assets_tests.orchestration.web_page import DELETE, Page
from d3m_assets_tests.processes import alive, wait_until
from d3m_assets_tests.requirements import need

pytestmark = need("servers", find_spec("httpx") and COMMANDS[0].exists(), "dagster-webserver or httpx not installed")

FOREIGN = "http://evil.example"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """As `d3m ui` starts it."""
    started = Page(tmp_path_factory.mktemp("page"), "--allow-host", "d3m.example")
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def run(page: Page) -> str:
    return page.add_run()


def refused(answer: Any) -> bool:
    return 400 <= answer.status_code < 500 and "data" not in answer.text


def test_another_name_for_this_machine_is_refused(page: Page, run: str) -> None:
    """Failure prevented: a page at a name of the attacker's that resolves to 127.0.0.1 is of one origin with the server."""
    for host in (
        f"evil.example:{page.port}",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "x@y",
    ):
        assert refused(page.request("GET", "/", headers={"Host": host})), host
        assert refused(page.mutate(run, Host=host, Origin=f"http://{host}")), host
    assert page.has(run)


def test_pages_of_other_origins_are_refused(page: Page, run: str) -> None:
    for origin in (
        FOREIGN,
        "null",
        f"http://127.0.0.1:{page.port + 1}",
        f"http://localhost:{page.port}",
        "http://127.0.0.1",
        "http://[",
    ):
        assert refused(page.mutate(run, Origin=origin)), origin
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ):
        assert refused(page.request("GET", "/", headers=headers)), headers
    assert page.has(run)


def test_a_mutation_in_an_address_is_refused(page: Page, run: str) -> None:
    query = {"query": DELETE % run}
    html = {"Accept": "text/html"}
    assert refused(page.request("GET", params=query))
    assert refused(page.request("GET", params=query, headers={"Origin": f"http://127.0.0.1:{page.port}"}))
    assert refused(page.request("POST", params=query, headers={"Content-Type": "text/plain"}))
    assert refused(
        page.request("POST", params=query, headers=html),
    ), "only GET opens the editor"
    assert "GraphiQL" in page.request("GET", params=query, headers=html).text, "which executes nothing by itself"
    assert page.has(run)


def handshake(page: Page, **headers: str) -> int:
    """Status of the answer to the handshake of a websocket."""
    given = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws",
    } | headers  # fmt: skip
    lines = ["GET /graphql HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.recv(100).split()[1])


def test_websockets_of_other_origins_are_refused(page: Page) -> None:
    own = f"127.0.0.1:{page.port}"
    assert handshake(page, Host=own, Origin=f"http://{own}") == 101
    assert 400 <= handshake(page, Host=own, Origin=FOREIGN) < 500
    assert 400 <= handshake(page, Host="evil.example", Origin=FOREIGN) < 500


def test_its_own_page_works_by_every_name_of_this_machine_and_those_that_were_allowed(page: Page) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "d3m.example"):
        own = f"{host}:{page.port}"
        shown = page.request("GET", "/", headers={"Host": own, "Sec-Fetch-Site": "none"})
        assert shown.status_code == 200
        assert shown.headers["x-frame-options"] == "SAMEORIGIN"
        run = page.add_run()
        answer = page.mutate(run, Host=own, Origin=f"http://{own}", **{"Sec-Fetch-Site": "same-origin"})
        assert answer.json()["data"]["deletePipelineRun"]["__typename"] == "DeletePipelineRunSuccess"
        assert not page.has(run)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert page.request("GET", "/runs", headers=link).status_code == 200, "a link to the page"


def test_a_read_only_page_changes_nothing_and_ends_with_its_owner(tmp_path: Path) -> None:
    page = Page(tmp_path, "--read-only")
    try:
        run = page.add_run()
        own = f"http://127.0.0.1:{page.port}"
        assert page.request("POST", json={"query": "{version}"}, headers={"Origin": own}).json()["data"]["version"]
        # Dagster's own `read_only` knows nothing of the second.
        for mutation in (DELETE % run, "mutation {setNuxSeen}"):
            answer = page.request("POST", json={"query": mutation}, headers={"Origin": own})
            assert answer.status_code == 400
            assert "read-only" in json.dumps(answer.json()["errors"])
            assert answer.json()["data"] is None
        answer = page.request("POST", "/report_asset_materialization/x", json={}, headers={"Origin": own})
        assert answer.status_code >= 400
        assert page.has(run)
        with page.instance() as instance:
            assert instance.all_asset_keys() == []
    finally:
        assert page.process.stdin is not None
        page.process.stdin.close()
        ended = wait_until(lambda: not alive(page.process.pid), 30)
        page.process.kill()
        page.process.wait()
    assert ended


def test_a_server_answers_to_its_own_address_only_where_that_is_of_this_machine() -> None:
    assert names_for("127.0.0.2") == ["localhost", "127.0.0.1", "[::1]", "127.0.0.2"]
    assert names_for("0.0.0.0", ["d3m.example"]) == ["localhost", "127.0.0.1", "[::1]", "d3m.example"]  # noqa: S104


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "example.org", "")))  # noqa: S104
