import json

import pytest

from d3m_assets.errors import TeacherError
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("config", "preparation", "ask"),
    [
        (DEEP, "{}", "output_names"),
        ("[]", "{}", "output_names"),
        ('{"id2label": ["a", "b"]}', "{}", "output_names"),
        ('{"id2label": 5}', "{}", "output_names"),
        ("{}", DEEP, "image_size"),
        ("{}", "5", "image_size"),
        ('{"image_size": "32"}', "{}", "image_size"),
        ('{"image_size": -1}', "{}", "image_size"),
        ('{"image_size": [[1], [1]]}', "{}", "image_size"),
        ('{"vision_config": 5, "image_size": [32, 33]}', "{}", "image_size"),
        ("{}", '{"size": {}}', "image_size"),
        ("{}", '{"image_mean": "x"}', "pixel_normalization"),
        ("{}", '{"image_std": [NaN]}', "pixel_normalization"),
        ("{}", '{"rescale_factor": {}}', "pixel_normalization"),
    ],
    ids=lambda text: text[:40],
)
def test_a_configuration_that_says_what_none_says_is_a_sentence(tmp_path, config, preparation, ask):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "preprocessor_config.json").write_text(preparation)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TeacherError, match=str(tmp_path)):
        answer = getattr(Checkpoint(tmp_path), ask)
        answer()


def test_what_a_configuration_says_is_taken(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "a"}, "image_size": [32, 32]}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": 0.25}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    read = Checkpoint(tmp_path)
    assert (read.output_names, read.image_size, read.pixel_normalization()) == (["a"], 32, (1.0, [0.5], 0.25))
