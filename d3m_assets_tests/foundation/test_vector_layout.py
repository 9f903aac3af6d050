import torch

from d3m_assets.foundation.vector_layout import VectorLayout


def test_every_part_has_the_norm_of_its_own_table():
    layout = VectorLayout((3, 5), (0.4, 2.0))
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    unit = layout.unit(rows)
    scaled = layout.scaled(unit)
    for part, raw, norm in zip(layout.split(scaled), layout.split(rows), layout.norms, strict=True):
        assert torch.allclose(part.norm(dim=-1), torch.full((4,), norm))
        assert torch.allclose(torch.nn.functional.cosine_similarity(part, raw), torch.ones(4))
    assert layout.width == 8
