import pytest

from d3m_assets.distillation.prompts import ClassPrompts


@pytest.fixture
def words():
    def of(name, class_id=None, **changes):
        given = {"templates": ("a photo of a {}",), "initializer": None, "keep_class_name": True} | changes
        return ClassPrompts.of(int(name) if class_id is None else class_id, name, name, **given)

    return of
