"""The datasets over a small bundle that really generates, in loops of torch.utils.data and torchdata."""

import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import d3m_assets
from d3m_assets.distillation.generation import generate
from d3m_assets.errors import BundleError, FoundationError, StoreError
from d3m_assets.loading import chunks
from d3m_assets.loading.data_loader import DistilledDataLoader
from d3m_assets.loading.datasets import DistilledDataset, IterableDistilledDataset


def generated(foundation, bundle, label, numbers):
    """Images as the recipe has them, float [K, C, H, W] in 0..1."""
    c = bundle.classes[label]
    images, _ = generate(
        foundation, c.prompts, bundle.generation_settings(), bundle.recipe.seed,
        count=len(numbers), indices=numbers, vectors=c.vectors, plan=c.plan, channels=bundle.recipe.channels,
    )  # fmt: skip
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def numbered(pixels):
    """In place of an image its digest: what tells samples apart when they have been through loaders."""
    return int.from_bytes(pixels.numpy().tobytes()[::37][:2000], "little") % (2**61 - 1)


def stream(loader, batches=None):
    """What a loader gives, as (label, digest) in batches."""
    out = []
    for batch in loader:
        out.append(list(zip(batch["label"].tolist(), batch["pixel_values"].tolist(), strict=True)))
        if batches is not None and len(out) == batches:
            break
    return out


def epochs(dataset, count):
    """The batches of several epochs, read in this process."""
    return [batch for _ in range(count) for batch in stream(DataLoader(dataset, batch_size=4))]


@pytest.fixture
def iterable(plain_bundle, tmp_path):
    """Makes iterable datasets of 18 samples an epoch in batches of 4, which share a cache."""

    def make(**options):
        given = {"batch_size": 4, "device": "cpu", "transform": numbered, "cache": tmp_path / "cache"}
        return IterableDistilledDataset(plain_bundle, **(given | options))

    return make


# By index


def test_the_fixed_pool_is_that_of_the_recipe_class_after_class(foundation, plain_bundle, bundle_file):
    dataset = DistilledDataset(bundle_file, device="cpu")
    assert len(dataset) == 18
    assert dataset.classes == ["0", "1", "7"]
    whole = torch.cat([generated(foundation, plain_bundle, label, range(6)) for label in range(3)])
    assert torch.equal(torch.stack([dataset[i]["pixel_values"] for i in range(18)]), whole)
    assert [dataset[i]["label"] for i in range(18)] == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.equal(dataset[-1]["pixel_values"], whole[17])
    assert torch.equal(dataset[np.int64(7)]["pixel_values"], whole[7])
    for wrong in (18, -19):
        with pytest.raises(IndexError, match=f"sample {wrong} of a dataset of 18"):
            dataset[wrong]


def test_selected_samples_come_first_and_then_fresh_ones(foundation, selected_bundle):
    dataset = DistilledDataset(selected_bundle, device="cpu")
    assert len(dataset) == 11
    assert [dataset.address(i) for i in (0, 1, 2, 3, 10)] == [(0, 0), (0, 5), (0, 9), (1, 1), (2, 7)]
    longer = DistilledDataset(selected_bundle, device="cpu", images_per_class=5)
    assert [longer.address(i)[1] for i in range(15)] == [0, 5, 9, 10, 11, 1, 2, 3, 8, 10, 4, 5, 6, 7, 10]
    pixels = torch.stack([sample["pixel_values"] for sample in longer.__getitems__(range(5))])
    assert torch.equal(pixels, generated(foundation, selected_bundle, 0, [0, 5, 9, 10, 11]))


def test_a_batch_generates_each_of_its_chunks_once(plain_bundle):
    dataset = DistilledDataset(plain_bundle, device="cpu", memory_bytes=1)
    batch = next(iter(DataLoader(dataset, batch_size=18)))
    assert batch["pixel_values"].shape == (18, 1, *dataset._images.reader.image_shape[:2])
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    assert dataset._images.reader.generated_chunks == 6


def test_a_transform_gets_unsigned_bytes(plain_bundle):
    dataset = DistilledDataset(plain_bundle, device="cpu", transform=lambda pixels: (pixels.dtype, pixels.shape[0]))
    assert dataset[0]["pixel_values"] == (torch.uint8, 1)


def test_memory_and_disk_spare_generation(plain_bundle, tmp_path, monkeypatch):
    first = DistilledDataset(plain_bundle, device="cpu", cache=tmp_path / "cache")
    images = [first[i]["pixel_values"] for i in range(18)]
    assert first._images.reader.generated_chunks == 6
    assert all(torch.equal(first[i]["pixel_values"], images[i]) for i in reversed(range(18)))
    assert first._images.reader.generated_chunks == 6
    monkeypatch.setattr(chunks.ModelReference, "load", None)  # not even the model is needed
    second = DistilledDataset(plain_bundle, device="cpu", cache=tmp_path / "cache")
    assert all(torch.equal(second[i]["pixel_values"], images[i]) for i in range(18))


def test_a_damaged_cache_file_is_made_anew(plain_bundle, tmp_path):
    images = torch.stack([s["pixel_values"] for s in DistilledDataset(plain_bundle, device="cpu", cache=tmp_path)])
    files = sorted(tmp_path.rglob("*.npy"))
    files[0].write_bytes(files[0].read_bytes()[:-5])
    # A sound file of other contents, as another version might have left it.
    files[1].write_bytes(files[2].read_bytes())
    with files[1].open("wb") as file:
        import hashlib
        import io

        buffer = io.BytesIO()
        np.save(buffer, np.zeros((2, 3, 3, 1), np.uint8))
        file.write(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    again = DistilledDataset(plain_bundle, device="cpu", cache=tmp_path)
    assert torch.equal(torch.stack([s["pixel_values"] for s in again]), images)
    assert again._images.reader.generated_chunks == 2
    assert torch.equal(
        torch.stack([s["pixel_values"] for s in DistilledDataset(plain_bundle, device="cpu", cache=tmp_path)]), images
    )


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_shuffled_batches_are_the_same_with_any_number_of_workers(plain_bundle, tmp_path, workers):
    dataset = DistilledDataset(plain_bundle, device="cpu", transform=numbered, cache=tmp_path)
    alone = DistilledDataset(plain_bundle, device="cpu", transform=numbered)

    def read(data, **options):
        return stream(
            DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0), **options)
        )

    assert read(dataset, num_workers=workers) == read(alone)


def test_workers_that_are_started_anew_load_the_model_themselves(plain_bundle, tmp_path):
    dataset = DistilledDataset(plain_bundle, device="cpu")
    expected = [sample["pixel_values"] for sample in dataset]
    assert len(pickle.dumps(dataset)) < 100_000
    loader = DataLoader(dataset, batch_size=9, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), torch.stack(expected))


# Errors


def test_what_is_wrong_is_named(plain_bundle, tmp_path):
    from dataclasses import replace

    with pytest.raises(BundleError, match=r"none\.safetensors cannot be read"):
        DistilledDataset(tmp_path / "none.safetensors")
    other = replace(plain_bundle, recipe=replace(plain_bundle.recipe, foundation_fingerprint="a" * 64))
    with pytest.raises(BundleError, match="another model"):
        DistilledDataset(other)
    tiny = replace(plain_bundle.recipe, autoencoder="taesd", autoencoder_fingerprint="a" * 64, autoencoder_bytes=1)
    with pytest.raises(BundleError, match="tiny autoencoder 'taesd'"):
        DistilledDataset(replace(plain_bundle, recipe=tiny))
    with pytest.raises(FoundationError, match="does not exist"):
        DistilledDataset(plain_bundle, tmp_path / "model")
    with pytest.raises(ValueError, match="images_per_class=0"):
        DistilledDataset(plain_bundle, images_per_class=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cache="):
        DistilledDataset(plain_bundle, cache=tmp_path / "file")
    for options, problem in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"mixed_chunks": 0}, "mixed_chunks=0"),
        ({"rank": 1}, "give both"),
        ({"rank": 2, "world_size": 2}, "rank=2 is none of the 2"),
    ):
        with pytest.raises(ValueError, match=problem):
            IterableDistilledDataset(plain_bundle, **options)
    dataset = IterableDistilledDataset(plain_bundle, device="cpu")
    for state in ({}, {"position": -1}, {"position": "3"}):
        with pytest.raises(ValueError, match="no state of this dataset"):
            dataset.load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size=3"):
        DistilledDataLoader(dataset, batch_size=3)


def test_a_forked_worker_says_that_it_cannot_use_cuda(plain_bundle, monkeypatch):
    monkeypatch.setattr(chunks, "choose_device", lambda name: torch.device("cuda"))
    dataset = DistilledDataset(plain_bundle)
    with pytest.raises(FoundationError, match="multiprocessing_context='spawn'"):
        next(iter(DataLoader(dataset, num_workers=1, multiprocessing_context="fork")))


def test_importing_the_package_loads_no_torch():
    code = "import sys, d3m_assets, d3m_assets.definitions; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert d3m_assets.DistilledDataset is DistilledDataset
    assert d3m_assets.IterableDistilledDataset is IterableDistilledDataset
    assert d3m_assets.DistilledDataLoader is DistilledDataLoader
    with pytest.raises(AttributeError, match="Nothing"):
        d3m_assets.Nothing  # noqa: B018


# As a stream


def test_a_stream_has_the_samples_that_it_names(foundation, plain_bundle):
    dataset = IterableDistilledDataset(plain_bundle, batch_size=4, device="cpu")
    samples = list(dataset)
    assert len(samples) == len(dataset) == 18
    labels, numbers = dataset._order.samples(0, 18)
    assert [sample["label"] for sample in samples] == labels.tolist()
    assert numbers.min() >= 8
    for label in range(3):
        of_class = torch.stack([s["pixel_values"] for s, own in zip(samples, labels, strict=True) if own == label])
        order = np.argsort(numbers[labels == label])
        expected = generated(foundation, plain_bundle, label, np.sort(numbers[labels == label]))
        assert torch.equal(of_class[torch.from_numpy(order)], expected)


def test_epochs_follow_each_other_fresh_or_of_the_pool(iterable):
    fresh = iterable()
    first, second = list(fresh), list(fresh)
    digests = [sample["pixel_values"] for sample in first + second]
    assert len(set(digests)) == 36
    assert fresh.epoch == 2
    pool = iterable(fresh=False)
    first, second = [sorted(s["pixel_values"] for s in pool) for _ in range(2)]
    assert first == second
    assert len(set(first)) == 18
    assert not set(first) & set(digests)


@pytest.mark.parametrize("workers", [1, 3, 4])
@pytest.mark.parametrize("fresh", [True, False])
def test_the_stream_is_the_same_with_any_number_of_workers(iterable, workers, fresh):
    alone, split = iterable(fresh=fresh), iterable(fresh=fresh)
    loader = DistilledDataLoader(split, num_workers=workers)
    for _ in range(2):
        assert stream(loader) == stream(DataLoader(alone, batch_size=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_are_disjoint_and_complete_and_take_turns(iterable, workers):
    whole = stream(DistilledDataLoader(iterable()))
    ranks = [stream(DistilledDataLoader(iterable(rank=r, world_size=2), num_workers=workers)) for r in range(2)]
    assert ranks == [whole[0::2], whole[1::2]]
    assert [len(iterable(rank=r, world_size=2)) for r in range(2)] == [sum(map(len, part)) for part in ranks]
    dropping = [stream(DistilledDataLoader(iterable(rank=r, world_size=2, drop_last=True))) for r in range(2)]
    assert dropping == [whole[0:4:2], whole[1:4:2]]
    assert len(iterable(rank=1, world_size=2, drop_last=True)) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_whose_last_samples_are_dropped_ends_with_its_last_batch(iterable, workers):
    """Lightning counts batches and does not ask for one more."""
    loader = DistilledDataLoader(iterable(drop_last=True), num_workers=workers)
    assert len(loader) == 4
    first = stream(loader, 4)
    assert loader.state_dict() == {"position": 18}
    assert stream(loader, 4) == epochs(iterable(), 2)[5:9]
    assert first == epochs(iterable(), 1)[:4]


def test_the_rank_is_that_of_the_surroundings(iterable, monkeypatch):
    assert iterable().rank_and_world_size() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert iterable().rank_and_world_size() == (1, 2)
    assert iterable(rank=0, world_size=1).rank_and_world_size() == (0, 1)
    restored = pickle.loads(pickle.dumps(iterable()))
    monkeypatch.delenv("RANK")
    assert restored.rank_and_world_size() == (1, 2)


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7])
@pytest.mark.parametrize(("before", "then"), [(0, 0), (0, 4), (1, 0), (4, 1), (2, 3)])
def test_a_stopped_training_goes_on_with_the_same_samples(iterable, after, before, then):
    """Five batches an epoch: in mid-epoch, before and at its end, and in the next one."""
    whole = epochs(iterable(), 3)
    stopped = DistilledDataLoader(iterable(), num_workers=before)
    seen = []
    while len(seen) < after:
        seen += stream(stopped, after - len(seen))
    state = stopped.state_dict()
    assert list(state) == ["position"]
    assert isinstance(state["position"], int)
    resumed = DistilledDataLoader(iterable(), num_workers=then)
    resumed.load_state_dict(state)
    while len(seen) < 15:
        seen += stream(resumed)
    assert seen == whole


def test_a_training_goes_on_with_other_ranks(iterable):
    whole = stream(DistilledDataLoader(iterable()))
    loaders = [DistilledDataLoader(iterable(rank=r, world_size=2)) for r in range(2)]
    parts = [stream(loader, 1) for loader in loaders]
    states = [loader.state_dict() for loader in loaders]
    assert states == [{"position": 8}] * 2
    assert [parts[0][0], parts[1][0]] == whole[:2]
    alone = DistilledDataLoader(iterable(), num_workers=2)
    alone.load_state_dict(states[0])
    assert stream(alone) == whole[2:]


def test_a_plain_loop_without_workers_stops_at_any_sample(iterable):
    whole = [sample["pixel_values"] for sample in iterable()]
    dataset = iterable()
    reader = iter(dataset)
    seen = [next(reader)["pixel_values"] for _ in range(6)]
    state = dataset.state_dict()
    assert state == {"position": 6}
    resumed = iterable()
    resumed.load_state_dict(state)
    assert seen + [sample["pixel_values"] for sample in resumed] == whole


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("after", [2, 5])
def test_stateful_data_loader_goes_on_in_mid_epoch_and_at_its_end(iterable, workers, after):
    whole = epochs(iterable(), 2)
    loader = StatefulDataLoader(iterable(), batch_size=4, num_workers=workers)
    assert stream(loader, after) == whole[:after]
    state = loader.state_dict()
    dataset = iterable()
    resumed = StatefulDataLoader(dataset, batch_size=4, num_workers=workers)
    resumed.load_state_dict(state)
    assert stream(resumed) == whole[after:5]
    if workers:
        dataset.set_epoch(1)
    assert stream(resumed) == whole[5:]


def test_stateful_data_loader_with_another_number_of_workers(iterable):
    whole = stream(DataLoader(iterable(), batch_size=4))
    loader = StatefulDataLoader(iterable(), batch_size=4, num_workers=2)
    assert stream(loader, 3) == whole[:3]
    for workers in (0, 1, 4):
        dataset = iterable()
        dataset.load_state_dict({"position": 3 * 4})
        assert stream(StatefulDataLoader(dataset, batch_size=4, num_workers=workers)) == whole[3:]


@pytest.fixture
def said_by_workers(tmp_path):
    """A file of the warnings of this process and those that it forks."""
    handler = logging.FileHandler(tmp_path / "warnings.txt")
    logging.getLogger("d3m_assets").addHandler(handler)
    yield tmp_path / "warnings.txt"
    logging.getLogger("d3m_assets").removeHandler(handler)


@pytest.mark.parametrize("persistent", [False, True])
def test_other_loaders_with_workers_need_set_epoch_and_say_so(iterable, persistent, said_by_workers):
    dataset = iterable()
    loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=persistent)
    first = stream(loader)
    assert not said_by_workers.read_text()
    assert stream(loader) == first
    assert "epoch 0 is read a second time: call set_epoch" in said_by_workers.read_text()
    dataset.set_epoch(1)
    assert stream(loader) == epochs(iterable(), 2)[5:]


@pytest.mark.parametrize("persistent", [False, True])
def test_its_own_loader_needs_nothing(iterable, persistent):
    loader = DistilledDataLoader(iterable(), num_workers=2, persistent_workers=persistent)
    alone = DistilledDataLoader(iterable())
    for _ in range(3):
        assert stream(loader) == stream(alone)
    # Left in the middle, it goes on there.
    assert stream(loader, 2) + stream(loader) == stream(alone)


def test_workers_share_the_generation(plain_bundle, tmp_path, monkeypatch):
    log = tmp_path / "generated.txt"
    generate_class = chunks.generate_class

    def logged(bundle, distilled, *args, indices, **kwargs):
        with log.open("a") as file:
            file.write(f"{distilled.prompts.class_name}/{int(indices[0]) // 4}\n")
        return generate_class(bundle, distilled, *args, indices=indices, **kwargs)

    monkeypatch.setattr(chunks, "generate_class", logged)
    dataset = IterableDistilledDataset(
        plain_bundle, batch_size=4, device="cpu", cache=tmp_path / "cache", images_per_class=16
    )
    list(DistilledDataLoader(dataset, num_workers=4, multiprocessing_context="fork"))
    made = log.read_text().split()
    assert len(made) == 12
    assert len(set(made)) == 12


def test_memory_holds_what_is_mixed(plain_bundle):
    dataset = IterableDistilledDataset(plain_bundle, batch_size=1, device="cpu", memory_bytes=1, fresh=False)
    list(dataset)
    assert dataset._images.reader.generated_chunks == 6


def test_warnings_have_a_reason(plain_bundle, iterable, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    stream(DataLoader(iterable(), batch_size=4))
    DistilledDataset(plain_bundle, device="cpu", cache=tmp_path, memory_bytes=1)
    assert not caplog.records
    DistilledDataset(plain_bundle, device="cpu", memory_bytes=1)
    assert "give the dataset a folder as cache" in caplog.text


# What a review found


def test_a_dataset_that_is_pickled_before_its_rank_is_known_asks_for_it_where_it_is_read(iterable, monkeypatch):
    early = pickle.dumps(iterable())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pickle.loads(early).rank_and_world_size() == (1, 2)
    late = pickle.dumps(iterable())
    monkeypatch.delenv("RANK")
    assert pickle.loads(late).rank_and_world_size() == (1, 2), "a spawned worker of that rank"


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_told_to_the_dataset_reaches_its_loader(iterable, workers):
    expected = epochs(iterable(), 2)
    dataset = iterable()
    loader = DistilledDataLoader(dataset, num_workers=workers)
    stream(loader, 1)
    dataset.load_state_dict({"position": 8})
    assert stream(loader) == expected[2:5]
    dataset.set_epoch(0)
    assert stream(loader) == expected[:5]
    assert stream(loader) == expected[5:]


def test_no_fresh_sample_is_one_of_the_training_set_however_few_are_asked_for(iterable, plain_bundle):
    trained = iterable(fresh=False)
    seen = {sample for batch in epochs(trained, 1) for sample in batch}
    fresh = {sample for batch in epochs(iterable(images_per_class=2), 3) for sample in batch}
    assert len(fresh) == 18
    assert not seen & fresh


def test_an_epoch_that_would_drop_every_sample_is_refused(iterable):
    dataset = iterable(drop_last=True, rank=0, world_size=5)
    with pytest.raises(ValueError, match="18 samples, fewer than one batch of 4 for each of 5 ranks"):
        stream(DataLoader(dataset, batch_size=4))


def test_files_that_cannot_be_opened_just_now_are_not_taken_for_damaged(iterable, tmp_path, monkeypatch, caplog):
    from d3m_assets.loading import chunk_cache

    wanted = epochs(iterable(), 1)
    files = sorted(tmp_path.rglob("*.npy"))
    assert files

    def refused(*args, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(chunk_cache.np, "memmap", refused)
    assert epochs(iterable(), 1) == wanted
    assert sorted(tmp_path.rglob("*.npy")) == files
    assert "damaged" not in caplog.text  # and deleted, which to write it anew would hide


def test_what_else_lies_in_the_folder_of_the_cache_stays(iterable, tmp_path):
    import os

    others = [tmp_path / "cache" / "mine.npy", tmp_path / "cache" / "notes.tmp"]
    (tmp_path / "cache").mkdir()
    for other in others:
        other.write_bytes(b"mine")
        os.utime(other, (1, 1))
    epochs(iterable(cache_bytes=20_000), 2)
    assert all(other.read_bytes() == b"mine" for other in others)


def test_images_of_another_version_of_the_libraries_are_not_taken_from_the_cache(iterable, monkeypatch):
    def generated_anew():
        dataset = iterable()
        epochs(dataset, 1)
        return dataset._images.reader.generated_chunks

    assert generated_anew() > 0
    assert generated_anew() == 0
    known = chunks.provenance.versions()
    monkeypatch.setattr(chunks.provenance, "versions", lambda: known | {"diffusers": "0.0"})
    assert generated_anew() > 0


def test_memory_beyond_what_was_given_is_told(iterable, caplog):
    iterable(memory_bytes=1)
    assert "more than memory_bytes=1" in caplog.text
