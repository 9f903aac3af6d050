import torch

from d3m_assets.foundation.tokens import TokenTable


def test_rows_are_sums_of_words_and_images_at_the_norm_of_the_table():
    table = TokenTable(torch.randn(10, 8), norm=2.0)
    images = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    table.merge([[1], [2, 3], [], [4]], images, torch.tensor([0.0, 0.0, 1.0, 0.5]))
    out = table(torch.tensor([1, 10, 11, 12, 13]))
    assert torch.allclose(out[0], out[1], atol=1e-6)
    total = table.weight[2] + table.weight[3]
    assert torch.allclose(out[2], 2 * total / total.norm(), atol=1e-5)
    assert torch.allclose(out[3], 2 * images[2], atol=1e-5)
    total = table.weight[4] + 0.5 * images[3]
    assert torch.allclose(out[4], 2 * total / total.norm(), atol=1e-5)
