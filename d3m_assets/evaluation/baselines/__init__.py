"""Training sets of equal bytes made from real images: what a distillation has to beat.

One module a baseline; to add one, write its module and list it in :data:`BASELINES`. Codecs have a package of
their own, :mod:`d3m_assets.evaluation.codecs`.
"""

from __future__ import annotations

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages
from d3m_assets.evaluation.baselines.collages import COLLAGES
from d3m_assets.evaluation.baselines.el2n import EL2N
from d3m_assets.evaluation.baselines.encoded import CODED_IMAGES, PACKED_IMAGES, EncodedBaseline
from d3m_assets.evaluation.baselines.herding import HERDING
from d3m_assets.evaluation.baselines.k_center import K_CENTER
from d3m_assets.evaluation.baselines.k_means import K_MEANS
from d3m_assets.evaluation.baselines.latent_means import LATENT_MEANS
from d3m_assets.evaluation.baselines.random_real import RANDOM_REAL

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline for baseline in (RANDOM_REAL, HERDING, K_CENTER, K_MEANS, EL2N, COLLAGES, LATENT_MEANS)
}
"""By their names in ``evaluation.baselines``, in the order of tables."""

ENCODED: dict[str, EncodedBaseline] = {baseline.name: baseline for baseline in (PACKED_IMAGES, CODED_IMAGES)}
"""Baselines that decode their images from the bytes that they are charged, after the others in tables."""

NAMES = (*BASELINES, *ENCODED)
"""All names in ``evaluation.baselines``."""

CODE_VERSION = "1"
"""Raised whenever a change here changes which images are chosen or composed."""

__all__ = ["BASELINES", "CODE_VERSION", "ENCODED", "NAMES", "Baseline", "EncodedBaseline", "RealImages"]
