"""``foundation_metrics``: what the foundation model teaches without any inversion."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from d3m_assets.assets.class_prompts import ClassPrompts, read_prompts
from d3m_assets.assets.context import Context, Item, replicate_seed
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.measuring import TABLE_CODE_VERSION, MeasuredAsset
from d3m_assets.assets.raw_dataset import RawDataset
from d3m_assets.assets.rows import (
    Row,
    at_equal_ipc,
    images_allowed_fingerprint,
    kept_images,
    of_replicates,
    rows_of,
    training_set,
)
from d3m_assets.assets.synthetic_pool import (
    class_name_generation,
    class_name_job,
    generate_images,
    generation_fingerprint,
    pool_table,
)
from d3m_assets.assets.teacher_model import TeacherModel
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import D3MError
from d3m_assets.evaluation.methods import CLASS_NAMES, CLASS_NAMES_EQUAL_IPC, RENDERED
from d3m_assets.foundation.embedded import characters
from d3m_assets.foundation.files import EMBEDDED
from d3m_assets.planning.asset import Asset

if TYPE_CHECKING:
    import pandas as pd

POOL_FILE = "pool.parquet"


class FoundationMetrics(MeasuredAsset):
    """Students trained on what the foundation model generates from class names alone, without inversion."""

    deps = (RawDataset, ClassPrompts, FoundationModel, TeacherModel)
    code_version = f"{TABLE_CODE_VERSION}.{characters.CODE_VERSION}"
    variants = ("equal-ipc",)

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """The teacher only where labels are soft."""
        soft = context.settings.evaluation.has_soft_labels
        return [dep for dep in self.deps if soft or dep is not TeacherModel]

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How images are generated, beside how students are trained."""
        sampling = generation_fingerprint(context, context.settings.seed, class_name_generation(context))
        described = super().settings(context, item) | sampling
        if context.settings.selection.kept:
            described["images"] = kept_images(context)
        if context.settings.distillations > 1:
            described["distillations"] = context.settings.distillations
        seeds = context.settings.baseline_seeds(drawn=True)
        if context.model.name == EMBEDDED and seeds != context.settings.students.seeds:
            described["rendered_seeds"] = list(seeds)
        if "equal-ipc" in self.chosen_variants(context, item):
            described |= images_allowed_fingerprint(context, context.budgets)
        return described

    def rows(self, context: Context, item: Item) -> tuple[list[Row], Mapping[str, bytes]]:
        """Images from class names, and for the embedded model what its renderer makes of the same names."""
        seeds = [replicate_seed(context.settings.seed, r) for r in range(context.settings.distillations)]
        pools, table = class_name_pools(context, seeds)
        rows = rows_of(context, CLASS_NAMES, lambda kind: of_replicates(context, pools), distilled=True)
        if "equal-ipc" in context.settings.evaluation.variants:
            for budget in context.budgets:
                rows += at_equal_ipc(context, CLASS_NAMES_EQUAL_IPC, budget, lambda kind: pools)
        names = [read_prompts(context, c.key).display_name for c in context.dataset.classes]
        if context.model.name == EMBEDDED and all(renderable(name) for name in names):
            drawn = partial(rendered_characters, context, names)
            rows += rows_of(context, RENDERED, lambda kind: drawn, seeds=context.settings.baseline_seeds(drawn=True))
        return rows, {POOL_FILE: to_parquet(table)}


def class_name_pools(context: Context, seeds: Sequence[int]) -> tuple[list[LabelledImages], pd.DataFrame]:
    """What the model generates from class names alone.

    Args:
        context: Of an asset that declares prompts and model.
        seeds: Of noise, one for each pool.

    Returns:
        A training set for each seed, of as many images as are kept of distilled ones; and the table of the first one's images.

    Raises:
        D3MError: A class cannot be generated.
    """
    import pandas as pd

    prompts = [read_prompts(context, c.key) for c in context.dataset.classes]
    jobs = [class_name_job(context, p, seed, kept_images(context)) for seed in seeds for p in prompts]
    generated: list[Any] = [None] * len(jobs)
    labels = [job.prompts.by_name() for job in jobs]
    for index, result in context.map_in_workers("foundation_metrics: pool", generate_images, jobs, labels):
        if isinstance(result, D3MError):
            raise result
        generated[index] = result
    by_seed = [generated[k : k + len(prompts)] for k in range(0, len(jobs), len(prompts))]
    tables = [pool_table(p, *pair) for p, pair in zip(prompts, by_seed[0], strict=True)]
    pools = [training_set([images for images, _ in of_classes]) for of_classes in by_seed]
    return pools, pd.concat(tables, ignore_index=True)


def renderable(name: str) -> bool:
    """Whether the renderer that trained the embedded model knows a class of this name."""
    return len(name) == 1 and name in string.digits + string.ascii_letters


def rendered_characters(context: Context, names: Sequence[str], seed: int) -> LabelledImages:
    """As many rendered characters of each class as a distilled training set has images, without the diffusion model."""
    count = kept_images(context)
    rendered = characters.render(count * len(names), 9_000_000 + seed, characters="".join(names)).images[..., None]
    if context.dataset.scan.channels == 3:
        rendered = rendered.repeat(3, axis=-1)
    return training_set([rendered[k :: len(names)] for k in range(len(names))])


def read_class_name_pool(context: Context) -> Any:
    """The stored images that were generated from class names, of replicate 0."""
    (key,) = context.inputs.keys(FoundationMetrics)
    return from_parquet(context.inputs.read(key, POOL_FILE))
