"""The short forms of the attacks on a store, with toy artefacts: the bytes of an undisturbed run, and nothing left."""

from __future__ import annotations

import http.server
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from d3m_assets.errors import StoreNotWritableError
from d3m_assets.planning.planner import Planner
from d3m_assets.store import Store
from d3m_assets_tests.faults import storage
from d3m_assets_tests.planning.toys import ToyContext, ToyPlanner
from d3m_assets_tests.requirements import need

needs_s3 = need(
    "s3", find_spec("s3fs") and find_spec("moto"), "s3fs or moto not installed; they are in the extra `test`"
)


def toys(store: Store, home: Path) -> Planner:
    return ToyPlanner(ToyContext({"a": "apple", "b": "bee"}), store)


@needs_s3
def test_a_service_that_fails_every_fifth_request_gets_the_same_bytes(tmp_path, s3_server):
    expected = storage.undisturbed(toys, tmp_path / "undisturbed")
    counts = storage.busy_service(toys, expected, tmp_path, s3_server, [0.2], repeats=1, seed=0)["20%"]
    assert (counts["runs"], counts["same bytes"]) == (1, 1)
    assert sum(count for kind, count in counts["requests"].items() if kind != "passed") >= 5, counts


def test_a_disk_that_is_full_at_any_moment_is_told_and_left_clean(tmp_path):
    expected = storage.undisturbed(toys, tmp_path / "undisturbed")
    size = storage.bytes_written(toys, tmp_path / "counted")
    counts = storage.full_disk(toys, expected, tmp_path, moments=8, seed=0, size=size)
    assert counts == dict.fromkeys(("moments", "full", "told", "clean", "same bytes"), 8)


@needs_s3
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "the service refuses these credentials"),
        (404, "NoSuchBucket", "create the bucket"),
    ],
)
def test_a_service_that_refuses_is_asked_once_and_nothing_is_made(tmp_path, status, code, words):
    asked = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):  # noqa: N802 # a name of http.server
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

        def do_GET(self):  # noqa: N802
            self._send(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

        def do_HEAD(self):  # noqa: N802
            self._send(404, b"")

        def _send(self, number, body):
            self.send_response(number)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        options = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-west-1"}}
        store = Store.open("s3://d3m/store", options | {"endpoint_url": f"http://127.0.0.1:{server.server_port}"})
        planner = ToyPlanner(ToyContext({"a": "apple", "b": "bee"}), store)
        with pytest.raises(StoreNotWritableError, match=words):
            planner.work_through(planner.plan())
        server.shutdown()
    assert planner.context.made == []
    assert len(asked) == 1


@pytest.mark.long
@needs_s3
@pytest.mark.timeout(1800)
def test_a_distillation_into_a_busy_service_and_onto_full_disks():
    counts = storage.run(shares=[0.2], repeats=1, moments=3)
    assert counts["busy service"]["20%"]["same bytes"] == 1
    assert counts["full disk"]["clean"] == counts["full disk"]["same bytes"] == 3
    assert counts["full disk"]["full"] == counts["full disk"]["told"]
