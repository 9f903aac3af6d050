"""A store whose service is busy, and a store whose disk is full: whether the bytes are those of an undisturbed run.

``python -m d3m_assets_tests.faults.storage --shares 0.01 0.05 0.2 --repeats 3 --moments 10`` distills a small dataset into a
local S3 behind a proxy that answers a share of the requests with 503, drops the connection before or after the request was
carried out, or sends half of a body; and onto a disk that is full after a random number of bytes, then again with room. Every
data file must in the end have the hash that it has after a run without faults.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import http.client
import http.server
import json
import logging
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from d3m_assets.errors import StoreNotWritableError
from d3m_assets.pipeline import Pipeline
from d3m_assets.planning.planner import Planner
from d3m_assets.settings import load_settings
from d3m_assets.store import ArtefactKey, Store
from d3m_assets.store_access import StoreFiles
from d3m_assets_tests.small_runs import QUICK

KINDS = ("503", "dropped before", "dropped after", "truncated")
"""Faults: the request refused; the connection closed before or after the service did what was asked; half of an answer."""
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_CONNECTION = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server", "expect"}
NOT_COMPARED = frozenset({"distillation_report/report.html"})
"""Files that two undisturbed runs make differently: the report names the time and the place of what it shows."""
OpenPlanner = Callable[[Store, Path], Planner]


class FaultyProxy:
    """A server before another one that fails a share of the requests, each in one of :data:`KINDS`.

    Args:
        target: Address of the server behind it.
        share: Of requests that fail, 0 to 1.
        seed: Which requests, and how; with several at a time the order in which they arrive decides, too.

    Attributes:
        counts: Requests by the fault they met; ``"passed"`` met none.
    """

    def __init__(self, target: str, share: float, seed: int) -> None:
        self.target, self.share, self.counts = urlsplit(target), share, Counter[str]()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fault(self) -> str:
        """What befalls the next request."""
        with self._lock:
            kind = self._random.choice(KINDS) if self._random.random() < self.share else "passed"
            self.counts[kind] += 1
        return kind

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: FaultyProxy, *arguments: Any) -> None:
        self._proxy = proxy
        super().__init__(*arguments)

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self._proxy.fault()
        if kind == "503":
            self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN)
        elif kind == "dropped before":
            self.close_connection = True
        else:
            status, headers, data = self._forward(body)
            if kind == "dropped after":
                self.close_connection = True
            else:
                self._send(status, headers, data, part=len(data) // 2 if kind == "truncated" and data else None)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815 # names of http.server

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = self._proxy.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port or 80, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _CONNECTION}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, part: int | None = None) -> None:
        length = next((v for k, v in headers if k.lower() == "content-length"), str(len(data)))
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            if self.command != "HEAD":
                self.wfile.write(data if part is None else data[:part])
        if part is not None:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def full_after(room: int) -> Iterator[None]:
    """A disk with room for so many bytes: local stores of this process write the part that fits and then fail."""
    left, put = [room], StoreFiles.put

    def put_what_fits(files: StoreFiles, path: str, data: bytes) -> None:
        if not files.local:
            put(files, path, data)
            return
        part = data[: left[0]]
        left[0] -= len(part)
        put(files, path, part)
        if len(part) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device", path)

    with mock.patch.object(StoreFiles, "put", put_what_fits):
        yield


def digests(store: Store) -> dict[str, str]:
    """SHA-256 of every data file that is compared, by artefact and name; each file was read and checked against it."""
    found = {}
    for asset in store.assets():
        for key in store.keys(asset):
            manifest = store.manifest(key)
            assert manifest is not None, key
            for name, record in manifest.files.items():
                store.read(key, name, manifest)
                found[f"{key.path}/{name}"] = record.sha256
    return {name: digest for name, digest in found.items() if name not in NOT_COMPARED}


def strays(store: Store) -> list[str]:
    """Files that no manifest names, beside kept results."""
    listing = store.listing()
    known = {key.path for key in listing.artefacts()}
    found = []
    for folder, files in listing.folders.items():
        key = ArtefactKey.from_path(folder)
        manifest = store.manifest(key) if key is not None and folder in known else None
        named = {"manifest.json", *(r.path for r in manifest.files.values())} if manifest is not None else set()
        if not folder.startswith(".records/"):
            found += [f"{folder}/{name}" for name in files if name not in named]
        else:
            found += [f"{folder}/{name}" for name in files if name.endswith(".tmp")]
    return sorted(found)


def small_distillation(images: Path) -> OpenPlanner:
    """Opens the small distillation of the tests over a store, with everything else in a folder."""

    def open_planner(store: Store, home: Path) -> Planner:
        return Pipeline(load_settings(dataset=str(images), home=home, **QUICK), store=store)

    return open_planner


def work(planner: Planner) -> None:
    """Make all that is pending, from a plan of what is stored."""
    try:
        tally = planner.work_through(planner.plan())
    finally:
        planner.context.close()
    assert not tally.failed, tally.failed[0].error


def undisturbed(open_planner: OpenPlanner, folder: Path) -> dict[str, str]:
    """What a run without faults stores."""
    store = Store.open(folder / "store")
    work(open_planner(store, folder / "home"))
    return digests(store)


def busy_service(
    open_planner: OpenPlanner,
    expected: dict[str, str],
    folder: Path,
    server: str,
    shares: Sequence[float],
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Distill into an S3 server behind a proxy that fails a share of the requests.

    Args:
        open_planner: Of what is distilled.
        expected: From :func:`undisturbed`.
        folder: An empty folder.
        server: Address of the S3 server.
        shares: Shares of requests that fail.
        repeats: Runs for each.
        seed: Of the faults.

    Returns:
        For each share: runs with all the same bytes, runs that were stopped, and requests by the fault they met.
    """
    import s3fs

    options = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-west-1"}}
    counts: dict[str, Any] = {}
    for number, share in enumerate(shares):
        met, equal, begun = Counter[str](), 0, time.monotonic()
        for repeat in range(repeats):
            bucket = f"faults-{number}-{repeat}-{time.time_ns()}"
            s3fs.S3FileSystem(endpoint_url=server, **options).mkdir(bucket)
            with FaultyProxy(server, share, seed + 1000 * number + repeat) as proxy:
                store = Store.open(f"s3://{bucket}/store", {"endpoint_url": proxy.url, **options})
                work(open_planner(store, folder / f"home-{number}-{repeat}"))
            direct = Store.open(f"s3://{bucket}/store", {"endpoint_url": server, **options})
            equal += digests(direct) == expected and not strays(direct)
            met += proxy.counts
        counts[f"{share:.0%}"] = {
            "runs": repeats,
            "same bytes": equal,
            "requests": dict(sorted(met.items())),
            "seconds": round(time.monotonic() - begun),
        }
    return counts


def full_disk(
    open_planner: OpenPlanner, expected: dict[str, str], folder: Path, moments: int, seed: int, size: int
) -> dict[str, int]:
    """Distill onto a disk that is full at random moments, then again with room.

    Args:
        open_planner: Of what is distilled.
        expected: From :func:`undisturbed`.
        folder: An empty folder.
        moments: How many disks.
        seed: Of their sizes.
        size: Most bytes that there is room for.

    Returns:
        Counts: disks that were full, of these runs that ended in the sentence about it, and runs after which no stray file
        was left; and runs with all the same bytes after there was room.
    """
    draw, counts = random.Random(seed), Counter(moments=0, full=0, told=0, clean=0)
    for number in range(moments):
        store, home = Store.open(folder / f"disk-{number}"), folder / f"home-{number}"
        counts["moments"] += 1
        try:
            with full_after(draw.randrange(size)):
                work(open_planner(store, home))
        except StoreNotWritableError as error:
            counts["full"] += 1
            counts["told"] += all(words in str(error) for words in ("No space left on device", "free some space"))
        counts["clean"] += not strays(store)
        work(open_planner(store, home))
        counts["same bytes"] += digests(store) == expected and not strays(store)
    return dict(counts)


def bytes_written(open_planner: OpenPlanner, folder: Path) -> int:
    """How many bytes a run writes to a local store."""
    total, put = [0], StoreFiles.put

    def count(files: StoreFiles, path: str, data: bytes) -> None:
        total[0] += len(data)
        put(files, path, data)

    with mock.patch.object(StoreFiles, "put", count):
        work(open_planner(Store.open(folder / "store"), folder / "home"))
    return total[0]


def run(
    shares: Sequence[float] = (0.01, 0.05, 0.2), repeats: int = 3, seed: int = 0, moments: int = 10
) -> dict[str, Any]:
    """Both attacks on the small distillation of the tests; counts by attack."""
    from moto.server import ThreadedMotoServer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_planner = small_distillation(_images(folder / "images"))
        expected = undisturbed(open_planner, folder / "undisturbed")
        counts: dict[str, Any] = {"files compared": len(expected)}
        if repeats:
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request otherwise
            server = ThreadedMotoServer(port=0, verbose=False)
            server.start()
            try:
                address = "http://{}:{}".format(*server.get_host_and_port())
                counts["busy service"] = busy_service(
                    open_planner, expected, folder / "busy", address, shares, repeats, seed
                )
            finally:
                server.stop()
        if moments:
            size = bytes_written(open_planner, folder / "counted")
            counts["full disk"] = full_disk(open_planner, expected, folder / "full", moments, seed, size)
        return counts


def _images(folder: Path) -> Path:
    from PIL import Image

    from d3m_assets.foundation.embedded.characters import render

    for number, name in enumerate(("0", "1", "7")):
        drawn = render(18, 700_000_000 + number, characters=name).images
        for index, image in enumerate(drawn):
            target = folder / ("train" if index < 12 else "test") / name / f"{index:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((8, 8), Image.Resampling.BOX).save(target)
    return folder


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.2], help="of requests that fail")
    parser.add_argument("--repeats", type=int, default=3, help="runs for each share")
    parser.add_argument("--moments", type=int, default=10, help="at which the disk is full")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(run(given.shares, given.repeats, given.seed, given.moments), indent=1))


if __name__ == "__main__":
    main()
