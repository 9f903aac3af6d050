from __future__ import annotations

import shutil

from d3m_assets.datasets.opening import open_dataset


def test_digits_are_written_to_the_home_and_a_folder_is_read_where_it_is(make_folder, digits_folder, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(digits_folder, home / "digits")
    digits = open_dataset("digits", home=home, validation_fraction=0.1).scan()
    assert len(digits.classes) == 10
    assert (digits.image_height, digits.image_width, digits.channels) == (8, 8, 1)
    assert list((home / "cache/datasets").glob("*.parquet"))
    folder = open_dataset(str(make_folder("a", "b")), home=home, validation_fraction=0).scan()
    assert {name: len(c.of("train")) for name, c in folder.classes.items()} == {"a": 6, "b": 6}
    assert not any(c.of("validation") for c in folder.classes.values())
