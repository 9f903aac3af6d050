import torch

from d3m_assets.distillation.random_streams import random_stream


def test_streams_depend_on_every_part():
    def draw(*parts):
        return torch.rand(3, generator=random_stream(*parts)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({tuple(draw(*p)) for p in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]}) == 4
