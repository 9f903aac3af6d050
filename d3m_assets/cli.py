"""The front door for a shell: ``d3m``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from d3m_assets.errors import D3MError, SettingsError
from d3m_assets.progress import ProgressEvent
from d3m_assets.settings import Settings, load_settings
from d3m_assets.terminal import INTERRUPTED, answer_interrupts, printable, shown_progress

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.distillation.bundle import Bundle
    from d3m_assets.foundation.model import Model
    from d3m_assets.pipeline import Pipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Condense a labelled image dataset into a few learned prompt vectors per class (D3M, arXiv 2403.07142).",
)
foundation_app = typer.Typer(no_args_is_help=True, help="The embedded text-to-image model.")
app.add_typer(foundation_app, name="foundation")

Dataset = Annotated[
    str | None,
    typer.Option(help="'digits', or path or URL of an image folder, zip, Hugging Face dataset, WebDataset or table."),
]
FoundationOption = Annotated[
    str | None, typer.Option(help="'embedded', or path of a diffusers text-to-image pipeline or checkpoint.")
]
Budget = Annotated[list[str] | None, typer.Option(help="Bytes per class: ipc-10, 640B, 4KiB. Repeatable.")]
Storage = Annotated[str | None, typer.Option(help="Path or fsspec URL of the artefact store.")]
Seed = Annotated[int | None, typer.Option(help="Root of every random number.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting, for example inversion.steps=300. Repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _settings(
    dataset: str | None,
    foundation: str | None,
    budget: list[str] | None,
    storage: str | None,
    seed: int | None,
    others: list[str] | None,
) -> Settings:
    given: dict[str, Any] = {
        "dataset": dataset,
        "foundation": foundation,
        "budgets": tuple(budget) if budget else None,
        "storage": storage,
        "seed": seed,
    }
    overrides = {k: v for k, v in given.items() if v is not None}
    for item in others or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item}: write name=value, for example --set inversion.steps=300")
        overrides[name.strip()] = value.strip()
    return load_settings(**overrides)


@app.command()
def distill(
    dataset: Dataset = None,
    foundation: FoundationOption = None,
    budget: Budget = None,
    storage: Storage = None,
    seed: Seed = None,
    settings_: Set = None,
) -> None:
    """Make everything that is missing or out of date, then show the table."""
    begun = time.monotonic()
    settings = _settings(dataset, foundation, budget, storage, seed, settings_)
    _offline()
    from d3m_assets.orchestration.launch import open_instance, run_pending
    from d3m_assets.pipeline import Pipeline

    with open_instance(settings) as instance, shown_progress() as progress:
        pipeline = Pipeline(settings, progress=progress)
        _show_problems(pipeline)
        try:
            launched = run_pending(settings, instance, pipeline, progress=progress)
        finally:
            pipeline.context.close()
    launched.raise_for_failures()
    _show_metrics(pipeline)
    if launched.run_id is None:
        print("\nEverything was up to date; nothing was done.")
    print(f"\nReport: {_copy_report(pipeline)}")
    print(f"{time.monotonic() - begun:.0f} s")


def _show_problems(pipeline: Pipeline) -> None:
    """What is wrong with the images, or the model for them: a line, or a table where there is more than one kind."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from d3m_assets.assets.foundation_model import model_problems
    from d3m_assets.datasets.problems import problem_rows

    problems = [*pipeline.context.dataset.scan.problems, *model_problems(pipeline.context)]
    rows = [
        # Names of classes and files stand in every part of a problem.
        {field: printable(value) for field, value in asdict(row).items()}
        for row in problem_rows(problems)
    ]
    # Wide enough to keep file names in one piece in a log.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160, markup=False, highlight=False)
    if len(rows) == 1:
        (row,) = rows
        more = f" ({row['count']} of them)" if row["count"] != "1" else ""
        place = f" in class {row['class_name']}" if row["class_name"] else ""
        console.print(
            f"{row['severity']}{place}: {row['where']} {row['what']}{more}; {row['remedy']}",
            soft_wrap=True,
        )
    elif rows:
        columns = {
            "severity": "",
            "class_name": "class",
            "what": "what",
            "count": "how many",
            "where": "where",
            "remedy": "what to do",
        }
        table = Table(*columns.values(), title="Problems in the data")
        for row in rows:
            table.add_row(*(row[field] for field in columns))
        console.print(table)


def _offline() -> None:
    """Nothing may ask the hub unless the user named a hub id, and then only for that."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _copy_report(pipeline: Pipeline) -> Path:
    """The report under a name that stays the same, for a browser's bookmark."""
    from d3m_assets.assets.distillation_report import PAGE, DistillationReport
    from d3m_assets.store import ArtefactKey

    target = pipeline.settings.home.absolute() / PAGE
    content = pipeline.store.read(ArtefactKey(DistillationReport.name), PAGE)
    if not target.exists() or target.read_bytes() != content:
        part = target.with_name(f"{target.name}.{os.getpid()}.part")  # another command may end at the same moment
        part.write_bytes(content)
        part.replace(target)
    return target


def _metrics(pipeline: Pipeline) -> pd.DataFrame:
    """Every trained student that is stored, one row each."""
    from d3m_assets.assets.distillation_report import DistillationReport, all_metrics
    from d3m_assets.store import ArtefactKey

    return all_metrics(pipeline.reading(ArtefactKey(DistillationReport.name)))


def _show_metrics(pipeline: Pipeline) -> None:
    from d3m_assets.evaluation.methods import HEADLINE, VARIANTS
    from d3m_assets.evaluation.statistics import (
        Comparison,
        budgeted_baselines,
        compare_all,
        format_table,
        headline,
        seeds_sentence,
        significance_words,
        summarize,
        verdict_comparisons,
    )

    metrics = _metrics(pipeline)
    print("\n" + format_table(summarize(metrics)) + "\n")
    comparisons: list[Comparison] = []
    told = verdict_comparisons(metrics)
    # The verdict first, then the baselines that are not part of it.
    others = [r for r in budgeted_baselines(metrics) if r not in HEADLINE]
    for against in [*told, *(compare_all(metrics, reference=reference) for reference in others)]:
        comparisons += against
        print(headline(against))
    if unsure := seeds_sentence([c for against in told for c in against]):
        print(unsure)
    for method, reference in VARIANTS.items():
        if method in set(metrics["method"]):
            of_variant = compare_all(metrics, method=method, reference=reference)
            comparisons += of_variant
            print(f"{method}: {headline(of_variant)}")
    if comparisons:
        print(f"Verdicts by {significance_words(comparisons)}.")


@app.command()
def status(
    dataset: Dataset = None,
    foundation: FoundationOption = None,
    budget: Budget = None,
    storage: Storage = None,
    seed: Seed = None,
    settings_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say what is up to date, missing or out of date, and why."""
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(_settings(dataset, foundation, budget, storage, seed, settings_))
    plan = pipeline.plan()
    if as_json:
        print(plan.to_json())
        return
    _show_problems(pipeline)
    for asset in pipeline.graph.names:
        entries = plan.of(asset)
        if not entries:
            print(f"{asset:24} not needed by these settings")
            continue
        current = sum(e.state == "up to date" for e in entries)
        print(f"{asset:24} {current:5} of {len(entries)} up to date")
        behind = [e for e in entries if e.state != "up to date"]
        for entry in behind[:5]:
            reasons = f": {'; '.join(entry.reasons)}" if entry.reasons and entry.reasons != [entry.state] else ""
            print(printable(f"    {entry.key} is {entry.state}{reasons}", 2000))
        if len(behind) > 5:
            print(f"    … and {len(behind) - 5} more")
    if plan.extra:
        shown = ", ".join(map(str, plan.extra[:10])) + (" …" if len(plan.extra) > 10 else "")
        print(f"kept, but of no class, budget or setting that there is now: {shown}. `d3m prune` removes them")


@app.command()
def prune(
    dataset: Dataset = None,
    foundation: FoundationOption = None,
    budget: Budget = None,
    storage: Storage = None,
    seed: Seed = None,
    settings_: Set = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only listed.")] = False,
) -> None:
    """List, or remove, what the store keeps of classes, budgets, settings and assets that are gone."""
    from d3m_assets.inspection.pruning import leftovers
    from d3m_assets.ledger import byte_size
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(_settings(dataset, foundation, budget, storage, seed, settings_))
    found = leftovers(pipeline)
    for key in found.artefacts:
        print(key)
    if found.students:
        print(f"{len(found.students)} results of students that no table names")
    if found.superseded:
        print(f"{len(found.superseded)} commit records of replaced versions that nothing names")
    if not found.artefacts and not found.students and not found.superseded:
        print("Nothing to prune.")
    elif delete:
        found.remove(pipeline.store)
        print(f"Removed. {len(found.artefacts)} artefacts had {byte_size(found.bytes)}.")
    else:
        print(f"{len(found.artefacts)} artefacts, {byte_size(found.bytes)}; `d3m prune --delete` removes them.")


@app.command()
def metrics(
    dataset: Dataset = None,
    foundation: FoundationOption = None,
    budget: Budget = None,
    storage: Storage = None,
    seed: Seed = None,
    settings_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what students have reached: mean and 95 % interval over seeds."""
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(_settings(dataset, foundation, budget, storage, seed, settings_))
    if as_json:
        from d3m_assets.evaluation.statistics import summarize

        print(summarize(_metrics(pipeline)).to_json(orient="records", indent=1))
    else:
        _show_metrics(pipeline)


BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle file (bundle-….safetensors), a bundle repository's folder, or its hub id.")
]


def _model_of(loaded: Bundle, settings: Settings) -> Model:
    """The settings' model, not loaded, if it is the one that a bundle was made with."""
    from d3m_assets.pipeline import open_model

    model = open_model(settings)
    # Before the weights are loaded: the wrong model should be refused at once.
    loaded.check_foundation(model.files.fingerprint, model.files.name)
    return model


@app.command()
def regenerate(
    bundle: BundleArgument,
    output: Annotated[
        Path, typer.Option(help="Folder to write; new, empty, or one in which the same export was stopped: it goes on.")
    ],
    per_class: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images of each class; more than are selected: fresh ones follow. Default: the training set."
        ),
    ] = None,
    format_: Annotated[
        Literal["folder", "huggingface", "webdataset"],
        typer.Option("--format", help="Folder of PNG files, parquet shards for Hugging Face datasets, or tar shards."),
    ] = "folder",
    croissant: Annotated[
        bool, typer.Option("--croissant", help="Also write croissant.json (needs the extra 'croissant').")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this dataset repository of the hub.")
    ] = None,
    foundation: FoundationOption = None,
    settings_: Set = None,
) -> None:
    """Write the images of a bundle: all it needs is this package and, unless it holds image codes, the foundation model."""
    _offline()
    from dataclasses import replace

    from d3m_assets.compute.engine import open_workers
    from d3m_assets.compute.settings import ComputeSettings
    from d3m_assets.exports.bundle_repository import from_pretrained
    from d3m_assets.exports.hub import check_repository
    from d3m_assets.exports.images import regenerate as write_images
    from d3m_assets.foundation.loading import load_foundation

    if push is not None:
        check_repository(push)
    loaded, settings = from_pretrained(bundle), _settings(None, foundation, None, None, None, settings_)
    if loaded.is_coded:
        with shown_progress() as progress:
            count = write_images(
                loaded,
                None,
                output,
                per_class=per_class,
                image_format=format_,
                with_croissant=croissant,
                progress=progress,
            )
        _tell_images(count, loaded, output, push)
        return
    with shown_progress() as progress:
        progress(ProgressEvent("regenerate", 0, 0, "opening the foundation model"))
        model = _model_of(loaded, settings)
        decoder = model.tiny_autoencoder if loaded.recipe.autoencoder else None
        loaded.check_autoencoder(decoder)
        with open_workers(ComputeSettings(), settings.device, settings.workers) as workers:
            count = write_images(
                loaded,
                load_foundation(model.files, settings.device),
                output,
                per_class=per_class,
                image_format=format_,
                with_croissant=croissant,
                progress=progress,
                autoencoder=decoder,
                workers=workers,
                model=replace(model.reference, compile_unet=False),  # as this process does it
            )
    _tell_images(count, loaded, output, push)


def _tell_images(count: int, loaded: Bundle, output: Path, push: str | None) -> None:
    """Say what was written, and upload it where that was asked for."""
    from d3m_assets.exports.hub import push_folder

    print(f"{count} images of {len(loaded.classes)} classes in {output}")
    if push is not None:
        print(f"Uploaded to {push_folder(output, push, 'dataset')}; it is private unless it was public before.")


@app.command()
def verify(
    target: Annotated[
        Path, typer.Argument(help="A folder that `d3m regenerate` wrote, or a bundle to compare with its pools.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="The folder's bundle; by default the store is asked for it.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Images of each class to check at least.")] = 4,
    all_: Annotated[bool, typer.Option("--all", help="Check every image.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Accept equal pixels only.")] = False,
    dataset: Dataset = None,
    foundation: FoundationOption = None,
    storage: Storage = None,
    settings_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Generate images again and say whether they are equal, equal within the stated tolerance, or not (exit status 1)."""
    _offline()
    from d3m_assets.exports import verification
    from d3m_assets.foundation.loading import load_foundation
    from d3m_assets.inspection.verification import subject
    from d3m_assets.store import Store

    settings = _settings(dataset, foundation, None, storage, None, settings_)
    loaded, images = subject(target, bundle, Store.open(settings.storage_url))
    model = None if loaded.is_coded else _model_of(loaded, settings)
    with shown_progress() as progress:
        result = verification.verify(
            loaded,
            None if model is None else load_foundation(model.files, settings.device),
            images,
            sample=None if all_ else sample,
            autoencoder=model.tiny_autoencoder if model is not None and loaded.recipe.autoencoder else None,
            exact=exact,
            progress=progress,
        )
    print(json.dumps(result.to_json(), indent=1) if as_json else verification.report(result))
    if result.verdict == "not equal":
        raise typer.Exit(1)


@app.command()
def lineage(
    file: Annotated[Path | None, typer.Argument(help="An image of `d3m regenerate`, or a bundle.")] = None,
    pool: Annotated[str | None, typer.Option(help="Instead of a file: budget of a stored pool.")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="Class of the pool's image.")] = None,
    index: Annotated[int, typer.Option(min=0, help="Number of the pool's image within its class.")] = 0,
    replicate: Annotated[int, typer.Option(min=0, help="Which of several distillations.")] = 0,
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle of an image, where the store does not have it.")
    ] = None,
    dataset: Dataset = None,
    foundation: FoundationOption = None,
    storage: Storage = None,
    settings_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say where an image or a bundle comes from, back to the real images it was learned from."""
    _offline()
    # To look whether the model is at hand must not fetch it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from d3m_assets.distillation.bundle import Bundle
    from d3m_assets.exports.image_record import read_record
    from d3m_assets.inspection import lineage as library
    from d3m_assets.pipeline import open_model
    from d3m_assets.store import Store

    settings = _settings(dataset, foundation, None, storage, None, settings_)
    given = Bundle.load(bundle) if bundle else None
    model = open_model(settings)
    at_hand = library.AtHand.of(Store.open(settings.storage_url), lambda: model.files, given, str(bundle or ""))
    if (file is None) == (pool is None) or (pool is not None and class_ is None):
        raise SettingsError("name a file, or a stored image by --pool BUDGET --class NAME --index N")
    if pool is not None:
        found = library.lineage_of_pool_row(at_hand, pool, str(class_), index, replicate)
    elif file is not None and file.suffix == ".safetensors":
        found = library.lineage_of_bundle(Bundle.load(file), str(file), at_hand)
    else:
        assert file is not None
        found = library.lineage_of_image(read_record(file), file, at_hand)
    if as_json:
        print(found.to_json())
    else:
        from rich.console import Console

        # In a pipe or file nothing is folded, so that hashes and paths can be searched for.
        Console(highlight=False, width=None if sys.stdout.isatty() else 2000).print(found.tree())


@app.command()
def export(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")],
    format_: Annotated[
        Literal["diffusers", "a1111", "concept", "prompt-embeds", "bundle-repository"],
        typer.Option(
            "--format",
            help="Tokens for diffusers, for AUTOMATIC1111 and ComfyUI, or as the sd-concepts-library; encoded prompts for any "
            "diffusers pipeline of the model; or the bundle with a model card, as a repository of the hub.",
        ),
    ] = "diffusers",
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload a bundle-repository to this model repository of the hub."),
    ] = None,
    foundation: FoundationOption = None,
    settings_: Set = None,
) -> None:
    """Write what a bundle has learned in the form of other programs; images are written by `d3m regenerate`."""
    _offline()
    from d3m_assets.exports.bundle_repository import from_pretrained, save_pretrained
    from d3m_assets.exports.hub import check_repository, push_folder

    if push is not None:
        check_repository(push)
        if format_ != "bundle-repository":
            raise SettingsError(f"--push uploads a bundle-repository, not {format_}; add --format bundle-repository")
    loaded = from_pretrained(bundle)
    if format_ == "bundle-repository":
        print(f"{save_pretrained(loaded, output)}, with a model card beside it")
        if push is not None:
            print(f"Uploaded to {push_folder(output, push, 'model')}; it is private unless it was public before.")
        return
    from d3m_assets.exports.prompt_embeds import LIST, export_prompt_embeds
    from d3m_assets.exports.tokens import check_has_prompts, export_tokens
    from d3m_assets.foundation.loading import load_foundation

    check_has_prompts(loaded)
    model = _model_of(loaded, _settings(None, foundation, None, None, None, settings_))
    model_on_cpu = load_foundation(model.files, "cpu")
    if format_ == "prompt-embeds":
        with shown_progress() as progress:
            paths = export_prompt_embeds(loaded, model_on_cpu, output, progress)
        print(f"Encoded prompts of {len(paths)} classes in {output}; {LIST} lists them")
        return
    exported = export_tokens(loaded, model_on_cpu.layout, output, format_)
    print(
        f"{len(exported)} tokens of {len(loaded.classes)} classes in {output}; tokens.json lists them with their prompts"
    )


@app.command()
def inspect(bundle: BundleArgument, as_json: AsJson = False) -> None:
    """Print the recipe and the ledger of a bundle, and what it can be used with."""
    from dataclasses import asdict

    from d3m_assets.exports.bundle_repository import from_pretrained
    from d3m_assets.exports.compatibility import fits

    loaded = from_pretrained(bundle)
    ledger = loaded.ledger()
    if as_json:
        classes = [{"class_id": c.prompts.class_id, "class_name": c.prompts.class_name, "prompts": c.plan.prompts,
                    "vectors": c.plan.vectors, "bytes": c.payload, "images": loaded.training_images(c)}
                   for c in loaded.classes]  # fmt: skip
        facts = {"recipe": asdict(loaded.recipe), "classes": classes, "ledger": ledger.to_dict("records"),
                 "fits": fits(loaded)}  # fmt: skip
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    for name, value in asdict(loaded.recipe).items():
        print(f"{name:24} {value}")
    first = loaded.classes[0].plan
    print(
        f"{'classes':24} {len(loaded.classes)}: {printable(', '.join(c.prompts.class_name for c in loaded.classes[:20]))}"
    )
    if loaded.is_coded:
        counts = sorted({loaded.training_images(c) for c in loaded.classes})
        images = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        print(f"{'coded images of a class':24} {images}")
    else:
        print(
            f"{'vectors of a class':24} {first.prompts} prompts x {first.vectors} vectors x {first.width} {first.storage_type}"
            f"{' and a norm' if first.norms else ''}"
        )
    if loaded.recipe.candidates:
        counts = sorted({loaded.training_images(c) for c in loaded.classes})
        images = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        print(f"{'samples of a class':24} {images} of {loaded.recipe.candidates} by {loaded.recipe.criterion}")
    print("\nLedger, bytes of all classes together\n")
    print(ledger.to_string(index=False))
    print("\nFits\n")
    for line in fits(loaded):
        print(f"- {printable(line, 1000)}")


@foundation_app.command("train")
def foundation_train(
    output: Annotated[Path, typer.Option(help="The pipeline directory to write.")] = Path("data/foundation"),
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of text encoder and U-Net.")] = None,
    vae_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the autoencoder.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Characters drawn for training.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Latents in one step.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes, one thread each.")] = None,
    seed: Annotated[int | None, typer.Option(help="Root of every random number.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate.")] = None,
    fonts: Annotated[
        Path | None, typer.Option(help="Folder of fonts to draw with, a folder for each package (scripts/fonts).")
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Pipeline directory whose autoencoder is kept instead of training one.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Pipeline directory of an embedded model to go on from.")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the U-Net: faster steps, needs a C++ compiler.")
    ] = False,
) -> None:
    """Train the embedded text-to-image model on drawn characters; stopped and started again, it goes on."""
    from d3m_assets.foundation.embedded.training import TrainingSettings, train

    given: dict[str, Any] = {
        "steps": steps,
        "vae_steps": vae_steps,
        "images": images,
        "batch": batch,
        "processes": processes,
        "seed": seed,
        "learning_rate": learning_rate,
        "fonts": str(fonts) if fonts else None,
        "autoencoder": str(autoencoder) if autoencoder else None,
        "start": str(start) if start else None,
        "compile": compile_ or None,
    }
    settings = TrainingSettings(**{k: v for k, v in given.items() if v is not None})
    folder = work or load_settings().home / "foundation-training"
    with shown_progress() as progress:
        train(settings, folder, output, progress)
    print(f"Written to {output}. `d3m foundation card` measures it and writes its model card.")


@foundation_app.command("card")
def foundation_card(
    fonts: Annotated[Path, typer.Option(help="Folder that scripts/fonts brought fonts to.")],
    path: Annotated[Path, typer.Argument(help="The pipeline directory.")] = Path("data/foundation"),
) -> None:
    """Measure a trained embedded model and write the model card beside its weights."""
    _offline()
    from d3m_assets.foundation_card import write_card

    with shown_progress() as progress:
        write_card(path, fonts, load_settings(), progress)
    print(f"Written to {path / 'README.md'}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web page.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open Dagster's web UI and daemon on the same instance as `d3m distill`."""
    import subprocess

    from d3m_assets.orchestration.launch import ensure_instance_home

    home = ensure_instance_home(load_settings())
    workspace = str(home / "workspace.yaml")
    command = [sys.executable, "-m", "dagster", "dev", "-w", workspace, "-h", host, "-p", str(port)]
    print(f"http://{host}:{port}  (instance in {home}; Ctrl-C stops it)", flush=True)
    environment = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"}
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


def main() -> None:
    """Run ``d3m``; what the user can mend is told in a sentence, without a traceback."""
    import warnings

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=r".*is currently in (beta|preview).*")
    answer_interrupts()
    try:
        app()
    except D3MError as error:
        # A message may quote a file of someone else's, whose names must not steer the terminal.
        lines = [printable(line, 10_000) for line in str(error).splitlines()]
        print("d3m: " + "\n".join(lines), file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:  # a folder that cannot be written, a full disk, a server that is gone
        print("d3m: " + printable(error, 10_000) + "; what was finished is kept", file=sys.stderr)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer makes an exit status of Ctrl-C, without a word.
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        print("d3m: stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
