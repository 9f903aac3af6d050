"""No password of an address is shown or stored: the function that hides them, and everything that a run writes."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from d3m_assets.addresses import has_secret, mask_error, masked
from d3m_assets.errors import DatasetError, StoreError
from d3m_assets_tests.small_runs import QUICK


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://user:pw@host/x?a=1&X-Amz-Signature=abc&b=2", "https://user:***@host/x?a=1&X-Amz-Signature=***&b=2"),
        ("s3://key:se/cr+et@bucket/path", "s3://key:***@bucket/path"),
        ("ftp://u:p@ss@host/x", "ftp://u:***@host/x"),
        ("https://ghp_abc@host/", "https://***@host/"),
        ("cannot open 'http://h/?sig=1', nor zip://a.zip::https://a:b@c", "cannot open 'http://h/?sig=***', nor zip://a.zip::https://a:***@c"),
        ("http://127.0.0.1:80/a@b", "http://127.0.0.1:80/a@b"),
        ("/local/x:y@z", "/local/x:y@z"),
        ("sftp://user@host/x", "sftp://user@host/x"),
        ("s3://AKIA:12/abc+def@bucket/x", "s3://AKIA:***@bucket/x"),
        ("https://h/cb#access_token=abc", "https://h/cb#access_token=***"),
        ("http://[::1]:8080/a@b", "http://[::1]:8080/a@b"),
        ("https://h/?tokenizer=bert&tokens=3", "https://h/?tokenizer=bert&tokens=3"),
        ("s3://bucket/a?versionId=3", "s3://bucket/a?versionId=3"),
    ],
)  # fmt: skip
def test_passwords_are_hidden_and_nothing_else(text, wanted):
    assert masked(text) == wanted
    assert masked(wanted) == wanted
    assert has_secret(text) == (text != wanted)


def test_errors_and_their_causes_hold_no_password():
    try:
        try:
            raise FileNotFoundError(2, "not there", "https://user:hush@host/x")
        except OSError as error:
            raise DatasetError(f"cannot open https://user:hush@host/x: {error}") from error
    except DatasetError as error:
        assert "hush" not in str(error)
        assert "hush" in str(error.__cause__)
        mask_error(error)
        assert "hush" not in str(error.__cause__)
    assert str(StoreError("a", 3)) == "('a', 3)"


def test_a_cause_that_makes_its_own_text_is_replaced():
    class Refused(Exception):
        def __str__(self):
            return "403, url='https://h/d.zip?X-Amz-Signature=hush'"

    try:
        try:
            raise Refused
        except Refused as error:
            raise DatasetError("it was refused") from error
    except DatasetError as error:
        mask_error(error)
        assert str(error.__cause__) == "Refused: 403, url='https://h/d.zip?X-Amz-Signature=***'"
        assert error.__context__ is error.__cause__


def test_a_long_text_is_looked_through_at_once():
    begun = time.process_time()
    masked("s3://b/x " + "a." * 20_000)
    assert time.process_time() - begun < 1


class Guarded(http.server.SimpleHTTPRequestHandler):
    """A folder that asks for a password."""

    wanted = ""

    def do_GET(self):
        self.answer(super().do_GET)

    def do_HEAD(self):
        self.answer(super().do_HEAD)

    def answer(self, method):
        if self.headers.get("Authorization") == self.wanted:
            method()
        else:
            self.send_error(401)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def guarded(folder: Path, user: str, password: str):
    handler = type(
        "Handler", (Guarded,), {"wanted": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


RUN = """
import sys
from pathlib import Path
import fsspec
from d3m_assets.cli import main
sys.argv = ["d3m", *sys.argv[1:]]
try:
    main()
finally:
    fs = fsspec.filesystem("memory")
    for path in fs.find("/"):
        target = Path("store") / path.rpartition("@shelf/store/")[2].replace("/", "_")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(fs.cat_file(path))
"""
"""``d3m``, and behind it what is in the memory of its store as files."""


def run(folder, *arguments, **more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("D3M_", "DAGSTER_HOME"))}
    quick = [f"--set={name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in QUICK.items()]
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments, *quick],
        env=clean | {"D3M_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"} | more,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=folder,
    )


def holds(folder: Path, secret: str) -> list[str]:
    """Files in whose name or content the secret is."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if secret in path.name or (path.is_file() and secret.encode() in path.read_bytes())
    ]


@pytest.mark.timeout(1200)
def test_nothing_that_a_run_writes_or_says_holds_a_password(tmp_path, image_folder):
    data, work = image_folder(("0", "1")), tmp_path / "work"
    work.mkdir()
    with guarded(data.parent, "reader", "hush4711") as port:
        addresses = {
            "D3M_DATASET": f"http://reader:hush4711@127.0.0.1:{port}/images",
            "D3M_STORAGE": "memory://writer:quiet0815@shelf/store",
        }
        done = run(work, "distill", **addresses)
        assert done.returncode == 0, done.stderr[-3000:]
        told = done.stdout + done.stderr
        assert holds(work, "D3M") and list((work / "store").iterdir())  # there is something to search
        assert not holds(work, "hush4711") + holds(work, "quiet0815")
        assert "hush4711" not in told and "quiet0815" not in told
        # And where it goes wrong: another password, and an image that is gone after the scan.
        wrong = run(work, "distill", **(addresses | {"D3M_DATASET": addresses["D3M_DATASET"].replace("4711", "4712")}))
        assert wrong.returncode == 1
        assert "127.0.0.1" in wrong.stderr and "Traceback" not in wrong.stderr
        assert "hush4712" not in wrong.stdout + wrong.stderr
        assert not holds(work, "hush4712")
        init = run(work, "init", addresses["D3M_DATASET"], "--set=students.width=4")
        assert init.returncode == 0, init.stderr
        assert "reader:***@127.0.0.1" in (work / "d3m.toml").read_text()
        assert not holds(work, "hush4711")
