import numpy as np
import pytest
import torch

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import DatasetError
from d3m_assets.evaluation import students
from d3m_assets.evaluation.augmentation import (
    AUGMENTATION,
    Augmentation,
    affine_warp,
    cutmix,
    random_resized_crop,
)
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.evaluation.students import (
    build_student,
    class_accuracies,
    evaluate,
    student_image_size,
    train_student,
)


def _weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _squares(n=6, size=8, channels=1, **kwargs):
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return LabelledImages(images, np.arange(n) % 2, **kwargs)


def test_default_recipe_learns_the_whole_train_split(train_digits):
    """On a validation part of the train split; the issue of this recipe asks for about 99 %."""
    data = train_digits.resized(16, 1)
    order = np.random.default_rng(5).permutation(len(data))
    held_out, used = order[:130], order[130:]
    model = train_student(LabelledImages(data.images[used], data.labels[used]), StudentSettings(), n_classes=10, seed=0)
    validation = LabelledImages(data.images[held_out], data.labels[held_out], "validation")
    assert (evaluate(model, validation) == validation.labels).mean() >= 0.97


def test_same_seed_same_student_other_seed_another(train_digits, quick):
    data = train_digits.resized(16, 1)
    torch.manual_seed(123)
    first = train_student(data, quick, n_classes=10, seed=3)
    torch.manual_seed(321)
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    again = train_student(data, quick, n_classes=10, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.equal(_weights(first), _weights(again))
    assert not torch.equal(_weights(first), _weights(train_student(data, quick, n_classes=10, seed=4)))


def test_every_training_set_gets_the_same_number_of_steps_and_batch(monkeypatch, quick, train_digits):
    seen = []
    monkeypatch.setattr(
        students, "affine_warp", lambda images, *a, **k: seen.append(len(images)) or affine_warp(images, *a, **k)
    )
    for n in (3, 200):
        part = LabelledImages(train_digits.images[:n], train_digits.labels[:n]).resized(16, 1)
        train_student(part, quick, n_classes=10, seed=0)
    assert seen == [quick.batch_size] * quick.steps * 2


def test_batches_are_epochs_without_replacement():
    stream = torch.cat(list(students._batch_indices(5, 4, 10, torch.Generator().manual_seed(0))))
    epochs = stream.reshape(-1, 5)
    assert [sorted(e) for e in epochs.tolist()] == [[0, 1, 2, 3, 4]] * 8
    assert len({tuple(e) for e in epochs.tolist()}) > 1


def test_warp_without_limits_is_the_identity_and_moves_by_the_limits_otherwise():
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(0)
    still = affine_warp(images, Augmentation(0, 0, 0, 0), draw, flip=False)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    moved = affine_warp(images, AUGMENTATION, draw, flip=False)
    assert (moved - images).abs().mean() > 0.01
    assert not torch.equal(moved[0], moved[1])


def test_flip_mirrors_some_images_left_to_right():
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    warped = affine_warp(images, Augmentation(0, 0, 0, 0), torch.Generator().manual_seed(0), flip=True)
    kept = (warped - images).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (warped - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert (kept | mirrored).all()
    assert 5 < mirrored.sum() < 27


def test_crops_keep_half_to_all_of_the_area_and_stay_inside():
    axis = torch.arange(32.0)
    ramps = torch.stack([axis.expand(32, 32), axis.expand(32, 32).T]).expand(400, 2, 32, 32).contiguous()
    cropped = random_resized_crop(ramps, torch.Generator().manual_seed(0), flip=False)
    assert cropped.min() >= 0 and cropped.max() <= 31
    # Inside the outermost pixels a crop of a ramp is a ramp whose slope is its share of the side.
    width = (cropped[:, 0, 16, 30] - cropped[:, 0, 16, 1]) / 29
    height = (cropped[:, 1, 30, 16] - cropped[:, 1, 1, 16]) / 29
    area, aspect = width * height, width / height
    assert 0.49 < area.min() < 0.55 and 0.9 < area.max() < 1.01
    assert 0.74 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.34
    mirrored = random_resized_crop(ramps, torch.Generator().manual_seed(0), flip=True)
    assert 100 < (mirrored[:, 0, 16, 30] < mirrored[:, 0, 16, 1]).sum() < 300


def test_cutmix_takes_one_box_of_another_image_and_knows_its_share():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16)
    draw = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(50):
        mixed, partner, share = cutmix(images, draw)
        other = partner != torch.arange(8)
        own = (mixed == images).float().mean((1, 2, 3))
        assert torch.allclose(own[other], torch.full((int(other.sum()),), share))
        assert (mixed[0] == images[0]).logical_or(mixed[0] == images[partner[0]]).all()
        shares.append(share)
    assert min(shares) < 0.4 and max(shares) > 0.9


def test_a_mixed_image_is_learned_as_what_it_shows(train_digits, monkeypatch):
    chosen = np.flatnonzero(train_digits.labels < 2)
    data = LabelledImages(train_digits.images[chosen], train_digits.labels[chosen]).resized(16, 1)
    settings = StudentSettings(width=8, steps=60, batch_size=len(data), cutmix=1.0)
    # With a box as large as the image, only the label of the image it comes from counts: that of one fixed image here.
    monkeypatch.setattr(students, "cutmix", lambda images, draw: (images, torch.zeros(len(images), dtype=int), 0.0))
    monkeypatch.setattr(
        students, "_batch_indices", lambda n, size, steps, draw: (torch.arange(n) for _ in range(steps))
    )
    model = train_student(data, settings, n_classes=2, seed=0)
    assert (evaluate(model, data) == data.labels[0]).all()


@pytest.mark.parametrize("recipe", ["hard-label", "soft-label"])
def test_the_recipes_of_the_field_learn(recipe, train_digits):
    chosen = np.flatnonzero(train_digits.labels < 3)
    data = LabelledImages(train_digits.images[chosen], train_digits.labels[chosen]).resized(16, 1)
    settings = StudentSettings(recipe=recipe, width=8, steps=150)
    first, again = (train_student(data, settings, n_classes=3, seed=1) for _ in range(2))
    assert torch.equal(_weights(first), _weights(again))
    assert (evaluate(first, data) == data.labels).mean() > 0.9


def test_schedules_end_where_they_say():
    model = torch.nn.Linear(1, 1)
    for recipe, expected in (("quick", 0.0), ("hard-label", 0.01 * 0.2**2)):
        settings = StudentSettings(recipe=recipe, steps=12)
        optimizer, schedule = students._optimizer_and_schedule(model, settings)
        rates = []
        for _ in range(12):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12)
    assert np.round(rates, 6).tolist() == [0.01] * 8 + [0.002] * 2 + [0.0004] * 2


def test_rotation_turns_by_at_most_its_limit_and_keeps_the_shape():
    dot = torch.zeros(64, 1, 33, 33)
    dot[:, :, 16, 27:30] = 1
    turned = affine_warp(dot, Augmentation(90, 0, 0, 0), torch.Generator().manual_seed(0), flip=False)
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    mass = turned.sum((1, 2, 3))
    y, x = (turned[:, 0] * rows).sum((1, 2)) / mass, (turned[:, 0] * columns).sum((1, 2)) / mass
    torch.testing.assert_close(torch.hypot(x, y), torch.full((64,), 12.0), atol=0.4, rtol=0)
    angles = torch.atan2(y, x).rad2deg()
    assert angles.min() > -92 and angles.max() < 92
    assert angles.max() - angles.min() > 90


@pytest.mark.parametrize(
    ("height", "width", "size"), [(8, 8, 16), (16, 16, 16), (17, 40, 24), (28, 28, 32), (224, 300, 64)]
)
def test_image_size_follows_the_dataset(height, width, size):
    assert student_image_size(StudentSettings(), height, width) == size
    assert student_image_size(StudentSettings(image_size=20), height, width) == 20


@pytest.mark.parametrize("size", [8, 16, 20])
def test_student_takes_any_size_from_eight(size):
    model = build_student(StudentSettings(width=4), n_classes=3, channels=3, image_size=size)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_student_ignores_brightness_and_contrast():
    """Why the augmentation has neither."""
    torch.manual_seed(0)
    conv_norm = build_student(StudentSettings(), 2, 1, 16)[:2]
    image = torch.rand(1, 1, 16, 16)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    a, b = (conv_norm(x)[inside].flatten() for x in (padded, 0.6 * padded + 0.2))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.99


def test_evaluate_does_not_depend_on_the_batch(quick, train_digits):
    data = train_digits.resized(16, 1)
    model = train_student(data, quick, n_classes=10, seed=0)
    part = LabelledImages(data.images[:50], data.labels[:50])
    predictions = evaluate(model, part)
    assert predictions.dtype == np.int64
    assert (predictions == evaluate(model, part, batch_size=7)).all()


def test_progress_ends_at_the_total(quick, train_digits):
    events = []
    train_student(train_digits.resized(16, 1), quick, n_classes=10, seed=0, progress=events.append)
    assert [e.done for e in events] == [50, 60]
    assert {e.total for e in events} == {60}


def test_class_accuracies():
    result = class_accuracies(np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), 3)
    assert result[:2] == [0.5, 0.5]
    assert np.isnan(result[2])


def test_training_sets_that_do_not_fit_are_refused(quick):
    good = _squares(4, 16)
    with pytest.raises(DatasetError, match="test split"):
        train_student(_squares(4, 16, split="test"), quick, n_classes=2, seed=0)
    with pytest.raises(DatasetError, match="labels run from 0 to 1 for 1 classes"):
        train_student(good, quick, n_classes=1, seed=0)
    with pytest.raises(DatasetError, match="square"):
        train_student(LabelledImages(good.images[:, :8], good.labels), quick, n_classes=2, seed=0)
