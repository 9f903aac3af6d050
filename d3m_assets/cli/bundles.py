"""``d3m regenerate``, ``export``, ``inspect``, ``verify`` and ``lineage``: what is done with a bundle."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from d3m_assets.cli.app import app
from d3m_assets.cli.help import BUNDLES, Command
from d3m_assets.cli.options import AsJson, offline, with_settings
from d3m_assets.errors import SettingsError
from d3m_assets.progress import ProgressEvent
from d3m_assets.settings import Settings
from d3m_assets.terminal import printable, shown_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d3m_assets.distillation.bundle import Bundle
    from d3m_assets.foundation.model import Model

BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle file (bundle-….safetensors), a bundle repository's folder, or its hub id.")
]


def model_of(loaded: Bundle, settings: Settings) -> Model:
    """The settings' model, not loaded, if it is the one that a bundle was made with."""
    from d3m_assets.pipeline import open_model

    model = open_model(settings)
    # Before the weights are loaded: the wrong model should be refused at once.
    loaded.check_foundation(model.files.fingerprint, model.files.name)
    return model


@app.command(cls=Command, rich_help_panel=BUNDLES)
@with_settings("foundation", "settings_")
def regenerate(
    settings: Settings,
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
) -> None:
    """Write the images of a bundle: all it needs is this package and, unless it holds image codes, the foundation model.

    Example: d3m regenerate bundle.safetensors --output images/ --format huggingface
    """
    offline()
    from dataclasses import replace

    from d3m_assets.compute.engine import open_workers
    from d3m_assets.compute.settings import ComputeSettings
    from d3m_assets.exports.bundle_repository import from_pretrained
    from d3m_assets.exports.hub import check_repository
    from d3m_assets.exports.images import regenerate as write_images
    from d3m_assets.foundation.loading import load_foundation

    if push is not None:
        check_repository(push)
    loaded = from_pretrained(bundle)
    if not loaded.generates:
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
        model = model_of(loaded, settings)
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


@app.command(cls=Command, rich_help_panel=BUNDLES)
@with_settings("dataset", "foundation", "storage", "settings_")
def verify(
    settings: Settings,
    target: Annotated[
        Path | None,
        typer.Argument(
            help="A folder that `d3m regenerate` wrote, or a bundle to compare with its pools; without, the store is read."
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The folder's bundle; by default the store is asked for it.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Images of each class to check at least.")] = 4,
    all_: Annotated[bool, typer.Option("--all", help="Check every image.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Accept equal pixels only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate images again and say whether they are equal, equal within the stated tolerance, or not (exit status 1).

    Example: d3m verify images/ --bundle bundle.safetensors

    Without a target every file of the store is read and compared with its hash: what is damaged is listed (exit status 1), and
    made again by d3m distill.
    """
    offline()
    if target is None:
        if bundle is not None:
            raise SettingsError("--bundle goes with a folder of images; name the folder, too")
        _verify_store(settings, as_json)
        return
    from d3m_assets.exports import verification
    from d3m_assets.foundation.loading import load_foundation
    from d3m_assets.inspection.verification import subject
    from d3m_assets.store import Store

    loaded, images = subject(target, bundle, Store.open(settings.storage_url))
    model = model_of(loaded, settings) if loaded.generates else None
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


def _verify_store(settings: Settings, as_json: bool) -> None:
    from d3m_assets.inspection.store_verification import verify_store
    from d3m_assets.store import Store

    with shown_progress() as progress:
        found = verify_store(Store.open(settings.storage_url), progress)
    print(json.dumps(found.to_json(), indent=1) if as_json else found.report())
    if found.damaged:
        raise typer.Exit(1)


@app.command(cls=Command, rich_help_panel=BUNDLES)
@with_settings("dataset", "foundation", "storage", "settings_")
def lineage(
    settings: Settings,
    file: Annotated[Path | None, typer.Argument(help="An image of `d3m regenerate`, or a bundle.")] = None,
    pool: Annotated[str | None, typer.Option(help="Instead of a file: budget of a stored pool.")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="Class of the pool's image.")] = None,
    index: Annotated[int, typer.Option(min=0, help="Number of the pool's image within its class.")] = 0,
    replicate: Annotated[int, typer.Option(min=0, help="Which of several distillations.")] = 0,
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle of an image, where the store does not have it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say where an image or a bundle comes from, back to the real images it was learned from.

    Example: d3m lineage images/cat/00003.png
    """
    offline()
    # To look whether the model is at hand must not fetch it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from d3m_assets.distillation.bundle import Bundle
    from d3m_assets.exports.image_record import read_record
    from d3m_assets.inspection import lineage as library
    from d3m_assets.pipeline import open_model
    from d3m_assets.store import Store

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


@app.command(cls=Command, rich_help_panel=BUNDLES)
@with_settings("foundation", "settings_")
def export(
    settings: Settings,
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
) -> None:
    """Write what a bundle has learned in the form of other programs; images are written by `d3m regenerate`.

    Example: d3m export bundle.safetensors --format a1111 --output tokens/
    """
    offline()
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
    model = model_of(loaded, settings)
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


def _range(counts: Sequence[int]) -> str:
    """The smallest and the largest of some numbers, such as "3 to 5", or the one that all are."""
    return " to ".join(str(n) for n in dict.fromkeys((min(counts), max(counts))))


@app.command(cls=Command, rich_help_panel=BUNDLES)
def inspect(bundle: BundleArgument, as_json: AsJson = False) -> None:
    """Print the recipe and the ledger of a bundle, and what it can be used with.

    Example: d3m inspect bundle.safetensors
    """
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
        print(json.dumps(facts, indent=1))  # in ASCII, so that nothing in it can steer a terminal
        return
    for name, value in asdict(loaded.recipe).items():
        print(f"{name:24} {printable(value, 2000)}")
    first = loaded.classes[0].plan
    print(
        f"{'classes':24} {len(loaded.classes)}: {printable(', '.join(c.prompts.class_name for c in loaded.classes[:20]))}"
    )
    if loaded.has_codes:
        print(f"{'coded images of a class':24} {_range([len(loaded.code_numbers(c)) for c in loaded.classes])}")
    if loaded.generates:
        print(
            f"{'vectors of a class':24} {first.prompts} prompts x {first.vectors} vectors x {first.width} {first.storage_type}"
            f"{' and a norm' if first.norms else ''}"
        )
    if loaded.recipe.candidates:
        generated = [loaded.training_images(c) - len(loaded.code_numbers(c)) for c in loaded.classes]
        print(
            f"{'samples of a class':24} {_range(generated)} of {loaded.recipe.candidates} by {printable(loaded.recipe.criterion)}"
        )
    print("\nLedger, bytes of all classes together\n")
    print(ledger.to_string(index=False))
    print("\nFits\n")
    for line in fits(loaded):
        print(f"- {printable(line, 1000)}")
