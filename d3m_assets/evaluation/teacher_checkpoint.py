"""A ``transformers`` model on local disk: what its files say, and which output of a classifier stands for which class.

No code that lies in a checkpoint is ever run: weights are safetensors, and networks are those of the installed transformers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.errors import TeacherError

if TYPE_CHECKING:
    import torch

_MOST_LISTED = 20


@dataclass(frozen=True)
class Checkpoint:
    """A ``transformers`` model on local disk, not loaded.

    Attributes:
        path: The folder that ``save_pretrained`` wrote.
        setting: The setting that names it, for messages.

    Raises:
        TeacherError: It is no such folder, or its weights are pickled.
    """

    path: Path
    setting: str = "teacher.checkpoint"

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not (self.path / "config.json").is_file():
            raise TeacherError(
                f"{self.setting}={self.path} is no checkpoint of transformers: it holds no config.json. Set "
                f"{self.setting} to the folder that `save_pretrained` wrote, or to none to train a network."
            )
        if not any(self.path.glob("*.safetensors")):
            raise TeacherError(
                f"{self.path} holds no .safetensors file; pickled weights are not loaded. Convert them with "
                "`model.save_pretrained(path, safe_serialization=True)`."
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """Contents of ``config.json``.

        Raises:
            TeacherError: It is damaged.
        """
        return self._json("config.json")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise TeacherError(f"{self.path / name} cannot be read: {error}. Restore the checkpoint.") from error
        if not isinstance(content, dict):
            raise TeacherError(f"{self.path / name} holds no JSON object. Restore the checkpoint.")
        return content

    @cached_property
    def preparation(self) -> dict[str, Any]:
        """Contents of ``preprocessor_config.json``: how images are scaled and normalised; empty without that file."""
        return self._json("preprocessor_config.json") if (self.path / "preprocessor_config.json").is_file() else {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of names and contents of weights and configurations."""
        digest = hashlib.sha256()
        for file in sorted([*self.path.glob("*.safetensors"), *self.path.glob("*config.json")]):
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    @property
    def output_names(self) -> list[str]:
        """Name of each output, from ``id2label``.

        Raises:
            TeacherError: The configuration does not say.
        """
        names = self.config.get("id2label") or {}
        try:
            return [str(names[str(i)]) for i in range(len(names))] or _missing(self.path, "id2label")
        except (KeyError, TypeError) as error:
            raise TeacherError(f"id2label in {self.path / 'config.json'} lacks output {error}; complete it.") from error

    @property
    def image_size(self) -> int:
        """Side of its square input in px.

        Raises:
            TeacherError: Neither of the configurations says, or it is no square.
        """
        cropped = self.preparation.get("crop_size") if self.preparation.get("do_center_crop") else None
        nested = self.config.get("vision_config")
        config = nested if isinstance(nested, dict) and nested else self.config
        size = cropped or self.preparation.get("size") or config.get("image_size")
        if size is None:
            return _missing(self.path, "image_size")
        if isinstance(size, Mapping):
            sides = [size["shortest_edge"]] if "shortest_edge" in size else list(size.values())
        else:
            sides = size if isinstance(size, list) else [size]
        if not sides or sides != [sides[0]] * len(sides) or type(sides[0]) is not int or sides[0] < 1:
            raise TeacherError(f"{self.setting}={self.path} wants images of {size}; only squares are supported.")
        return int(sides[0])

    def pixel_normalization(self) -> tuple[float, float | Sequence[float], float | Sequence[float]]:
        """How images in 0..1 become inputs: ``(images * scale - mean) / deviation``.

        Returns:
            Scale, mean and standard deviation, the last two one number or one a channel. Without a preparation file these
            give -1..1, as most image processors of transformers do.

        Raises:
            TeacherError: The preparation file gives something else than numbers.
        """
        prepare = self.preparation
        factor = prepare.get("rescale_factor", 1 / 255)
        mean, deviation = prepare.get("image_mean", 0.5), prepare.get("image_std", 0.5)
        for value in (factor, mean, deviation):
            numbers = value if isinstance(value, list) else [value]
            if not numbers or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
                raise TeacherError(
                    f"{self.path / 'preprocessor_config.json'} scales images by something else than numbers. "
                    "Restore the checkpoint."
                )
        scale = 255 * factor if prepare.get("do_rescale", True) else 255.0
        if not prepare.get("do_normalize", True):
            return scale, 0, 1
        return scale, mean, deviation


def _missing(path: Path, name: str) -> Any:
    raise TeacherError(f"{path / 'config.json'} does not give {name}; add it.")


def load_classifier(checkpoint: Checkpoint) -> torch.nn.Module:
    """Load the network of a checkpoint in float32, in evaluation mode and without gradients, on the CPU.

    ``trust_remote_code`` is False rather than unset: unset, transformers asks on the terminal whether to run the code of a
    checkpoint that names its own classes (``auto_map``).

    Raises:
        TeacherError: It is no image classifier of the installed transformers, needs code of its own, or is damaged.
    """
    import torch
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForImageClassification.from_pretrained(
            checkpoint.path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
    except Exception as error:  # transformers raises many kinds
        if "auto_map" in checkpoint.config:
            raise TeacherError(
                f"{checkpoint.path} is no model of the installed transformers but brings code of its own (auto_map in "
                "config.json), which is never run. Give a checkpoint of a stock image classifier with teacher.checkpoint."
            ) from error
        raise TeacherError(
            f"{checkpoint.path} cannot be loaded as an image classifier of transformers: {error}. Give another folder "
            "with teacher.checkpoint."
        ) from error
    return model.eval().requires_grad_(False)


def match_outputs(output_names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Find the output of a classifier that stands for each class, by name.

    Names are compared as they are; if that does not do, without regard to case, ``_`` and ``-``. Outputs that nobody
    named (``LABEL_0`` to ``LABEL_{K-1}``) are taken in the order of the catalog.

    Args:
        output_names: Name of each output.
        class_names: Names of the K classes by position.

    Returns:
        Positions in ``output_names``, one a class.

    Raises:
        TeacherError: A class has no output or several; the message shows both orders.
    """
    if list(output_names) == [f"LABEL_{i}" for i in range(len(class_names))]:
        return list(range(len(class_names)))
    for normalize in (str, _normalized):
        outputs = [normalize(name) for name in output_names]
        if all(outputs.count(normalize(name)) == 1 for name in class_names):
            return [outputs.index(normalize(name)) for name in class_names]
    outputs = [_normalized(name) for name in output_names]
    unmatched = [name for name in class_names if outputs.count(_normalized(name)) != 1]
    raise TeacherError(
        f"the teacher has no output, or several, for the classes {listed(unmatched)}. Its outputs are "
        f"{listed(output_names)}; the dataset's classes are {listed(class_names)}. Correct id2label in its "
        "config.json, or give another teacher."
    )


def check_order(
    predictions: np.ndarray, labels: np.ndarray, class_names: Sequence[str], outputs: Sequence[int] | None = None
) -> None:
    """Compare the order of the outputs with what they answer to on held-out images.

    The assignment of outputs to classes that makes most answers right (Kuhn, 1955) should be the one by name. Where it
    is not, the classes that it moves are taken group by group (two that are swapped, or a longer ring): the order is
    wrong if for each of them another output answers to most of its images, and to at least twice as many as the named
    one does. A weak teacher that merely confuses classes, or knows one only, does not swap them.

    Args:
        predictions: Predicted class positions ``[N]``.
        labels: True class positions ``[N]``.
        class_names: Names of the K classes by position.
        outputs: Positions of the classes' outputs in the classifier, for the message; by default those of the classes.

    Raises:
        TeacherError: The orders disagree; the message shows both.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    k = len(class_names)
    counts = np.zeros((k, k), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    # Half a hit more for the order by name, so that it wins where both make as many answers right.
    assigned = linear_sum_assignment(2 * counts + np.eye(k, dtype=np.int64), maximize=True)[1]
    permuted: list[int] = []
    for cycle in _cycles(assigned):
        total, by_own, by_other = counts[cycle].sum(axis=1), counts[cycle, cycle], counts[cycle, assigned[cycle]]
        if np.count_nonzero(total) > 1 and (2 * by_other >= total).all() and (by_other >= 2 * by_own).all():
            permuted += cycle
    if permuted:
        positions = list(outputs) if outputs is not None else list(range(k))
        listed_classes = sorted(permuted)[:_MOST_LISTED]
        by_name = ", ".join(f"{class_names[c]}: output {positions[c]}" for c in listed_classes)
        by_answer = ", ".join(f"{class_names[c]}: output {positions[int(assigned[c])]}" for c in listed_classes)
        raise TeacherError(
            f"the teacher's classes are in another order than the dataset's. By name: {by_name}. By what its outputs "
            f"answer to on held-out images: {by_answer}. Correct id2label in its config.json, or the class folders."
        )


def _cycles(assignment: Sequence[int]) -> list[list[int]]:
    """Cycles of a permutation, longer than one."""
    unvisited, cycles = set(range(len(assignment))), []
    while unvisited:
        cycle = [unvisited.pop()]
        while (following := int(assignment[cycle[-1]])) in unvisited:
            unvisited.remove(following)
            cycle.append(following)
        if len(cycle) > 1:
            cycles.append(cycle)
    return cycles


def _normalized(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def listed(names: Sequence[str]) -> str:
    """Names for an error message, the first twenty of them."""
    return ", ".join(names[:_MOST_LISTED]) + (", …" if len(names) > _MOST_LISTED else "")
