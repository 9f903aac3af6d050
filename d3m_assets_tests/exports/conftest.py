"""Words of a class and the stock pipeline, as the tests of distillation have them."""

from d3m_assets_tests.distillation.conftest import pipeline, words

__all__ = ["pipeline", "words"]
