"""Pools with a known fault, each found by the check for it and by no other."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import StageError
from d3m_assets.evaluation import audit
from d3m_assets.evaluation.architectures import last_features
from d3m_assets.evaluation.audit import Finding, ImageSet, audit_pool, findings, nearest_images, spread_ratios
from d3m_assets.evaluation.settings import AuditSettings, StudentSettings
from d3m_assets.evaluation.students import train_student


@pytest.fixture(scope="module")
def network(digits_parts):
    train, _, _ = digits_parts
    return train_student(train.resized(16, 1), StudentSettings(width=16, steps=150), n_classes=10, seed=0)


@pytest.fixture(scope="module")
def digits_parts():
    """Train, validation, and images that stand for a sound pool: real ones that neither of the others holds."""
    from d3m_assets_tests.evaluation.conftest import _digits

    data = _digits()[0]
    order = np.random.default_rng(0).permutation(len(data))
    return [LabelledImages(data.images[part], data.labels[part]) for part in (order[:700], order[700:900], order[900:])]


@pytest.fixture
def examine(digits_parts, network):
    """Audits a pool of 8 x 8 images against the digits, with features or without."""
    train, held_out, _ = digits_parts

    def look(pool, features=True, **options):
        def points(images):
            return ImageSet.of(images, last_features(network, images.resized(16, 1).images) if features else None)

        return audit_pool(points(pool), points(train), points(held_out), n_classes=10, **options)

    return look


def _with(data, images=None, labels=None):
    return LabelledImages(data.images if images is None else images, data.labels if labels is None else labels)


@pytest.mark.parametrize("features", [True, False])
def test_real_images_never_seen_are_sound(examine, digits_parts, features):
    found = examine(digits_parts[2], features).summary
    assert found["memorised"] <= 0.01
    assert found["near_duplicate"] < 0.06
    assert found["off_class"] < 0.08
    assert 0.7 < min(c["spread"] for c in found["classes"]) < max(c["spread"] for c in found["classes"]) < 1.4
    assert found["reference"] == "held-out images"


@pytest.mark.parametrize("features", [True, False])
def test_copies_of_training_images_are_called_memorised(examine, digits_parts, features):
    train = digits_parts[0]
    assert examine(_with(train), features).summary["memorised"] == 1.0
    noise = np.random.default_rng(0).normal(0, 6, train.images.shape)
    disturbed = np.clip(np.round(train.images + noise), 0, 255).astype(np.uint8)
    result = examine(_with(train, disturbed), features)
    assert result.summary["memorised"] > 0.95
    assert (result.images["pixels_nearest"] == np.arange(len(train))).all()
    assert min(c["memorised"] for c in result.summary["classes"]) > 0.9


def test_averages_of_real_images_are_close_to_many_and_no_copies(examine, digits_parts):
    train, _, _ = digits_parts
    points = train.images.reshape(len(train), -1)
    near = np.concatenate([np.arange(len(train))[:, None], nearest_images(points, points, 5, same=True)[1]], axis=1)
    averages = _with(train, train.images[near].mean(1).round().astype(np.uint8))
    result = examine(averages, False, quantile=0.3)
    closer = result.images["pixels_distance"] <= result.summary["thresholds"]["pixels"]["to_train"]
    assert closer.mean() > 0.3
    assert result.summary["memorised"] < 0.05


@pytest.mark.parametrize("features", [True, False])
def test_two_swapped_classes_are_off_class_and_only_they(examine, digits_parts, features):
    sound = digits_parts[2]
    labels = np.select([sound.labels == 3, sound.labels == 5], [5, 3], sound.labels)
    classes = examine(_with(sound, labels=labels), features).summary["classes"]
    assert min(classes[3]["off_class"], classes[5]["off_class"]) > 0.85
    assert max(c["off_class"] for i, c in enumerate(classes) if i not in (3, 5)) < 0.3


@pytest.mark.parametrize("features", [True, False])
def test_noise_is_off_class_and_neither_copied_nor_repeated(examine, features):
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    found = examine(LabelledImages(images, np.repeat(np.arange(10), 20)), features).summary
    assert found["off_class"] > 0.8
    assert found["memorised"] == 0
    assert found["near_duplicate"] == 0


@pytest.mark.parametrize("features", [True, False])
def test_a_collapsed_class_has_no_spread_and_repeats_itself(examine, digits_parts, features):
    sound = digits_parts[2]
    images = sound.images.copy()
    chosen = np.flatnonzero(sound.labels == 4)
    images[chosen] = images[chosen[0]]
    classes = examine(_with(sound, images), features).summary["classes"]
    assert classes[4]["spread"] < 1e-3
    assert classes[4]["near_duplicate"] == 1.0
    assert min(c["spread"] for i, c in enumerate(classes) if i != 4) > 0.7
    assert max(c["near_duplicate"] for i, c in enumerate(classes) if i != 4) < 0.2


@pytest.fixture(scope="module")
def drawn_from_names(foundation):
    from d3m_assets.distillation.generation import generate
    from d3m_assets.distillation.prompts import ClassPrompts
    from d3m_assets.distillation.settings import GenerationSettings

    settings, images = GenerationSettings(steps=4, batch_size=8), []
    for k in range(10):
        prompts = ClassPrompts.of(
            k, str(k), str(k), templates=("a photo of a {}",), initializer=None, keep_class_name=True
        )
        images.append(generate(foundation, prompts, settings, 0, count=8, channels=1)[0])
    return LabelledImages(np.concatenate(images), np.repeat(np.arange(10), 8), "synthetic").resized(8, 1)


@pytest.mark.parametrize("features", [True, False])
def test_images_drawn_from_class_names_are_not_memorised(examine, drawn_from_names, features):
    """The foundation never saw these digits, so whatever is found here is a false alarm."""
    found = examine(drawn_from_names, features).summary
    assert found["memorised"] == 0
    assert found["off_class"] < 0.6


def test_without_held_out_images_the_train_split_is_its_own_reference(digits_parts):
    train, held_out, sound = (ImageSet.of(p) for p in digits_parts)
    few = ImageSet(held_out.labels[:3], {"pixels": held_out.spaces["pixels"][:3]})
    none = ImageSet(held_out.labels[:0], {"pixels": held_out.spaces["pixels"][:0]})
    for part in (few, none):
        found = audit_pool(sound, train, part, n_classes=10).summary
        assert found["reference"] == "train images, each left out once"
        assert found["memorised"] < 0.02
    assert np.isnan(found["off_class_of_held_out"])


def test_a_class_without_an_image_is_left_open(digits_parts):
    train, held_out, sound = digits_parts
    kept = sound.labels != 9
    pool = ImageSet.of(LabelledImages(sound.images[kept], sound.labels[kept]))
    last = audit_pool(pool, ImageSet.of(train), ImageSet.of(held_out), n_classes=10).summary["classes"][9]
    assert last["images"] == 0
    assert all(np.isnan(last[name]) for name in ("memorised", "near_duplicate", "off_class", "spread"))


def test_coded_images_are_left_out_of_the_share_of_copies(digits_parts):
    train, held_out, sound = digits_parts
    of_class = np.flatnonzero(train.labels == 3)[:20]
    mixed = LabelledImages(
        np.concatenate([sound.images, train.images[of_class]]), np.concatenate([sound.labels, train.labels[of_class]])
    )
    generated = np.arange(len(mixed)) < len(sound)

    def share(**options):
        found = audit_pool(ImageSet.of(mixed), ImageSet.of(train), ImageSet.of(held_out), n_classes=10, **options)
        assert found.images["memorised"][~generated].any() == (not options)
        return found.summary

    alone = audit_pool(ImageSet.of(sound), ImageSet.of(train), ImageSet.of(held_out), n_classes=10).summary
    told, untold = share(generated=generated), share()
    assert told["memorised"] == alone["memorised"] < untold["memorised"]
    assert told["classes"][3]["memorised"] == alone["classes"][3]["memorised"] < untold["classes"][3]["memorised"]
    assert told["classes"][3]["images"] == alone["classes"][3]["images"] + 20


@pytest.mark.parametrize("same", [False, True])
def test_nearest_images_are_those_of_all_pairs(same):
    draw = np.random.default_rng(0)
    references = draw.integers(0, 256, (57, 12)).astype(np.uint8)
    queries = references if same else np.concatenate([references[:3], draw.integers(0, 256, (20, 12)).astype(np.uint8)])
    distances, rows = nearest_images(queries, references, 4, same=same)
    pairs = cdist(queries.astype(float), references.astype(float)) / np.sqrt(12)
    if same:
        np.fill_diagonal(pairs, np.inf)
    np.testing.assert_allclose(distances, np.sort(pairs, axis=1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(pairs, rows, 1), distances, atol=1e-5)
    # A query finds the same alone.
    real = audit._nearest
    few = np.concatenate(
        [real(queries[i : i + 1], references, 4, np.array([i]) if same else None)[0] for i in range(9)]
    )
    np.testing.assert_allclose(few, distances[:9], atol=1e-5)


def test_copies_are_at_no_distance_and_come_in_the_order_of_their_rows():
    points = np.random.default_rng(0).integers(0, 256, (20, 64)).astype(np.uint8)
    distances, rows = nearest_images(points, np.concatenate([points] * 3), 3)
    assert (distances == 0).all()
    assert (rows == np.arange(20)[:, None] + [0, 20, 40]).all()
    # Of three copies each finds the two others, whichever the search returns with them.
    distances, rows = nearest_images(np.repeat(points, 3, axis=0), np.repeat(points, 3, axis=0), 2, same=True)
    assert (distances == 0).all()
    assert rows[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert not (rows == np.arange(60)[:, None]).any()


def test_few_images_of_very_many_pixels_are_compared_exactly():
    points = np.random.default_rng(0).random((5, 2**21 + 1), np.float32)
    distances, rows = nearest_images(points, points, 2, same=True)
    pairs = cdist(points.astype(float), points.astype(float)) / np.sqrt(points.shape[1])
    np.fill_diagonal(pairs, np.inf)
    np.testing.assert_allclose(distances, np.sort(pairs, axis=1)[:, :2], atol=1e-6)
    assert (rows == np.argsort(pairs, axis=1)[:, :2]).all()


def test_spread_is_relative_to_the_real_class():
    real = np.array([[0.0, 0], [2, 0], [5, 5], [5, 5]])
    points = np.array([[0.0, 0], [1, 0], [3, 3], [4, 4]])
    ratios = spread_ratios(points, np.array([0, 0, 1, 1]), real, np.array([0, 0, 1, 1]), 3)
    assert ratios[0] == pytest.approx(0.5)
    assert np.isnan(ratios[1:]).all()


def test_votes_go_to_the_most_frequent_class_and_then_to_the_nearest():
    labels = np.array([0, 1, 1, 2, 2])
    rows = np.array([[0, 1, 2], [0, 1, 3], [3, 1, 0], [4, 3, 0]])
    assert audit._vote(rows, labels, 3).tolist() == [1, 0, 2, 2]


def test_what_cannot_be_audited_is_refused():
    points = ImageSet(np.array([0, 1]), {"pixels": np.zeros((2, 4))})
    nothing = ImageSet(np.zeros(0, int), {"pixels": np.zeros((0, 4))})
    one = ImageSet(np.array([0]), {"pixels": np.zeros((1, 4))})
    seen = ImageSet(np.array([0, 1]), {"pixels": np.zeros((2, 4)), "features": np.zeros((2, 3))})
    with pytest.raises(StageError, match="pool is empty"):
        audit_pool(nothing, points, nothing, n_classes=2)
    with pytest.raises(StageError, match="two training images"):
        audit_pool(points, one, nothing, n_classes=2)
    with pytest.raises(StageError, match="different spaces"):
        audit_pool(seen, points, nothing, n_classes=2)
    with pytest.raises(StageError, match='"pixels"'):
        ImageSet(np.array([0]), {"features": np.zeros((1, 3))})
    with pytest.raises(StageError, match=r"2 labels but pixels of shape \(1, 4\)"):
        ImageSet(np.array([0, 1]), {"pixels": np.zeros((1, 4))})


def test_findings_name_the_worst_classes_first_with_the_threshold():
    def one(name, **values):
        return {"class_name": name, "memorised": 0.0, "near_duplicate": 0.0, "off_class": 0.0, "spread": 1.0} | values

    classes = [one("a", off_class=0.3), one("b", off_class=0.7, memorised=None), one("c", off_class=0.9, spread=0.05)]
    found = findings({"classes": classes}, AuditSettings())
    assert [(f.check, f.severity) for f in found] == [
        ("of_their_class", "error"), ("of_their_class", "warning"), ("no_class_collapsed", "error")
    ]  # fmt: skip
    assert found[0].text == (
        "2 classes with more than 60 % of the images closest to real images of another class: c (90 %), b (70 %)"
    )
    assert found[2].text == "1 class with less than 10 % of the real class's spread: c (5 %)"
    assert findings({"classes": classes}, AuditSettings(off_class_error=1, off_class_warning=0.95, spread_error=0)) == [
        Finding("no_class_collapsed", "warning", "1 class with less than 40 % of the real class's spread: c (5 %)")
    ]
    assert findings({"classes": [one("a")]}, AuditSettings()) == []
