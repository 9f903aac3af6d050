import pytest

from d3m_assets_tests.cost_estimate.stand_ins import write_configurations


@pytest.fixture(scope="session")
def sd15(tmp_path_factory):
    """The configurations of Stable Diffusion 1.5, without weights."""
    return write_configurations("sd15", tmp_path_factory.mktemp("sd15") / "stable-diffusion-v1-5")
