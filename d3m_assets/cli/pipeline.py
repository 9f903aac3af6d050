"""``d3m distill``, ``plan``, ``status``, ``metrics`` and ``prune``: the work on one dataset."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from d3m_assets.cli.app import app
from d3m_assets.cli.help import START, WORK, Command
from d3m_assets.cli.options import AsJson, offline, with_settings
from d3m_assets.cli.showing import copy_report, metrics_text, show_problems, stored_metrics
from d3m_assets.progress import ProgressEvent
from d3m_assets.settings import Settings
from d3m_assets.terminal import printable, shown_progress


@app.command(cls=Command, rich_help_panel=WORK)
@with_settings()
def distill(
    settings: Settings,
    yes: Annotated[bool, typer.Option("--yes", help="Begin a long job without asking.")] = False,
) -> None:
    """Make everything that is missing or out of date, then show the table.

    Example: d3m distill --dataset photos/ --foundation models/stable-diffusion-v1-5 --budget 16KiB

    Stopped by Ctrl-C or a crash, the same command goes on where it was.
    """
    begun = time.monotonic()
    offline()
    asked = _ask_before_weights_are_fetched(settings, yes=yes)
    with contextlib.ExitStack() as opened:
        with shown_progress() as progress:
            progress(ProgressEvent("start", 0, 0, "opening Dagster's instance"))  # its import alone takes seconds
            from d3m_assets.cost_estimate.asking import ask_before
            from d3m_assets.orchestration.launch import open_instance, run_pending
            from d3m_assets.pipeline import Pipeline

            instance = opened.enter_context(open_instance(settings))
            pipeline = Pipeline(settings, progress=progress)
            opened.callback(pipeline.context.close)
            # Before the images are read, which may take an hour.
            _ = pipeline.context.model.files
            if not pipeline.store.assets():  # one with something in it is probed when there is something to make
                pipeline.store.probe()
            show_problems(pipeline)
            planned = pipeline.plan()
        if not asked:
            ask_before(pipeline, planned, yes=yes)  # with the terminal to itself
        with shown_progress() as progress:
            pipeline.context.progress = progress
            launched = run_pending(settings, instance, pipeline, progress=progress)
            launched.raise_for_failures()
            progress(ProgressEvent("table", 0, 0, "comparing training sets"))
            table, report = metrics_text(pipeline), copy_report(pipeline)
    print(table)
    if launched.run_id is None:
        print("\nEverything was up to date; nothing was done.")
    print(f"\nReport: {report}")
    print(f"{time.monotonic() - begun:.0f} s")


def _ask_before_weights_are_fetched(settings: Settings, *, yes: bool) -> bool:
    """Where gigabytes would be fetched first, ask about the job by the model's configurations; whether that was done."""
    if "/" not in settings.foundation:  # no hub id: nothing is imported to find that out
        return False
    from d3m_assets.cost_estimate.asking import ask_before, pipeline_to_plan, weights_are_here

    if weights_are_here(settings):
        return False
    with shown_progress() as progress:
        pipeline = pipeline_to_plan(settings, progress=progress)
        show_problems(pipeline)
        planned = pipeline.plan()
    ask_before(pipeline, planned, yes=yes)
    return True


@app.command(cls=Command, rich_help_panel=WORK)
@with_settings()
def status(
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """Say what is up to date, missing or out of date, and why.

    Example: d3m status --set inversion.steps=300 (what would have to be made again?)
    """
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(settings)
    plan = pipeline.plan()
    if as_json:
        print(plan.to_json())
        return
    show_problems(pipeline)
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


@app.command(cls=Command, rich_help_panel=START)
@with_settings()
def plan(
    settings: Settings,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=DOLLARS]", help="GPU to estimate for, and its rent an hour; repeatable. Default: plan.gpus."
        ),
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="CLASSES,TRAIN,TEST,WxHxC",
            help="Instead of a dataset its numbers: 1000,1281167,50000,500x375x3 for ImageNet-1K.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Do a few seconds of the work first, to know the speed of this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a job will make and cost, in bytes, FLOPs, hours, money and memory, before anything is begun.

    Example: d3m plan --gpu L4 --gpu "H100 SXM=3.5"
    """
    offline()
    from d3m_assets.compute.hardware import parse_gpu
    from d3m_assets.cost_estimate.asking import pipeline_to_plan, show
    from d3m_assets.cost_estimate.estimate import estimate

    if gpu:
        for text in gpu:
            parse_gpu(text)  # tells what is wrong with it
        settings = settings.model_copy(update={"plan": settings.plan.model_copy(update={"gpus": tuple(gpu)})})
    with shown_progress() as progress:
        pipeline = pipeline_to_plan(settings, described=describe, progress=progress)
        if not as_json:
            show_problems(pipeline)
        found = estimate(pipeline, measured=measure)
    if as_json:
        print(found.to_json())
    else:
        show(found)


@app.command(cls=Command, rich_help_panel=WORK)
@with_settings()
def prune(
    settings: Settings,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only listed.")] = False,
) -> None:
    """List, or remove, what the store keeps of classes, budgets, settings and assets that are gone.

    Example: d3m prune --delete
    """
    from d3m_assets.inspection.pruning import leftovers
    from d3m_assets.ledger import byte_size
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(settings)
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


@app.command(cls=Command, rich_help_panel=WORK)
@with_settings()
def metrics(
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """Show what students have reached: mean and 95 % interval over seeds.

    Example: d3m metrics --json > metrics.json
    """
    from d3m_assets.pipeline import Pipeline

    pipeline = Pipeline(settings)
    if as_json:
        from d3m_assets.evaluation.statistics import summarize

        print(summarize(stored_metrics(pipeline)).to_json(orient="records", indent=1))
    else:
        print(metrics_text(pipeline))
