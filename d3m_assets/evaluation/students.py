"""Students: the small classifiers that say what a training set is worth.

Every row of a table is trained by the one recipe below: the same network, number of steps, batch size,
augmentation and optimizer, whether the training set holds ten images or a million; the weights of the last
step are the result. The networks are in ``architectures.py``, the augmentations in ``augmentation.py``, the recipes by name
in ``RECIPES`` of the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.compute.devices import one_thread
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.architectures import as_tensor, build_student
from d3m_assets.evaluation.augmentation import AUGMENTATION, Augmentation, affine_warp, cutmix, random_resized_crop
from d3m_assets.evaluation.stacking import can_stack, stack_networks, unstack_networks
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.settings import StudentSettings

    Labeller = Callable[[torch.Tensor], torch.Tensor]

CODE_VERSION = "2"
"""Raised whenever a change here changes the accuracy of a student."""


def student_image_size(settings: StudentSettings, height: int, width: int) -> int:
    """Side in px of the student's input for a dataset stored at ``height`` x ``width`` px.

    ``settings.image_size`` when given; otherwise the shorter stored side rounded up to a multiple of 8, at
    least 16 and at most 64.
    """
    return settings.image_size or min(64, max(16, math.ceil(min(height, width) / 8) * 8))


def train_student(
    train: LabelledImages,
    settings: StudentSettings,
    *,
    n_classes: int,
    seed: int,
    device: str = "cpu",
    augmentation: Augmentation = AUGMENTATION,
    labeller: Labeller | None = None,
    progress: Progress = silent,
) -> torch.nn.Module:
    """Train one student: :func:`train_students` with a single training set and seed."""
    return train_students(
        [train],
        settings,
        n_classes=n_classes,
        seeds=[seed],
        device=device,
        augmentation=augmentation,
        labeller=labeller,
        progress=progress,
    )[0]


def train_students(
    training_sets: Sequence[LabelledImages],
    settings: StudentSettings,
    *,
    n_classes: int,
    seeds: Sequence[int],
    device: str = "cpu",
    augmentation: Augmentation = AUGMENTATION,
    labeller: Labeller | None = None,
    progress: Progress = silent,
) -> list[torch.nn.Module]:
    """Train students for ``settings.steps`` steps, all of them together, and return their last weights.

    The loss is the cross-entropy with the labels: hard ones, the soft ones stored with the training set, or those that
    ``labeller`` gives to each batch after its augmentation.

    Batches run through reshuffled epochs without replacement; a training set smaller than a batch appears in it
    several times, each time under another augmentation. With CutMix (Yun et al., ICCV 2019) the loss weighs both
    labels of an image by their shares of its area. All random numbers come from the CPU and the student's seed, so a
    seed gives the same student on one machine and version of torch; which others it is trained with changes the
    rounding of sums and nothing else.

    Args:
        training_sets: One for each student; their sides are the students' input side.
        settings: Recipe, the same for every row of a table.
        n_classes: Number of classes K; a class without an image is allowed.
        seeds: Of weights, batches and augmentation, one for each student.
        device: Torch device to train on.
        augmentation: Limits of the random affine maps; without effect on crops.
        labeller: From augmented batches, float ``[B, C, S, S]`` in 0..1 on ``device``, to probabilities ``[B, K]``;
            takes the place of all stored labels.
        progress: Told of every fiftieth step.

    Returns:
        Trained modules in evaluation mode, on ``device``, in the order of the training sets.

    Raises:
        DatasetError: If the images are not square or not of one size, belong to the test split, a label is outside
            0..K-1, or soft labels are not of K classes.
    """
    for train in training_sets:
        _check_trainable(train, n_classes)
    if len({train.images.shape[1:] for train in training_sets}) > 1:
        raise DatasetError("students that train together take images of one size; call LabelledImages.resized first.")
    students = list(zip(training_sets, seeds, strict=True))
    groups = [students] if can_stack(settings) else [[student] for student in students]
    networks: list[torch.nn.Module] = []
    for position, group in enumerate(groups):
        report = _as_part(progress, position, len(groups))
        networks += _train_stack(group, settings, n_classes, device, augmentation, labeller, report)
    return networks


def _train_stack(
    members: Sequence[tuple[LabelledImages, int]],
    settings: StudentSettings,
    n_classes: int,
    device: str,
    augmentation: Augmentation,
    labeller: Labeller | None,
    progress: Progress,
) -> list[torch.nn.Module]:
    """Train students of the given training sets and seeds in the same passes; a single one is not stacked."""
    import torch

    with one_thread(), torch.random.fork_rng(devices=[]):
        students = [_Student(train, settings, n_classes, seed, device, augmentation) for train, seed in members]
        networks = [student.network for student in students]
        model = stack_networks(networks) if len(networks) > 1 else networks[0]
        optimizer, schedule = _optimizer_and_schedule(model, settings)
        detail = f"seed {', '.join(str(seed) for seed in dict.fromkeys(seed for _, seed in members))}"
        for step in range(1, settings.steps + 1):
            batches = [student.next_batch(labelled=labeller is None) for student in students]
            if labeller is not None:
                targets = labeller(torch.cat([batch.images for batch in batches])).split(settings.batch_size)
                batches = [replace(batch, targets=target) for batch, target in zip(batches, targets, strict=True)]
            # Stacked networks take their images side by side in the channels.
            stacked_images = torch.cat([batch.images for batch in batches], 1)
            logits = model(stacked_images).view(settings.batch_size, len(batches), -1)
            losses = [batch.loss(own) for batch, own in zip(batches, logits.unbind(1), strict=True)]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0 or step == settings.steps:
                progress(ProgressEvent("student", step, settings.steps, detail))
        if len(networks) > 1:
            unstack_networks(model, networks)
        return [network.eval() for network in networks]


def _as_part(progress: Progress, position: int, count: int) -> Progress:
    """Report the progress of one of ``count`` equal parts as progress of the whole."""

    def report(event: ProgressEvent) -> None:
        progress(replace(event, done=position * event.total + event.done, total=count * event.total))

    return report


def _check_trainable(train: LabelledImages, n_classes: int) -> None:
    height, width = train.images.shape[1:3]
    if train.split == "test":
        raise DatasetError("a student was given the test split to train on; use train or synthetic images.")
    if height != width:
        raise DatasetError(f"students take squares, not {height} x {width}; call LabelledImages.resized first.")
    if train.labels.min() < 0 or train.labels.max() >= n_classes:
        raise DatasetError(
            f"labels run from {train.labels.min()} to {train.labels.max()} for {n_classes} classes; "
            "labels are positions in the table of classes, not class ids."
        )
    soft = train.probabilities
    if soft is not None and soft.shape[1] != n_classes:
        raise DatasetError(f"soft labels are of {soft.shape[1]} classes, the student of {n_classes}; label them anew.")


@dataclass(frozen=True)
class _Batch:
    """Augmented images with their targets; where images were mixed, the targets and area share of both sources.

    Attributes:
        images: float ``[B, C, S, S]`` in 0..1.
        targets: Class positions int64 ``[B]`` or probabilities float ``[B, K]``; None until a labeller gives them.
        mixed_targets: Targets of the images that boxes were taken from by CutMix; None without CutMix.
        share: Share of the area that shows ``targets``.
    """

    images: torch.Tensor
    targets: torch.Tensor | None
    mixed_targets: torch.Tensor | None = None
    share: float = 1.0

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        assert self.targets is not None
        loss = F.cross_entropy(logits, self.targets)
        if self.mixed_targets is not None:
            loss = self.share * loss + (1 - self.share) * F.cross_entropy(logits, self.mixed_targets)
        return loss


class _Student:
    """A student in training: its network, its training set on the device, and the random numbers of its seed."""

    def __init__(
        self,
        train: LabelledImages,
        settings: StudentSettings,
        n_classes: int,
        seed: int,
        device: str,
        augmentation: Augmentation,
    ) -> None:
        import torch

        n, side, _, channels = train.images.shape
        torch.manual_seed(seed)
        self.network = build_student(settings, n_classes, channels, side).to(device).train()
        self._generator = torch.Generator().manual_seed(seed)
        self._images = as_tensor(train.images).to(device)
        soft = train.probabilities
        targets = train.labels.astype(np.int64) if soft is None else soft.astype(np.float32)
        self._targets = torch.from_numpy(targets).to(device)
        self._settings, self._augmentation = settings, augmentation
        self._indices = _batch_indices(n, settings.batch_size, settings.steps, self._generator)

    def next_batch(self, *, labelled: bool) -> _Batch:
        """Augmented images of the next step, with the stored targets if ``labelled``."""
        import torch

        settings, generator = self._settings, self._generator
        index = next(self._indices).to(self._images.device)
        images = self._images[index]
        if settings.augmentation == "affine":
            images = affine_warp(images, self._augmentation, generator, flip=settings.flip)
        elif settings.augmentation == "crop":
            images = random_resized_crop(images, generator, flip=settings.flip)
        partner, share = None, 1.0
        if settings.cutmix and float(torch.rand((), generator=generator)) < settings.cutmix:
            images, partner, share = cutmix(images, generator)
        if not labelled:
            return _Batch(images, None)  # a labeller sees the mixed image itself
        targets = self._targets[index]
        return _Batch(images, targets, None if partner is None else targets[partner], share)


def evaluate(module: torch.nn.Module, data: LabelledImages, *, batch_size: int = 512) -> np.ndarray:
    """Return the predicted class positions, int64 ``[N]``, of images as large as those trained on."""
    import torch

    device = next(module.parameters()).device
    with one_thread(), torch.inference_mode():
        chunks = np.array_split(data.images, math.ceil(len(data) / batch_size))
        logits = [module(as_tensor(chunk).to(device)) for chunk in chunks]
        return torch.cat(logits).argmax(1).cpu().numpy().astype(np.int64)


def class_accuracies(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> list[float]:
    """Accuracy (fraction) on each class, by position; NaN for a class without an image."""
    correct = np.bincount(labels, weights=predictions == labels, minlength=n_classes)
    count = np.bincount(labels, minlength=n_classes)
    return [float(right / total) if total else math.nan for right, total in zip(correct, count, strict=True)]


def _batch_indices(n: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield ``steps`` index tensors of ``batch_size``, cut from one endless stream of shuffled epochs."""
    import torch

    stream = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(stream) < batch_size:
            stream = torch.cat([stream, torch.randperm(n, generator=generator)])
        yield stream[:batch_size]
        stream = stream[batch_size:]


def _optimizer_and_schedule(model: torch.nn.Module, settings: StudentSettings) -> tuple[torch.optim.Optimizer, Any]:
    """Optimizer and learning rate schedule of a recipe."""
    from torch import optim

    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizer: optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = optim.AdamW(model.parameters(), fused=True, **options)
    else:
        optimizer = optim.SGD(model.parameters(), momentum=0.9, fused=True, **options)
    if settings.schedule == "cosine":
        return optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    drops = [2 * settings.steps // 3, 5 * settings.steps // 6]
    return optimizer, optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.2)
