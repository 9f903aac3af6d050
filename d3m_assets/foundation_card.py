"""The model card of the embedded foundation model: every figure in it is measured here, by `d3m foundation card`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.datasets.images import contact_sheet
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.generation import generate
from d3m_assets.distillation.inversion_state import InversionTask
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.errors import FoundationError
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.foundation.embedded.characters import (
    ATTRIBUTES,
    CHARACTERS,
    FONTS,
    HELD_OUT_FONTS,
    SYMBOLS,
    UNSEEN_SYMBOLS,
    Rendered,
    render,
)
from d3m_assets.foundation.embedded.distance_fields import Outlines
from d3m_assets.foundation.embedded.outlines import (
    HELD_OUT_HAND_PACKAGES,
    HELD_OUT_PRINT_PACKAGES,
    build_outlines,
)
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import Foundation, load_foundation
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.settings import Settings

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from d3m_assets.datasets.labelled_images import LabelledImages

NAMES = "0123456789abcdefghijklmnopqrstuvwxyz"
FOLDED = {"o": "0", "i": "1", "l": "1"}
"""Names that count as another: what nobody can tell apart when a character stands alone. Both cases of a letter share a
name, so that S and s, C and c, O and o are one; O, o and 0 are one; I, i, L, l and 1 are one. Nothing else is folded."""

GUIDANCE = (1.0, 2.0, 4.0)
PER_CLASS = 20
POOL_PER_CLASS = 50
"""Samples of a class that students train on, at guidance 2; the recogniser is shown all of them."""

UNSEEN_EXAMPLES = 10
_UNSEEN_NOISE = 20.0
_CLASSES = [n for n in NAMES if n not in FOLDED] + list(UNSEEN_SYMBOLS)
_RECOGNISER = StudentSettings(width=32, steps=3000, batch_size=64, augmentation="none", image_size=32, seeds=(0,))
_STUDENTS = StudentSettings(image_size=32, seeds=(0, 1, 2))
_CONTROLLED = (
    "7",
    "thin 7",
    "bold 7",
    "heavy 7",
    "backslanted 7",
    "slanted 7",
    "narrow 7",
    "wide 7",
    "black 7",
    "barred 7",
)
"""Subjects of the picture of control by words."""
_INTRODUCTION = [
    "# Embedded foundation model: characters",
    "",
    "A stock `StableDiffusionPipeline`, small enough to ship: it draws single characters from captions such as "
    "`a photo of a bold slanted 7`. Trained by `d3m foundation train`; this card is written by `d3m foundation card`.",
    "",
    "![Class-name samples, a row a digit or letter](samples.png)",
    "",
]
_LIMITS = [
    "## Limits",
    "",
    "Single characters at 32x32 pixels, in grey. Letters of both cases share a name, since the tokenizer folds case. "
    "It stands for a real text-to-image model where none can be downloaded; it knows nothing but characters.",
    "",
]
_SEED = 500_000_000
"""Far from the seeds that training draws with."""


def _class_of(name: str) -> int:
    """Position among the recogniser's classes."""
    return _CLASSES.index(FOLDED.get(name, name))


def _labelled(rendered: Rendered) -> LabelledImages:
    from d3m_assets.datasets.labelled_images import LabelledImages

    drawn = CHARACTERS + SYMBOLS + UNSEEN_SYMBOLS
    labels = [_class_of(drawn[c].lower() if drawn[c] in CHARACTERS else drawn[c]) for c in rendered.characters]
    return LabelledImages(rendered.images[..., None], np.array(labels), "synthetic")


@dataclass(frozen=True)
class CardFonts:
    """Fonts that the card measures with, drawn once: those of training, and families that were kept out of it."""

    trained: Outlines
    held_out: Outlines

    @classmethod
    def of(cls, folder: Path, banks: Path, processes: int = 1) -> CardFonts:
        """Draw the fonts that ``scripts/fonts`` brought to ``folder``; the banks are kept in ``banks``."""
        return cls(*(build_outlines(folder / p, banks / p, processes=processes) for p in ("train", "heldout")))

    def draw(self, count: int, seed: int, *, characters: str = CHARACTERS, held_out: bool = False) -> Rendered:
        """Characters in turn, printed and by pen, in the proportions of training."""
        return render(
            count,
            _SEED + seed,
            characters=characters,
            pen_share=0.3,
            held_out=held_out,
            outlines=self.held_out if held_out else self.trained,
        )


def recognition(
    foundation: Foundation, fonts: CardFonts, settings: Settings, progress: Progress = silent
) -> dict[str, float]:
    """How much of what the model draws is what was asked for, and what it is worth to a student.

    A classifier (ConvNet-3; names folded as ``FOLDED`` says, and the unseen symbols as classes of their own) sees renders of
    seeds that training never used. Its accuracy on renders in held-out fonts is given beside. An unseen symbol is inverted
    from ten noisy drawings in held-out fonts, to one vector, with neither its name nor a class name in the prompt. Students
    of digits and of letters train on class-name samples, or on as many renders, and are tested on renders in held-out fonts.

    Returns:
        Fractions: "renders", "renders, held-out fonts" and "guidance g", each ", digits" and ", letters"; "unseen" and
        "unseen, worst"; "students on class names" and "students on renders", ", digits" and ", letters", and the half-widths
        of their 95 % intervals, ", half-width".
    """
    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.students import evaluate, train_student

    shown = fonts.draw(24_800, 0, characters=CHARACTERS)
    unseen = fonts.draw(4_000, 1, characters=UNSEEN_SYMBOLS)
    data = [_labelled(shown), _labelled(unseen)]
    side = _RECOGNISER.image_size
    assert side is not None
    train = LabelledImages(
        np.concatenate([d.images for d in data]), np.concatenate([d.labels for d in data]), "synthetic"
    ).resized(side, 1)
    recogniser = train_student(train, _RECOGNISER, n_classes=len(_CLASSES), seed=0, progress=progress)

    def recognised(images: np.ndarray, name: str) -> float:
        labels = np.full(len(images), _class_of(name))
        data = LabelledImages(images, labels, "synthetic").resized(side, 1)
        return float((evaluate(recogniser, data) == labels).mean())

    out = {}
    kinds = {"digits": CHARACTERS[:10], "letters": CHARACTERS[10:]}
    for kind, characters in kinds.items():
        for name, held_out in (("renders", False), ("renders, held-out fonts", True)):
            drawn = _labelled(fonts.draw(2080, 2, characters=characters, held_out=held_out)).resized(side, 1)
            out[f"{name}, {kind}"] = float((evaluate(recogniser, drawn) == drawn.labels).mean())
    pools: dict[str, np.ndarray] = {}
    for guidance in GUIDANCE:
        count = POOL_PER_CLASS if guidance == 2 else PER_CLASS
        drawing = settings.generation.model_copy(update={"guidance_scale": guidance, "batch_size": count})
        right = []
        for position, name in enumerate(NAMES):
            progress(ProgressEvent(f"guidance {guidance:g}", position, len(NAMES), f"class {name}"))
            images, _ = generate(foundation, _named(name), drawing, 1, count=count, channels=1)
            right.append(recognised(images, name))
            if guidance == 2:
                pools[name] = images
        out[f"guidance {guidance:g}, digits"] = float(np.mean(right[:10]))
        out[f"guidance {guidance:g}, letters"] = float(np.mean(right[10:]))
    found = [recognised(inverted(foundation, fonts, s, settings, progress), s) for s in UNSEEN_SYMBOLS]
    out |= {"unseen": float(np.mean(found)), "unseen, worst": min(found)}
    return out | _students(pools, fonts, progress)


def inverted(
    foundation: Foundation, fonts: CardFonts, symbol: str, settings: Settings, progress: Progress = silent
) -> np.ndarray:
    """Samples at guidance 2, uint8 ``[20, 32, 32, 1]``, of a symbol that was inverted from ten noisy drawings."""
    from d3m_assets.distillation.inversion import invert

    rng = np.random.default_rng([_SEED, ord(symbol)])
    drawn = fonts.draw(UNSEEN_EXAMPLES, ord(symbol), characters=symbol, held_out=True).images[..., None]
    noisy = np.clip(drawn + rng.normal(0, _UNSEEN_NOISE, drawn.shape), 0, 255).astype(np.uint8)
    prompts = ClassPrompts.of(
        0, "class", "symbol", templates=("a photo of a {}",), initializer=None, keep_class_name=False
    )
    plan = EmbeddingPlan(prompts=1, vectors=1, storage_type="int8", width=foundation.layout.width)
    ((_, learned),) = invert(
        foundation, [InversionTask(prompts, noisy.repeat(3, -1), plan)], settings.inversion, 0, progress
    )
    if isinstance(learned, Exception):
        raise learned
    drawing = settings.generation.model_copy(update={"guidance_scale": 2.0, "batch_size": PER_CLASS})
    return generate(foundation, prompts, drawing, 1, count=PER_CLASS, channels=1, vectors=learned.vectors, plan=plan)[0]


def _students(pools: dict[str, np.ndarray], fonts: CardFonts, progress: Progress) -> dict[str, float]:
    """Accuracy of students of digits and letters on renders in held-out fonts, and half-widths."""
    from scipy.stats import t

    from d3m_assets.datasets.labelled_images import LabelledImages
    from d3m_assets.evaluation.students import evaluate, train_students

    side = _STUDENTS.image_size
    assert side is not None
    out = {}
    for kind, names, characters in (("digits", NAMES[:10], CHARACTERS[:10]), ("letters", NAMES[10:], CHARACTERS[10:])):

        def of(rendered: Rendered, names: str = names) -> LabelledImages:
            labels = np.array([names.index(CHARACTERS[c].lower()) for c in rendered.characters])
            return LabelledImages(rendered.images[..., None], labels, "synthetic").resized(side, 1)

        test = of(fonts.draw(2080, 3, characters=characters, held_out=True))
        labels = np.repeat(np.arange(len(names)), POOL_PER_CLASS)
        sampled = LabelledImages(np.concatenate([pools[n] for n in names]), labels, "synthetic").resized(side, 1)
        for name, train in (
            ("class names", sampled),
            ("renders", of(fonts.draw(len(names) * POOL_PER_CLASS, 4, characters=characters))),
        ):
            modules = train_students(
                [train] * len(_STUDENTS.seeds),
                _STUDENTS,
                n_classes=len(names),
                seeds=_STUDENTS.seeds,
                progress=progress,
            )
            accuracies = [float((evaluate(m, test) == test.labels).mean()) for m in modules]
            n = len(accuracies)
            out[f"students on {name}, {kind}"] = float(np.mean(accuracies))
            out[f"students on {name}, {kind}, half-width"] = float(
                t.ppf(0.975, n - 1) * np.std(accuracies, ddof=1) / np.sqrt(n)
            )
    return out


def _named(name: str) -> ClassPrompts:
    return ClassPrompts.of(0, "class", name, templates=("a photo of a {}",), initializer=None, keep_class_name=True)


def samples(foundation: Foundation, settings: Settings, subjects: Sequence[str], columns: int = 12) -> bytes:
    """A PNG with a row of images for each subject ("bold 7"), the same noise in every row."""
    drawing = settings.generation.model_copy(update={"batch_size": columns})
    rows = [generate(foundation, _named(s), drawing, 2, count=columns, channels=1)[0] for s in subjects]
    return contact_sheet(np.concatenate(rows), columns, 2, max_bytes=120_000)


def _history(facts: dict[str, Any]) -> list[str]:
    """What was trained, a paragraph for each training; the first one first."""
    s, before = facts["settings"], facts.get("begun_from")
    earlier = [*_history(before), *([before["notes"], ""] if before.get("notes") else [])] if before else []
    kept = before or s.get("autoencoder")
    encoder = "The autoencoder was kept." if kept else f"Autoencoder: {s['vae_steps']:,} steps of {s['vae_batch']}."
    optimizer = "AdamW" if "digit_share" in s else "Muon for weight matrices and AdamW for the rest,"
    line = (
        f"{'Then, from these weights: ' if before else ''}{encoder} Text encoder and U-Net: {s['steps']:,} steps of "
        f"{s['batch']} on {s['images']:,} drawings ({facts['seconds'] / 60:.0f} minutes, {s['processes']} processor cores, no "
        f"GPU), {optimizer} {s['learning_rate']:g} to 0, moving average {s['ema']:g}, seed {s['seed']}. "
        f"Loss {facts['losses'][0]:.3f} to {facts['losses'][-1]:.3f}."
    )
    return [*earlier, line, ""]


def write_card(path: Path, fonts: Path, settings: Settings, progress: Progress = silent) -> None:
    """Measure a trained embedded model and write ``README.md`` and pictures beside its weights.

    Args:
        path: The pipeline directory, with the ``training.json`` that ``d3m foundation train`` left there.
        fonts: The folder that ``scripts/fonts`` brought fonts to.
        settings: Where to keep intermediate results, and how to sample.
        progress: Told what is being measured.

    Raises:
        FoundationError: ``fonts`` holds none to measure with, or ``path`` was not written by ``d3m foundation train``.
    """
    try:
        facts = json.loads((path / "training.json").read_text())
    except (OSError, ValueError) as error:
        raise FoundationError(f"{path} has no readable training.json ({error}); train it first") from error
    if not (fonts / "heldout").is_dir():
        raise FoundationError(f"{fonts} holds no folder heldout; bring the fonts with scripts/fonts {fonts}")
    foundation = load_foundation(FoundationFiles(str(path), path), settings.device)
    banks = settings.home / "foundation-training" / "banks"
    recognized = recognition(foundation, CardFonts.of(fonts, banks), settings, progress)
    (path / "samples.png").write_bytes(samples(foundation, settings, list(NAMES), 12))
    (path / "control.png").write_bytes(samples(foundation, settings, _CONTROLLED))
    weights = sum(file.stat().st_size for file in path.rglob("*.safetensors")) / 1e6
    model_card(facts, _parameters(foundation), weights, recognized).save(path / "README.md")


def model_card(
    facts: dict[str, Any],
    parameters: dict[str, float],
    weights: float,
    recognized: dict[str, float],
) -> ModelCard:
    """The model card, front matter and text, of measured figures.

    Args:
        facts: Contents of ``training.json``.
        parameters: Millions of parameters of "vae", "text_encoder" and "unet".
        weights: Size of the weights in MB, the image encoder's included.
        recognized: From :func:`recognition`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(license="apache-2.0", library_name="diffusers", pipeline_tag="text-to-image")
    sections = [
        *_INTRODUCTION,
        *_data_section(facts),
        *_training_section(facts, parameters, weights),
        *_measured_section(recognized),
        *_LIMITS,
    ]
    text = "\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _parameters(foundation: Foundation) -> dict[str, float]:
    """Millions of parameters of each part."""
    modules = {"vae": foundation.vae, "unet": foundation.unet, "text_encoder": foundation.text_encoders[0].model}
    return {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in modules.items()}


def _data_section(facts: dict[str, Any]) -> list[str]:
    s, fonts = facts["settings"], facts.get("fonts", [])
    packages = sorted({f["package"] for f in fonts})
    held_out = ", ".join([*HELD_OUT_HAND_PACKAGES, *HELD_OUT_PRINT_PACKAGES])
    drawn = (
        f"{len(fonts)} fonts of the Debian packages {', '.join(packages)} (licences: the copyright file of each; hashes of "
        f"the files: `training.json`)"
        if fonts
        else f"{len(FONTS)} fonts that matplotlib ships"
    )
    share = s.get("shape_share", 0.0)
    symbols = 100 * s.get("symbol_share", 0) * (1 - share) * bool(fonts)
    shapes = f"and {100 * share:.0f} % random strokes, " if share else ""
    return [
        "## Data",
        "",
        f"{s['images']:,} characters drawn by procedure. {symbols:.0f} % are symbols {shapes}"
        f"which no caption names; of the others (0-9, A-Z, a-z, "
        + (f"{10 * s['digit_share']:.0f} in ten digits" if "digit_share" in s else "all 62 alike")
        + f") {100 * s.get('pen_share', 0.75):.0f} % are drawn by a pen that follows hand-written or single-line (Hershey) "
        f"skeletons, the rest in {drawn}. Captions name a random part of: {', '.join(ATTRIBUTES)}, and the shape's "
        "variant. No image of any dataset was trained on.",
        "",
        f"Kept out of training, whole families: {held_out}; the fonts {', '.join(HELD_OUT_FONTS)}, the single-line font "
        f"rowmans, and the symbols {' '.join(UNSEEN_SYMBOLS)}.",
        "",
    ]


def _training_section(facts: dict[str, Any], parts: dict[str, float], weights: float) -> list[str]:
    s = facts["settings"]
    return [
        "## Model and training",
        "",
        f"Parameters: autoencoder {parts['vae']:.2f} M (x4, 8x8x4 latents), text encoder {parts['text_encoder']:.2f} M "
        f"(width 64, 24 tokens), U-Net {parts['unet']:.2f} M; {weights:.1f} MB of fp16 safetensors with the image "
        "encoder. Cosine noise schedule, v-prediction. The prompt enters by cross-attention and, pooled, with the timestep.",
        "",
        f"{100 * s.get('image_share', 0):.0f} % of the captions (one in ten is empty and not counted) hold, in place of "
        "words or beside them, an embedding of the image itself or of a few like it, computed by a small encoder that learns "
        "along and sees a class's images where inversion starts; of the others more than half have words merged into one "
        "vector. Both "
        "teach the text encoder what textual inversion does later: one vector that says which character and how it is drawn.",
        "",
        *_history(facts),
        f"This card was measured on {os.cpu_count()} processor cores ({platform.machine()}).",
        *(["", facts["notes"]] if facts.get("notes") else []),
        "",
    ]


TARGETS = {"guidance 2, digits": 0.98, "guidance 2, letters": 0.90, "unseen": 0.90}
"""What the model should reach at least."""


def _measured_section(found: dict[str, float]) -> list[str]:
    def percent(name: str) -> str:
        return f"{100 * found[name]:.1f} %"

    folded = "; ".join(f"{a} counts as {b}" for a, b in FOLDED.items())
    misses = [f"{name} ({percent(name)}, at least {100 * t:.0f} %)" for name, t in TARGETS.items() if found[name] < t]
    for kind in ("digits", "letters"):
        gap = found[f"students on renders, {kind}"] - found[f"students on class names, {kind}"]
        if gap > 0.02:
            misses.append(f"students on class names, {kind} ({100 * gap:.1f} points below renders, at most 2)")
    return [
        "## Measured",
        "",
        f"A classifier (ConvNet-3, {len(_CLASSES)} classes) trained on renders, of which no seed was trained on, recognises "
        f"(both cases of a letter are one class, and {folded}; {POOL_PER_CLASS} samples a class at guidance 2, {PER_CLASS} "
        "at the others):",
        "",
        "| | digits | letters |",
        "|---|---|---|",
        *(
            f"| {name} | {percent(name + ', digits')} | {percent(name + ', letters')} |"
            for name in ("renders", "renders, held-out fonts", *(f"guidance {g:g}" for g in GUIDANCE))
        ),
        "",
        f"A symbol that was never drawn in training, inverted from {UNSEEN_EXAMPLES} noisy drawings in held-out fonts to one "
        f"vector of 64 bytes, is recognised as itself in {percent('unseen')} of {PER_CLASS} samples a symbol (worst symbol: "
        f"{percent('unseen, worst')}).",
        "",
        f"Students (ConvNet-3, hard labels, {POOL_PER_CLASS} images a class, mean over {len(_STUDENTS.seeds)} seeds and 95 % "
        "interval) on renders in held-out fonts:",
        "",
        "| trained on | digits | letters |",
        "|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(
                f"{100 * found[f'students on {name}, {k}']:.1f} ± {100 * found[f'students on {name}, {k}, half-width']:.1f} %"
                for k in ("digits", "letters")
            )
            + " |"
            for name in ("class names", "renders")
        ),
        "",
        f"Targets missed: {'; '.join(misses)}." if misses else "All targets are met.",
        "",
        "![Control by words: 7 with the words plain, thin, bold, heavy, backslanted, slanted, narrow, wide, black, "
        "barred, a row each, the same noise](control.png)",
        "",
    ]
