import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from d3m_assets.loading.order import ClassSamples, StreamOrder, blocks


def classes(counts=(10, 7, 12), chunk_size=4):
    return [ClassSamples.of(None, 0, count, chunk_size) for count in counts]


def pairs(order, start, stop):
    labels, numbers = order.samples(start, stop)
    return list(zip(labels.tolist(), numbers.tolist(), strict=True))


def test_samples_of_a_class():
    selected = ClassSamples.of(np.array([0, 5, 9]), 10, 5, 4)
    assert selected.pool.tolist() == [0, 5, 9, 10, 11]
    assert selected.first_fresh == 12
    assert selected.in_chunk(0, 4).tolist() == [0]
    assert selected.in_chunk(2, 4).tolist() == [9, 10, 11]
    assert selected.in_chunk(3, 4).tolist() == [12, 13, 14, 15]
    # Fresh samples are behind all candidates, even where fewer images are asked for than are selected.
    assert ClassSamples.of(np.array([0, 5, 9]), 10, 2, 4).first_fresh == 12
    plain = ClassSamples.of(None, 0, 6, 4)
    assert plain.pool.tolist() == list(range(6))
    assert plain.first_fresh == 8
    assert plain.in_chunk(1, 4).tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("mixed_chunks", [1, 2, 3, None])
def test_every_epoch_of_the_pool_has_each_sample_once_in_an_order_of_its_own(mixed_chunks):
    order = StreamOrder(classes(), 4, mixed_chunks=mixed_chunks)
    pool = [(label, k) for label, n in enumerate((10, 7, 12)) for k in range(n)]
    epochs = [pairs(order, e * 29, (e + 1) * 29) for e in range(3)]
    assert all(sorted(epoch) == pool for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_fresh_epochs_share_no_sample_with_each_other_or_the_pool():
    order = StreamOrder(classes(), 4, fresh=True)
    seen = pairs(order, 0, 29 * 5)
    assert len(set(seen)) == len(seen)
    pool = {(label, k) for label, n in enumerate((10, 7, 12)) for k in range(n)}
    assert not pool & set(seen)
    labels = np.array([label for label, _ in seen]).reshape(5, 29)
    assert all(np.bincount(epoch).tolist() == [10, 7, 12] for epoch in labels)


def test_any_part_of_the_stream_is_the_same_as_in_the_whole():
    order = StreamOrder(classes(), 4, mixed_chunks=2, fresh=True)
    whole = pairs(order, 0, 100)
    for start, stop in ((0, 1), (5, 50), (28, 30), (29, 29), (60, 100)):
        assert pairs(StreamOrder(classes(), 4, mixed_chunks=2, fresh=True), start, stop) == whole[start:stop]
    assert pairs(pickle.loads(pickle.dumps(order)), 0, 100) == whole
    assert pairs(StreamOrder(classes(), 4, mixed_chunks=2, fresh=True, seed=1), 0, 100) != whole


def test_another_process_has_the_same_order():
    code = (
        "import json; from d3m_assets_tests.loading.test_order import classes, pairs;"
        "from d3m_assets.loading.order import StreamOrder;"
        "print(json.dumps(pairs(StreamOrder(classes(), 4, seed=3), 0, 60)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [tuple(pair) for pair in json.loads(done.stdout)] == pairs(StreamOrder(classes(), 4, seed=3), 0, 60)


def test_a_window_ends_before_the_next_begins_so_that_few_chunks_are_needed_at_once():
    order = StreamOrder(classes((400, 400)), 4, mixed_chunks=10)
    chunks = [(label, k // 4) for label, k in pairs(order, 0, 800)]
    for window in range(20):
        assert len(set(chunks[window * 40 : (window + 1) * 40])) == 10


def test_classes_and_chunks_are_spread_evenly():
    order = StreamOrder(classes((200,) * 10, chunk_size=50), 50)
    labels, numbers = order.samples(0, 2000)
    for start in range(0, 2000, 100):
        # 40 chunks are not a window of 32 and one of 8, in which most classes would be missing.
        counts = np.bincount(labels[start : start + 100], minlength=10)
        assert counts.min() >= 3
        assert counts.max() <= 20
    # A class's samples do not come in the order of their numbers.
    own = numbers[labels == 0]
    assert (np.diff(own) < 0).mean() > 0.2


def test_a_million_images_need_no_order_of_all_of_them():
    import tracemalloc

    order = StreamOrder(classes((1000,) * 1000, chunk_size=50), 50, fresh=True)
    tracemalloc.start()
    labels, _ = order.samples(500_000, 500_640)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(labels)) > 200
    assert peak < 20e6


@pytest.mark.parametrize("consumers", [1, 2, 3, 7])
def test_blocks_of_all_consumers_are_complete_and_disjoint(consumers):
    parts = [list(blocks(5, 48, 4, c, consumers)) for c in range(consumers)]
    assert sorted(p for part in parts for start, stop in part for p in range(start, stop)) == list(range(5, 48))
    assert all(stop - start == 4 or stop == 48 for part in parts for start, stop in part)
