"""What the distilled data teaches: rows that change one thing about it, several distillations, several networks."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from d3m_assets.assets import synthetic_pool
from d3m_assets.assets.class_prompts import read_prompts
from d3m_assets.assets.context import replicate_seed
from d3m_assets.assets.distillation_report import ledger as ledger_of
from d3m_assets.assets.inverted_embeddings import embedding_plan, read_vectors
from d3m_assets.assets.student_metrics import fresh_images, synthetic_images
from d3m_assets.assets.synthetic_pool import GenerationJob, generate_images, pool_images, read_pool
from d3m_assets.distillation.optimizers import SphericalAdam
from d3m_assets.errors import StageError
from d3m_assets.evaluation.methods import VARIANTS
from d3m_assets.evaluation.statistics import summarize
from d3m_assets.store import ArtefactKey
from d3m_assets_tests.small_runs import SOFT, open_pipeline, run

FULL = SOFT | {
    "evaluation.table": "full", "evaluation.baselines": "random", "evaluation.labels": "hard,soft teacher",
    "generation.images_per_class": 6, "evaluation.distillations": 2, "evaluation.baseline_students": 2,
}  # fmt: skip

REPORT = ArtefactKey("distillation_report")


@pytest.fixture(scope="module")
def full(tmp_path_factory, soft):
    """A small distillation with all variants, two networks and a distillation for each of two students."""
    root = tmp_path_factory.mktemp("full")
    shutil.copytree(soft, root, dirs_exist_ok=True)
    run(open_pipeline(root, root / "images", **FULL))
    return root


def _metrics(pipeline):
    return pd.read_parquet(BytesIO(pipeline.store.read(REPORT, "metrics.parquet")))


def test_the_full_table_has_every_row(full):
    pipeline = open_pipeline(full, full / "images", **FULL)
    assert pipeline.plan().pending() == []
    metrics = _metrics(pipeline)
    assert {"D3M", "random real images", "class-name prompts", "whole train split", *VARIANTS} <= set(metrics["method"])
    first = metrics[metrics["architecture"] == "convnet-3"]
    other = metrics[metrics["architecture"] == "resnet-18"]
    assert not set(VARIANTS) & set(other["method"])
    plain = first[first["augmentation"] == "none"]
    assert set(zip(plain["method"], plain["labels"], strict=True)) == {("D3M", "hard"), ("random real images", "hard")}
    both = first[(first["augmentation"] == "affine") & ~first["method"].isin(list(VARIANTS))]
    keys = ["method", "budget", "labels", "seed"]
    assert sorted(both[keys].itertuples(index=False)) == sorted(other[keys].itertuples(index=False))
    counts = summarize(metrics).set_index(["method", "labels", "architecture", "augmentation", "budget"])["n"]
    assert set(counts) == {2}
    page = pipeline.store.read(REPORT, "report.html").decode()
    for words in ("What one change brings", "Augmentation-robust score", "ResNet-18", "2 distillations from different"):
        assert words in page, words


def test_every_student_has_a_distillation_of_its_own(full):
    pipeline = open_pipeline(full, full / "images", **FULL)
    metrics = _metrics(pipeline)
    ours = metrics[metrics["method"].isin(["D3M", "class-name prompts", *VARIANTS])]
    assert (ours["seed"] == ours["distillation"]).all()
    assert set(metrics.loc[metrics["method"].isin(["random real images", "whole train split"]), "distillation"]) == {0}
    students = pipeline.reading(ArtefactKey("student_metrics", None, "ipc-3"))
    sources = [ArtefactKey("inverted_embeddings", "7", "ipc-3", r) for r in (0, 1)]
    first, second = (read_vectors(students, source) for source in sources)
    assert first.shape == second.shape
    assert not np.array_equal(first, second)
    pools = [pool_images(read_pool(students, "7", "ipc-3", r)) for r in (0, 1)]
    assert len(pools[0]) == len(pools[1]) == 6
    assert not np.array_equal(*pools)
    # The same as a pipeline whose seed is that of the second distillation would have made.
    seed = replicate_seed(pipeline.settings.seed, 1)
    other = open_pipeline(full, full / "images", **FULL | {"seed": seed}).context
    item = other.item(sources[0])
    prompts = read_prompts(students, "7")
    job = GenerationJob(
        other.model.reference, prompts, other.settings.generation, seed, 6, 1, second, embedding_plan(other, item)
    )
    assert np.array_equal(generate_images(job, lambda event: None)[0], pools[1])
    shown = pipeline.preview(ArtefactKey("synthetic_pool", "7", "ipc-3", 1))
    assert shown["synthetic_images_png"][:4] == b"\x89PNG"


def test_equal_ipc_counts_images_instead_of_bytes(full):
    metrics = _metrics(open_pipeline(full, full / "images", **FULL))
    for budget, images in (("ipc-1", 1), ("ipc-3", 3)):
        for method in ("D3M, equal IPC", "class-name prompts, equal IPC", "random real images"):
            rows = metrics[(metrics["method"] == method) & (metrics["budget"] == budget)]
            assert set(rows["images_per_class"]) == {images}, (method, budget)
    charged = metrics[metrics["method"] == "D3M, equal IPC"].groupby("budget")["bytes_per_class"].first()
    assert charged.to_dict() == {"ipc-1": 64.0, "ipc-3": 192.0}


def test_equal_ipc_with_stored_labels_charges_only_the_labels_of_those_images(soft, tmp_path):
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    changes = SOFT | {"evaluation.variants": "equal-ipc,rejection", "evaluation.labels": "hard,soft stored"}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **changes)
    run(pipeline)
    rows = _metrics(pipeline)
    few = rows[(rows["method"] == "D3M, equal IPC") & (rows["budget"] == "ipc-3") & (rows["labels"] == "soft stored")]
    # Real images with labels: (192 + 6 * 6) // (64 + 6) = 3.
    assert set(few["images_per_class"]) == {3}
    assert set(few["bytes_per_class"]) == {192 + 3 * 6}


def test_fresh_samples_begin_with_the_pool_and_none_comes_twice(full):
    pipeline = open_pipeline(full, full / "images", **FULL)
    key = ArtefactKey("student_metrics", None, "ipc-3")
    context = pipeline.reading(key)
    for r in (0, 1):
        fresh, pool = fresh_images(context, context.item(key), r), synthetic_images(context, "ipc-3", r).resized(16, 1)
        steps, batch = pipeline.settings.students.steps, pipeline.settings.students.batch_size
        assert np.bincount(fresh.labels).tolist() == [-(-steps * batch // 3)] * 3
        for label in range(3):
            own = fresh.images[fresh.labels == label]
            assert np.array_equal(own[:6], pool.images[pool.labels == label])
            assert len(np.unique(own.reshape(len(own), -1), axis=0)) == len(own)
    rows = _metrics(pipeline)
    drawn = rows[rows["method"] == "D3M, fresh samples"]
    assert set(drawn["bytes_per_class"]) == {192.0}  # the largest budget only
    assert set(drawn["n_train_images"]) == {3 * 11}


def test_what_is_asked_for_redoes_only_what_it_changes(full):
    def pending(**changes):
        plan = open_pipeline(full, full / "images", **FULL | changes).plan()
        return {e.key.asset for e in plan.pending()}

    assert pending(**{"evaluation.variants": "equal-ipc,rejection,fresh"}) == {
        "student_metrics", "reference_metrics", "distillation_report"
    }  # fmt: skip
    assert pending(**{"evaluation.variants": "equal-ipc,unaugmented,fresh"}) == {
        "student_metrics",
        "distillation_report",
    }
    assert pending(**{"evaluation.architectures": "convnet-3"}) == {
        "student_metrics", "reference_metrics", "foundation_metrics", "whole_dataset_metrics", "distillation_report"
    }  # fmt: skip
    assert pending(**{"evaluation.distillations": 1}) == {
        "student_metrics", "foundation_metrics", "distillation_report"
    }  # fmt: skip
    # The name of a table is nothing by itself.
    chosen = {f"evaluation.{k}": v for k, v in (("architectures", "convnet-3,resnet-18"), ("distillations", 2),
                                                ("variants", "equal-ipc,rejection,unaugmented,fresh"))}  # fmt: skip
    assert pending(**{"evaluation.table": "quick"} | chosen) == set()


@pytest.mark.parametrize("changes", [
    {"students.recipe": "hard-label"}, {"students.augmentation": "none"},
    {"students.augmentation": "none", "students.cutmix": 0.5}, {"budgets": ("128B", "ipc-3")},
    {"generation.images_per_class": 2}, {"students.seeds": (0,), "evaluation.distillations": 1},
])  # fmt: skip
def test_the_full_table_with_other_recipes_and_budgets_has_a_report(soft, tmp_path, changes):
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    small = {"evaluation.architectures": "convnet-3", "evaluation.labels": "hard", "inversion.steps": 2}
    if changes.get("budgets"):  # a budget below one image of 12 x 12 pixels
        for path in (tmp_path / "images").rglob("*.png"):
            Image.open(path).resize((12, 12)).save(path)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **FULL | small | changes)
    run(pipeline)
    rows = _metrics(pipeline)
    plain = rows[rows["augmentation"] == "none"]
    assert set(plain["method"]) >= ({"D3M", "random real images"} if "students.recipe" in changes else set())
    equal = set(rows.loc[rows["method"] == "D3M, equal IPC", "budget"])
    if "budgets" in changes:
        assert equal == {"ipc-3"}
    elif "generation.images_per_class" in changes:
        assert equal == {"ipc-1"}  # of two images a class, three cannot be taken
    else:
        assert equal == {"ipc-1", "ipc-3"}


def test_equal_ipc_takes_no_more_of_a_small_class_than_it_has_real_images(soft, tmp_path):
    shutil.copytree(soft, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **SOFT)
    few = [i for i in pipeline.context.dataset.scan.classes["7"].images if i.split == "train"][2:]
    for image in few:
        Path(image.uri).unlink()
    changes = {"evaluation.labels": "hard", "evaluation.variants": "equal-ipc", "validation_fraction": 0.3}
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **changes)
    run(pipeline)
    rows = _metrics(pipeline)
    counts = {
        method: set(rows.loc[(rows["method"] == method) & (rows["budget"] == "ipc-3"), "n_train_images"])
        for method in ("D3M, equal IPC", "class-name prompts, equal IPC", "random real images")
    }
    assert (
        counts["D3M, equal IPC"]
        == counts["class-name prompts, equal IPC"]
        == counts["random real images"]
        == {3 + 3 + 2}
    )


def test_what_another_network_is_trained_by_is_in_the_fingerprint(full):
    key = ArtefactKey("whole_dataset_metrics")

    def fingerprint(**changes):
        given = FULL | {"evaluation.architectures": "vit-small"} | changes
        return open_pipeline(full, full / "images", **given).spec(key).fingerprint

    # Said or not, it is the rate of the first network; but of the other one only when it is said.
    assert fingerprint() != fingerprint(**{"students.learning_rate": 5e-3})


def test_a_budget_more_leaves_the_students_of_the_others_alone(full):
    def pending(*budgets):
        plan = open_pipeline(full, full / "images", **FULL | {"budgets": budgets}).plan()
        return {(e.key.asset, e.key.budget) for e in plan.pending()}

    assert ("student_metrics", "ipc-1") not in pending("ipc-1", "ipc-2", "ipc-3")
    assert ("student_metrics", "ipc-2") in pending("ipc-1", "ipc-2", "ipc-3")


def test_rejection_alone_charges_the_teacher_in_the_ledger(full):
    changes = {"evaluation.labels": "hard", "evaluation.variants": "rejection"}
    ledger = ledger_of(open_pipeline(full, full / "images", **FULL | changes).reading(REPORT))
    assert ledger.loc[ledger["item"] == "teacher", "kind"].tolist() == ["for rejection"]


def _again(pipeline, asset):
    """Keys of the second distillation."""
    return [key for key in pipeline.keys(asset) if key.replicate == 1]


def test_a_class_that_cannot_be_generated_again_takes_no_other_with_it(full, tmp_path, monkeypatch):
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **FULL)
    real = synthetic_pool.generate

    def broken(foundation, prompts, *rest, **options):
        if prompts.class_name == "1":
            raise StageError("1 fails to generate")
        return real(foundation, prompts, *rest, **options)

    monkeypatch.setattr(synthetic_pool, "generate", broken)
    keys = _again(pipeline, "synthetic_pool")
    outcomes = list(pipeline.materialize("synthetic_pool", keys, force=True))
    assert len(outcomes) == 6
    failed = {str(o.key) for o in outcomes if o.error}
    assert failed == {"synthetic_pool [1, ipc-1, replicate 1]", "synthetic_pool [1, ipc-3, replicate 1]"}


def test_a_stopped_replicate_goes_on_from_its_vectors(full, tmp_path, monkeypatch):
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **FULL)
    run(pipeline)
    pools = _again(pipeline, "synthetic_pool")
    before = {key: pipeline.store.read(key, "pool.parquet") for key in pools}
    for key in [*pools, *_again(pipeline, "inverted_embeddings")]:
        pipeline.store.delete(key)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **FULL)

    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(synthetic_pool, "generate", killed)
        with pytest.raises(Killed):
            run(pipeline)
    assert all(pipeline.store.manifest(key) for key in _again(pipeline, "inverted_embeddings"))
    steps = []
    real = SphericalAdam.step
    monkeypatch.setattr(SphericalAdam, "step", lambda self, *rest: steps.append(1) or real(self, *rest))
    assert set(run(open_pipeline(tmp_path, tmp_path / "images", **FULL))) == set(pools)
    assert steps == []
    assert {key: pipeline.store.read(key, "pool.parquet") for key in pools} == before
    assert not list((tmp_path / "home" / "cache" / "inversion").glob("*.safetensors"))


def test_a_replicate_that_fails_names_its_class_and_leaves_the_others(full, tmp_path):
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    pipeline = open_pipeline(tmp_path, tmp_path / "images", **FULL | {"latent_cache_gib": 0})
    image = next(i for i in pipeline.context.dataset.scan.classes["7"].images if i.split == "train")
    Path(image.uri).write_bytes(b"no image")  # broken after it was looked at
    keys = _again(pipeline, "inverted_embeddings")
    outcomes = {str(o.key): o for o in pipeline.materialize("inverted_embeddings", keys, force=True)}
    assert len(outcomes) == 6
    failed = {key for key, outcome in outcomes.items() if outcome.error is not None}
    assert failed == {"inverted_embeddings [7, ipc-1, replicate 1]", "inverted_embeddings [7, ipc-3, replicate 1]"}
    assert all(image.relative_path in str(outcomes[key].error) for key in failed)


def test_recipes_of_networks_say_what_is_their_own(full):
    metrics = _metrics(open_pipeline(full, full / "images", **FULL))
    recipes = {a: json.loads(rows["recipe"].iloc[0]) for a, rows in metrics.groupby("architecture")}
    same = {k for k in recipes["convnet-3"] if recipes["convnet-3"][k] == recipes["resnet-18"].get(k)}
    assert {"steps", "batch_size", "optimizer", "schedule", "weight_decay", "cutmix"} <= same
    assert recipes["resnet-18"]["width"] == 16
