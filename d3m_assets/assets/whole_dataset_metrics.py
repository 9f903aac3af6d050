"""``whole_dataset_metrics``: the most that can be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json
from d3m_assets.assets.measuring import TABLE_CODE_VERSION, MeasuredAsset
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.assets.rows import Row, rows_of
from d3m_assets.assets.teacher_model import TeacherFiles, TeacherModel, loaded_teacher
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.evaluation.methods import WHOLE_TRAIN
from d3m_assets.planning.asset import Asset

TEACHER_FILE = "teacher.json"
"""Where a row asks the teacher: its accuracy on the test split."""


class WholeDatasetMetrics(MeasuredAsset):
    """Students trained on the whole train split: the most that can be reached."""

    deps = (RawDataset, TeacherModel)
    code_version = f"{TABLE_CODE_VERSION}.1"

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """The teacher only where labels are soft."""
        return self.deps if context.settings.evaluation.has_soft_labels else (RawDataset,)

    def rows(self, context: Context, item: Item) -> tuple[list[Row], Mapping[str, bytes]]:
        """The whole train split."""
        train = labelled_images(context, image_rows(context, "train"), "train")
        return rows_of(context, WHOLE_TRAIN, lambda kind: lambda seed: train), {}

    def teacher_files(self, context: Context, teacher: TeacherFiles, test: LabelledImages) -> Mapping[str, bytes]:
        """How often the teacher is right on the test split: what soft labels know, and no row of the table."""
        from d3m_assets.evaluation.teacher import agreement

        _, judged = agreement(loaded_teacher(teacher, context.device), test.images, test.labels)
        return {TEACHER_FILE: to_json({"accuracy": float((judged == test.labels).mean()), "images": len(test)})}
