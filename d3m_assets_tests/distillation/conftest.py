import pytest

from d3m_assets.datasets.names import class_key
from d3m_assets.distillation.prompts import ClassPrompts


@pytest.fixture
def words():
    def of(name, class_id=None, **changes):
        given = {"templates": ("a photo of a {}",), "initializer": None, "keep_class_name": True} | changes
        number = int(name) if class_id is None else class_id
        return ClassPrompts.of(number, class_key(name) if name else "none", name, **given)

    return of


@pytest.fixture
def pipeline(foundation):
    """The embedded model as a stock diffusers pipeline."""
    import torch
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(foundation.files.path, dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded
