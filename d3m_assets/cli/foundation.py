"""``d3m foundation``: training and measuring the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from d3m_assets.cli.app import app
from d3m_assets.cli.help import MORE
from d3m_assets.cli.options import offline
from d3m_assets.settings import load_settings
from d3m_assets.terminal import shown_progress

foundation_app = typer.Typer(no_args_is_help=True, help="The embedded text-to-image model.")
app.add_typer(foundation_app, name="foundation", rich_help_panel=MORE)


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
    """Train the embedded text-to-image model on drawn characters; stopped and started again, it goes on.

    Example: d3m foundation train --fonts fonts/train --output my-model/
    """
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
    """Measure a trained embedded model and write the model card beside its weights.

    Example: d3m foundation card my-model/ --fonts fonts/
    """
    offline()
    from d3m_assets.foundation_card import write_card

    with shown_progress() as progress:
        write_card(path, fonts, load_settings(), progress)
    print(f"Written to {path / 'README.md'}")
