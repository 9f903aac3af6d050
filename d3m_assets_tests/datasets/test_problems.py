"""What is wrong with data stops as little as it can, is told in one table, and can be left out."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.datasets import checks
from d3m_assets.datasets import listed_source as module
from d3m_assets.datasets.catalog import class_catalog
from d3m_assets.datasets.exclusion import Exclusion, read_exclusion
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.datasets.opening import open_dataset
from d3m_assets.datasets.problems import DatasetProblem, problem_rows
from d3m_assets.datasets.source import ClassImages
from d3m_assets.errors import DatasetError, SettingsError
from d3m_assets.settings import load_settings
from d3m_assets_tests.datasets.conftest import png


def broken(scan):
    return {name for name, images in scan.classes.items() if images.errors}


def scan(root, *exclude, **options):
    return ImageFolder(root, validation_fraction=0, exclude=Exclusion(exclude), **options).scan()


def test_a_truncated_image_stops_only_its_class_and_mending_it_restores_the_fingerprint(make_folder, tmp_path):
    root, cache = make_folder("a", "b", "c"), tmp_path / "cache"
    before = scan(root, cache=cache)
    whole = (root / "train/b/3.png").read_bytes()
    (root / "train/b/3.png").write_bytes(whole[: len(whole) // 2])
    during = scan(root, cache=cache)
    assert broken(during) == {"b"}
    assert during.classes["b"].problem.startswith("train/b/3.png cannot be decoded")
    assert len(during.classes["b"].images) == 7
    assert [during.classes[n] for n in "ac"] == [before.classes[n] for n in "ac"]
    assert during.classes["b"].fingerprint != before.classes["b"].fingerprint
    # It keeps its place in the catalog: a truncated file is no reason to retire a class.
    rows = class_catalog(during, class_catalog(before))
    assert rows[["class_id", "class_name", "active"]].values.tolist() == [
        [0, "a", True],
        [1, "b", True],
        [2, "c", True],
    ]
    # A tick of a sensor that finds the same file broken again writes nothing.
    (index,) = cache.iterdir()
    written = index.stat().st_mtime_ns
    assert scan(root, cache=cache) == during
    assert index.stat().st_mtime_ns == written
    (root / "train/b/3.png").write_bytes(whole)
    assert scan(root, cache=cache) == before
    assert index.stat().st_mtime_ns > written


def test_a_broken_class_differs_from_one_without_the_broken_file(make_folder):
    root = make_folder("a", "b")
    (root / "train/b/3.png").write_bytes(b"")
    empty = scan(root).classes["b"]
    (root / "train/b/3.png").unlink()
    assert scan(root).classes["b"].fingerprint != empty.fingerprint
    assert scan(root).classes["b"].images == empty.images


def test_an_unreadable_image_does_not_change_the_shape_that_all_classes_have(make_folder):
    root = make_folder("a", height=8, width=8)
    make_folder("b", root=root, height=20, width=20)
    for i in range(2):
        shutil.copyfile(root / "train/b/0.png", root / f"train/b/more{i}.png")
        (root / f"train/b/more{i}.png").write_bytes(png(990 + i, 20, 20))
    before = scan(root)
    assert (before.image_height, before.image_width) == (20, 20)
    (root / "train/b/0.png").write_bytes(b"damaged")
    during = scan(root)
    # Seven readable images of 20 px against six of 8 px: they count though their class is broken.
    assert broken(during) == {"b"}
    assert (during.image_height, during.image_width, during.channels) == (20, 20, 1)


def test_the_only_coloured_image_decides_about_the_shape_and_its_loss_changes_it(make_folder):
    root = make_folder("a", "b")
    (root / "train/b/0.png").write_bytes(png(5, channels=3))
    assert scan(root).channels == 3
    (root / "train/b/0.png").write_bytes(b"damaged")
    assert scan(root).channels == 1


def test_all_classes_broken_stop_the_run(make_folder):
    root = make_folder("a", "b")
    for name in "ab":
        (root / f"train/{name}/0.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="no class can be used as it is") as error:
        scan(root)
    assert "train/a/0.png is empty" in str(error.value)
    assert "train/b/0.png is empty" in str(error.value)


def test_an_emptied_class_stays_and_is_broken(make_folder):
    root = make_folder("a", "b")
    before = class_catalog(scan(root))
    for split in ("train", "test"):
        for path in (root / split / "b").iterdir():
            path.unlink()
    after = scan(root)
    assert broken(after) == {"b"}
    assert [p.place for p in after.classes["b"].errors] == ["train/b", "test/b"]
    rows = class_catalog(after, before).set_index("class_name")
    assert rows.loc["b", ["class_id", "n_train", "n_test", "active"]].tolist() == [1, 0, 0, True]


def test_a_dataset_that_is_damaged_everywhere_is_given_up(make_folder, monkeypatch):
    root = make_folder("a", "sound")
    monkeypatch.setattr(module, "MOST_UNREADABLE", 30)
    monkeypatch.setattr(checks, "MOST_UNREADABLE", 30)
    for i in range(600):
        (root / f"train/a/bad{i}.png").write_bytes(b"")
    read = []
    real = ImageFolder._examine
    monkeypatch.setattr(ImageFolder, "_examine", lambda self, image: read.append(image) or real(self, image))
    with pytest.raises(DatasetError, match="whole dataset seems damaged"):
        scan(root)
    assert len(read) == 256
    for i in range(29, 600):
        (root / f"train/a/bad{i}.png").unlink()
    assert broken(scan(root)) == {"a"}


@pytest.mark.parametrize("name", ["x.bmp", "x.tiff", "coloured.png"])
def test_the_same_pixels_in_another_file_are_found_across_classes_and_splits(make_folder, name):
    root = make_folder("a", "b", "c")
    image = Image.open(root / "train/a/0.png")
    image.convert("RGB" if name == "coloured.png" else "L").save(root / "test/b" / name)
    found = scan(root)
    assert broken(found) == {"a", "b"}
    assert f"test/b/{name} = train/a/0.png is the same image in two classes (other files, equal pixels)" in (
        found.classes["b"].problem
    )
    shutil.move(root / "test/b" / name, root / "test/a" / name)
    found = scan(root)
    assert broken(found) == {"a"}
    assert "in train and test (other files" in found.classes["a"].problem
    shutil.move(root / "test/a" / name, root / "train/a" / name)
    found = scan(root)
    assert broken(found) == set()
    (warning,) = found.problems
    assert (warning.severity, warning.class_name) == ("warning", "a")


def test_images_of_other_size_or_pixels_are_not_the_same(make_folder, tmp_path):
    root = make_folder("a", "b")
    black = np.zeros((8, 8), np.uint8)
    Image.fromarray(black).save(root / "train/a/black.png")
    Image.fromarray(black.reshape(4, 16)).save(root / "train/b/black.png")
    almost = black.copy()
    almost[7, 7] = 1
    Image.fromarray(almost).save(root / "test/b/black.png")
    assert scan(root).problems == ()


def test_an_index_without_pixels_is_of_an_earlier_version_and_is_written_anew(make_folder, tmp_path, monkeypatch):
    root, cache = make_folder("a", "b"), tmp_path / "cache"
    expected = scan(root, cache=cache)
    (index,) = cache.iterdir()
    pd.read_parquet(index).drop(columns="pixels").to_parquet(index)
    read = []
    real = ImageFolder._examine
    monkeypatch.setattr(ImageFolder, "_examine", lambda self, image: read.append(image) or real(self, image))
    assert scan(root, cache=cache) == expected
    assert len(read) == 16
    assert scan(root, cache=cache) == expected
    assert len(read) == 16
    # Pixels that were read in an earlier scan are compared with those of this one.
    Image.open(root / "train/a/0.png").save(root / "train/b/copy.bmp")
    assert broken_with_all(root, cache) == {"a", "b"}
    assert len(read) == 17


def broken_with_all(root, cache):
    try:
        return broken(scan(root, cache=cache))
    except DatasetError as error:
        assert "train/a/0.png = train/b/copy.bmp" in str(error)
        return {"a", "b"}


def test_excluded_images_are_as_if_they_were_not_there(make_folder, tmp_path):
    root = make_folder("a", "b")
    before = scan(root)
    (root / "train/b/bad.png").write_bytes(b"")
    (root / "test/a/deep").mkdir()
    (root / "test/a/deep/twin.png").write_bytes((root / "train/b/0.png").read_bytes())
    for patterns in (
        ("train/b/bad.png", "test/a/deep/twin.png"),
        ("train/b/bad.png", "test/a/deep/"),
        ("**/bad.png", "test/*/deep"),
        ("train/?/b*.png", "**/deep/**"),
    ):
        assert scan(root, *patterns) == before, patterns
    assert broken(scan(root, "test/a/deep")) == {"b"}
    fs_root = f"local://{root}"
    assert scan(fs_root, "**/bad.png", "test/a/deep").fingerprint == before.fingerprint


def test_a_class_that_is_excluded_whole_is_gone_and_half_of_it_is_an_error(make_folder):
    root = make_folder("a", "b", "c")
    (root / "train/empty").mkdir()
    assert list(scan(root, "*/b", "train/empty").classes) == ["a", "c"]
    half = scan(root, "train/b/*", "train/empty")
    assert half.classes["b"].problem.startswith("train/b has no images (all are excluded)")
    with pytest.raises(DatasetError, match="no class folder in train/ that `exclude` leaves in"):
        scan(root, "train", "test")


def test_a_name_with_brackets_is_taken_literally_too(make_folder):
    root = make_folder("a")
    (root / "train/a/x[1].png").write_bytes(b"")
    (root / "train/a/x1.png").write_bytes(png(77))
    found = scan(root, "train/a/x[1].png")
    # As a pattern it also names x1.png.
    assert len(found.classes["a"].images) == 8
    assert len(scan(root, "train/a/x[[]1].png").classes["a"].images) == 9


def test_an_exclusion_of_nothing_is_refused_by_name(make_folder):
    with pytest.raises(
        DatasetError, match=r"'train/a/nine.png', '\*\*/x\?.gif', which .* does not have; correct"
    ) as error:
        scan(make_folder("a"), "train/a/0.png", "train/a/nine.png", "**/x?.gif")
    assert "0.png'" not in str(error.value).replace("nine.png", "")
    with pytest.raises(SettingsError, match=r"'train/a\*\*'"):
        Exclusion(["train/a**"])


def test_exclusions_from_a_file(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_folder("a", "b")
    (tmp_path / "bad files.txt").write_text("# two of many\n\ntrain/a/0.png\r\n  test/b/1.png \n", encoding="utf-8-sig")
    settings = load_settings(dataset=str(root), exclude="@bad files.txt, train/b/2.png", home=tmp_path / "home")
    assert settings.exclude == ("@bad files.txt", "train/b/2.png")
    source = open_dataset(settings.dataset, home=settings.home, validation_fraction=0, exclude=settings.exclude)
    paths = {i.relative_path for c in source.scan().classes.values() for i in c.images}
    assert len(paths) == 13
    assert not paths & {"train/a/0.png", "test/b/1.png", "train/b/2.png"}
    for entry in ("@absent.txt", f"@{tmp_path}"):
        with pytest.raises(SettingsError, match="which cannot be read") as error:
            read_exclusion([entry])
        assert entry[1:] in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("a.png, b.png", ("a.png", "b.png")),
        ('["a, b.png"]', ("a, b.png",)),
        ("[ab]/x.png,c", ("[ab]/x.png", "c")),
    ],
)
def test_the_setting_is_a_list_of_texts(text, expected, monkeypatch):
    monkeypatch.setenv("D3M_EXCLUDE", text)
    assert load_settings().exclude == expected


def test_the_table_groups_what_is_alike_and_begins_with_errors():
    problems = [
        DatasetProblem("a", "p = q", "is twice there", "look", "warning"),
        *(DatasetProblem("b", f"{i}.png", "is empty", "remove it") for i in range(5)),
        DatasetProblem("c", "z.png", "is empty", "remove it"),
    ]
    rows = [(r.severity, r.class_name, r.count, r.where) for r in problem_rows(problems)]
    assert rows == [
        ("error", "b", 5, "0.png, 1.png, 2.png, …"),
        ("error", "c", 1, "z.png"),
        ("warning", "a", 1, "p = q"),
    ]


def test_a_class_names_its_first_problems_and_counts_the_rest(make_folder):
    root = make_folder("a", "b")
    for i in range(5):
        (root / f"train/b/{i}.png").write_bytes(b"")
    text = scan(root).classes["b"].problem
    assert [f"train/b/{i}.png" in text for i in range(5)] == [True, True, True, False, False]
    assert text.endswith("(and 2 more)")


def test_the_digits_have_no_problem_and_their_old_fingerprint(digits_folder):
    found = ImageFolder(digits_folder).scan()
    assert found.problems == ()
    digest = hashlib.sha256("".join(c.fingerprint for c in found.classes.values()).encode()).hexdigest()
    plain = [sorted((i.relative_path, i.sha256, i.split) for i in c.images) for c in found.classes.values()]
    expected = "".join(hashlib.sha256(json.dumps(rows).encode()).hexdigest() for rows in plain)
    assert digest == hashlib.sha256(expected.encode()).hexdigest()


def test_the_words_of_an_error_are_no_part_of_the_fingerprint_but_its_place_is():
    """Failure prevented: a storage that puts the id of each request into its errors makes a broken class new at each look."""

    def fingerprint(place, what):
        return ClassImages("a", (), (checks.unusable_image("a", place, what),)).fingerprint

    first = fingerprint("train/a/0.png", "cannot be read (request 17)")
    assert fingerprint("train/a/0.png", "cannot be read (request 18)") == first
    assert fingerprint("train/a/1.png", "cannot be read (request 17)") != first
    assert ClassImages("a", ()).fingerprint != first
