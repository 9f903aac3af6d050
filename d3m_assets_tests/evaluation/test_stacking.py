"""Networks side by side: the same outputs, gradients and trained students as one after another."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import DatasetError, StageError
from d3m_assets.evaluation.architectures import as_tensor, build_student
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.evaluation.stacking import stack_networks, unstack_networks
from d3m_assets.evaluation.students import evaluate, train_student, train_students

ARCHITECTURES = [("convnet-3", 8), ("resnet-18", 8)]


def _networks(architecture, width, count=3):
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(build_student(StudentSettings(architecture=architecture, width=width), 5, 1, 16))
    return found


@pytest.mark.parametrize(("architecture", "width"), ARCHITECTURES)
def test_a_stack_gives_the_logits_and_gradients_of_its_networks(architecture, width):
    networks = _networks(architecture, width)
    joined = stack_networks(networks).train()
    images = torch.rand(6, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = joined(images.flatten(1, 2))
    assert logits.shape == (6, 3, 5)
    weights = torch.rand(6, 5, generator=torch.Generator().manual_seed(1))
    (logits * weights[:, None]).sum().backward()
    copies = [copy.deepcopy(network) for network in networks]
    unstack_networks(joined, copies)
    for position, network in enumerate(networks):
        alone = network.train()(images[:, position])
        torch.testing.assert_close(logits[:, position], alone, atol=1e-5, rtol=1e-4)
        (alone * weights).sum().backward()
        for (name, own), joint in zip(network.named_parameters(), joined.parameters(), strict=True):
            torch.testing.assert_close(
                joint.grad.chunk(3)[position], own.grad, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
            )
        # Also what is no parameter, such as running means, goes back to its own network.
        for own, back in zip(network.state_dict().values(), copies[position].state_dict().values(), strict=True):
            torch.testing.assert_close(own, back, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "width"), ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"augmentation": "crop", "cutmix": 1.0, "optimizer": "sgd"}])
def test_students_trained_together_are_those_trained_alone(architecture, width, changes, train_digits):
    sets = [LabelledImages(train_digits.images[i::7], train_digits.labels[i::7]).resized(16, 1) for i in range(3)]
    rate = 5e-3 if architecture == "convnet-3" else 1e-3
    settings = StudentSettings(architecture=architecture, width=width, steps=12, learning_rate=rate, **changes)
    together = train_students(sets, settings, n_classes=10, seeds=[4, 2, 9])
    shown = as_tensor(train_digits.resized(16, 1).images[:200])
    for train, seed, student in zip(sets, [4, 2, 9], together, strict=True):
        alone = train_student(train, settings, n_classes=10, seed=seed)
        with torch.inference_mode():
            wanted, found = alone(shown), student(shown)
        assert (wanted - found).abs().max() < 0.02 * wanted.abs().max()
        assert (wanted.argmax(1) == found.argmax(1)).float().mean() > 0.98
    # And they differ from each other: nobody was given another's weights.
    assert (together[0](shown) - together[1](shown)).abs().max() > 0.5


def test_a_stack_asks_the_teacher_about_each_students_own_images(train_digits, quick):
    sets = [LabelledImages(train_digits.images[:60], np.full(60, k)).resized(16, 1) for k in (0, 1)]

    def dark_or_bright(batch):
        """Class 2 for the first student's batch, which is told from the second's by its position."""
        labels = torch.full((len(batch),), 2)
        labels[len(batch) // 2 :] = 3
        return torch.eye(10)[labels]

    first, second = train_students(sets, quick, n_classes=10, seeds=[0, 1], labeller=dark_or_bright)
    assert (evaluate(first, sets[0]) == 2).all()
    assert (evaluate(second, sets[1]) == 3).all()


def test_attention_is_not_stacked_and_its_students_are_bit_equal_to_those_alone(train_digits):
    data = LabelledImages(train_digits.images[:40], train_digits.labels[:40]).resized(16, 1)
    settings = StudentSettings(architecture="vit-small", width=16, steps=3)
    events = []
    together = train_students([data, data], settings, n_classes=10, seeds=[0, 1], progress=events.append)
    for seed, student in enumerate(together):
        alone = train_student(data, settings, n_classes=10, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), alone.parameters(), strict=True))
    assert [(e.done, e.total) for e in events] == [(3, 6), (6, 6)]


def test_what_cannot_be_stacked_is_refused(train_digits, quick):
    with pytest.raises(StageError, match="LayerNorm cannot be stacked; train them one after another"):
        stack_networks([nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(4))] * 2)
    small, large = train_digits.resized(16, 1), train_digits.resized(24, 1)
    with pytest.raises(DatasetError, match="one size"):
        train_students([small, large], quick, n_classes=10, seeds=[0, 1])
