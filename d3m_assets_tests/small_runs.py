"""Settings that make a whole distillation in seconds, and running it without an orchestrator."""

from dataclasses import replace

from d3m_assets.pipeline import Pipeline
from d3m_assets.settings import load_settings

QUICK = {
    "budgets": ("ipc-1", "ipc-3"), "inversion.steps": 3, "inversion.samples_per_step": 4,
    "generation.images_per_class": 6, "generation.steps": 2, "generation.batch_size": 6,
    "workers": 1, "students.steps": 4, "students.width": 4, "students.batch_size": 8, "students.seeds": (0, 1),
    "audit.steps": 3, "evaluation.baselines": ("random",), "evaluation.distillations": 1,
    "selection.criterion": "none", "inversion.storage_type": "int8",
}  # fmt: skip

SELECTED = {"selection.criterion": "centres", "inversion.storage_type": "int4"}
"""As by default: three candidates for each sample that is kept."""


SOFT = {
    "evaluation.labels": "soft teacher,hard,soft stored", "teacher.steps": 40, "teacher.width": 4,
    "teacher.learning_rate": 0.02, "validation_fraction": 0.3,
}  # fmt: skip


def open_pipeline(tmp_path, folder, **changes):
    return Pipeline(load_settings(dataset=str(folder), home=tmp_path / "home", **(QUICK | changes)))


def run(pipeline, assets=None):
    """Work through the plan as the launcher does, or through that of some assets; return the keys that were made."""
    plan = pipeline.plan()
    if assets is not None:
        plan = replace(plan, entries=[entry for entry in plan.entries if entry.key.asset in assets])
    tally = pipeline.work_through(plan)
    assert not tally.failed, tally.failed[0].error
    return tally.made
