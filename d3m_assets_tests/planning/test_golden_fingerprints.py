"""A refactoring leaves users' stores alone: fingerprints of the digits under three settings are written down.

Where a change is meant to remake artefacts, write the file anew and say why in the commit:
``python -m d3m_assets_tests.planning.test_golden_fingerprints``.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest

from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings

GOLDEN = Path(__file__).with_name("golden_fingerprints.json")
SETTINGS = {
    "quick": {},
    "soft labels": {"evaluation.labels": "hard,soft stored,soft teacher", "evaluation.stored_classes": 5},
    "full table": {"evaluation.table": "full", "students.seeds": (0, 1, 2)},
}


def fingerprints(home, changes):
    """One hash an asset over the names and fingerprints of its artefacts: it tells which asset a change touches."""
    pipeline = Pipeline(load_settings(home=home, **changes))
    of_assets = {}
    for asset in pipeline.graph.names:
        listed = [f"{key} {pipeline.spec(key).fingerprint}" for key in pipeline.keys(asset)]
        if listed:
            of_assets[asset] = hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]
    return of_assets


@pytest.mark.parametrize("name", SETTINGS)
def test_a_refactoring_leaves_every_fingerprint_as_it_was(name, tmp_path):
    assert fingerprints(tmp_path, SETTINGS[name]) == json.loads(GOLDEN.read_text())[name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {name: fingerprints(Path(folder), changes) for name, changes in SETTINGS.items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
