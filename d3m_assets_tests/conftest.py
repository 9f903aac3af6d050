"""What tests of several rooms share: the embedded model, loaded once, and settings that keep everything in a folder."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from d3m_assets_tests import small_runs

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")

# A shell starts `pytest &` with Ctrl-C ignored, and so would be all that the tests start; Dagster's code server, which
# turns a termination into an interruption of itself, would then never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_instance(monkeypatch):
    """No test meets the Dagster instance that one before it opened: opening one names it in the environment."""
    monkeypatch.setenv("DAGSTER_HOME", "")


@pytest.fixture(scope="session")
def foundation():
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    return load_foundation(FoundationFiles("embedded", embedded_path()), "cpu")


@pytest.fixture(scope="session")
def characters():
    """Drawn characters: ``characters("7", 5)`` gives uint8 [5, 32, 32, 1]."""
    from d3m_assets.foundation.embedded.characters import render

    def draw(character: str, count: int, seed: int = 0) -> np.ndarray:
        return render(count, 700_000_000 + seed, characters=character).images[..., None]

    return draw


@pytest.fixture
def image_folder(tmp_path, characters):
    """Writes ``<tmp>/images/{train,test}/<class>/NNN.png`` of drawn characters, 8x8 grey, and returns the folder."""
    from PIL import Image

    def write(names=("0", "1", "7"), train=12, test=6, folder=None):
        root = folder or tmp_path / "images"
        for k, name in enumerate(names):
            drawn = characters("0123456789abc"[k], train + test, seed=k)[..., 0]
            for i, image in enumerate(drawn):
                target = root / ("train" if i < train else "test") / name / f"{i:03d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).resize((8, 8), Image.Resampling.BOX).save(target)
        return root

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory, characters):
    """A finished small distillation, to be copied by tests that change it."""
    root = tmp_path_factory.mktemp("finished")
    for k, name in enumerate(("0", "1", "7")):
        for i, image in enumerate(characters(name, 18, seed=k)[..., 0]):
            target = root / "images" / ("train" if i < 12 else "test") / name / f"{i:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((8, 8), Image.Resampling.BOX).save(target)
    small_runs.run(small_runs.open_pipeline(root, root / "images"))
    return root


@pytest.fixture
def copy(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    # The records name the images where they were.
    pipeline = small_runs.open_pipeline(tmp_path, tmp_path / "images")
    small_runs.run(pipeline)
    return tmp_path


@pytest.fixture(scope="session")
def soft(tmp_path_factory, finished):
    """The finished distillation with students of all kinds of labels."""
    import shutil

    root = tmp_path_factory.mktemp("soft")
    shutil.copytree(finished, root, dirs_exist_ok=True)
    small_runs.run(small_runs.open_pipeline(root, root / "images", **small_runs.SOFT))
    return root


@pytest.fixture(scope="session")
def s3_server():
    """Address of a local S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_options(s3_server):
    """What opens its one empty bucket, ``d3m``."""
    import s3fs

    options = {
        "key": "k",
        "secret": "s",
        "endpoint_url": s3_server,
        "client_kwargs": {"region_name": "eu-west-1"},
    }
    fs = s3fs.S3FileSystem(**options)
    if fs.exists("d3m"):
        fs.rm("d3m", recursive=True)
    fs.mkdir("d3m")
    return options
