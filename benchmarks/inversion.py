"""Inversion, measured: the script's recipe and the engine on the same weights, images and loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loss import Curve, FixedLoss, classes_per_hour, common_targets
from benchmarks.record import PeakMemory, count_flops, counting, synchronise, weight_bytes
from benchmarks.script_recipe import ScriptOptions, ScriptRun
from d3m_assets.datasets.loose_files import LooseFiles, records_of
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.inversion import invert
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.latents import ImageFiles, LatentCache
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.errors import D3MError, StageError
from d3m_assets.progress import ProgressEvent

if TYPE_CHECKING:
    from d3m_assets.distillation.settings import InversionSettings
    from d3m_assets.foundation.loading import Foundation

Say = Callable[[str], None]
SHARE = 0.9
"""Share of the improvement that all variants reach at which their times are compared, beside all of it and the script's end."""


@dataclass(frozen=True)
class Variant:
    """One way to learn classes.

    Attributes:
        name: For people.
        foundation: The model as this way uses it.
        script: Options of the script; None for the engine.
        classes_per_batch: Of the engine.
        exact: Whether the engine's batches give each class the bits that it gets alone, as on a processor.
        changes: To the engine's settings.
    """

    name: str
    foundation: Foundation
    script: ScriptOptions | None = None
    classes_per_batch: int = 1
    exact: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, given: InversionSettings) -> InversionSettings:
        """Settings of the engine as this way has them."""
        return given.model_copy(update=self.changes)


@dataclass(frozen=True)
class ClassImages:
    """A class of the benchmark: its words and its image files."""

    prompts: ClassPrompts
    files: ImageFiles


def digits_classes(folder: Path, classes: int, settings: Any) -> list[ClassImages]:
    """Digits of the package as image files, train split.

    Args:
        folder: Where the digits lie, or are written.
        classes: How many, 1 to 10.
        settings: The package's :class:`~d3m_assets.settings.Settings`, for prompts and mirroring.

    Raises:
        StageError: There are not as many digits.
    """
    from d3m_assets.datasets.digits import ensure_digits

    if not 1 <= classes <= 10:
        raise StageError(f"--classes {classes}: there are ten digits; give 1 to 10")
    root, words, found = ensure_digits(folder), settings.prompts, []
    for k in range(classes):
        files = sorted((root / "train" / str(k)).glob("*.png"))
        prompts = ClassPrompts.of(k, str(k), str(k), templates=words.templates, initializer=words.initializer,
                                  keep_class_name=words.keep_class_name)  # fmt: skip
        found.append(ClassImages(prompts, ImageFiles(LooseFiles(), records_of(files), 1, settings.inversion.flip)))
    return found


def _tasks(foundation: Foundation, classes: Sequence[ClassImages]) -> list[InversionTask]:
    plan = EmbeddingPlan(1, 1, "int8", foundation.layout.width)  # one prompt of one vector, as the script learns
    return [InversionTask(c.prompts, c.files, plan) for c in classes]


def _learn(
    variant: Variant, classes: Sequence[ClassImages], settings: InversionSettings, seed: int,
    listen: Callable[[ProgressEvent], None], cache: LatentCache | None = None,
) -> list[Any]:  # fmt: skip
    found = dict(invert(variant.foundation, _tasks(variant.foundation, classes), settings, seed, listen, cache=cache,
                        classes_per_batch=variant.classes_per_batch, exact=variant.exact))  # fmt: skip
    for result in found.values():
        if isinstance(result, D3MError):
            raise result
    return [found[i] for i in range(len(classes))]


def script_curve(
    variant: Variant, item: ClassImages, loss: Callable[[Any], float], seed: int, say: Say, seconds: float
) -> Curve:
    """Learn a class as the script does; the clock stands still while the fixed loss is looked at.

    Args:
        variant: With options of the script.
        item: The class.
        loss: Its fixed loss, of rows.
        seed: Of everything random.
        say: Told of progress.
        seconds: Work is given up after these, steps or not.
    """
    assert variant.script is not None
    run, curve, spent, upcoming = (
        ScriptRun(variant.foundation, item.prompts, item.files, variant.script, seed),
        Curve(),
        0.0,
        5,
    )
    curve.add(0.0, 0, loss(run.rows))
    for step in range(1, variant.script.steps + 1):
        begun = time.perf_counter()
        run.step()
        synchronise(variant.foundation.device)
        spent += time.perf_counter() - begun
        over = spent > seconds or step == variant.script.steps
        if step == upcoming or over:
            curve.add(spent, step, loss(run.rows))
            upcoming = step + max(5, step // 10)  # at most a tenth too late
            say(f"{variant.name}: class {item.prompts.class_name}, step {step}, fixed loss {curve.losses[-1]:.4f}")
        if over:
            break
    return curve


def engine_curves(
    variant: Variant, classes: Sequence[ClassImages], settings: InversionSettings, seed: int, say: Say
) -> list[Curve]:
    """Learn one batch of classes with the engine; its clock includes encoding the images and its own looks at the loss.

    Args:
        variant: Of the engine.
        classes: At most ``variant.classes_per_batch``.
        settings: Without ``patience``: the classes of a batch then go in step, which is how times are told.
        seed: Root of the random streams.
        say: Told of progress.

    Raises:
        StageError: The batch did not fit into memory, or rounds where it must be exact, so that its classes did not go in
            step.
    """
    stamps = [time.perf_counter()]

    def listen(event: ProgressEvent) -> None:
        synchronise(variant.foundation.device)
        stamps.append(time.perf_counter())
        say(f"{variant.name}: step {event.done} of {event.total}, {event.detail}")

    settings = variant.settings(settings)
    results = _learn(variant, classes, settings, seed, listen)
    if len(stamps) != settings.steps + 1:
        why = "do not get the same bits together as alone" if variant.exact else "do not fit into one batch"
        raise StageError(f"{len(classes)} classes {why} on this device; lower --classes")
    curves = []
    for result in results:
        curve = Curve()
        for step, loss in result.losses:
            # The look before the first step is not told of; it was over when that step was.
            curve.add(stamps[max(1, step)] - stamps[0], step, loss)
        curves.append(curve)
    return curves


def script_speed(variant: Variant, item: ClassImages, seed: int, seconds: float, say: Say) -> Callable[[], float]:
    """Samples a second of the script: a function that works ``seconds`` more and tells. Warmed up by three steps."""
    options = variant.script
    assert options is not None
    run = ScriptRun(variant.foundation, item.prompts, item.files, options, seed)
    for _ in range(3):
        run.step()

    def measure() -> float:
        synchronise(variant.foundation.device)
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            run.step()
            steps += 1
            say(f"{variant.name}: timing, {steps} steps")
        synchronise(variant.foundation.device)
        return steps * options.batch_size / (time.perf_counter() - begun)

    return measure


def engine_speed(
    variant: Variant, classes: Sequence[ClassImages], settings: InversionSettings, seed: int, seconds: float,
    cache: LatentCache, say: Say,
) -> Callable[[], float]:  # fmt: skip
    """Samples a second of the engine, its looks at the loss included and the encoding, done once, not.

    The warm-up goes one step past the second look, and tells how many steps fit into ``seconds``.
    """

    def run(steps: int) -> list[tuple[float, int]]:
        stamps: list[tuple[float, int]] = []

        def listen(event: ProgressEvent) -> None:
            synchronise(variant.foundation.device)
            stamps.append((time.perf_counter(), event.done))
            say(f"{variant.name}: timing, step {event.done} of {event.total}")

        _learn(variant, used, own.model_copy(update={"steps": steps}), seed, listen, cache)
        return stamps

    def speed(stamps: list[tuple[float, int]]) -> float:
        return (stamps[-1][1] - stamps[0][1]) * settings.samples_per_step / (stamps[-1][0] - stamps[0][0])

    own = variant.settings(settings)
    used = list(classes[: variant.classes_per_batch])
    period = max(2, settings.check_every)
    warm_up = run(period + 1)
    # Without its first step, which is when kernels are chosen and compiled.
    step = len(used) * settings.samples_per_step / speed(warm_up[1:])
    # Whole periods and one step: as many looks fall between the first stamp and the last as there are periods.
    steps = period * max(1, round(seconds / max(step * period, 1e-6))) + 1
    return lambda: speed(run(steps))


def flops_per_sample(variant: Variant, item: ClassImages, settings: InversionSettings, seed: int) -> float:
    """FLOPs of one training sample: everything a step does but the engine's looks at the loss."""
    device = variant.foundation.device
    if variant.script is not None:
        run = ScriptRun(variant.foundation, item.prompts, item.files, variant.script, seed)
        return count_flops(device, run.step) / variant.script.batch_size

    few = settings.model_copy(update={"steps": 3, "check_every": 10_000})
    files = ImageFiles(item.files.source, item.files.images[:2], item.files.channels)
    found: list[int] = []
    with ExitStack() as stack:

        def listen(event: ProgressEvent) -> None:
            if event.done == 1:
                stack.callback(
                    lambda counter: found.append(counter.get_total_flops()), stack.enter_context(counting(device))
                )
            elif event.done == 2:  # between the first step and the second there is no look at the loss
                stack.close()

        _learn(variant, [ClassImages(item.prompts, files)], few, seed, listen)
    return found[-1] / settings.samples_per_step


def measure_inversion(
    variants: Sequence[Variant], classes: Sequence[ClassImages], settings: InversionSettings, seed: int, *,
    folder: Path, peak: float | None, repeats: int, seconds: float, curves: bool, curve_seconds: float, say: Say,
    counted: Foundation | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All numbers of all variants.

    Args:
        variants: The first is the one that others are compared with; scripts before the engine.
        classes: What is learned.
        settings: Of the engine.
        seed: Root of everything random.
        folder: For cached latents.
        peak: Dense bf16 FLOP/s of the device; None if not known.
        repeats: Rounds of timing, the variants taking turns.
        seconds: Of one variant in one round.
        curves: Whether loss over time is measured, which means nothing with random weights.
        curve_seconds: Most seconds of the script for one class.
        say: Told of progress.
        counted: The model in which FLOPs of a variant with a compiled U-Net are counted.

    Returns:
        For each variant ``samples_per_second``, ``flops_per_sample``, ``mfu``, ``peak_memory`` and, with ``curves``,
        ``curves``, ``best_loss``, ``classes_per_hour`` for each target; and the ``targets`` by class.
    """
    cache = LatentCache(folder, 2**34)
    speeds: dict[str, list[float]] = {v.name: [] for v in variants}
    timers, memory = {}, {}
    for variant in variants:
        model = variant.foundation
        own = weight_bytes([model.unet, model.vae, *(e.model for e in model.text_encoders)])
        with PeakMemory(model.device, own) as used:
            if variant.script is None:
                timers[variant.name] = engine_speed(variant, classes, settings, seed, seconds, cache, say)
            else:
                timers[variant.name] = script_speed(variant, classes[0], seed, seconds, say)
        memory[variant.name] = used.peak
    for _ in range(repeats):
        for variant in variants:
            speeds[variant.name].append(timers[variant.name]())
    timers.clear()
    flops, engine_flops = 0.0, None  # one count for every way to run the engine
    result: dict[str, Any] = {"variants": {}, "unreached": []}
    for variant in variants:
        speed = statistics.median(speeds[variant.name])
        if variant.script is not None or engine_flops is None:
            say(f"{variant.name}: counting FLOPs")
            plain = variant if counted is None or variant.script else Variant(variant.name, counted)
            flops = flops_per_sample(plain, classes[0], settings, seed)
            engine_flops = None if variant.script is not None else flops
        result["variants"][variant.name] = {
            "options": asdict(variant.script) if variant.script else {"classes_per_batch": variant.classes_per_batch},
            "samples_per_second": speed, "samples_per_second_each": speeds[variant.name], "flops_per_sample": flops,
            "mfu": speed * flops / peak if peak else None, "peak_memory": memory[variant.name],
        }  # fmt: skip
    if curves:
        grouped = _curves(variants, classes, settings, seed, curve_seconds, say)
        _compare(result, variants, grouped)
    return result


def _curves(
    variants: Sequence[Variant], classes: Sequence[ClassImages], settings: InversionSettings, seed: int, seconds: float,
    say: Say,
) -> dict[str, list[list[Curve]]]:  # fmt: skip
    """Curves of every variant, in the batches they were learned in; the variants take turns, class by class."""
    grouped: dict[str, list[list[Curve]]] = {v.name: [] for v in variants}
    judge = next(v for v in variants if v.script is None).foundation
    for k, item in enumerate(classes):
        loss = FixedLoss(judge, item.prompts, item.files, seed)
        for variant in variants:
            if variant.script is not None:
                grouped[variant.name].append([script_curve(variant, item, loss, seed, say, seconds)])
            elif k % variant.classes_per_batch == 0:
                batch = classes[k : k + variant.classes_per_batch]
                grouped[variant.name].append(engine_curves(variant, batch, settings, seed, say))
    return grouped


def _compare(result: dict[str, Any], variants: Sequence[Variant], grouped: dict[str, list[list[Curve]]]) -> None:
    flat = {name: [curve for group in groups for curve in group] for name, groups in grouped.items()}
    first = variants[0].name
    targets = {
        f"{SHARE:.0%} of what all reach": common_targets(list(flat.values()), SHARE),
        "all of what all reach": common_targets(list(flat.values()), 1.0),
        "script's end": [curve.losses[-1] for curve in flat[first]],
    }
    result["targets"] = targets
    for variant in variants:
        row, own = result["variants"][variant.name], flat[variant.name]
        row["curves"] = [asdict(curve) for curve in own]
        row["best_loss"] = statistics.mean(curve.best for curve in own)
        row["classes_per_hour"] = {}
        for name, wanted in targets.items():
            row["classes_per_hour"][name] = classes_per_hour(grouped[variant.name], wanted)
            missed = sum(curve.reached(x) is None for curve, x in zip(own, wanted, strict=True))
            if missed:
                result["unreached"].append(f"{variant.name} never reaches the {name} in {missed} of {len(own)} classes")
