"""An estimate for people: one page in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from d3m_assets.compute.hardware import PEAK_SOURCE
from d3m_assets.cost_estimate.estimate import Cost, Estimate
from d3m_assets.distillation.packing import MOST_CLASSES
from d3m_assets.ledger import byte_size
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))


def flops_words(count: float) -> str:
    """A number of FLOPs, such as "3.2 PFLOP"."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:,.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 1e9:.2g} GFLOP" if count else "0"


def hours_words(hours: float) -> str:
    """A time, such as "40 s", "12 min", "3.4 h" or "12 days"."""
    if hours * 3600 < 0.5:
        return "0 s" if not hours else "< 1 s"
    if hours * 3600 < 99.5:
        return f"{hours * 3600:.0f} s"
    if hours * 60 < 99.5:
        return f"{hours * 60:.0f} min"
    return f"{hours:,.1f} h" if hours < 99.95 else f"{hours / 24:,.0f} days"


def dollars_words(dollars: float | None) -> str:
    """Money, in US dollars; "–" where it is not known."""
    if dollars is None:
        return "–"
    return f"${dollars:,.2f}" if dollars < 100 else f"${dollars:,.0f}"


def memory_words(cost: Cost) -> str:
    """Memory that a job needs at least on a device, and what fits into it."""
    needed = byte_size(cost.least_memory)
    if not cost.fits:
        return f"{needed}: does not fit"
    if cost.classes_at_a_time is None:
        return needed
    together = min(MOST_CLASSES, cost.classes_at_a_time)
    return f"{needed}; {together:,} {'class' if together == 1 else 'classes'} at a time"


def page(estimate: Estimate) -> Iterator[RenderableType]:
    """Renderables of ``rich``, from top to bottom."""
    from rich.table import Table
    from rich.text import Text

    def line(text: str) -> Text:
        return Text(printable(text, 2000))

    def table(title: str, *columns: str, right: tuple[int, ...] = ()) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for position, column in enumerate(columns):
            made.add_column(column, justify="right" if position in right else "left")
        return made

    yield line(estimate.dataset)
    yield line(estimate.model)
    made = ", ".join(f"{count:,} {asset}" for asset, count in estimate.pending.items())
    yield line(f"To be made: {made or 'nothing; everything is up to date'}" + _up_to_date(estimate))
    yield line(f"Runs: {estimate.runs}")

    codes = ("image codes",) if any(of.code_bytes for of in estimate.bytes) else ()
    budgets = table(
        "\nBytes of a class", "budget", "allowed", "vectors", "bytes", "selection", "bytes", *codes, right=(1, 3, 5, 6)
    )
    for of in estimate.bytes:
        selection = f"{of.kept:,} of {of.candidates:,} samples" if of.selection_bytes else f"all {of.kept:,} samples"
        several = sum(other.budget == of.budget for other in estimate.bytes) > 1
        classes = "1 class" if of.classes == 1 else f"{of.classes:,} classes"
        name = f"{of.budget} ({classes})" if several else of.budget
        vectors = f"{of.prompts} x {of.vectors} {of.storage_type}"
        beside = (f"up to {of.code_bytes:,}",) if codes else ()
        budgets.add_row(
            name, f"{of.allowed:,}", vectors, f"{of.vector_bytes:,}", selection, f"{of.selection_bytes:,}", *beside
        )
    if estimate.bytes:
        yield budgets
        yield line(f"Shared by all classes: {byte_size(estimate.shared_bytes)} of model weights.")
    else:
        yield line(
            "Bytes of a class: as many coded real images as fit into each budget; no model is needed to decode them."
        )
    if estimate.stages:
        work = table("\nWork", "stage", "how much", "FLOPs", right=(2,))
        for stage in estimate.stages:
            work.add_row(stage.name, stage.amount, flops_words(stage.flops))
        work.add_row("together", "", flops_words(estimate.flops))
        yield work
        costs = table("\nTime and money", "device", "time", "rent", "memory at least", "speed", right=(1, 2))
        for cost in estimate.costs:
            device = cost.device
            count = f"{device.devices} x " if device.devices > 1 else ""
            basis = device.source
            costs.add_row(
                f"{count}{device.name}",
                hours_words(cost.hours) if cost.fits else "–",
                dollars_words(cost.dollars) if cost.fits else "–",
                memory_words(cost),
                basis,
            )
        yield costs
        if estimate.host_bytes:
            yield line(
                f"Beside it, {byte_size(estimate.host_bytes)} of images in the memory of the process that evaluates."
            )
        yield from map(line, _sources(estimate))
    if estimate.alternatives:
        first = estimate.compared_on
        others = table(
            "\nAlternatives, made once",
            "what",
            "bytes a class",
            "shared",
            "FLOPs",
            f"time on {first}",
            "",
            right=(1, 2, 3, 4),
        )
        for other in estimate.alternatives:
            others.add_row(
                printable(other.name),
                f"{other.bytes_per_class:,.0f}",
                byte_size(other.shared_bytes) if other.shared_bytes else "0",
                flops_words(other.flops),
                hours_words(other.hours),
                other.note,
            )
        yield others
    for note in estimate.notes:
        yield line(f"Note: {note}.")


def _up_to_date(estimate: Estimate) -> str:
    return f" ({estimate.current:,} are up to date)" if estimate.pending and estimate.current else ""


def _sources(estimate: Estimate) -> list[str]:
    """Where prices come from, and what the numbers leave out."""
    prices = dict.fromkeys(c.device.price_source for c in estimate.costs if c.device.price_source)
    words = [f"Rents: {'; '.join(prices)}. Your own: --gpu NAME=DOLLARS_AN_HOUR."] if prices else []
    if any(not c.device.measured and not c.device.is_cpu for c in estimate.costs):
        words.append(
            f"Peaks: {PEAK_SOURCE}. What is assumed was not measured; plan.utilisation takes another share of them."
        )
    left_out = (
        "Not counted: loading, reading images, augmentation, clustering, coding of real images, checks and report."
    )
    return [*words, left_out]
