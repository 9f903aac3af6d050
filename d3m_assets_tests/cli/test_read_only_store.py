"""What needs no store that can be written: everything that only reads, and ``d3m distill`` where all is up to date."""

from __future__ import annotations

import errno
import shutil

from typer.testing import CliRunner

from d3m_assets import cli
from d3m_assets.errors import StoreNotWritableError
from d3m_assets.store_access import StoreFiles
from d3m_assets_tests.small_runs import QUICK


def test_a_store_that_is_up_to_date_is_only_read(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "home" / "store", tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    refused = []

    def refuse(self, path, *arguments):
        refused.append(path)
        raise OSError(errno.EROFS, "Read-only file system", path)

    for change in ("put", "commit", "remove"):
        monkeypatch.setattr(StoreFiles, change, refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D3M_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("D3M_DATASET", str(finished / "images"))
    monkeypatch.setenv("D3M_STORAGE", str(tmp_path / "store"))
    quick = [f"--set={n}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in QUICK.items()]
    pool = ["--pool", "ipc-3", "--class", "7"]
    for words in (["distill"], ["status"], ["metrics"], ["verify"], ["lineage", *pool], ["prune"]):
        done = CliRunner().invoke(cli.app, [*words, *quick])
        assert done.exit_code == 0, (words, done.output, done.exception)
        if words == ["distill"]:
            assert "Everything was up to date; nothing was done." in done.output
    assert refused == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before
    # With something to make, it is told before the work, and once.
    done = CliRunner().invoke(cli.app, ["distill", *quick, "--set", "inversion.steps=4"])
    assert isinstance(done.exception, StoreNotWritableError), done.exception
    assert "it is read-only: name another place" in str(done.exception)
    assert len(refused) <= 2  # the probe, and taking it back
