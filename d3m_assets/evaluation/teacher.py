"""The teacher: a classifier of the real data that gives soft labels and features.

Either a network of the students' kind, wider and trained for longer, or a ``transformers`` image classifier from local
disk. Whose outputs stand for which classes is decided by name and confirmed by held-out accuracy, since a teacher with
permuted classes would spoil every soft label without any error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.compute.devices import one_thread
from d3m_assets.datasets.labelled_images import LabelledImages, resize_to_square
from d3m_assets.errors import TeacherError
from d3m_assets.evaluation.architectures import as_tensor, build_student
from d3m_assets.evaluation.augmentation import AUGMENTATION
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.evaluation.students import (
    class_accuracies,
    student_image_size,
    train_student,
)
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint, check_order, listed, load_classifier, match_outputs
from d3m_assets.evaluation.vision_features import LinearProbe, load_features
from d3m_assets.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.settings import TeacherSettings

CODE_VERSION = "1"
"""Raised whenever a change here changes a teacher, its labels or its features."""

BATCH = 256
"""Images in one forward pass; fixed, since the size of a batch decides how sums round."""
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in Pillow
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Teacher:
    """A loaded classifier whose outputs are in the order of the catalog.

    Attributes:
        forward: From float ``[N, channels, image_size, image_size]`` in 0..1 to logits ``[N, K]``.
        head: Its last linear layer; what goes into it are the features.
        class_names: Names of the K classes, in the order of the outputs.
        image_size: Side of its square input in px.
        channels: Channels of its input, 1 or 3.
        device: Torch device it is on.
        temperature: What its logits are divided by to be calibrated on held-out images.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    head: torch.nn.Linear
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    device: str
    temperature: float = 1.0

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, K]`` of float images ``[N, 1 or 3, S, S]`` in 0..1 of any side S, without gradients."""
        import torch
        from torch.nn import functional as F

        with torch.no_grad():
            images = images.to(self.device)
            if images.shape[1] == 1 and self.channels == 3:
                images = images.expand(-1, 3, -1, -1)
            elif images.shape[1] == 3 and self.channels == 1:
                images = (images * torch.tensor(_LUMINANCE, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
            size = (self.image_size, self.image_size)
            if images.shape[2:] != size:
                images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            return self.forward(images)


def probabilities(teacher: Teacher, images: np.ndarray, temperature: float | None = None) -> np.ndarray:
    """Soft labels of images: the softmax of the logits over a temperature (Hinton et al., arXiv 1503.02531, eq. 1).

    Args:
        teacher: Gives the logits.
        images: uint8 ``[N, H, W, 1 or 3]`` of any size.
        temperature: What logits are divided by; None: the calibrated temperature.

    Returns:
        float32 ``[N, K]``, rows adding up to 1.
    """
    logits = _batched_logits(teacher, images)
    return _softmax(logits / (temperature or teacher.temperature)).astype(np.float32)


def agreement(
    teacher: Teacher, images: np.ndarray, labels: np.ndarray, temperature: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Probability that the teacher gives to each image's own class, and the class it predicts.

    The temperature changes the probability, never the class.

    Args:
        teacher: Gives the predictions.
        images: uint8 ``[N, H, W, 1 or 3]`` of any size; N may be 0.
        labels: Class positions ``[N]``, each below the teacher's number of classes K.
        temperature: What logits are divided by; None: the calibrated temperature.

    Returns:
        Probability of the image's own class, float32 ``[N]`` in 0..1, and position of the class with the highest one,
        int64 ``[N]``. The teacher agrees where that is the label.

    Raises:
        TeacherError: There is not one label an image, or a label is none of the teacher's classes.
    """
    k = len(teacher.class_names)
    if labels.shape != (len(images),):
        raise TeacherError(f"{len(images)} images but labels of shape {labels.shape}; give one label an image.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < k:
        raise TeacherError(
            f"labels from {labels.min()} to {labels.max()}, but the teacher has {k} classes, 0 to {k - 1}; give positions "
            "in its class_names."
        )
    logits = _batched_logits(teacher, images)
    soft = _softmax(logits / (temperature or teacher.temperature)).astype(np.float32)
    # Of the logits: rounded probabilities can be equal where logits are not.
    return soft[np.arange(len(labels)), labels], logits.argmax(1)


def features(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """What goes into the last linear layer for each image.

    Args:
        teacher: The inputs of its ``head`` are the features.
        images: uint8 ``[N, H, W, 1 or 3]`` of any size; N may be 0.

    Returns:
        float32 ``[N, F]``.
    """
    inputs: list[np.ndarray] = []
    handle = teacher.head.register_forward_pre_hook(
        lambda module, given: inputs.append(given[0].detach().flatten(1).float().cpu().numpy())
    )
    try:
        _batched_logits(teacher, images)
    finally:
        handle.remove()
    return np.concatenate(inputs) if inputs else np.empty((0, teacher.head.in_features), np.float32)


def labeller(teacher: Teacher, temperature: float | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from augmented batches ``[B, C, S, S]`` to soft labels ``[B, K]``, as ``train_student`` takes one.

    Args:
        teacher: Gives the labels.
        temperature: What logits are divided by; None: the calibrated temperature.
    """
    divisor = temperature or teacher.temperature

    def label(batch: torch.Tensor) -> torch.Tensor:
        return (teacher.logits(batch).float() / divisor).softmax(1).to(batch.device)

    return label


def train_teacher(
    train: LabelledImages,
    validation: LabelledImages,
    class_names: Sequence[str],
    settings: TeacherSettings,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[bytes, dict[str, Any]]:
    """Train a teacher on the train split and calibrate it on the validation part.

    Args:
        train: Real training images at their stored size.
        validation: Held-out part of the train split, likewise.
        class_names: Names of the K classes by position.
        settings: Recipe.
        seed: Seed of weights, batches and augmentation.
        device: Torch device to train on.
        progress: Told of every fiftieth step.

    Returns:
        Weights as a safetensors file, and the record that :func:`load_teacher` reads beside them: class_names,
        image_size, channels, temperature, accuracy, class_accuracy (fractions, held out), n_validation, recipe, bytes.

    Raises:
        TeacherError: There are no held-out images, or the outputs answer to other classes than their own.
        DatasetError: The images cannot be trained on.
    """
    _require_validation(validation)
    weights, record = train_network(train, class_names, settings, seed=seed, device=device, progress=progress)
    trained = load_teacher(record, weights, class_names, device=device)
    return weights, record | _check_and_calibrate(trained, validation, range(len(class_names)))


def train_network(
    train: LabelledImages,
    class_names: Sequence[str],
    settings: TeacherSettings,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[bytes, dict[str, Any]]:
    """Train a network on training images alone; it is neither calibrated nor checked, and nothing held out is looked at.

    Args:
        train: Real training images at their stored size.
        class_names: Names of the K classes by position.
        settings: Recipe.
        seed: Seed of weights, batches and augmentation.
        device: Torch device to train on.
        progress: Told of every fiftieth step.

    Returns:
        Weights as a safetensors file, and the record that :func:`load_teacher` reads beside them, at temperature 1.

    Raises:
        DatasetError: The images cannot be trained on.
    """
    from safetensors.torch import save

    height, width, channels = train.images.shape[1:]
    side = settings.image_size or student_image_size(StudentSettings(), height, width)
    recipe = settings.model_dump(mode="json", exclude={"checkpoint", "image_size"})
    network = train_student(
        train.resized(side, channels),
        StudentSettings(**recipe),
        n_classes=len(class_names),
        seed=seed,
        device=device,
        progress=progress,
    )
    weights = save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()})
    record: dict[str, Any] = {
        "kind": "trained",
        "class_names": list(class_names),
        "image_size": side,
        "channels": channels,
        "temperature": 1.0,
        "bytes": len(weights),
        "recipe": recipe | {"seed": seed, "optimizer": "AdamW, cosine to 0", "augmentation": vars(AUGMENTATION).copy()},
    }
    return weights, record


def use_checkpoint(
    checkpoint: Checkpoint, validation: LabelledImages, class_names: Sequence[str], *, device: str = "cpu"
) -> dict[str, Any]:
    """Take a ``transformers`` image classifier as teacher: order its outputs by name, check them, calibrate it.

    Args:
        checkpoint: Where it is.
        validation: Held-out part of the train split.
        class_names: Names of the K classes by position.
        device: Torch device to run on.

    Returns:
        The record that :func:`load_teacher` reads, as from :func:`train_teacher`; ``outputs`` says which output stands
        for each class.

    Raises:
        TeacherError: The checkpoint cannot be loaded, does not name the classes, or its outputs answer to other classes
            than those they are named after; the message shows both orders.
    """
    _require_validation(validation)
    outputs = match_outputs(checkpoint.output_names, class_names)
    record: dict[str, Any] = {
        "kind": "checkpoint",
        "class_names": list(class_names),
        "outputs": outputs,
        "image_size": checkpoint.image_size,
        "channels": int(checkpoint.config.get("num_channels", 3)),
        "temperature": 1.0,
        "bytes": checkpoint.bytes,
        "path": str(checkpoint.path),
        "fingerprint": checkpoint.fingerprint,
        "recipe": {"checkpoint": checkpoint.path.name, "model": checkpoint.config.get("model_type", "unknown")},
    }
    return record | _check_and_calibrate(_teacher_of_checkpoint(checkpoint, record, device), validation, outputs)


def probe_features(
    checkpoint: Checkpoint, train: LabelledImages, class_names: Sequence[str], *, device: str = "cpu"
) -> tuple[bytes, dict[str, Any]]:
    """A linear classifier on the frozen features of a ``transformers`` vision model, of training images alone.

    Args:
        checkpoint: The vision model.
        train: Real training images at their stored size.
        class_names: Names of the K classes by position.
        device: Torch device to run on.

    Returns:
        The classifier's weights as a safetensors file, and the record that :func:`load_teacher` reads beside them, at
        temperature 1. Its :func:`features` are those of the vision model, each brought to zero mean and unit deviation.

    Raises:
        TeacherError: The checkpoint cannot be loaded.
    """
    from safetensors.numpy import save

    config = checkpoint.config.get("vision_config") or checkpoint.config
    record: dict[str, Any] = {
        "kind": "frozen features",
        "class_names": list(class_names),
        "image_size": checkpoint.image_size,
        "channels": int(config.get("num_channels", 3)),
        "temperature": 1.0,
        "path": str(checkpoint.path),
        "fingerprint": checkpoint.fingerprint,
        "recipe": {"features": checkpoint.path.name, "model": checkpoint.config.get("model_type", "unknown")},
    }
    seen = _prepared(checkpoint, load_features(checkpoint, device), device)
    found = _in_batches(train.images, record["image_size"], record["channels"], lambda batch: seen(batch.to(device)))
    stored = save(vars(LinearProbe.fit(found, train.labels, len(class_names))).copy())
    return stored, record | {"bytes": len(stored)}


def load_teacher(
    record: Mapping[str, Any], weights: bytes | None, class_names: Sequence[str], *, device: str = "cpu"
) -> Teacher:
    """Load a teacher that :func:`train_teacher`, :func:`use_checkpoint` or :func:`probe_features` described.

    Args:
        record: Its record.
        weights: Its safetensors file; None for a checkpoint, whose files stay where they are.
        class_names: Names of the K classes by position, which have to be those of the record.
        device: Torch device to run on.

    Raises:
        TeacherError: It was made for other classes or in another order, or its files are damaged or have changed.
    """
    import torch
    from safetensors.torch import load

    if list(class_names) != list(record["class_names"]):
        raise TeacherError(
            f"the teacher's classes are {listed(record['class_names'])}; the dataset's are {listed(class_names)}. "
            "Make the teacher anew with `d3m distill`."
        )
    if record["kind"] == "checkpoint":
        return _teacher_of_checkpoint(_unchanged_checkpoint(record, "teacher.checkpoint"), record, device)
    if weights is None:
        raise TeacherError("a trained teacher needs its weights; give the file teacher.safetensors.")
    if record["kind"] == "frozen features":
        return _teacher_of_features(_unchanged_checkpoint(record, "selection.features"), record, weights, device)
    settings = StudentSettings(width=record["recipe"]["width"])
    with torch.random.fork_rng(devices=[]):
        network = build_student(settings, len(class_names), record["channels"], record["image_size"])
    try:
        network.load_state_dict(load(weights))
    except Exception as error:  # safetensors and torch raise several kinds
        raise TeacherError(f"the teacher's weights do not fit its record: {error}. Run `d3m distill` again.") from error
    network = network.to(device).eval()
    return _described_teacher(network, _last_linear(network, len(class_names)), record, device)


def calibrated_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature at which the logits say best how sure one may be of them (Guo et al., arXiv 1706.04599, section 4.2).

    The targets are not 0 and 1 but (n + 1) / (n + K) for the true class and 1 / (n + K) for the others, as Platt (1999)
    proposed: without an error on n images the likelihood alone would ask for a temperature of zero.

    Args:
        logits: float ``[n, K]`` on held-out images.
        labels: True class positions ``[n]``.

    Returns:
        Between 0.05 and 20.
    """
    from scipy.optimize import minimize_scalar

    n, k = logits.shape
    target = np.full((n, k), 1 / (n + k))
    target[np.arange(n), labels] = (n + 1) / (n + k)

    def loss(logarithm: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(logarithm)
        return float(-(target * (scaled - _log_sum_exp(scaled))).sum(axis=1).mean())

    low, high = (math.log(t) for t in _TEMPERATURES)
    return float(math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def _check_and_calibrate(teacher: Teacher, validation: LabelledImages, outputs: Sequence[int]) -> dict[str, Any]:
    """Check the order of the classes and calibrate, on held-out images."""
    logits, labels = _batched_logits(teacher, validation.images), validation.labels
    predictions = logits.argmax(1)
    check_order(predictions, labels, teacher.class_names, outputs)
    return {
        "temperature": calibrated_temperature(logits, labels),
        "accuracy": float((predictions == labels).mean()),
        "class_accuracy": class_accuracies(predictions, labels, len(teacher.class_names)),
        "n_validation": len(validation),
    }


def _require_validation(validation: LabelledImages) -> None:
    if validation.split != "validation":
        raise TeacherError("a teacher is examined on the validation part of the train split; give that, nothing else.")


def _described_teacher(
    forward: Callable[[torch.Tensor], torch.Tensor], head: torch.nn.Linear, record: Mapping[str, Any], device: str
) -> Teacher:
    """A teacher with the class names, input and temperature of its record."""
    return Teacher(
        forward=forward,
        head=head,
        class_names=tuple(record["class_names"]),
        image_size=int(record["image_size"]),
        channels=int(record["channels"]),
        device=device,
        temperature=float(record["temperature"]),
    )


def _unchanged_checkpoint(record: Mapping[str, Any], setting: str) -> Checkpoint:
    checkpoint = Checkpoint(Path(record["path"]), setting)
    if checkpoint.fingerprint != record["fingerprint"]:
        raise TeacherError(f"{checkpoint.path} is not what it was when it was checked; run `d3m distill` again.")
    return checkpoint


def _teacher_of_checkpoint(checkpoint: Checkpoint, record: Mapping[str, Any], device: str) -> Teacher:
    model = load_classifier(checkpoint).to(device)
    outputs = list(record["outputs"])
    forward = _prepared(checkpoint, lambda pixels: model(pixel_values=pixels).logits[:, outputs], device)
    return _described_teacher(forward, _last_linear(model, len(checkpoint.output_names)), record, device)


def _teacher_of_features(checkpoint: Checkpoint, record: Mapping[str, Any], weights: bytes, device: str) -> Teacher:
    import torch
    from safetensors.torch import load

    probe = {name: tensor.to(device) for name, tensor in load(weights).items()}
    outputs, width = probe["weight"].shape
    with torch.random.fork_rng(devices=[]):
        head = torch.nn.Linear(width, outputs)
    head.load_state_dict({name: probe[name] for name in ("weight", "bias")})
    head = head.to(device).eval().requires_grad_(False)
    seen = _prepared(checkpoint, load_features(checkpoint, device), device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return head((seen(images) - probe["mean"]) / probe["deviation"])

    return _described_teacher(forward, head, record, device)


def _prepared(
    checkpoint: Checkpoint, network: Callable[[torch.Tensor], torch.Tensor], device: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A network of a checkpoint, from images in 0..1."""
    scale, mean, deviation = checkpoint.pixel_normalization()
    means, deviations = (_channel_values(values, device) for values in (mean, deviation))
    return lambda images: network((images * scale - means) / deviations)


def _channel_values(values: float | Sequence[float], device: str) -> torch.Tensor:
    """float32 ``[1, channels, 1, 1]``, or one value for all channels ``[1, 1, 1, 1]``."""
    import torch

    return torch.as_tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)


def _batched_logits(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """float32 ``[N, K]`` of uint8 images."""
    if not len(images):
        return np.empty((0, len(teacher.class_names)), np.float32)
    return _in_batches(images, teacher.image_size, teacher.channels, teacher.logits)


def _in_batches(
    images: np.ndarray, side: int, channels: int, network: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """What a network gives for uint8 images, float32 ``[N, ...]``, in batches of fixed size on one thread."""
    import torch

    batches = []
    with one_thread(), torch.no_grad():
        for start in range(0, len(images), BATCH):
            batch = resize_to_square(images[start : start + BATCH], side, channels)
            batches.append(network(as_tensor(batch)).float().cpu().numpy())
    return np.concatenate(batches)


def _last_linear(network: torch.nn.Module, n_outputs: int) -> torch.nn.Linear:
    from torch import nn

    for module in reversed(list(network.modules())):
        if isinstance(module, nn.Linear) and module.out_features == n_outputs:
            return module
    raise TeacherError(f"the teacher {type(network).__name__} does not end in a linear layer, so it has no features.")


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return np.exp(wide - _log_sum_exp(wide))


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1, keepdims=True)
    return highest + np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
