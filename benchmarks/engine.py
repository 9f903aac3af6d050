"""The engine beside the usual way, in one process and on the same weights.

    python -m benchmarks.engine
    python -m benchmarks.engine --model sd15 --device cuda --compile

Inversion: the diffusers textual_inversion script's recipe as its README gives it, the same with larger batches, and our
engine. Generation: ``pipe(prompt)`` class by class, and our engine. Prints a table and writes a dated JSON file. What is
measured how stands in benchmarks/README.md.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


DEFAULT_CLASSES = {"embedded": 10, "sd15": 8, "sd21": 4, "sdxl": 2}
"""Classes in a batch: ten steps of sixteen samples each, and the looks between them, shall stay below half a minute on an
H200 (by FLOPs counted; not measured)."""


WORD_STEPS = 150
"""Of the engine where it starts from words, as the script does."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        default="embedded",
        choices=("embedded", "sd15", "sd21", "sdxl"),
        help="all but embedded: random weights",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--classes", type=int, help="digits that are learned, 1 to 10; default: 10, fewer for large models")
    add("--seconds", type=float, default=400, help="about how long all timing may take")
    add("--repeats", type=int, default=3, help="rounds of timing; the median is told")
    add("--threads", type=int, default=1, help="PyTorch threads on a processor; the engine's workers have one each")
    add("--script-steps", type=int, default=3000, help="most steps of the script for a class")
    add(
        "--script-seconds",
        type=float,
        help="most seconds of the script for a class; default: half of --seconds for all",
    )
    add("--tuned-batch", type=int, default=16, help="batch of the script at its tuned best")
    add("--tuned-rate", type=float, default=5e-4, help="its learning rate, times the batch")
    add("--loaders", type=int, help="its dataloader workers; default: 0 on a processor, 8 on a GPU")
    add("--plain-batch", type=int, default=8, help="images a call of the batched plain loop")
    add("--compile", action="store_true", help="also the engine with a compiled U-Net")
    add("--skip", choices=("inversion", "generation"), action="append", default=[])
    add("--digits", type=Path, help="folder of the digits; default: a temporary one")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="JSON file; default: benchmarks/results/engine-DATE.json")
    found = parser.parse_args(given)
    if found.classes is None:
        found.classes = DEFAULT_CLASSES[found.model]
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything the command line asks for, as it is written to the file.

    Raises:
        D3MError: A setting or device is impossible, or a variant fails; the message says which.
    """
    import torch

    from benchmarks import generation, inversion, models
    from benchmarks.record import Lines, surroundings
    from benchmarks.script_recipe import ScriptOptions
    from d3m_assets.assets.inverted_embeddings import processor_batch
    from d3m_assets.settings import load_settings

    say, settings = Lines(), load_settings()
    with tempfile.TemporaryDirectory(prefix="d3m-benchmark-") as temporary:
        folder = Path(temporary)
        print(f"building {given.model}", file=sys.stderr, flush=True)
        full = models.load_model(given.model, given.device, folder / "model")
        gpu = full.device.type != "cpu"
        before = torch.get_num_threads()
        if not gpu:
            torch.set_num_threads(given.threads)
        try:
            half = models.converted(full, "bfloat16") if gpu else full
            result = surroundings(str(full.device))
            peak = result["hardware"]["peak_bf16_flops"]
            result["model"] = {
                "name": given.model,
                "image_size": full.files.image_size,
                "random weights": given.model != "embedded",
                "unet_parameters": models.parameters([full.unet]),
                "fingerprint": full.files.fingerprint if given.model == "embedded" else None,
            }
            result["settings"] = {"seed": given.seed, "classes": given.classes, "repeats": given.repeats,
                                  "inversion": settings.inversion.model_dump(mode="json"),
                                  "generation": settings.generation.model_dump(mode="json")}  # fmt: skip
            compiled = (
                models.converted(full, "bfloat16" if gpu else "float32", compile_unet=True) if given.compile else None
            )
            classes = inversion.digits_classes(given.digits or folder / "digits", given.classes, settings)
            share = given.seconds / max(1, 2 - len(set(given.skip)))
            if "inversion" not in given.skip:
                loaders = given.loaders if given.loaders is not None else 8 if gpu else 0
                tuned = ScriptOptions(given.tuned_batch, given.tuned_rate, given.script_steps, gpu, loaders)
                fused = min(given.classes, settings.inversion.classes_per_batch or 32)
                variants = [
                    inversion.Variant("script", full, ScriptOptions(steps=given.script_steps)),
                    inversion.Variant("script, tuned", half, tuned),
                ]
                if not gpu:
                    variants.append(inversion.Variant("engine, one by one", half))
                    together = min(given.classes, processor_batch(full.files, [], settings.inversion))
                    variants.append(inversion.Variant("engine", half, classes_per_batch=together, exact=together > 1))
                    if full.files.image_encoder is not None:
                        words = {"initialization": "words", "steps": WORD_STEPS}
                        variants.append(
                            inversion.Variant(
                                "engine, start from words", half, None, together, exact=together > 1, changes=words
                            )
                        )
                variants.append(inversion.Variant("engine, fused", half, classes_per_batch=fused))
                if compiled is not None:
                    variants.append(inversion.Variant("engine, fused, compiled", compiled, classes_per_batch=fused))
                curves = given.model == "embedded"
                timed = 0.25 * share if curves else 0.6 * share
                limit = given.script_seconds or 0.5 * share / given.classes
                result["inversion"] = inversion.measure_inversion(
                    variants, classes, settings.inversion, given.seed, folder=folder / "latents", peak=peak,
                    repeats=given.repeats, seconds=timed / given.repeats / len(variants), curves=curves,
                    curve_seconds=limit, say=say, counted=half,
                )  # fmt: skip
            if "generation" not in given.skip:
                prompts = [c.prompts for c in classes]
                seconds = 0.5 * share / given.repeats / 3
                result["generation"] = generation.measure_generation(
                    half, prompts, settings.generation, given.seed, peak=peak, repeats=given.repeats,
                    seconds=seconds, plain_batch=given.plain_batch, say=say, compiled=compiled,
                )  # fmt: skip
        finally:
            torch.set_num_threads(before)
    return result


def table(result: dict[str, Any]) -> str:
    """A result as lines of text."""
    hardware, versions = result["hardware"], result["versions"]
    lines = [
        f"{result['model']['name']} at {result['model']['image_size']} px on {hardware['device']}, {hardware['threads']} "
        f"threads, load {hardware['load_1_min']}; torch {versions['torch']}, diffusers {versions['diffusers']}; "
        f"commit {result['commit'][:10]}, {result['date']}",
    ]

    def number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
        return "unknown" if value is None else f"{value / scale:.{digits}f}"

    if "inversion" in result:
        targets = list(result["inversion"].get("targets", {}))
        head = "".join(f"{'classes/h at ' + name:>40}" for name in targets)
        lines += [
            "",
            f"{'inversion':28}{'samples/s':>10}{'GFLOP/sample':>14}{'MFU':>9}{'peak MB':>9}{'best loss':>11}{head}",
        ]
        for name, row in result["inversion"]["variants"].items():
            reached = "".join(
                f"{'never' if row['classes_per_hour'][t] is None else number(row['classes_per_hour'][t]):>40}"
                for t in targets
            )
            loss = f"{row['best_loss']:.4f}" if targets else "-"
            lines.append(
                f"{name:28}{number(row['samples_per_second']):>10}{number(row['flops_per_sample'], 1e9, 3):>14}"
                f"{number(row['mfu'], 1, 3):>9}{number(row['peak_memory'], 1e6, 0):>9}{loss:>11}{reached}"
            )
        lines += result["inversion"]["unreached"]
    if "generation" in result:
        lines += ["", f"{'generation':62}{'images/s':>10}{'GFLOP/image':>14}{'MFU':>9}{'peak MB':>9}"]
        for name, row in result["generation"]["variants"].items():
            lines.append(
                f"{name:62}{number(row['images_per_second'], 1, 2):>10}{number(row['flops_per_image'], 1e9, 2):>14}"
                f"{number(row['mfu'], 1, 3):>9}{number(row['peak_memory'], 1e6, 0):>9}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    from benchmarks.record import write_result
    from d3m_assets.errors import D3MError

    given = arguments()
    try:
        result = measure(given)
    except D3MError as error:
        sys.exit(f"error: {error}")
    print(table(result))
    print(write_result("engine", result, given.output))


if __name__ == "__main__":
    main()
