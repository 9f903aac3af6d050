"""Generate the images of a bundle again and say whether they are the images at hand.

Three steps of agreement, each wider than the one before, measured by ``python -m benchmarks.regeneration`` on 500 images of
the embedded model:

- equal: pixel for pixel, which holds on the same machine and PyTorch;
- within rounding: no pixel off by more than :data:`ROUNDING` of 255. Float32 on a CPU in other batch sizes or threads rounds
  sums otherwise; the largest difference measured is 1;
- within precision: mean difference and share of far pixels below :data:`PRECISION`. GPUs compute in bfloat16, a CPU in
  float32: the worst image measured is off by 6.3 of 255 in the mean, with 6.5 % of its pixels off by more than 16; the
  nearest two different images of a class by 18.6, with 18.9 %.

The last says that it is the same picture, not that nobody edited it: it counts as agreement only where the number formats
differ or are coarse.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from d3m_assets.datasets.images import decode_png
from d3m_assets.datasets.names import folder_name
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.errors import BundleError
from d3m_assets.exports.formats.writer import COMMON
from d3m_assets.exports.image_record import METADATA, ImageRecord, image_name, precision_of, read_record
from d3m_assets.exports.stream import checked_models, generate_class
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from d3m_assets.foundation.loading import Foundation
    from d3m_assets.foundation.tiny_autoencoder import TinyAutoencoder

Agreement = Literal["equal", "rounding", "precision", "different"]
ROUNDING = 2
"""Largest difference of a pixel, of 255, that another order of float32 sums explains: twice the largest measured."""


@dataclass(frozen=True)
class PrecisionTolerance:
    """How far the same image may be in another number format.

    Attributes:
        mean: Mean absolute difference, of 255.
        far: Difference from which a pixel is far, of 255.
        share: Share of far pixels.
    """

    mean: float
    far: int
    share: float


PRECISION = PrecisionTolerance(mean=8.0, far=16, share=0.10)
"""A little beyond the worst measured image in bfloat16, and less than half of the way to the nearest other image."""
_EXAMPLES = 5


def agreement(expected: np.ndarray, image: np.ndarray) -> tuple[Agreement, float, int]:
    """How far an image is the expected one.

    Args:
        expected: uint8 ``[H, W, C]``.
        image: uint8.

    Returns:
        The step of agreement, mean absolute difference and largest difference of a pixel, of 255; images of another shape
        are different by 255.
    """
    if expected.shape != image.shape:
        return "different", 255.0, 255
    difference = np.abs(expected.astype(np.int16) - image)
    mean, largest = float(difference.mean()), int(difference.max())
    if largest == 0:
        return "equal", mean, largest
    if largest <= ROUNDING:
        return "rounding", mean, largest
    near = mean <= PRECISION.mean and float((difference > PRECISION.far).mean()) <= PRECISION.share
    return "precision" if near else "different", mean, largest


class ImageSource(Protocol):
    """Images at hand that a bundle is said to have generated."""

    def indices(self, class_name: str) -> Sequence[int]:
        """Numbers of the images of a class that are there, sorted."""

    def load(self, class_name: str, index: int) -> np.ndarray:
        """One image, uint8 ``[H, W, C]``.

        Raises:
            ValueError: It cannot be read, or says that it is another image; the message says which.
        """

    def strangers(self, class_names: Sequence[str]) -> Sequence[str]:
        """What is there beside the images of these classes."""

    @property
    def precision(self) -> str:
        """Number format and kind of device they were generated with, such as "float32 cpu"; empty: unknown."""


class FolderImages:
    """Images that ``d3m regenerate`` wrote: ``<class>/00000.png``.

    Args:
        folder: The folder.
        bundle: SHA-256 of the bundle that they should come from, and a name of it for messages.

    Raises:
        BundleError: It is no folder, or holds no images.
    """

    def __init__(self, folder: Path, bundle: tuple[str, str] | None = None) -> None:
        self.folder, self._bundle = folder, bundle
        if not folder.is_dir():
            raise BundleError(f"{printable(folder)} is no folder")
        self.first_record = self._first_record()
        if bundle is not None and self.first_record is not None:
            self._check_bundle(self.first_record, self.folder)

    def _first_record(self) -> ImageRecord | None:
        """The record of the first image that has one; None: none of the first images has."""
        images = sorted(self.folder.glob("*/*.png"))[:20]
        if not images:
            raise BundleError(
                f"{printable(self.folder)} holds no <class>/<number>.png, as `d3m regenerate` writes them"
            )
        for path in images:
            try:
                return read_record(path)
            except BundleError:
                continue
        return None

    def _check_bundle(self, record: ImageRecord, path: Path) -> None:
        if self._bundle is not None and record.bundle != self._bundle[0]:
            raise BundleError(
                f"{printable(path)} was generated from the bundle with SHA-256 {record.bundle[:12]}…, but "
                f"{printable(self._bundle[1])} has {self._bundle[0][:12]}…; name the right one with --bundle"
            )

    @property
    def precision(self) -> str:
        """As the first record says; empty: there is none."""
        return self.first_record.precision if self.first_record else ""

    def indices(self, class_name: str) -> list[int]:
        """Numbers of the files of a class."""
        names = (path.name for path in (self.folder / folder_name(class_name)).glob("*.png"))
        return sorted(int(name[:-4]) for name in names if re.fullmatch(r"\d{5,12}\.png", name))

    def load(self, class_name: str, index: int) -> np.ndarray:
        """One image; its record, where it has one, has to say the same class, number and bundle."""
        path = self.folder / folder_name(class_name) / image_name(index)
        try:
            image = decode_png(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{printable(path)} cannot be read ({type(error).__name__})") from None
        try:
            record = read_record(path)
        except BundleError:
            return image  # its pixels can be compared all the same
        self._check_bundle(record, path)
        if (record.class_name, record.index) != (class_name, index):
            said = f"image {record.index} of class {printable(record.class_name)}"
            raise ValueError(f"{printable(path)} says that it is {said}")
        return image

    def strangers(self, class_names: Sequence[str]) -> list[str]:
        """Files and folders that are no image of a class; hidden ones are passed over."""
        own = {folder_name(name) for name in class_names}
        found = [p for p in self.folder.iterdir() if p.name not in own | COMMON | {METADATA}]
        for name in own:
            folder = self.folder / name
            found += [p for p in folder.glob("*") if not re.fullmatch(r"\d{5,12}\.png", p.name)]
        return sorted(printable(p.relative_to(self.folder)) for p in found if not p.name.startswith("."))


@dataclass
class ClassVerification:
    """What became of one class.

    Attributes:
        class_name: The class.
        available: Images that are there.
        checked: Of these, those that were generated again.
        equal: Pixel for pixel.
        rounding: Within rounding.
        precision: Within the tolerance between number formats.
        different: Another image.
        unreadable: Cannot be read, or says that it is another image.
        missing: Images that are not there, though another class has as many.
        unselected: Images that are there, but are candidates that the bundle's selection rejects.
        worst_mean: Largest mean difference of an image, of 255.
        worst_pixel: Largest difference of a pixel, of 255.
        examples: The first few that are not equal, with the difference.
    """

    class_name: str
    available: int = 0
    checked: int = 0
    equal: int = 0
    rounding: int = 0
    precision: int = 0
    different: int = 0
    unreadable: int = 0
    missing: int = 0
    unselected: int = 0
    worst_mean: float = 0.0
    worst_pixel: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, index: int, step: Agreement, mean: float, largest: int) -> None:
        """Count an image that was compared."""
        setattr(self, step, getattr(self, step) + 1)
        self.worst_mean, self.worst_pixel = max(self.worst_mean, mean), max(self.worst_pixel, largest)
        if step != "equal":
            self.note(f"image {index}: mean difference {mean:.2f}, largest {largest} of 255")

    def note(self, example: str) -> None:
        """Keep an example, if there are few yet."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass(frozen=True)
class Verification:
    """What became of all classes.

    Attributes:
        classes: One each.
        strangers: What is there beside their images.
        made_with: Number format and device of the images at hand; empty: unknown.
        here: Those of this check.
        exact: Whether only equal pixels count as agreement.
    """

    classes: tuple[ClassVerification, ...]
    strangers: tuple[str, ...]
    made_with: str
    here: str
    exact: bool = False

    def total(self, name: str) -> int:
        """A count over all classes."""
        return sum(getattr(c, name) for c in self.classes)

    @property
    def precision_counts(self) -> bool:
        """Whether another or a coarse number format explains small differences."""
        return not self.exact and bool(self.made_with) and {self.made_with, self.here} != {"float32 cpu"}

    @property
    def verdict(self) -> Literal["equal", "equal within the tolerance", "not equal"]:
        """Of everything that was checked."""
        counts = ("different", "unreadable", "missing", "unselected")
        failed = sum(self.total(name) for name in counts) + len(self.strangers)
        failed += 0 if self.precision_counts else self.total("precision")
        failed += self.total("rounding") if self.exact else 0
        if failed or not self.total("checked"):
            return "not equal"
        return "equal" if self.total("equal") == self.total("checked") else "equal within the tolerance"

    @property
    def sentence(self) -> str:
        """The verdict with its counts."""
        words = {
            "equal": "equal pixel for pixel",
            "rounding": f"within rounding (no pixel off by more than {ROUNDING} of 255)",
            "precision": f"within what another number format does (mean at most {PRECISION.mean:g} of 255, at most "
            f"{PRECISION.share:.0%} of pixels off by more than {PRECISION.far})",
            "different": "different",
            "unreadable": "unreadable or of another name",
            "missing": "missing",
            "unselected": "not among the samples that the bundle selects",
        }
        counts = [f"{n} {text}" for name, text in words.items() if (n := self.total(name))]
        counts += [f"{len(self.strangers)} files or folders that are no image of the bundle"] if self.strangers else []
        available = self.total("available")
        checked = (
            f"{self.total('checked')} of {available} images of {len(self.classes)} classes checked, of those present: "
        )
        checked += f"{available} of the {available + self.total('missing')} up to the highest number of any class"
        text = f"{self.verdict}: {checked}; {', '.join(counts) or 'nothing to compare'}."
        if self.total("precision") and not self.precision_counts and not self.exact:
            text += (
                f" Float32 on a CPU does not explain these differences, bfloat16 on a GPU would; the images "
                f"{'say that they were generated with ' + printable(self.made_with) if self.made_with else 'do not say how'}."
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "made_with": self.made_with,
            "checked_with": self.here,
            "tolerance": {"rounding": ROUNDING, "precision": asdict(PRECISION)},
            "strangers": list(self.strangers),
            "classes": [asdict(c) for c in self.classes],
        }


def verify(
    bundle: Bundle,
    foundation: Foundation | None,
    images: ImageSource,
    *,
    sample: int | None = None,
    autoencoder: TinyAutoencoder | None = None,
    exact: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Generate images of a bundle again and compare them with those at hand, one chunk of a class in memory at a time.

    Args:
        bundle: The distilled dataset.
        foundation: The model it was made for; None: all its images are coded.
        images: The images at hand.
        sample: Images of each class to check at least: chunks of ``generation.batch_size`` are generated whole, and all of
            their images compared. Which chunks is chosen by the bundle and the class. None: all images.
        autoencoder: The tiny autoencoder of the recipe, where it has one.
        exact: Count only equal pixels as agreement.
        progress: Told of every class.

    Raises:
        BundleError: Another foundation model or autoencoder, or an image of another bundle.
    """
    foundation, decoder = checked_models(bundle, foundation, autoencoder)
    names = [c.prompts.class_name for c in bundle.classes]
    lengths = [_length(bundle, c, images.indices(c.prompts.class_name)) for c in bundle.classes]
    ends = [
        (there[-1], bundle.code_numbers(c)) for c in bundle.classes if (there := images.indices(c.prompts.class_name))
    ]
    fresh = bundle.generates and any(last >= codes.stop for last, codes in ends)
    coded = bundle.has_codes and any(last >= codes.start for last, codes in ends)
    results = []
    for done, c in enumerate(bundle.classes):
        name = c.prompts.class_name
        progress(ProgressEvent("verify", done, len(bundle.classes), f"class {printable(name)}"))
        expected = bundle.samples(c, _expected_images(bundle, c, lengths, fresh=fresh, coded=coded))
        results.append(_verify_class(bundle, c, foundation, images, expected, sample, decoder))
    progress(ProgressEvent("verify", len(bundle.classes), len(bundle.classes)))
    strangers = images.strangers(names)
    return Verification(tuple(results), tuple(strangers), images.precision, precision_of(foundation), exact)


def _expected_images(bundle: Bundle, c: DistilledClass, lengths: Sequence[int], *, fresh: bool, coded: bool) -> int:
    """How many images of a class there should be, by how many samples of each class include those that are there.

    Args:
        bundle: The distilled dataset.
        c: The class.
        lengths: Of each class, the number of samples.
        fresh: Whether any class has fresh ones.
        coded: Whether any class has come to its coded images, or past them.
    """
    longest, training = max(1, *lengths), bundle.training_images(c)
    if fresh:  # as many of each class were asked for, so one that ends before the others was cut off
        return longest
    # Without fresh ones a class has no more than its training set, whose size may be its own: a selection may keep fewer, and
    # other codes hold fewer. Where no class has come to its codes, or all end alike, fewer may have been asked for.
    return training if coded and len(set(lengths)) > 1 else min(longest, training)


def _length(bundle: Bundle, c: DistilledClass, present: Sequence[int]) -> int:
    """How many samples of a class, in their order, include all that are there."""
    selected = bundle.training_numbers(c)
    if selected is None or not present:
        return present[-1] + 1 if present else 0
    if present[-1] >= (first_fresh := bundle.first_fresh(c)):
        return len(selected) + present[-1] - first_fresh + 1
    return int(np.searchsorted(selected, present[-1], side="right"))


def _verify_class(
    bundle: Bundle,
    c: DistilledClass,
    foundation: Foundation | None,
    images: ImageSource,
    numbers: np.ndarray,
    sample: int | None,
    decoder: AutoencoderTiny | None,
) -> ClassVerification:
    """Compare the images of a class with those of its numbers."""
    name = c.prompts.class_name
    present, of_class = images.indices(name), set(numbers.tolist())
    rejected = [index for index in present if index not in of_class]
    missing = len(of_class.difference(present))
    result = ClassVerification(name, available=len(present), missing=missing, unselected=len(rejected))
    for index in rejected:
        result.note(f"image {index} is no sample that the bundle selects")
    if not bundle.generates:  # of a number beyond those that are coded there is nothing to compare with
        present = [index for index in present if index in of_class]
    if not present:
        result.note("no image of the class is there")
        return result
    batch_size = bundle.generation_settings().batch_size
    for indices in _chunks(present, batch_size, sample, f"{bundle.sha256} {name}"):
        first = indices[0] - indices[0] % batch_size
        count_here = indices[-1] + 1 - first
        expected, _ = generate_class(bundle, c, foundation, count_here, first=first, autoencoder=decoder)
        for index in indices:
            result.checked += 1
            try:
                image = images.load(name, index)
            except ValueError as error:
                result.unreadable += 1
                result.note(str(error))
            else:
                result.add(index, *agreement(expected[index - first], image))
    return result


def _chunks(present: Sequence[int], size: int, sample: int | None, seed: str) -> Iterator[list[int]]:
    """The numbers that are checked, by the chunk they are generated in."""
    chunks: dict[int, list[int]] = {}
    for index in present:
        chunks.setdefault(index // size, []).append(index)
    order = sorted(chunks)
    if sample is not None:
        random.Random(seed).shuffle(order)
        counts = itertools.accumulate(len(chunks[number]) for number in order)
        order = order[: next((n for n, count in enumerate(counts, start=1) if count >= sample), len(order))]
    return (chunks[number] for number in sorted(order))


def report(result: Verification) -> str:
    """The verdict and a line a class, for a terminal."""
    lines = []
    for c in result.classes:
        counts = ("equal", "rounding", "precision", "different", "unreadable", "missing", "unselected")
        parts = [f"{getattr(c, name)} {name}" for name in counts if getattr(c, name)]
        lines.append(f"class {printable(c.class_name)}: {c.checked} of {c.available} checked: {', '.join(parts)}")
        lines += [f"    {example}" for example in c.examples]
    lines += [f"no image of the bundle: {name}" for name in result.strangers[:20]]
    lines += [f"… and {len(result.strangers) - 20} more"] if len(result.strangers) > 20 else []
    return "\n".join([*lines, "", result.sentence])
