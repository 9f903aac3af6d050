"""Exports that are killed go on without gap or repeat, and a million images cost no more memory than a few."""

import os
import signal
import subprocess
import sys

import pytest

from d3m_assets.exports.images import regenerate
from d3m_assets_tests.exports.tricky import files_of, tricky_bundle

PER_CLASS = 12
FORMATS = ("folder", "huggingface", "webdataset")


@pytest.fixture(scope="module")
def made(foundation):
    return tricky_bundle(foundation, names=("train", "café"))


@pytest.fixture(scope="module")
def undisturbed(made, foundation, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    for image_format in FORMATS:
        regenerate(made, foundation, root / image_format, per_class=PER_CLASS, image_format=image_format)
    return root


class Export:
    """An export in a process of its own, killed at the end of the context."""

    def __init__(self, bundle, output, image_format, per_class):
        command = [sys.executable, "-m", "d3m_assets_tests.exports.tricky", bundle, output, image_format, per_class]
        self.process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))

    def __enter__(self):
        return self

    def until(self, done):
        """Lines ``(done, seconds, KiB)`` until so many images are done."""
        seen = []
        for line in self.process.stdout:
            images, seconds, kib = line.split()
            seen.append((int(images), float(seconds), int(kib)))
            if seen[-1][0] >= done:
                return seen
        raise AssertionError(f"it ended with {self.process.wait()} after {seen[-1:]}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_killed_export_goes_on_and_ends_with_the_same_bytes(made, foundation, undisturbed, tmp_path, image_format):
    (tmp_path / "b.safetensors").write_bytes(made.to_bytes())
    out = tmp_path / "out"
    with Export(tmp_path / "b.safetensors", out, image_format, PER_CLASS) as export:
        export.until(7)
    left = files_of(out)
    assert left != files_of(undisturbed / image_format)
    assert ".d3m-export.json" in left
    seen = []
    regenerate(made, foundation, out, per_class=PER_CLASS, image_format=image_format, progress=seen.append)
    # The first event says how many were kept; no image is generated twice, none left out.
    assert 6 <= seen[0].done < 2 * PER_CLASS
    assert [event.done for event in seen] == list(range(seen[0].done, 2 * PER_CLASS + 1))
    assert files_of(out) == files_of(undisturbed / image_format)


@pytest.mark.parametrize("image_format", FORMATS)
def test_it_goes_on_from_any_image(made, foundation, undisturbed, tmp_path, image_format):
    class Stop(Exception):
        pass

    def stop(event):
        if event.done in stops:
            stops.remove(event.done)
            raise Stop

    stops = [3, 4, 11, 12, 13, 20, 2 * PER_CLASS]
    options = {"per_class": PER_CLASS, "image_format": image_format, "progress": stop}
    for _ in range(7):
        with pytest.raises(Stop):
            regenerate(made, foundation, tmp_path / "out", **options)
    regenerate(made, foundation, tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == files_of(undisturbed / image_format)


def test_workers_make_the_same_files(made, foundation, undisturbed, tmp_path, monkeypatch):
    from d3m_assets.compute.workers import Workers
    from d3m_assets.exports import stream
    from d3m_assets.foundation.model import ModelReference

    monkeypatch.setattr(stream, "WORTH_WORKERS", 0)
    here = []
    monkeypatch.setattr(stream.ImageStream, "_generate_here", counted(stream.ImageStream._generate_here, here))
    seen = []
    with Workers(2) as workers:
        options = {"workers": workers, "model": ModelReference(foundation.files, "cpu"), "progress": seen.append}
        regenerate(made, foundation, tmp_path / "out", per_class=PER_CLASS, **options)
    assert len(here) == 1  # this process generated the first chunk alone
    assert [event.done for event in seen] == list(range(2 * PER_CLASS + 1))
    assert files_of(tmp_path / "out") == files_of(undisturbed / "folder")


def counted(function, calls):
    def wrapped(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return wrapped


def test_half_a_line_and_a_lost_image_are_made_anew(made, foundation, undisturbed, tmp_path):
    out = tmp_path / "out"

    def stop(event):
        if event.done == 9:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        regenerate(made, foundation, out, per_class=PER_CLASS, progress=stop)
    with (out / ".metadata.jsonl.part").open("ab") as lines:
        lines.write(b'{"file_name": "train/000')
    (out / "train" / "00007.png").unlink()
    seen = []
    regenerate(made, foundation, out, per_class=PER_CLASS, progress=seen.append)
    assert seen[0].done == 7
    assert files_of(out) == files_of(undisturbed / "folder")


@pytest.mark.parametrize(
    "image_format", [pytest.param(name, marks=() if name == "huggingface" else pytest.mark.long) for name in FORMATS]
)
def test_a_million_images_of_a_class_begin_at_once_and_in_flat_memory(made, tmp_path, image_format):
    (tmp_path / "b.safetensors").write_bytes(made.to_bytes())
    with Export(tmp_path / "b.safetensors", tmp_path / "out", image_format, 1_000_000) as export:
        seen = export.until(300)
    first = next(seconds for images, seconds, _ in seen if images == 1)
    assert first < 5
    memory = {images: kib for images, _, kib in seen}
    # Pixels of the 200 images between would be 0.2 MB, those of the million 1 GB; numbers of its samples 8 MB.
    assert memory[300] - memory[100] < 6_000
    assert (tmp_path / "out" / ".d3m-export.json").is_file()


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_was_taken_away_from_a_complete_export_is_written_again(
    made, foundation, undisturbed, tmp_path, image_format
):
    import shutil

    out = shutil.copytree(undisturbed / image_format, tmp_path / "out")
    lost = sorted(p for p in out.rglob("*") if p.suffix in (".png", ".parquet", ".tar"))[
        1 if image_format == "folder" else 0
    ]
    lost.unlink()
    regenerate(made, foundation, out, per_class=PER_CLASS, image_format=image_format)
    assert files_of(out) == files_of(undisturbed / image_format)
