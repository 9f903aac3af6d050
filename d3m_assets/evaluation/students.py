"""Students: the small classifiers that say what a training set is worth.

Every row of a table is trained by the one recipe below: the same network, number of steps, batch size,
augmentation and optimiser, whether the training set holds ten images or a million; the weights of the last
step are the result. The networks are in ``architectures.py``, the recipes by name in ``settings.RECIPES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import DatasetError
from d3m_assets.evaluation.architectures import as_tensor, build_student
from d3m_assets.evaluation.stacking import stacked, stacks, unstack
from d3m_assets.progress import Progress, ProgressEvent, silent
from d3m_assets.workers import one_thread

if TYPE_CHECKING:
    import torch

    from d3m_assets.evaluation.settings import StudentSettings


CODE_VERSION = "2"
"""Raised whenever a change here changes the accuracy of a student."""


@dataclass(frozen=True)
class Augmentation:
    """Random affine map drawn anew for every image of every batch.

    Brightness and contrast are left alone on purpose: the instance normalisation of ConvNet-3 cancels both.

    Attributes:
        rotation: Largest rotation, in degrees, either way.
        scale: Largest relative change of size; width and height are drawn separately.
        shear: Largest horizontal shear, as a fraction of the height.
        translation: Largest shift, as a fraction of the side.
    """

    rotation: float = 15.0
    scale: float = 0.15
    shear: float = 0.15
    translation: float = 0.1


AUGMENTATION = Augmentation()
CROP = {"area": (0.5, 1.0), "aspect": (3 / 4, 4 / 3)}
"""Limits of random crops: share of the area that is kept, and width by height."""


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
    labeller: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: Progress = silent,
) -> torch.nn.Module:
    """Train one student: :func:`train_students` with a single training set and seed."""
    return train_students(
        [train], settings, n_classes=n_classes, seeds=[seed], device=device, augmentation=augmentation, labeller=labeller,
        progress=progress,
    )[0]  # fmt: skip


def train_students(
    training_sets: Sequence[LabelledImages],
    settings: StudentSettings,
    *,
    n_classes: int,
    seeds: Sequence[int],
    device: str = "cpu",
    augmentation: Augmentation = AUGMENTATION,
    labeller: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: Progress = silent,
) -> list[torch.nn.Module]:
    """Train students for ``settings.steps`` steps, all of them together, and return their last weights.

    The loss is the cross-entropy with the labels: hard ones, the soft ones stored with the training set, or those that
    ``labeller`` gives to each batch after its augmentation.

    Batches run through reshuffled epochs without replacement; a training set smaller than a batch appears in it
    several times, each time under another augmentation. With CutMix (Yun et al., ICCV 2019) the loss weighs both
    labels of an image by their shares of its area. Everything random is drawn on the CPU from the student's seed, so a
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
    import torch

    for train in training_sets:
        _check_trainable(train, n_classes)
    if len({train.images.shape[1:] for train in training_sets}) > 1:
        raise DatasetError("students that train together take images of one size; call LabelledImages.fitted first.")
    if len(training_sets) > 1 and not stacks(settings):
        return [
            train_student(
                train, settings, n_classes=n_classes, seed=seed, device=device, augmentation=augmentation,
                labeller=labeller, progress=_part_of(progress, position, len(seeds)),
            )
            for position, (train, seed) in enumerate(zip(training_sets, seeds, strict=True))
        ]  # fmt: skip
    with one_thread(), torch.random.fork_rng(devices=[]):
        learners = [
            _Learner(train, settings, n_classes, seed, device, augmentation)
            for train, seed in zip(training_sets, seeds, strict=True)
        ]
        networks = [learner.network for learner in learners]
        joined = stacked(networks) if len(networks) > 1 else networks[0]
        optimiser, schedule = _optimiser(joined, settings)
        shown = f"seed {', '.join(str(seed) for seed in dict.fromkeys(seeds))}"
        for step in range(1, settings.steps + 1):
            batches = [learner.next_batch(labelled=labeller is None) for learner in learners]
            if labeller is not None:
                told = labeller(torch.cat([batch.images for batch in batches])).split(settings.batch_size)
                batches = [replace(batch, targets=target) for batch, target in zip(batches, told, strict=True)]
            logits = joined(torch.cat([batch.images for batch in batches], 1)).view(
                settings.batch_size, len(batches), -1
            )
            losses = [batch.loss(own) for batch, own in zip(batches, logits.unbind(1), strict=True)]
            optimiser.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0 or step == settings.steps:
                progress(ProgressEvent("student", step, settings.steps, shown))
        if len(networks) > 1:
            unstack(joined, networks)
        return [network.eval() for network in networks]


def _part_of(progress: Progress, position: int, count: int) -> Progress:
    """Progress of one of several students as that of all."""

    def report(event: ProgressEvent) -> None:
        progress(replace(event, done=position * event.total + event.done, total=count * event.total))

    return report


def _check_trainable(train: LabelledImages, n_classes: int) -> None:
    height, width = train.images.shape[1:3]
    if train.split == "test":
        raise DatasetError("a student was given the test split to train on; use train or synthetic images.")
    if height != width:
        raise DatasetError(f"students take squares, not {height} x {width}; call LabelledImages.fitted first.")
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
    """Augmented images, what they show, and what was mixed into them."""

    images: torch.Tensor
    targets: torch.Tensor | None
    mixed_in: torch.Tensor | None = None
    share: float = 1.0

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        assert self.targets is not None
        loss = F.cross_entropy(logits, self.targets)
        if self.mixed_in is not None:
            loss = self.share * loss + (1 - self.share) * F.cross_entropy(logits, self.mixed_in)
        return loss


class _Learner:
    """One student: its untrained network, its training set, and the stream of random numbers that its seed begins."""

    def __init__(self, train: LabelledImages, settings: StudentSettings, n_classes: int, seed: int, device: str,
                 augmentation: Augmentation) -> None:  # fmt: skip
        import torch

        n, side, _, channels = train.images.shape
        torch.manual_seed(seed)
        self.network = build_student(settings, n_classes, channels, side).to(device).train()
        self._draw = torch.Generator().manual_seed(seed)
        self._images = as_tensor(train.images).to(device)
        soft = train.probabilities
        stored = train.labels.astype(np.int64) if soft is None else soft.astype(np.float32)
        self._labels = torch.from_numpy(stored).to(device)
        self._settings, self._augmentation = settings, augmentation
        self._batches = _batches(n, settings.batch_size, settings.steps, self._draw)

    def next_batch(self, *, labelled: bool) -> _Batch:
        """The next step's images; their labels too, unless somebody else gives them."""
        import torch

        settings, draw = self._settings, self._draw
        index = next(self._batches).to(self._images.device)
        images = self._images[index]
        if settings.augmentation == "affine":
            images = _warp(images, self._augmentation, draw, flip=settings.flip)
        elif settings.augmentation == "crop":
            images = _crop(images, draw, flip=settings.flip)
        partner, share = None, 1.0
        if settings.cutmix and float(torch.rand((), generator=draw)) < settings.cutmix:
            images, partner, share = _cutmix(images, draw)
        if not labelled:
            return _Batch(images, None)  # a teacher sees the mixed image itself
        targets = self._labels[index]
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
    right = np.bincount(labels, weights=predictions == labels, minlength=n_classes)
    count = np.bincount(labels, minlength=n_classes)
    return [float(r / c) if c else math.nan for r, c in zip(right, count, strict=True)]


def _batches(n: int, batch_size: int, steps: int, draw: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield ``steps`` index tensors of ``batch_size``, cut from one endless stream of shuffled epochs."""
    import torch

    stream = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(stream) < batch_size:
            stream = torch.cat([stream, torch.randperm(n, generator=draw)])
        yield stream[:batch_size]
        stream = stream[batch_size:]


def _optimiser(model: torch.nn.Module, settings: StudentSettings) -> tuple[torch.optim.Optimizer, Any]:
    """Optimiser and learning rate schedule of a recipe."""
    from torch import optim

    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimiser: optim.Optimizer
    if settings.optimiser == "adamw":
        optimiser = optim.AdamW(model.parameters(), fused=True, **options)
    else:
        optimiser = optim.SGD(model.parameters(), momentum=0.9, fused=True, **options)
    if settings.schedule == "cosine":
        return optimiser, optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    drops = [2 * settings.steps // 3, 5 * settings.steps // 6]
    return optimiser, optim.lr_scheduler.MultiStepLR(optimiser, drops, gamma=0.2)


def _crop(images: torch.Tensor, draw: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Cut a random rectangle out of each image and stretch it to the whole, bilinearly."""
    import torch
    from torch.nn import functional as F

    n = len(images)
    area, aspect, x, y, mirror = torch.rand(5, n, generator=draw)
    (least, most), (narrow, wide) = CROP["area"], CROP["aspect"]
    area = least + area * (most - least)
    aspect = torch.exp(math.log(narrow) + aspect * math.log(wide / narrow))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y, zero = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1), torch.zeros(n)
    if flip:
        width = width * torch.where(mirror < 0.5, -1.0, 1.0)
    theta = torch.stack([width, zero, x, zero, height, y]).T.reshape(n, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _cutmix(images: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Replace one random box of all images by that of others (Yun et al., ICCV 2019, algorithm 1, with α = 1).

    Returns:
        The images, the position each box comes from, and the share of the area that is still the image's own.
    """
    import torch

    height, width = images.shape[2:]
    share, x, y = torch.rand(3, generator=draw).tolist()
    cut = math.sqrt(1 - share) / 2
    top, bottom = max(0, round(height * (y - cut))), min(height, round(height * (y + cut)))
    left, right = max(0, round(width * (x - cut))), min(width, round(width * (x + cut)))
    partner = torch.randperm(len(images), generator=draw).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / (height * width)


def _warp(images: torch.Tensor, limits: Augmentation, draw: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Apply one random affine map to each image; what comes in from outside is black."""
    import torch
    from torch.nn import functional as F

    n = len(images)
    angle, wide, high, shear, x, y, mirror = torch.rand(7, n, generator=draw) * 2 - 1
    angle = angle * math.radians(limits.rotation)
    cos, sin = angle.cos(), angle.sin()
    wide, high, shear = 1 + wide * limits.scale, 1 + high * limits.scale, shear * limits.shear
    if flip:
        wide = wide * mirror.sign()
    # affine_grid maps output to input coordinates in -1..1, hence the factor 2 on shifts.
    theta = torch.stack(
        [
            wide * cos, wide * (shear * cos - sin), x * 2 * limits.translation,
            high * sin, high * (shear * sin + cos), y * 2 * limits.translation,
        ]
    )  # fmt: skip
    theta = theta.T.reshape(n, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
