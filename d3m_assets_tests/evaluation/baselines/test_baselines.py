"""What all baselines have in common."""

import numpy as np
import pytest

from d3m_assets.evaluation.baselines import BASELINES
from d3m_assets.evaluation.baselines.el2n import easiest


class Real:
    """Real images whose only pixel says which they are, and what models would say of them."""

    def __init__(self, points):
        self.points = points

    def images(self, class_id):
        return np.arange(len(self.points), dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros((1, 8, 8, 1), np.uint8)

    def features(self, class_id):
        return self.points

    def class_probabilities(self, class_id, images):
        return 1 / (1 + images.mean((1, 2, 3)))

    def el2n_errors(self, class_id):
        return np.linalg.norm(self.points, axis=1)

    def latents(self, class_id):
        return self.points[:, :, None, None]

    def decoded(self, latents):
        return np.round(latents[:, :1] * 10 + 128).clip(0, 255).astype(np.uint8) + np.zeros((1, 1, 8, 8), np.uint8)


CHOOSE = [name for name, baseline in BASELINES.items() if baseline.split == "train"]


def chosen(name, points, count, seed=0):
    """Positions of the images that a baseline chooses."""
    return BASELINES[name].images(Real(points), 7, count, seed)[:, 0, 0, 0].tolist()


def test_five_baselines_choose_real_images():
    assert CHOOSE == ["random", "herding", "k-center", "k-means", "el2n"]


@pytest.mark.parametrize("name", CHOOSE)
def test_choices_repeat_are_distinct_and_bear_copies_and_small_classes(name, points):
    copies = np.repeat(points[:2], 4, axis=0)
    for features, count in ((points, 5), (copies, 6), (points[:3], 10), (points[:1], 1)):
        found = chosen(name, features, count)
        assert len(found) == len(set(found)) == min(count, len(features))
        assert found == chosen(name, features, count)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_baseline_gives_as_many_images_as_asked_for_but_no_more_than_there_are(name, points):
    for features, count in ((points, 5), (points[:3], 10), (points[:1], 1)):
        images = BASELINES[name].images(Real(features), 7, count, 0)
        assert images.dtype == np.uint8
        assert len(images) == min(count, len(features))


def test_el2n_takes_the_easiest(points):
    errors = np.linalg.norm(points, axis=1)
    assert chosen("el2n", points, 3) == np.argsort(errors)[:3].tolist()
    assert not set(easiest(-errors, 3)) & set(easiest(errors, 3))


@pytest.mark.parametrize(("name", "teacher", "foundation"), [
    ("random", False, False), ("herding", True, False), ("k-center", True, False), ("k-means", True, False),
    ("el2n", True, False), ("collages", True, False), ("latent-means", False, True),
])  # fmt: skip
def test_a_baseline_asks_the_models_that_it_says_it_needs(name, teacher, foundation, points):
    asked = set()

    class Asked(Real):
        def __getattribute__(self, attribute):
            if attribute in ("features", "class_probabilities", "el2n_errors"):
                asked.add("teacher")
            if attribute in ("latents", "decoded"):
                asked.add("foundation")
            return super().__getattribute__(attribute)

    BASELINES[name].images(Asked(points), 7, 4, 0)
    assert ("teacher" in asked, "foundation" in asked) == (teacher, foundation)
    assert (BASELINES[name].needs_teacher, BASELINES[name].needs_foundation) == (teacher, foundation)
