from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from d3m_assets.datasets import digits
from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.images import decode_png
from d3m_assets.errors import DatasetError


def test_every_digit_is_there_once(digits_folder):
    images, labels = load_digits(return_X_y=True)
    files = {split: sorted((digits_folder / split).glob("*/*.png")) for split in ("train", "test")}
    assert {split: len(paths) for split, paths in files.items()} == {"train": 1297, "test": 500}
    paths = [*files["train"], *files["test"]]
    assert sorted(int(path.stem) for path in paths) == list(range(1797))
    for path in paths[::40]:
        index = int(path.stem)
        expected = np.round(images[index].reshape(8, 8, 1) * 255 / 16)
        assert (decode_png(path.read_bytes()) == expected).all()
        assert path.parent.name == str(labels[index])
    assert set(Counter(path.parent.name for path in files["test"]).values()) <= set(range(48, 53))
    # The split is part of every published number.
    names = "\n".join(str(path.relative_to(digits_folder).as_posix()) for path in files["test"])
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "b473a878d7aa53ed"


def test_written_once_and_nothing_left_behind(digits_folder, monkeypatch):
    monkeypatch.setattr(digits, "_write", lambda target: pytest.fail("written again"))
    assert ensure_digits(digits_folder) == digits_folder
    assert [path.name for path in digits_folder.parent.iterdir()] == ["digits"]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(target):
        (target / "train").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_other_process_may_be_quicker(tmp_path, monkeypatch):
    target = tmp_path / "digits"

    def both(made):
        for place in (made, target):
            (place / "train" / "0").mkdir(parents=True)
            (place / "test" / "0").mkdir(parents=True)

    monkeypatch.setattr(digits, "_write", both)
    assert ensure_digits(target) == target
    assert list(tmp_path.iterdir()) == [target]


def test_folder_with_other_contents_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_write", lambda made: (made / "train").mkdir())
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match="cannot write the digits to .*digits"):
        ensure_digits(tmp_path / "digits")
    assert (tmp_path / "digits" / "thesis.txt").read_text() == "mine"
