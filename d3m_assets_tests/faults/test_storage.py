"""The short forms of the attacks on a store, with toy artefacts: the bytes of an undisturbed run, and nothing left."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

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


@pytest.mark.long
@needs_s3
@pytest.mark.timeout(1800)
def test_a_distillation_into_a_busy_service_and_onto_full_disks():
    counts = storage.run(shares=[0.2], repeats=1, moments=3)
    assert counts["busy service"]["20%"]["same bytes"] == 1
    assert counts["full disk"]["clean"] == counts["full disk"]["same bytes"] == 3
    assert counts["full disk"]["full"] == counts["full disk"]["told"]
