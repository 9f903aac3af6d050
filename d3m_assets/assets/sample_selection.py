"""``sample_selection``: which of the candidates of a class its training set keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.inverted_embeddings import class_selection_plan, embedding_plan, no_prompts
from d3m_assets.assets.payload_bytes import prompt_bytes
from d3m_assets.assets.raw_dataset import RawDataset, image_rows, labelled_images
from d3m_assets.assets.selection_model import SelectionModel, see
from d3m_assets.assets.synthetic_pool import SyntheticPool, pool_images, read_pool
from d3m_assets.datasets.images import contact_sheet
from d3m_assets.distillation import selection
from d3m_assets.distillation.selection import CRITERIA, Candidates, decode_selection, encode_selection
from d3m_assets.errors import D3MError
from d3m_assets.evaluation import baselines
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.progress import ProgressEvent
from d3m_assets.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

CODE, TABLE = "selection.bin", "samples.parquet"
PREVIEW_IMAGES = 30


class SampleSelection(Asset):
    """Which of the candidate samples of a class its training set keeps, in as many bytes as that takes.

    Without a selection, all samples of the pool are kept and no byte is needed to say so.
    """

    group = "distillation"
    partitions = ("class", "budget")
    replicated = True
    deps = (SyntheticPool, RawDataset, SelectionModel)
    kinds = frozenset({"pytorch", "scikitlearn"})
    code_version = f"{selection.CODE_VERSION}.{baselines.CODE_VERSION}"
    device = True
    checks = (Check("readable_and_within_budget", "Every stored selection can be read, and fits beside the vectors."),)

    def unused(self, settings: Settings) -> str:
        """Of coded images all are kept."""
        return no_prompts(settings)

    def inputs(self, context: Context, item: Item) -> Sequence[type[Asset]]:
        """Real images and the network only where samples are selected."""
        return self.deps if class_selection_plan(context, item).bytes else (SyntheticPool,)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """The criterion, and how many samples there are to choose from and to keep."""
        plan = class_selection_plan(context, item)
        if not plan.bytes:
            return {"kept": plan.kept}
        return {
            "criterion": context.settings.selection.criterion,
            "candidates": plan.candidates,
            "kept": plan.kept,
            "seed": item.seed,
            "device": context.device_kind,
        }

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Select samples; what the network sees in the real images of a class serves all its budgets and replicates."""
        held: tuple[str, np.ndarray] = ("", np.empty(0))
        ordered = sorted(items, key=lambda item: item.dataset_class.position)
        for done, item in enumerate(ordered):
            context.progress(ProgressEvent(self.name, done, len(items), item.label))
            own, class_key = context.for_item(item), item.dataset_class.key
            try:
                if class_selection_plan(own, item).bytes and held[0] != class_key:
                    held = class_key, real_features(own, class_key)
                yield _made(own, item, held[1])
            except D3MError as error:
                yield Made(item.key, error=error)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """Kept and rejected samples, side by side."""
        samples = from_parquet(context.inputs.read(item.key, TABLE))
        pool = read_pool(context, item.dataset_class.key, item.budget.name, item.replicate)
        kept = pool["index"].isin(samples.loc[samples["kept"], "index"])
        rows: dict[str, pd.DataFrame] = {"kept": pool[kept], "rejected": pool[~kept]}
        shown = {
            f"{name}_images_png": contact_sheet(pool_images(table.head(PREVIEW_IMAGES)), 10, 2)
            for name, table in rows.items()
            if len(table)
        }
        return shown | {"samples": samples.head(PREVIEW_IMAGES)}

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Whether the code says what the table says, and its bytes fit into the budget beside those of the vectors."""
        plan, code = class_selection_plan(context, item), context.inputs.read(item.key, CODE)
        samples = from_parquet(context.inputs.read(item.key, TABLE))
        kept = samples.loc[samples["kept"], "index"].to_numpy()
        try:
            numbers = decode_selection(code, plan.candidates, plan.kept) if plan.bytes else np.arange(plan.kept)
        except D3MError as error:
            yield Finding(str(error))
            return
        if not np.array_equal(numbers, kept):
            yield Finding(f"the code names {len(numbers)} samples, and not the {len(kept)} of the table")
        used, allowed = embedding_plan(context, item).payload + len(code), prompt_bytes(context, item.budget)
        if used > allowed:
            yield Finding(f"{used} bytes of vectors and selection, but the budget allows {allowed}")


def real_features(context: Context, class_key: str) -> np.ndarray:
    """Features of the training images of a class, float ``[N, F]``."""
    return see(context, labelled_images(context, image_rows(context, "train", class_key), "train").images).features


def _made(context: Context, item: Item, real_features: np.ndarray) -> Made:
    import pandas as pd

    plan, own = class_selection_plan(context, item), item.dataset_class
    pool = read_pool(context, own.key, item.budget.name, item.replicate)
    samples = pd.DataFrame({"index": pool["index"].to_numpy()})
    if not plan.bytes:
        files = {CODE: b"", TABLE: to_parquet(samples.assign(kept=True))}
        return Made(item.key, files, {"selection_bytes": 0, "candidates": len(pool), "kept": len(pool)})
    seen, criterion = see(context, pool_images(pool)), context.settings.selection.criterion
    recognised = seen.predicted == own.position
    candidates = Candidates(seen.features, seen.probabilities[:, own.position], recognised, real_features, item.seed)
    selected = CRITERIA[criterion](candidates, plan.kept)
    code = encode_selection(samples["index"].to_numpy()[selected], plan.candidates, plan.kept)
    names = np.array(context.dataset.class_names, dtype=object)
    samples = samples.assign(
        kept=np.isin(np.arange(len(samples)), selected),
        predicted_class=names[seen.predicted],
        probability=candidates.probabilities,
    )
    facts = {
        "selection_bytes": len(code),
        "candidates": len(samples),
        "kept": len(selected),
        "recognised": float(recognised.mean()),
        "recognised_of_kept": float(recognised[selected].mean()),
    }
    return Made(item.key, {CODE: code, TABLE: to_parquet(samples)}, facts)


def read_samples(context: Context, class_key: str, budget: str, replicate: int = 0) -> pd.DataFrame:
    """One row a candidate: index, kept, and where samples were selected what the network says of it."""
    (key,) = context.inputs.keys(SampleSelection, class_key=class_key, budget=budget, replicate=replicate)
    return from_parquet(context.inputs.read(key, TABLE))


def read_code(context: Context, class_key: str, budget: str) -> bytes:
    """The stored selection of a class, of replicate 0; empty where all samples are kept."""
    (key,) = context.inputs.keys(SampleSelection, class_key=class_key, budget=budget, replicate=0)
    return context.inputs.read(key, CODE)


def read_selected(
    context: Context, class_key: str, budget: str, replicate: int = 0, *, kept: bool = True
) -> pd.DataFrame:
    """The samples of a class's pool that are its training set.

    Args:
        context: Of an asset that declares pool and selection.
        class_key: The class.
        budget: Name of the budget.
        replicate: Of the distillation.
        kept: No: those that were rejected, instead.
    """
    samples = read_samples(context, class_key, budget, replicate)
    pool = read_pool(context, class_key, budget, replicate)
    return pool[pool["index"].isin(samples.loc[samples["kept"] == kept, "index"])].reset_index(drop=True)
