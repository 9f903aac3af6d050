import hashlib

import pandas as pd
import pytest

from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.baselines import random_real


@pytest.fixture
def rows():
    return pd.DataFrame(
        {
            "class_id": class_id,
            "sha256": hashlib.sha256(f"{class_id}/{i}".encode()).hexdigest(),
            "split": "train" if i < 20 else "validation" if i < 22 else "test",
        }
        for class_id in (0, 1, 7)
        for i in range(30)
    )


def test_draws_the_number_asked_for_from_train_only(rows):
    drawn = random_real(rows, 5, seed=0)
    assert drawn.groupby("class_id").size().to_dict() == {0: 5, 1: 5, 7: 5}
    assert set(drawn["split"]) == {"train"}
    assert drawn["sha256"].is_unique


def test_seeds_differ_and_repeat(rows):
    draws = [tuple(random_real(rows, 3, seed=s)["sha256"]) for s in range(5)]
    assert len(set(draws)) == 5
    assert tuple(random_real(rows.sample(frac=1, random_state=1), 3, seed=0)["sha256"]) == draws[0]


def test_a_class_is_not_moved_by_others_and_draws_are_nested(rows):
    alone = random_real(rows[rows["class_id"] == 7], 4, seed=2)["sha256"].tolist()
    drawn = random_real(rows, 10, seed=2)
    assert drawn.loc[drawn["class_id"] == 7, "sha256"].tolist()[:4] == alone


def test_a_small_class_gives_all_it_has(rows):
    assert len(random_real(rows, 100, seed=0)) == 60


def test_impossible_draws_are_refused(rows):
    with pytest.raises(DatasetError, match="at least 1"):
        random_real(rows, 0, seed=0)
    with pytest.raises(DatasetError, match="class_id 1 has no training image"):
        random_real(rows[(rows["class_id"] != 1) | (rows["split"] != "train")], 1, seed=0)
    with pytest.raises(DatasetError, match="empty"):
        random_real(rows.iloc[:0], 1, seed=0)
