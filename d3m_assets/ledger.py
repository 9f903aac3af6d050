"""Budgets and the ledger: every count of bytes that a comparison at equal bytes rests on.

What belongs here: parsing a budget, what an image, a label or a class is charged, and the table of bytes with its
totals. All functions take plain values, so that nothing here knows settings, store or dataset. Counts from here are
stored in rows of students: whoever changes one raises the ``CODE_VERSION`` of the module that stores it, for a soft
label that of :mod:`d3m_assets.evaluation.labels`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args

from d3m_assets.errors import BudgetError, StageError

if TYPE_CHECKING:
    import pandas as pd

Scope = Literal["class", "shared"]
Kind = Literal["stored", "regenerable", "for soft labels", "for rejection", "reference"]
CONDITIONAL_KINDS: tuple[Kind, ...] = ("for soft labels", "for rejection")
"""Kinds of ledger lines that only some rows of the table need."""
LEDGER_COLUMNS = ("budget", "item", "scope", "kind", "bytes")

_KIB, _MIB = 1024, 1024**2
_UNITS = {"B": 1, "KiB": _KIB, "MiB": _MIB}
_MAX_DIGITS = 15
_NUMBER = rf"[1-9][0-9]{{0,{_MAX_DIGITS - 1}}}"
_EXAMPLES = "write for example ipc-10, 640B, 4KiB or 1MiB"
_TOO_LONG = f"a budget is a number of at most {_MAX_DIGITS} digits"
_FP16_BYTES = 2


@dataclass(frozen=True)
class ImageShape:
    """Shape of a dataset's images as they are stored.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 or 3.
    """

    height: int
    width: int
    channels: int

    @property
    def bytes(self) -> int:
        """Bytes of one image at one byte a channel, the field's convention."""
        return self.height * self.width * self.channels

    def __str__(self) -> str:
        return f"{self.height} x {self.width} x {self.channels}"


@dataclass(frozen=True)
class Budget:
    """Bytes that a class may occupy, as the user named them.

    Two budgets of equal bytes and different names are two partitions.

    Attributes:
        name: As written: partition key and folder name.
        amount: How many images or bytes, at least 1.
        unit: Whether ``amount`` counts images of the dataset's shape, or bytes.
    """

    name: str
    amount: int
    unit: Literal["images", "bytes"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget: ``ipc-N`` (N images per class), ``NB``, ``NKiB`` or ``NMiB``.

        Raises:
            BudgetError: It is written otherwise, or is zero; the message says what to write.
        """
        if match := re.fullmatch(rf"ipc-({_NUMBER})", text):
            return cls(text, int(match[1]), "images")
        if match := re.fullmatch(rf"({_NUMBER})(B|KiB|MiB)", text):
            return cls(text, int(match[1]) * _UNITS[match[2]], "bytes")
        raise BudgetError(f'"{text}" is not a budget: {_correction(text)}')

    def bytes(self, shape: ImageShape) -> int:
        """Bytes that the budget allows a class of images of this shape."""
        return self.amount * shape.bytes if self.unit == "images" else self.amount

    def __str__(self) -> str:
        return self.name


def _correction(text: str) -> str:
    """What to write in place of a text that is no budget."""
    plain = text.strip().casefold()
    if re.search(rf"[0-9]{{{_MAX_DIGITS + 1}}}", plain):
        return _TOO_LONG
    number = r"([0-9]+(?:\.[0-9]+)?)"
    if match := re.fullmatch(rf"(?:ipc|images?)[\s_=:-]*{number}|{number}[\s_-]*(?:ipc|images?)", plain):
        return _correct_images(Decimal(match[1] or match[2]))
    if match := re.fullmatch(rf"{number}\s*(?:([kmg]?)(i?)b?|bytes?)", plain):
        prefix = match[2] or ""
        return _correct_bytes(Decimal(match[1]), prefix, binary=bool(match[3]), unit=not plain[-1].isdigit())
    return _EXAMPLES


def _correct_images(amount: Decimal) -> str:
    if amount == 0:
        return "it holds nothing; write ipc-1 for one image per class"
    whole = int(amount)
    if amount == whole:
        return f"write ipc-{whole}"
    return "images per class are whole; write " + " or ".join(f"ipc-{n}" for n in (whole, whole + 1) if n)


def _correct_bytes(amount: Decimal, prefix: str, *, binary: bool, unit: bool) -> str:
    power = " kmg".index(prefix or " ")
    size, decimal_size = int(amount * 1024**power), int(amount * 1000**power)
    if size < 1:
        return "it holds nothing; write 1B for one byte or ipc-1 for one image per class"
    if size >= 10**_MAX_DIGITS:
        return _TOO_LONG
    if not unit:
        whole = amount == size
        return f"write {size}B for bytes or ipc-{size} for images per class" if whole else _EXAMPLES
    if prefix and not binary:
        return f"write {_in_binary_units(size)} ({size:,} bytes) or {decimal_size}B"
    return f"write {_in_binary_units(size)}"


def _in_binary_units(size: int) -> str:
    unit = "MiB" if size % _MIB == 0 else "KiB" if size % _KIB == 0 else "B"
    return f"{size // _UNITS[unit]}{unit}"


def holds_real_image(budget: Budget, shape: ImageShape) -> bool:
    """Whether a budget allows a class at least one image of the dataset."""
    return budget.bytes(shape) >= shape.bytes


def largest_budget(budgets: Iterable[Budget], shape: ImageShape) -> Budget:
    """The budget of most bytes; of several such the first."""
    return max(budgets, key=lambda budget: budget.bytes(shape))


def soft_label_bytes(n_classes: int, stored_classes: int | None = None) -> int:
    """Bytes of one stored soft label: fp16 probabilities and, when not all are kept, the class position of each.

    Args:
        n_classes: Number of classes K.
        stored_classes: Highest probabilities kept; None or K: all, whose positions need not be stored.
    """
    if stored_classes is None or stored_classes >= n_classes:
        return _FP16_BYTES * n_classes
    position = 1 if n_classes <= 2**8 else 2 if n_classes <= 2**16 else 4
    return stored_classes * (_FP16_BYTES + position)


def real_image_bytes(shape: ImageShape, *, label_bytes: int = 0) -> int:
    """Bytes of one real image with its label.

    Args:
        shape: Its stored shape.
        label_bytes: Bytes stored for its soft label; hard labels and those of a teacher at training time are free.
    """
    return shape.bytes + label_bytes


def distilled_class_bytes(payload: float, images: int, *, label_bytes: int = 0) -> float:
    """Bytes that a distilled class is charged: its vectors and the soft labels stored for its images.

    Args:
        payload: Bytes of its vectors (a mean over the classes need not be whole).
        images: Images of the class that have a stored label.
        label_bytes: Bytes of one stored soft label.
    """
    return payload + images * label_bytes


def affordable_images(allowed: int, shape: ImageShape, *, label_bytes: int = 0) -> int:
    """Count the real images that fit into a number of bytes, each with its label.

    Args:
        allowed: Bytes of a class.
        shape: Stored shape of an image.
        label_bytes: Bytes stored with each image for its soft label.

    Raises:
        BudgetError: Not even one image fits: there is then no baseline of real images to compare with.
    """
    image = real_image_bytes(shape, label_bytes=label_bytes)
    if allowed < image:
        label = f" + {label_bytes} for its label" if label_bytes else ""
        raise BudgetError(
            f"a budget of {allowed} bytes a class holds no real image of {shape}{label} = {image} bytes, "
            f"so there is nothing to compare with; give at least {image}B or ipc-1."
        )
    return allowed // image


def equal_bytes_images(budget: Budget, shape: ImageShape, *, pool_images: int, label_bytes: int = 0) -> int:
    """Count the real images of a class that take no more bytes than the distilled class may at a budget.

    Soft labels that are stored with the pool are charged to the distilled class beyond its budget; the real images may
    take as many bytes, their own labels included.

    Args:
        budget: The budget of the vectors.
        shape: Stored shape of a real image.
        pool_images: Generated images of a class.
        label_bytes: Bytes of one stored soft label; 0 where labels are not stored.

    Raises:
        BudgetError: Not even one image fits.
    """
    allowed = budget.bytes(shape) + pool_images * label_bytes
    return affordable_images(allowed, shape, label_bytes=label_bytes)


def real_class_bytes(class_sizes: Sequence[int], per_class: int, shape: ImageShape, *, label_bytes: int = 0) -> float:
    """Mean bytes of a class of real images.

    Args:
        class_sizes: Images that each class has.
        per_class: Most images taken of a class.
        shape: Stored shape of an image.
        label_bytes: Bytes stored with each image for its soft label.
    """
    mean_images = sum(min(size, per_class) for size in class_sizes) / len(class_sizes)
    return mean_images * real_image_bytes(shape, label_bytes=label_bytes)


@dataclass(frozen=True)
class LedgerLine:
    """One line of the ledger.

    Attributes:
        item: What takes the bytes, in words.
        scope: "class": bytes of the classes; "shared": bytes that all classes share.
        kind: "stored"; "regenerable"; "for soft labels" or "for rejection" where only such rows need it; or, for
            comparison only, "reference".
        bytes: Of all classes together.
        budget: Name of the budget it belongs to; empty: to all.
    """

    item: str
    scope: Scope
    kind: Kind
    bytes: int
    budget: str = ""


@dataclass(frozen=True)
class BundleBytes:
    """Bytes of a bundle and of the models that generate images from it.

    Attributes:
        vectors: Bytes of the embedding vectors of all classes; None: there are none, since nothing is generated.
        selections: Bytes of the numbers of the samples that are kept; None: all are, and nobody asked for a selection.
        codes: Bytes of the image codes of all classes; None: there are none.
        file: Bytes of the bundle file.
        foundation: Bytes of the foundation model's weights; None: no model is needed, since nothing is generated.
        autoencoder: Bytes of the tiny autoencoder's weights; None: the bundle needs none.
    """

    vectors: int | None
    file: int
    foundation: int | None
    autoencoder: int | None = None
    selections: int | None = None
    codes: int | None = None

    def own_lines(self) -> list[LedgerLine]:
        """Lines of the bundle file itself."""
        selection = "selection of samples" if self.selections else "selection of samples (none: the budget has no room)"
        parts = {"embedding vectors": self.vectors, selection: self.selections, "image codes": self.codes}
        lines = [LedgerLine(item, "class", "stored", size) for item, size in parts.items() if size is not None]
        rest = self.file - sum(line.bytes for line in lines)
        return [*lines, LedgerLine("recipe and names", "shared", "stored", rest)]

    def model_lines(self) -> list[LedgerLine]:
        """Lines of the models, which the bundles of all budgets share."""
        models = {"foundation model": self.foundation, "tiny autoencoder": self.autoencoder}
        return [LedgerLine(item, "shared", "stored", size) for item, size in models.items() if size is not None]

    def table(self) -> pd.DataFrame:
        """All lines: columns item, scope, kind and bytes."""
        return ledger_table([*self.own_lines(), *self.model_lines()]).drop(columns="budget")


def distillation_ledger(
    bundles: Mapping[str, BundleBytes],
    pools: Mapping[str, int],
    *,
    train_images: int,
    shape: ImageShape,
    labelled_images: int,
    label_bytes: int = 0,
    teacher: LedgerLine | None = None,
) -> pd.DataFrame:
    """The ledger of a distillation.

    Args:
        bundles: Name of a budget to the bytes of its bundle.
        pools: Name of a budget to the stored bytes of its synthetic pool.
        train_images: Images of the whole train split.
        shape: Stored shape of a real image.
        labelled_images: Images of the pool of all classes.
        label_bytes: Bytes of one stored soft label; 0: none are stored, and the ledger has no line of them.
        teacher: The line of the teacher, where rows of the table ask it during training.

    Returns:
        One row an item, with :data:`LEDGER_COLUMNS`: the lines of every budget, then those of all.
    """
    lines: list[LedgerLine] = []
    # The same models generate the images of all budgets, so each is one line.
    models: dict[str, LedgerLine] = {}
    for name, bundle in bundles.items():
        models |= {line.item: line for line in bundle.model_lines()}
        own = [*bundle.own_lines(), LedgerLine("synthetic pool", "class", "regenerable", pools[name])]
        if label_bytes:
            soft = LedgerLine("soft labels of the pool", "class", "for soft labels", labelled_images * label_bytes)
            own.append(soft)
        lines += [replace(line, budget=name) for line in own]
    pixels = train_images * shape.bytes
    lines += [*models.values(), LedgerLine("whole train split, one byte a channel", "class", "reference", pixels)]
    return ledger_table([*lines, teacher] if teacher else lines)


def ledger_table(lines: Iterable[LedgerLine]) -> pd.DataFrame:
    """Lines as a table with :data:`LEDGER_COLUMNS`."""
    import pandas as pd

    return pd.DataFrame([asdict(line) for line in lines], columns=list(LEDGER_COLUMNS))


def ledger_totals(ledger: pd.DataFrame) -> pd.DataFrame:
    """Add up what has to be stored or sent, with and without the lines that all classes share.

    Args:
        ledger: Table with :data:`LEDGER_COLUMNS`, as from :func:`distillation_ledger`.

    Returns:
        One row a budget: budget, classes (bytes of the classes), everything (with shared lines, those of all
        budgets included).

    Raises:
        StageError: A column is missing, or a scope or kind is unknown.
    """
    import pandas as pd

    if missing := [c for c in LEDGER_COLUMNS if c not in ledger.columns]:
        raise StageError(f"the ledger lacks the columns {', '.join(missing)}; see render_report.")
    for column, known in (("scope", set(get_args(Scope))), ("kind", set(get_args(Kind)))):
        if unknown := sorted(set(ledger[column]) - known):
            raise StageError(f"ledger {column} {unknown[0]!r} is none of {', '.join(sorted(known))}; correct it.")
    stored = ledger[ledger["kind"] == "stored"]
    rows = []
    for budget in dict.fromkeys(b for b in stored["budget"] if b):
        here = stored[stored["budget"].isin([budget, ""])]
        classes = int(here.loc[here["scope"] == "class", "bytes"].sum())
        rows.append({"budget": budget, "classes": classes, "everything": int(here["bytes"].sum())})
    return pd.DataFrame(rows, columns=["budget", "classes", "everything"])


def ledger_groups(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """The ledger by budget, for a page.

    Args:
        ledger: Table with :data:`LEDGER_COLUMNS`.

    Returns:
        One mapping a budget, and last one for the lines of all: budget, items (rows of the ledger) and total (a row of
        :func:`ledger_totals`, or None). A total has ``soft``: for every line of :data:`CONDITIONAL_KINDS` its item and
        the bytes of everything together with it.

    Raises:
        StageError: As :func:`ledger_totals`.
    """
    totals = {row["budget"]: row for row in ledger_totals(ledger).to_dict("records")}
    conditional = ledger[ledger["kind"].isin(CONDITIONAL_KINDS)]
    for budget, total in totals.items():
        lines = conditional[conditional["budget"].isin([budget, ""])].to_dict("records")
        total["soft"] = [{"item": line["item"], "bytes": total["everything"] + line["bytes"]} for line in lines]
    groups = []
    for budget in [*dict.fromkeys(b for b in ledger["budget"] if b), ""]:
        items = ledger[ledger["budget"] == budget].to_dict("records")
        if items:
            groups.append({"budget": budget, "items": items, "total": totals.get(budget)})
    return groups


def shared_needs(ledger: pd.DataFrame) -> list[str]:
    """A sentence for every shared line that only some rows need: the bytes of a class do not show it."""
    shared = ledger[ledger["kind"].isin(CONDITIONAL_KINDS) & (ledger["scope"] == "shared")]
    return [
        f"Rows that ask the {item} also need the {item} itself, {byte_size(size)} beside the bytes of the classes."
        for item, size in zip(shared["item"], shared["bytes"], strict=True)
    ]


def byte_size(count: float) -> str:
    """Write a number of bytes for people: "64 B", "83.0 kB", "4.2 MB"; decimal units, and nothing for NaN."""
    if math.isnan(count):
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 10 * size or (count >= size and unit != "kB"):
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B" if float(count).is_integer() else f"{count:,.1f} B"
