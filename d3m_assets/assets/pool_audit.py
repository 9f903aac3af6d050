"""``pool_audit``: faults of the synthetic pool, found before anything is trained on it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import to_json, to_parquet
from d3m_assets.assets.image_codes import ImageCodes
from d3m_assets.assets.measuring import CODE_VERSION
from d3m_assets.assets.payload_choice import PayloadChoice, chosen_parts, read_distilled
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.student_metrics import synthetic_images
from d3m_assets.assets.synthetic_pool import SyntheticPool
from d3m_assets.compute.devices import one_thread
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.distillation.settings import BOTH, PROMPTS
from d3m_assets.errors import D3MError
from d3m_assets.evaluation import audit
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.exports.image_record import CODED
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.progress import ProgressEvent
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from d3m_assets.evaluation.audit import ImageSet

TABLE, SUMMARY = "images.parquet", "audit.json"
SCORES = ("precision", "recall", "density", "coverage")


class PoolAudit(Asset):
    """Faults of the selected samples of a budget: copies of training images, repeats, images of another class, collapse."""

    group = "evaluation"
    partitions = ("budget",)
    deps = (SyntheticPool, SampleSelection, ImageCodes, PayloadChoice, RawDataset)
    kinds = frozenset({"pytorch", "scikitlearn"})
    code_version = f"{audit.CODE_VERSION}.{CODE_VERSION}"
    device = True
    checks = (
        Check("not_memorised", "No class of a pool is made of copies of training images."),
        Check("no_near_duplicates", "No class of a pool repeats itself."),
        Check("of_their_class", "The images of every class look like real ones of that class."),
        Check("no_class_collapsed", "Every class of a pool varies about as much as the real one."),
    )

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The network that sees features, and how neighbours are counted; not from where on they are reported."""
        students, settings = context.settings.students, context.settings.audit
        # The table of a budget that has both is another than the one of prompts or codes.
        both = {"table": "with origin"} if context.settings.payload == BOTH else {}
        return both | {
            "audit": settings.model_dump(mode="json", include={"steps", "quantile", "neighbours"}),
            "network": {
                "image_size": students.image_size,
                "flip": students.flip,
                "seed": context.settings.seed,
            },
            "device": context.device_kind,
            "image": context.image_shape,
        }

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Audit the pools of budgets against the train split and the validation part; never the test split."""
        context.progress(ProgressEvent(self.name, 0, len(items), "training the network that sees features"))
        try:
            real = _RealSide(context)
        except D3MError as error:
            yield from (Made(item.key, error=error) for item in items)
            return
        for done, item in enumerate(items):
            context.progress(ProgressEvent(self.name, done, len(items), item.label))
            try:
                yield _audited(context.for_item(item), item, real)
            except D3MError as error:
                yield Made(item.key, error=error)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The faults of every class."""
        import pandas as pd

        summary = read_audit(context, item.key)
        return {"rows": summary["images"], "classes_table": pd.DataFrame(summary["classes"])}

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """What the audit found beyond the thresholds of the settings."""
        from d3m_assets.evaluation.audit import findings

        for finding in findings(read_audit(context, item.key), context.settings.audit):
            yield Finding(finding.text, finding.severity, finding.check)


def read_audit(context: Context, key: ArtefactKey) -> dict[str, Any]:
    """The stored summary of an audit; null for what is not a number."""
    summary: dict[str, Any] = json.loads(context.inputs.read(key, SUMMARY))
    return summary


class _RealSide:
    """What pools are compared with: real images as pixels and as features of a network trained on the train split."""

    def __init__(self, context: Context) -> None:
        from d3m_assets.evaluation.audit import ImageSet

        self.rows = image_rows(context, "train")
        self._train = labelled_images(context, self.rows, "train")
        self._network, self._side = feature_network(context, self._train)
        self.train = self.seen(self._train)
        held_out = image_rows(context, "validation")
        if len(held_out):
            self.held_out = self.seen(labelled_images(context, held_out, "validation"))
        else:
            spaces = {name: points[:0] for name, points in self.train.spaces.items()}
            self.held_out = ImageSet(self.train.labels[:0], spaces)

    def seen(self, images: LabelledImages) -> ImageSet:
        """Images as pixels, at the size real ones are stored in, and as features."""
        from d3m_assets.evaluation.architectures import last_features
        from d3m_assets.evaluation.audit import ImageSet

        height, width, channels = self._train.images.shape[1:]
        features = last_features(self._network, images.resized(self._side, channels).images)
        return ImageSet.of(images.resized(min(height, width), channels), features)


def feature_network(context: Context, train: LabelledImages) -> tuple[torch.nn.Module, int]:
    """The network whose features are compared, and the side in px of its input: a ConvNet-3 trained on the train split."""
    from d3m_assets.evaluation.students import student_image_size, train_student

    students = context.settings.students
    settings = StudentSettings(steps=context.settings.audit.steps, image_size=students.image_size, flip=students.flip)
    side = student_image_size(settings, *train.images.shape[1:3])
    network = train_student(
        train.resized(side, train.images.shape[3]),
        settings,
        n_classes=len(context.dataset.classes),
        seed=context.settings.seed,
        device=context.device,
    )
    return network, side


def _audited(context: Context, item: Item, real: _RealSide) -> Made:
    import pandas as pd

    from d3m_assets.evaluation.audit import COPIES, audit_pool

    catalog, settings = context.dataset.catalog, context.settings.audit
    pool, parts = real.seen(synthetic_images(context, item.budget.name)), chosen_parts(context, item.budget.name)
    tables = [read_distilled(context, c.key, item.budget.name) for c in context.dataset.classes]
    rows = pd.concat([table.drop(columns="image") for table in tables])
    with one_thread():
        found = audit_pool(
            pool,
            real.train,
            real.held_out,
            n_classes=len(catalog),
            quantile=settings.quantile,
            neighbours=settings.neighbours,
            # That codes are copies is meant.
            generated=(rows["origin"] != CODED).to_numpy() if len(parts) > 1 else None,
        )
    summary = found.summary | _scores(real.train, pool, len(catalog))
    by_class = zip(catalog["class_name"], summary.pop("class_scores"), summary["classes"], strict=True)
    summary["classes"] = [{"class_name": name, **c, **scored} for name, scored, c in by_class]
    if PROMPTS not in parts:
        summary[COPIES] = True
    table = _with_names(found.images, rows["index"].to_numpy(), catalog, real.rows)
    if len(parts) > 1:
        table.insert(list(table.columns).index("index") + 1, "origin", rows["origin"].to_numpy())
    files = {TABLE: to_parquet(table), SUMMARY: to_json(_without_nan(summary))}
    metrics = {name: summary[name] for name in ("images", "memorised", "near_duplicate", "off_class", *SCORES)}
    spreads = [c["spread"] for c in summary["classes"] if not math.isnan(c["spread"])]
    return Made(item.key, files, metrics | {"smallest spread": min(spreads, default=float("nan"))})


def _scores(real: ImageSet, pool: ImageSet, n_classes: int) -> dict[str, Any]:
    """Precision, recall, density and coverage of a pool in features, together and of every class."""
    from d3m_assets.evaluation.scores import NEIGHBOURS, class_coverage, coverage_scores

    generated, theirs = pool.spaces["features"], real.spaces["features"]
    classes = class_coverage(theirs, real.labels, generated, pool.labels, n_classes=n_classes)
    return {
        **asdict(coverage_scores(theirs, generated)),
        "scores_k": NEIGHBOURS,
        "class_scores": [asdict(c) for c in classes],
    }


def _with_names(images: pd.DataFrame, indices: np.ndarray, catalog: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Positions replaced by what they stand for: classes by id and name, training images by their path."""
    import pandas as pd

    label = images["label"].to_numpy()
    named = {
        "class_id": catalog["class_id"].to_numpy()[label],
        "class_name": catalog["class_name"].to_numpy()[label],
        "index": indices,
        "judged_class": catalog["class_name"].to_numpy()[images["judged_class"].to_numpy()],
    }
    paths = train["relative_path"].to_numpy()
    named |= {name: paths[images[name].to_numpy()] for name in images.columns if name.endswith("_nearest")}
    others = images.drop(columns=["label", *(n for n in named if n in images)])
    return pd.DataFrame(named).join(others)


def _without_nan(value: Any) -> Any:
    """The same with null for what is not a number, which JSON cannot write."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
