import os
import time

import numpy as np
import pytest

from d3m_assets.distillation import inversion_state
from d3m_assets.distillation.budgets import plan_embeddings
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import remove_old_states
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.vectors import to_stored
from d3m_assets_tests.distillation.inversions import QUICK, learned, task


def test_a_stopped_run_goes_on_where_it_was(foundation, words, characters, tmp_path):
    plan = plan_embeddings("ipc-2", 128, width=64)
    tasks = [task(words, characters, name, plan) for name in "47"]
    settings = InversionSettings(steps=12, samples_per_step=8, check_every=4)
    undisturbed = learned(foundation, tasks, settings, states=tmp_path / "a", classes_per_batch=2)

    class Stop(Exception):
        pass

    for stop_at in (1, 5, 8, 11):
        folder = tmp_path / str(stop_at)
        seen = []

        def stopping(event, stop_at=stop_at, seen=seen):
            seen.append(event.done)
            if len(seen) == stop_at:
                raise Stop

        with pytest.raises(Stop):
            list(invert(foundation, tasks, settings, 0, stopping, classes_per_batch=2, states=folder, save_every=0))
        assert len(list(folder.glob("*.safetensors"))) == 2
        steps = []
        again = learned(
            foundation,
            tasks,
            settings,
            states=folder,
            classes_per_batch=2,
            progress=lambda e, steps=steps: steps.append(e.done),
        )
        assert len(steps) == 12 - stop_at
        for a, b in zip(undisturbed, again, strict=True):
            assert a.vectors.tobytes() == b.vectors.tobytes()
            assert a.losses == b.losses
        # What is finished is kept until the caller has stored it: another run needs no step.
        steps.clear()
        third = learned(
            foundation, tasks, settings, states=folder, progress=lambda e, steps=steps: steps.append(e.done)
        )
        assert steps == []
        assert [t.vectors.tobytes() for t in third] == [u.vectors.tobytes() for u in undisturbed]
        assert {t.state for t in third} == set(folder.glob("*"))


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:-4] + b"\1\2\3\4", lambda b: b""])
def test_a_damaged_state_is_begun_anew(foundation, words, characters, tmp_path, damage, caplog):
    plan = plan_embeddings("ipc-1", 64, width=64)
    work = [task(words, characters, "4", plan)]
    (undisturbed,) = learned(foundation, work)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(invert(foundation, work, QUICK, 0, stop, states=tmp_path, save_every=0))
    (state,) = tmp_path.glob("*")
    state.write_bytes(damage(state.read_bytes()))
    (again,) = learned(foundation, work, states=tmp_path)
    assert "begins anew" in caplog.text
    assert again.vectors.tobytes() == undisturbed.vectors.tobytes()


def test_the_best_rows_are_kept(foundation, words, characters, monkeypatch):
    plan = plan_embeddings("ipc-1", 64, width=64)
    seen = {}
    record = inversion_state.ClassState.record

    def noting(self, loss):
        seen[self.step] = self.rows.clone()
        record(self, loss + 0.01 * abs(self.step - 5))  # so that it is neither the first nor the last

    monkeypatch.setattr(inversion_state.ClassState, "record", noting)
    settings = InversionSettings(steps=8, samples_per_step=4, check_every=1, learning_rate=0.01)
    (found,) = learned(foundation, [task(words, characters, "3", plan)], settings)
    best = min(found.losses, key=lambda record: record[1])
    assert found.best_step == best[0] == 5
    assert len(found.losses) == len(seen) == 9
    assert np.array_equal(found.vectors, to_stored(seen[best[0]].view(1, 1, 64).numpy(), plan, (64,)))
    assert not np.array_equal(found.vectors, to_stored(seen[8].view(1, 1, 64).numpy(), plan, (64,)))


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_state(foundation, words, characters, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    work = [task(words, characters, "4", plan_embeddings("ipc-1", 64, width=64))]
    learned(foundation, work, states=tmp_path / "file" / "states", save_every=0)
    assert "cannot be kept" in caplog.text


def test_a_state_that_another_version_laid_out_otherwise_is_passed_over(
    foundation, words, characters, tmp_path, caplog
):
    from safetensors.torch import load_file, save_file

    work = [task(words, characters, "4", plan_embeddings("ipc-1", 64, width=64))]
    (undisturbed,) = learned(foundation, work, states=tmp_path)
    (state,) = tmp_path.glob("*")
    tensors = load_file(state)
    names = {"rows": "rows", "best_rows": "best", "exp_avg": "first", "exp_avg_sq": "second"}
    old = {names[name]: tensor for name, tensor in tensors.items()}
    counters = '{"step": 6, "best_step": 6, "losses": [[0, 1.0], [6, 0.5]], "checks_without_progress": 0}'
    save_file(old, state, metadata={"state": counters, "sha256": inversion_state._digest(old)})
    steps = []
    with caplog.at_level("INFO"):
        (again,) = learned(foundation, work, states=tmp_path, progress=lambda event: steps.append(event.done))
    assert "class 4" in caplog.text
    assert "another version's; it begins anew" in caplog.text
    assert len(steps) == 6
    assert again.vectors.tobytes() == undisturbed.vectors.tobytes()


def test_old_states_are_removed(tmp_path):
    """The folder is the user's choice: nothing in it is removed that the inversion did not write."""
    old, new = "0" * 32, "1" * 32
    kept = [f"{new}.safetensors", "model.safetensors", "notes.txt", f"{old}.part"]
    for name, days in [
        (f"{old}.safetensors", 20),
        (f"{old}.0123abcd.part", 20),
        (kept[0], 1),
        *((name, 20) for name in kept[1:]),
    ]:
        (tmp_path / name).write_text("x")
        then = time.time() - days * 86_400
        os.utime(tmp_path / name, (then, then))
    remove_old_states(tmp_path)
    remove_old_states(tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
