import gc

import numpy as np
import pytest

from d3m_assets.compute import shared
from d3m_assets.compute.shared import Shared
from d3m_assets.compute.workers import Workers
from d3m_assets_tests.compute.work import total

MEGABYTE = 1_000_000


class Images:
    """Counts how often it is pickled."""

    pickled = 0

    def __init__(self, array):
        self.array = array

    def sum(self):
        return self.array.sum()

    def __reduce__(self):
        Images.pickled += 1
        return Images, (self.array,)


@pytest.fixture(autouse=True)
def count():
    Images.pickled = 0


def unheard(index, event):
    pass


def test_a_shared_value_is_pickled_once_for_forty_items_and_kept_for_the_next_run():
    images = Shared(Images(np.ones(MEGABYTE, np.uint8)))
    items = [(i, images) for i in range(40)]
    expected = {i: i + MEGABYTE for i in range(40)}
    with Workers(2) as workers:
        results = dict(workers.run(total, items, unheard))
        assert {i: r[0] for i, r in results.items()} == expected
        assert Images.pickled == 1
        copies = {(place, pid) for _, place, pid in results.values()}
        assert len(copies) == len({pid for _, pid in copies}) <= 2  # one copy in a process

        again = dict(workers.run(total, items, unheard))
        assert {(place, pid) for _, place, pid in again.values()} <= copies or Images.pickled == 2
        assert Images.pickled <= 2  # 2 only where one worker did all the work of the first run


def test_in_this_process_a_shared_value_is_the_value_itself():
    images = Shared(Images(np.ones(5, np.uint8)))
    results = dict(Workers(1).run(total, [(1, images), (2, images)], unheard))
    assert [results[i][:2] for i in range(2)] == [(6, id(images.value)), (7, id(images.value))]
    assert Images.pickled == 0


def test_an_item_is_small_and_names_what_it_shares():
    images = Shared(np.zeros(MEGABYTE, np.uint8))
    pickled, handles = shared.pack({"class": "cat", "images": [images, images]})
    assert len(pickled) < 300
    assert handles == {images.key: images}
    assert shared.unpack(pickled, handles) == {"class": "cat", "images": [images, images]}
    with pytest.raises(KeyError):
        shared.unpack(pickled, {})


def test_workers_drop_a_value_when_nobody_here_refers_to_it():
    with Workers(2) as workers:
        for size in (10, 20, 30):
            items = [(i, Shared(np.ones(size, np.uint8))) for i in range(40)]
            assert {r[0] - i for i, r in workers.run(total, items, unheard)} == {size}
        del items
        image = Shared(np.ones(1, np.uint8))
        list(workers.run(count_handles, [image] * 40, unheard))  # starts with one item for each worker that is ready
        counts = {count for _, count in workers.run(count_handles, [image] * 40, unheard)}
        assert counts == {1}


def count_handles(item, progress):
    """Shared values that this process holds."""
    gc.collect()
    return sum(isinstance(thing, Shared) for thing in gc.get_objects())
