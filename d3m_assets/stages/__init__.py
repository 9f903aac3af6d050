"""What each stage makes: from keys of the graph to calls of the library and files for the store.

No algorithm lives here, and nothing of Dagster: a stage reads what it is made from, calls the room that knows how, and
names the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from d3m_assets.errors import D3MError
from d3m_assets.pipeline import Pipeline
from d3m_assets.progress import ProgressEvent
from d3m_assets.stages.artefacts import Made, where
from d3m_assets.stages.audit import pool_audit
from d3m_assets.stages.dataset import class_catalog, raw_dataset
from d3m_assets.stages.distillation import (
    class_prompts,
    distilled_bundle,
    foundation_model,
    inverted_embeddings,
    repeated_pools,
    synthetic_pool,
)
from d3m_assets.stages.evaluation import metrics
from d3m_assets.stages.pool_labels import pool_labels
from d3m_assets.stages.report import distillation_report
from d3m_assets.stages.teacher import teacher_model
from d3m_assets.store import ArtefactKey


def make(pipeline: Pipeline, asset: str, keys: Sequence[ArtefactKey]) -> Iterator[Made]:
    """Make artefacts of one asset; each is yielded as it finishes."""
    batches: dict[str, Callable[[Pipeline, Sequence[ArtefactKey]], Iterator[Made]]] = {
        "inverted_embeddings": inverted_embeddings, "synthetic_pool": synthetic_pool, "reference_metrics": metrics,
        "whole_dataset_metrics": metrics, "foundation_metrics": metrics, "student_metrics": metrics,
        "pool_audit": pool_audit, "repeated_pools": repeated_pools,
    }  # fmt: skip
    if asset in batches:
        yield from batches[asset](pipeline, keys)
        return
    makers: dict[str, Callable[[Pipeline, ArtefactKey], Made]] = {
        "class_catalog": class_catalog, "raw_dataset": raw_dataset, "foundation_model": foundation_model,
        "class_prompts": class_prompts, "distilled_bundle": distilled_bundle,
        "distillation_report": distillation_report, "teacher_model": teacher_model, "pool_labels": pool_labels,
    }  # fmt: skip
    for done, key in enumerate(keys):
        pipeline.progress(ProgressEvent(asset, done, len(keys), where(key)))
        try:
            made = makers[asset](pipeline, key)
        except D3MError as error:
            made = Made(key, error=error)
        yield made
