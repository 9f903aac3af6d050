import numpy as np
import pytest
import torch
from torch import nn

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import StageError
from d3m_assets.evaluation.architectures import as_tensor, build_student, last_features
from d3m_assets.evaluation.augmentation import Augmentation
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.evaluation.students import evaluate, train_student

SMALL = {"convnet-3": 4, "resnet-18": 4, "vit-small": 8}


@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (20, 1)])
def test_every_architecture_takes_small_images_and_gives_logits(architecture, size, channels):
    settings = StudentSettings(architecture=architecture, width=SMALL[architecture])
    torch.manual_seed(0)
    model = build_student(settings, 3, channels, size).eval()
    logits = model(torch.rand(2, channels, size, size))
    assert logits.shape == (2, 3)
    torch.manual_seed(0)
    again = build_student(settings, 3, channels, size).eval()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_convnet_is_the_plain_stack_with_the_weights_of_its_seed():
    """Failure prevented: a moved layer draws other weights, and every stored figure silently changes."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for n_in in (1, 32, 32):
        layers += [nn.Conv2d(n_in, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2)]
    plain = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 10))
    torch.manual_seed(3)
    ours = build_student(StudentSettings(), 10, 1, 16)
    x = torch.rand(4, 1, 16, 16)
    assert torch.equal(ours(x), plain(x))
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_resnet_18_is_that_of_the_paper_but_for_its_stem():
    model = build_student(StudentSettings(architecture="resnet-18", width=64), 1000, 3, 32)
    stem = model.resnet.embedder.embedder.convolution
    assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))
    # 11,689,512 in the paper's version, whose stem has 7 x 7 weights instead of 3 x 3.
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 - 64 * 3 * (49 - 9)
    with torch.inference_mode():
        maps = model.resnet(torch.rand(1, 3, 32, 32)).last_hidden_state
    assert maps.shape == (1, 512, 4, 4)


@pytest.mark.parametrize(("architecture", "width", "steps"), [("resnet-18", 16, 30), ("vit-small", 64, 80)])
def test_the_other_architectures_learn(architecture, width, steps, train_digits):
    chosen = np.flatnonzero(train_digits.labels < 2)
    data = LabelledImages(train_digits.images[chosen], train_digits.labels[chosen]).resized(16, 1)
    settings = StudentSettings(architecture=architecture, width=width, steps=steps)
    first = train_student(data, settings, n_classes=2, seed=0, augmentation=Augmentation(0, 0, 0, 0))
    assert (evaluate(first, data) == data.labels).mean() > 0.9
    again = train_student(data, settings, n_classes=2, seed=0, augmentation=Augmentation(0, 0, 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("architecture", SMALL)
def test_features_are_what_the_last_layer_sees(architecture):
    torch.manual_seed(0)
    model = build_student(StudentSettings(architecture=architecture, width=SMALL[architecture]), 3, 1, 16).eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), dtype=np.uint8)
    features = last_features(model, images, batch_size=3)
    assert features.dtype == np.float32 and len(features) == 7
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.inference_mode():
        torch.testing.assert_close(last(torch.from_numpy(features)), model(as_tensor(images)))
    assert not model._forward_pre_hooks and not last._forward_pre_hooks


def test_a_network_without_a_linear_layer_has_no_features():
    with pytest.raises(StageError, match="no linear layer"):
        last_features(nn.Sequential(nn.Conv2d(1, 2, 3)), np.zeros((1, 8, 8, 1), np.uint8))
