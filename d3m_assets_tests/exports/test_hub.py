"""Uploads against a small server that takes what the real client sends; nothing else is reached."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from d3m_assets.errors import BundleError
from d3m_assets.exports.hub import check_repository, push_folder
from d3m_assets_tests.distillation.test_bundle import bundle


class Hub(BaseHTTPRequestHandler):
    """Creates a repository, takes every file as a regular one, and keeps what was committed."""

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.asked.append(("GET", self.path))
        if "/tree/" in self.path:
            there = [{"type": "file", "path": p, "oid": "0" * 40, "size": len(d)} for p, d in self.server.files.items()]
            self.answer(there)
            return
        self.answer({"id": "owner/name", "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(("POST", self.path))
        if self.headers.get("Authorization") != "Bearer token":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/owner/name", "name": "owner/name"})
        elif self.path.startswith("/api/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "deletedFile":
                    del self.server.files[entry["value"]["path"]]
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/owner/name/commit/{'1' * 40}"
            self.answer({"success": True, "commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})
        else:
            self.answer({"error": f"unknown {self.path}"}, 404)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.created, server.files = [], [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def d3m(hub, home, *arguments, token="token"):
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "D3M_HOME": str(home), "HF_TOKEN": token}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "d3m_assets.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_an_export_is_pushed_when_asked_and_only_then(hub, foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    file, out = tmp_path / "b.safetensors", tmp_path / "out"
    file.write_bytes(made.to_bytes())
    options = ("--output", out, "--per-class", "2", "--format", "huggingface")
    done = d3m(hub, tmp_path, "regenerate", file, *options)
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    failed = d3m(hub, tmp_path, "regenerate", file, *options, "--push", "owner/name", token="wrong")
    assert failed.returncode == 1
    assert "is complete, but owner/name could not be written" in failed.stderr
    assert "Traceback" not in failed.stderr
    # An export of another size was there, and something that is none of ours.
    hub.files |= {"data/train-00029-of-00030.parquet": b"old", "notes.txt": b"mine"}
    pushed = d3m(hub, tmp_path, "regenerate", file, *options, "--push", "owner/name")
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.url}/owner/name/commit/{'1' * 40}" in pushed.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before  # nothing was generated anew
    visible = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    state = visible.pop(".d3m-export.json")
    assert state
    assert hub.files == visible | {"notes.txt": b"mine"}
    assert hub.created[0]["type"] == "dataset"
    assert hub.created[0]["visibility"] == "private" or hub.created[0].get("private") is True


def test_a_bundle_repository_is_pushed_as_a_model(hub, words, tmp_path):
    (tmp_path / "b.safetensors").write_bytes(bundle(words).to_bytes())
    options = ("--format", "bundle-repository", "--output", tmp_path / "out", "--push", "owner/name")
    done = d3m(hub, tmp_path, "export", tmp_path / "b.safetensors", *options)
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"README.md", "bundle.safetensors"}
    assert hub.files["bundle.safetensors"] == bundle(words).to_bytes()
    refused = d3m(
        hub, tmp_path, "export", tmp_path / "b.safetensors", "--output", tmp_path / "x", "--push", "owner/name"
    )
    assert refused.returncode == 1
    assert "--format bundle-repository" in refused.stderr


@pytest.mark.parametrize("name", ["name", "owner/name/more", "", "owner/", "../name", "https://hub/owner/name"])
def test_what_is_no_repository_is_refused_at_once(name):
    with pytest.raises(BundleError, match="owner/name"):
        check_repository(name)


def test_offline_the_reason_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BundleError, match="could not be written"):  # the tests are offline
        push_folder(tmp_path, "owner/name", "dataset")
