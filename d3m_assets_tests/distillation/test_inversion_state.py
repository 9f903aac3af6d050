import os
import time

from d3m_assets.distillation.inversion_state import remove_old_states


def test_old_states_are_removed(tmp_path):
    for name, days in (("old.safetensors", 20), ("old.part", 20), ("new.safetensors", 1)):
        (tmp_path / name).write_text("x")
        then = time.time() - days * 86_400
        os.utime(tmp_path / name, (then, then))
    remove_old_states(tmp_path)
    remove_old_states(tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == ["new.safetensors"]
