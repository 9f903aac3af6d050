import numpy as np

from d3m_assets.evaluation.baselines.latent_means import latent_means


def test_latent_means_are_the_middles_of_clusters():
    draw = np.random.default_rng(0)
    latents = np.concatenate([draw.normal(m, 0.1, (10, 2, 3, 3)) for m in (-5, 5)]).astype(np.float16)
    means = latent_means(latents, 2, seed=0)
    assert means.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(sorted(means.mean((1, 2, 3))), [-5, 5], atol=0.05)
    assert (latent_means(latents, 50, seed=0) == latents).all()
